"""A mistake in a recipe dies before any work, by name, with all its fellows, and with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.check import BESIDE, RecipeError, validate
from recipes.compose import from_yaml, load_recipe, to_yaml
from recipes.schema import Recipe


def refuse(*words: str) -> RecipeError:
    with pytest.raises(RecipeError) as refusal:
        load_recipe(["recipe=perceiver_all", *words])
    return refusal.value


WRONG = [
    ("train.stepz=3", "train.stepz: unknown key; did you mean train.steps?"),
    ("lr=3", "lr: unknown key; did you mean train.lr?"),
    ("batch=3", "batch: unknown key; did you mean backbones.batch or train.batch?"),
    ("trian.steps=3", "trian.steps: unknown key; did you mean train.steps?"),
    ("train.zero=1", "train.zero: unknown key; did you mean engine.zero?"),
    ("xyzzy=1", "xyzzy: unknown key"),
    ("train.steps.x=1", "train.steps: must be a whole number"),
    ("targets.vidoemae.special=[cls]", "targets.vidoemae: unknown target; did you mean targets.videomae?"),
    ("targets.vivit.licens=x", "targets.vivit.licens: unknown key; did you mean targets.vivit.licence?"),
    ("targets.other.special=[cls]", "targets.other.backbone: required"),
    ("targets.vivit=null", "targets.vivit: must be a section of keys, got null"),
    ("targets.vivit.backbone=null", "targets.vivit.backbone: must be text, got null"),
    ("targets.vivit.special=cls", 'targets.vivit.special: must be a list, as in [a,b], got "cls"'),
    ("targets.vivit.special=[3]", "targets.vivit.special.0: must be text, got 3"),
    ("targets.vivit.special=[cls,cls]", "targets.vivit.special: cls stands there 2 times"),
    ("targets.student.backbone=vivit", "targets.student: the store already has a folder of that name"),
    ("targets.2mae.backbone=vivit", "targets.2mae: it names a folder of the store; use letters, digits, _ and -"),
    ("train=3", "train: must be a section of keys, got 3"),
    ("train.steps=many", 'train.steps: must be a whole number, got "many"'),
    ("train.steps=true", "train.steps: must be a whole number, got true"),
    ("train.steps=1.0", "train.steps: must be a whole number, got 1.0"),
    ("train.steps=0", "train.steps: must be at least 1, got 0"),
    ("train.steps=null", "train.steps: must be a whole number, got null"),
    ("train.steps=[1]", "train.steps: must be a whole number, got [1]"),
    ("train.steps=", "train.steps: must be a whole number, got null"),
    ("train.seed=-1", "train.seed: must be at least 0, got -1"),
    ("train.lr=.nan", "train.lr: must be a finite number, got NaN"),
    ("train.lr=nan", 'train.lr: must be a number, got "nan"'),
    ("train.lr=1e999", "train.lr: must be a finite number, got Infinity"),
    ("train.lr=0", "train.lr: must be above 0, got 0"),
    ("train.lr=[1", "train.lr=[1: not a value"),
    ("train.lr=!!python/object:os.system x", "train.lr=!!python/object:os.system x: not a value"),
    ("train.warmup=2", "train.warmup: must be at most 1, got 2"),
    ("train.warmup=1", "train.warmup=1 is a share of train.steps=80"),
    ("train.min_lr=1", "train.min_lr=1 is above train.lr=0.001"),
    ("train.betas=[0.9]", "train.betas=[0.9] must be two numbers"),
    ("train.betas=[0.9,1.0]", "train.betas=[0.9, 1.0] must be two numbers"),
    ("train.accumulation=3", "train.batch=8 must divide by train.accumulation=3"),
    ("train.resume=auto", "train.resume=auto needs run.name"),
    ("train.resume=yes", "train.resume: must be one of 'no' or 'auto', got \"yes\""),
    ("run.name=a/b", "run.name=a/b must be one folder's name"),
    ("run.name=..", "run.name=.. must be one folder's name"),
    ("run.name=", "run.name: must not be empty"),
    ("run.name=a\udc80", "run.name='a\\udc80': not valid UTF-8"),
    ("data.max_refused=1.5", "data.max_refused: must be at most 1, got 1.5"),
    ("data.group=(", "data.group=( is not a regular expression"),
    ("data.group=^a", "data.group=^a captures nothing"),
    ("data.root=.", "data.root=. is not read with data=demo; add data=folder"),
    ("data.split=random", "data.split=random is not read with data=demo; add data=world"),
    ("data.split=randm", "data.split: must be one of 'combination' or 'random', got \"randm\"; did you mean random?"),
    ("data.difficulty=0.7", "data.difficulty=0.7 is not read with data=demo; add data=world"),
    ("data.difficulty=1.5", "data.difficulty: must be at most 1, got 1.5"),
    (
        "data.source=foldr",
        "data.source: must be one of 'demo', 'world', 'folder', 'csv', 'webdataset', 'store' or 'oracle', got "
        '"foldr"; did you mean folder?',
    ),
    ("store.codec=in8", "did you mean int8?"),
    ("evaluate.floors=[rdge]", "evaluate.floors.0: must be one of"),
    ("evaluate.floors=[ridge,ridge]", "evaluate.floors: ridge stands there 2 times"),
    ("evaluate.probes=[liner]", "evaluate.probes.0: must be one of 'linear' or 'attentive'"),
    ("evaluate.probes=[linear,linear]", "evaluate.probes: linear stands there 2 times"),
    (
        "backbones.weights=pretraind",
        "weights=pretraind is none of standin, pretrained, miniature, and no folder; did you mean pretrained?",
    ),
    ("student.weights=nowhere", "student.weights=nowhere is none of"),
    ("converter.options=3", "converter.options: must be a section of keys, got 3"),
    (
        "converter.options={width: 100, heads: 3}",
        "converter.options.width=100 must divide by converter.options.heads=3",
    ),
    ("converter.options.a=[.inf]", "converter.options.a.0=inf: must be a finite number"),
    ("objective={mse: 0, cosine: 0, gram: 0}", "objective: all of mse, smooth_l1, cosine, gram, moments are 0"),
    (
        "deficiency=low",
        "deficiency=low: unknown option 'low'; valid: combined, hard_rank, jacobian, low_rank, masking, none",
    ),
    ("deficiency.strength=0.1", "deficiency.kind: required; choose deficiency=low_rank, masking, jacobian, combined"),
    ("deficiency.kind=rank", "deficiency.kind: must be one of 'low_rank', 'masking', 'jacobian' or 'combined'"),
    ("engine.zero=3", "engine.zero: must be one of 0 or 1, got 3"),
    ("head={tasks: [label], per_class: [5, 0]}", "head.per_class.1: must be at least 1, got 0"),
    ("head={tasks: [label], per_class: [5, null, 5]}", "head.per_class: 5 stands there 2 times"),
    ("head={tasks: [label], per_class: []}", "head.per_class=[] leaves the head no label"),
    ("head.tasks=[label,label]", "head.tasks: label stands there 2 times"),
    ("head={tasks: [label], smoothing: 1}", "head.smoothing: must be below 1, got 1"),
    ("head={tasks: [label], rank: 0}", "head.rank: must be at least 1, got 0"),
    ("head.rank=4", "head: nothing is fitted without head.tasks; give head.tasks=[label]"),
    ("head={tasks: [label], pooling: attentive, separator: ;}", "head.pooling=attentive is learned with one label"),
    (
        "data=foldr",
        "unknown option 'foldr'; did you mean folder? valid: csv, demo, folder, oracle, store, webdataset, world",
    ),
    ("store.path=s3://bucket/store", "store.path is a URL: features are made on a disk"),
    ("store.cache=there", "store.cache and store.cache_gb are of a store behind a URL"),
    ("engine=[zero0,zero1]", "engine=[zero0,zero1]: choose one of zero0, zero1"),
    ("targets=[]", "targets=[]: unknown option ''"),
    ("recipe.x=1", "recipe.x: unknown key; recipe is a single value"),
    ("+train.seed=3", "+train.seed=3: write key=value, without +"),
    ("~train", "~train: write key=value, without ~"),
    ("foo", "'foo': not of the form key=value"),
    ("=3", "'=3': not of the form key=value"),
    ("--foo=3", "'--foo=3': not of the form key=value"),
    ("train.lr=" + "9" * 5000 + "e", "train.lr: must be a number, got"),
]


@pytest.mark.parametrize(("word", "problem"), WRONG, ids=[word[:40] for word, _ in WRONG])
def test_one_mistake_one_sentence(word: str, problem: str) -> None:
    refusal = refuse(word)
    assert len(refusal.problems) == 1, refusal.problems
    assert problem in refusal.problems[0] and len(refusal.problems[0]) < 300


CONTEST = [
    ("contest=[mambo]", "contest=[mambo]: unknown option 'mambo'; did you mean mamba? valid: dsconv, mamba"),
    ("contest=[]", "contest=[]: unknown option ''"),
    ("contest.perciever.options.width=3", "contest.perciever: unknown contestant; did you mean contest.perceiver?"),
    ("contest.perceiver.optoins.width=3", "did you mean contest.perceiver.options?"),
    ("contest.xyzzy.options.width=3", "contest.xyzzy.family: required"),
    ("contest.mamba=null", "contest.mamba: must be a section of keys, got null"),
    ("contest.mamba.skip=linar", "contest.mamba.skip: must be one of 'linear' or 'none', got \"linar\""),
    ("contest.2x.family=mamba", "contest.2x: it names a folder of the run; use letters, digits, _ and -"),
    ("contest.mlp.family=mlp", "contest.mlp: the name is a floor's or a twin's; choose another name"),
    ("contest.twin.family=mlp", "contest.twin: the name is a floor's or a twin's; choose another name"),
    ("contest.bundle.family=mamba", "contest.bundle: the name is that of a run's own folder; choose another name"),
    ("contest.mamba.options.a=[.inf]", "contest.mamba.options.a.0=inf: must be a finite number"),
    (
        "contest.dsconv.options={width: 100, heads: 3}",
        "contest.dsconv.options.width=100 must divide by contest.dsconv.options.heads=3",
    ),
    ("converter=mamba", "converter=mamba: contest_videomae chooses no converter, so there is none to replace"),
    ("converter.options.width=3", "converter: this recipe is a contest, and each contestant has a converter; write"),
    ("converter.family=mamba", "contest (perceiver, dsconv, mamba, tokenlearner) and converter (mamba) are both given"),
]


@pytest.mark.parametrize(("word", "problem"), CONTEST, ids=[word[:40] for word, _ in CONTEST])
def test_one_mistake_in_a_contest_one_sentence(word: str, problem: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        load_recipe(["recipe=contest_videomae", word])
    assert len(refusal.value.problems) == 1, refusal.value.problems
    assert problem in refusal.value.problems[0] and len(refusal.value.problems[0]) < 300


@pytest.mark.parametrize(
    ("kind", "word", "problem"),
    [
        ("low_rank", "deficiency.strength=-0.1", "deficiency.strength: must be at least 0, got -0.1"),
        ("low_rank", "deficiency.rank=0", "deficiency.rank: must be at least 1, got 0"),
        ("masking", "deficiency.ratio=1", "deficiency.ratio: must be below 1, got 1"),
        ("masking", "deficiency.ratio=1.0", "deficiency.ratio: must be below 1, got 1.0"),
        ("masking", "deficiency.strength=2", "deficiency.strength=2 and deficiency.ratio=0.5 hide every token"),
        ("combined", "deficiency.strength=3", "deficiency.strength=3 and deficiency.ratio=0.5 hide every token"),
        ("masking", "deficiency.rank=4", "deficiency.rank=4 is not read with deficiency.kind=masking; leave it out"),
        ("jacobian", "deficiency.ratio=0.1", "deficiency.ratio=0.1 is not read with deficiency.kind=jacobian"),
        ("low_rank", "deficiency.every=4", "deficiency.every=4 is not read with deficiency.kind=low_rank"),
        ("jacobian", "deficiency.every=0", "deficiency.every: must be at least 1, got 0"),
        ("jacobian", "deficiency.zero_until=0.5", "deficiency.zero_until=0.5 is after deficiency.full_from=0.4"),
        ("jacobian", "deficiency.strenth=0.5", "deficiency.strenth: unknown key; did you mean deficiency.strength?"),
    ],
)
def test_one_mistake_in_a_deficiency_one_sentence(kind: str, word: str, problem: str) -> None:
    (found,) = refuse(f"deficiency={kind}", word).problems
    assert problem in found


@pytest.mark.parametrize("url", ["https://me:secret@host/store", "https://host/store?token=secret"])
def test_a_secret_does_not_belong_in_a_recipe(url: str) -> None:
    (problem,) = refuse("data=store", f"store.path={url}").problems
    assert problem.startswith("store.path: a URL without user, password and query") and "secret" not in problem


def test_a_contestants_own_deficiency_is_checked_where_it_stands() -> None:
    with pytest.raises(RecipeError, match=r"contest\.mamba\.deficiency\.ratio: must be below 1, got 1"):
        load_recipe(["recipe=contest_vivit", "contest.mamba.deficiency={kind: masking, ratio: 1}"])


def test_a_contest_or_a_converter() -> None:
    assert refuse("contest=[mamba]").problems == [
        "contest=[mamba]: perceiver_all chooses no contest, so there is none to replace; take a recipe that does"
    ]
    (problem,) = refuse("contest.a.family=mamba", "contest.b.family=mamba").problems
    assert problem.startswith("contest (a, b) and converter (perceiver) are both given")
    text = to_yaml(load_recipe(["recipe=contest_vivit"]))
    head, _, tail = text.partition("contest:\n")
    with pytest.raises(RecipeError, match=r"has 1 problem:\n.*converter: required where there is no contest"):
        from_yaml(head + "contest: {}\nrun:" + tail.partition("\nrun:")[2])


def test_floors_are_those_of_the_schema() -> None:
    assert [*BESIDE] == [*load_recipe(["recipe=contest_vivit"]).evaluate.floors, "twin", "large", "shuffled_converter"]


def test_all_mistakes_at_once() -> None:
    words = [
        "train.stepz=3",
        "train.lr=-1",
        "targets.vidoemae.special=[cls]",
        "data=foldr",
        "foo",
        "train.accumulation=3",
    ]
    refusal = refuse(*words)
    expected = ["train.stepz", "train.lr", "targets.vidoemae", "data=foldr", "'foo'", "train.accumulation"]
    assert all(any(word in problem for problem in refusal.problems) for word in expected), refusal
    assert len(refusal.problems) == len(expected) and "recipe perceiver_all has 6 problems:" in str(refusal)
    assert isinstance(refusal, ValueError)


def test_no_rule_speaks_of_a_default_that_stands_in_for_a_wrong_value() -> None:
    assert len(refuse("train.batch=x", "train.accumulation=3").problems) == 1
    assert len(refuse("data=foldr", "data.root=nowhere").problems) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data=folder"], "data.root: required with data=folder"),
        (["data=folder", "data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["data=csv"], "data.csv: required with data=csv"),
        (["data=csv", "data.csv=no.csv"], "data.csv=no.csv: no such file"),
        (["data=webdataset"], "data.tars: required with data=webdataset"),
        (["data=webdataset", "data.tars=no.tar"], "data.tars=no.tar: no such file"),
        (
            ["data=webdataset", "data.tars=*.tar", "data.csv=a.csv"],
            "data.csv=a.csv is not read with data=webdataset; add data=csv",
        ),
    ],
)
def test_a_source_has_what_it_reads(words: list[str], problem: str) -> None:
    assert refuse(*words).problems == [text for text in refuse(*words).problems if problem in text]


def test_a_local_folder_of_weights(tmp_path: Path) -> None:
    recipe = load_recipe(["recipe=perceiver_all", f"backbones.weights={tmp_path}"])
    assert recipe.backbones.weights == str(tmp_path)


def test_unknown_recipe_and_none() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'perceiver_vidomae'; did you mean perceiver_videomae"):
        load_recipe(["recipe=perceiver_vidomae"])
    with pytest.raises(RecipeError, match=r"add recipe=NAME(.|\n)*perceiver_all(.|\n)*perceiver_vivit"):
        load_recipe(["train.steps=3"])
    with pytest.raises(RecipeError, match=r"no\.yaml.*cannot be read"):
        load_recipe(["recipe=no.yaml"])


def test_the_caller_adds_rules() -> None:
    rules = {"targets: no such backbone"}
    with pytest.raises(RecipeError, match=r"(?s)train\.stepz.*no such backbone"):
        load_recipe(["recipe=perceiver_all", "train.stepz=1"], also=lambda recipe: rules)
    assert load_recipe(["recipe=perceiver_all"], also=lambda recipe: ())


def test_no_text_of_a_recipe_runs_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    call = f'!!python/object/apply:os.mkdir ["{made}"]'
    (tmp_path / "recipe.yaml").write_text(f"recipe: x\ntrain: {call}\n")
    doors = (
        lambda: from_yaml(f"recipe: {call}"),
        lambda: load_recipe([f"recipe={tmp_path / 'recipe.yaml'}"]),
        lambda: load_recipe(["recipe=perceiver_all", f"train.lr={call}"]),
        lambda: load_recipe(["recipe=perceiver_all", f"converter.options={{a: {call}}}"]),
    )
    for door in doors:
        with pytest.raises(RecipeError):
            door()
    assert not made.exists()


@pytest.mark.parametrize("text", ["3", "[", "", "a: b", "!!python/object:os.system {}"])
def test_from_yaml_refuses(text: str) -> None:
    with pytest.raises(RecipeError):
        from_yaml(text)


@pytest.mark.parametrize(
    "targets", ["3", "[a]", "null", "{a: 3, b: {special: [x]}}", "{licence: {backbone: b, licence: 3}}"]
)
def test_targets_of_any_shape_are_refused_by_name(targets: str) -> None:
    with pytest.raises(RecipeError, match="targets"):
        from_yaml(f"recipe: x\ntargets: {targets}\nstudent: {{}}\n")


def test_required_sections_are_named() -> None:
    recipe, problems = validate({"recipe": "x"})
    assert recipe is None and len(problems) == 4
    assert "student: required" in " ".join(problems) and "targets: required" in " ".join(problems)


def test_wrong_keys_are_left_out_of_what_is_checked() -> None:
    tree = {
        "recipe": "x",
        "data": {"source": "demo"},
        "student": {"backbone": "a"},
        "targets": {"b": {"backbone": "b"}},
    }
    recipe, problems = validate(tree | {"converter": {"family": "f"}, "train": {"steps": 5, "lr": -1}})
    assert isinstance(recipe, Recipe) and recipe.train.steps == 5 and len(problems) == 1
    assert to_yaml(recipe).startswith("recipe: x\n")
    named = {"targets": {"licence": {"backbone": "b", "licence": 3, "special": ["a"]}}, "converter": {"family": "f"}}
    recipe, problems = validate(tree | named)
    assert len(problems) == 1 and recipe is not None and recipe.targets["licence"].special == ["a"]

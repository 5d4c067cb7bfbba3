"""Every recipe and every option in the repository composes; what a user types arrives unchanged or is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes.catalogue import FOLDER, find_groups, find_recipes, purpose
from recipes.check import RecipeError
from recipes.compose import describe, from_yaml, load_recipe, to_yaml
from recipes.contest import contestants
from recipes.schema import Recipe

RECIPES = sorted(find_recipes())
OPTIONS = [(group, option) for group, options in find_groups().items() for option in options]
NEEDED = {"folder": "data.root", "csv": "data.csv", "webdataset": "data.tars", "store": "store.path"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests run where nothing lies; what a recipe's loading leaves behind is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_yaml_file_is_a_recipe_or_an_option() -> None:
    on_disk = [file for file in FOLDER.rglob("*.y*ml")]
    assert len(on_disk) == len(RECIPES) + len(OPTIONS) > 0
    assert {"perceiver_videomae", "perceiver_timesformer", "perceiver_vivit", "perceiver_all"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes_and_survives_its_yaml(name: str) -> None:
    recipe = load_recipe([f"recipe={name}"])
    assert isinstance(recipe, Recipe) and recipe.recipe == name and recipe.targets
    assert from_yaml(to_yaml(recipe)) == recipe
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["defaults"][-1] == "_self_", "the groups' values would win over the recipe's"
    head = text.partition("defaults:")[0]
    for word in (f"recipe={name}\n", "hardware", "duration", "expect"):
        assert word in head, f"{name}.yaml opens without its {word.strip()}"
    assert "${" not in text, "an interpolation would be resolved before the command line's values are in"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group: str, option: str, tmp_path: Path) -> None:
    recipe = {"contest": "contest_videomae", "oracle": "oracle"}.get(group, "perceiver_videomae")
    recipe = "oracle" if option == "oracle" else recipe
    words = [f"recipe={recipe}", f"{group}={option}"]
    if option in NEEDED:
        there = tmp_path / "there"
        there.mkdir() if option == "folder" else there.touch()
        words.append(f"{NEEDED[option]}={there}")
    assert load_recipe(words) == load_recipe(words)
    assert purpose(find_groups()[group][option])


def test_order_command_line_over_recipe_over_group(tmp_path: Path) -> None:
    folder = tmp_path / "a b=c,d"
    shutil.copytree(FOLDER, folder)
    own = "# Mine.\ndefaults: [{data: demo}, {student: vjepa2}, {targets: [vivit]}, {converter: perceiver}, _self_]\n"
    (folder / "mine.yaml").write_text(own + "data: {clips: 7}\nstudent: {licence: mine}\ntrain: {steps: 3, lr: 1e-2}\n")
    (folder / "data" / "demo.yaml").write_text("# Demo.\nsource: demo\nclips: 5\nseed: 4\n")
    recipe = load_recipe(["recipe=mine", "train.steps=9"], folder=folder)
    assert (recipe.data.seed, recipe.data.clips, recipe.train.steps, recipe.train.lr) == (4, 7, 9, 0.01)
    assert recipe.student.licence == "mine" and recipe.student.checkpoint == "facebook/vjepa2-vitl-fpc64-256"


def test_a_teacher_is_added_with_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    shutil.copytree(FOLDER, folder)
    (folder / "targets" / "mine.yaml").write_text("# Mine.\nmine:\n  backbone: videomae\n  licence: MIT\n")
    recipe = load_recipe(["recipe=perceiver_videomae", "targets=[videomae,mine]"], folder=folder)
    assert list(recipe.targets) == ["videomae", "mine"] and recipe.targets["mine"].licence == "MIT"


@pytest.mark.parametrize("words", ["targets=[videomae,vivit]", "targets=videomae,vivit", "targets=[videomae, vivit]"])
def test_several_targets(words: str) -> None:
    assert list(load_recipe(["recipe=perceiver_all", words]).targets) == ["videomae", "vivit"]


PLACES = [
    "a b",
    "x=1",
    "a,b",
    "(a)",
    "[a]",
    "{a}",
    "ü-日本",
    "a'b",
    'a"b',
    "$x",
    "${oc.env:HOME}",
    "a#b",
    "a: b",
    "-",
    "1e-3",
    "~",
    "no",
]


@pytest.mark.parametrize("place", PLACES)
def test_any_path_works_unquoted(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir()
    recipe = load_recipe(["recipe=perceiver_videomae", "data=folder", f"data.root={place}", f"store.path={place}"])
    assert recipe.data.root == recipe.store.path == place
    assert from_yaml(to_yaml(recipe)) == recipe


def test_brace_pattern_quotes_home_and_null() -> None:
    words = ["recipe=perceiver_videomae", "data=webdataset"]
    assert load_recipe([*words, "data.tars=clips-{000..003}.tar"]).data.tars == "clips-{000..003}.tar"
    assert load_recipe([*words, "data.tars='c-{0..3}.tar'"]).data.tars == "c-{0..3}.tar"
    assert load_recipe([*words, "data.tars=~/c-*.tar"]).data.tars == str(Path.home() / "c-*.tar")
    assert load_recipe(["recipe=perceiver_videomae", "run.name=a", "run.name=null"]).run.name is None
    assert load_recipe(["recipe=perceiver_videomae", "train.resume=no"]).train.resume == "no"


def test_values_of_every_kind() -> None:
    words = ["train.lr=1e-2", "train.queries=null", "train.betas=[0.8,0.9]", "converter.options.direct=true"]
    words += [
        "converter.options.width=64",
        "converter.options.heads=4",
        "targets.videomae.special=[cls]",
        "engine=zero1",
    ]
    recipe = load_recipe(["recipe=perceiver_videomae", *words])
    assert (recipe.train.lr, recipe.train.queries, recipe.train.betas) == (0.01, None, [0.8, 0.9])
    assert recipe.engine.zero == 1
    assert recipe.converter.options == {"width": 64, "heads": 4, "direct": True} and recipe.targets[
        "videomae"
    ].special == ["cls"]
    assert from_yaml(to_yaml(recipe)) == recipe


@pytest.mark.parametrize("rank", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]])
def test_the_launchers_rank_is_passed_over(rank: list[str]) -> None:
    assert load_recipe(["recipe=perceiver_vivit", *rank]) == load_recipe([*rank, "recipe=perceiver_vivit"])


def test_a_written_recipe_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(["recipe=perceiver_all", "run.name=x", "train.lr=1e-5"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    again = load_recipe(["recipe=recipe.yaml", "train.steps=3", "data.root=null"])
    assert again.train.steps == 3 and again.train.lr == 1e-5
    again.train.steps = recipe.train.steps
    assert again == recipe
    assert yaml.safe_load(to_yaml(recipe))["train"]["lr"] == 1e-5, "another YAML 1.1 reader sees another number"


def test_nothing_is_left_behind(empty_folder: Path) -> None:
    first = load_recipe(["recipe=perceiver_videomae", "train.steps=3", "data=demo", "targets=[vivit]"])
    second = load_recipe(["recipe=perceiver_videomae"])
    first.train.betas.append(3.0)
    assert second.train.steps != 3 and list(second.targets) == ["videomae"] and len(second.train.betas) == 2
    assert not GlobalHydra.instance().is_initialized()
    assert list(empty_folder.iterdir()) == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_recipe(["--help", "--local_rank=0"], program="python -m shards.precompute")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("usage: python -m shards.precompute recipe=NAME")
    for name in RECIPES:
        assert f"{name} " in text and purpose(FOLDER / f"{name}.yaml") in text
    for group, option in OPTIONS:
        assert f"{group}=" in text and purpose(find_groups()[group][option]) in text
    assert "zero=0" in text and "seed=0" in text and "queries=512" in text and "betas=[0.9,0.99]" in text


@pytest.mark.parametrize("teacher", ["videomae", "timesformer", "vivit"])
def test_a_contest_is_of_all_families_as_they_are_alone(teacher: str) -> None:
    contest = load_recipe([f"recipe=contest_{teacher}"])
    assert list(contest.contest) == ["perceiver", "dsconv", "mamba", "tokenlearner"] and contest.converter is None
    assert set(contest.contest) == set(find_groups()["contest"]) == set(find_groups()["converter"])
    for family, own in contestants(contest).items():
        alone = load_recipe([f"recipe={family}_{teacher}"])
        assert own.recipe == f"contest_{teacher}_{family}"
        assert replace(own, recipe=alone.recipe) == alone
        assert from_yaml(to_yaml(own)) == own


def test_a_contest_of_some_and_of_ones_own() -> None:
    words = ["contest=[mamba,perceiver]", "contest.mamba.options.width=64", "contest.small.family=mamba"]
    recipe = load_recipe(["recipe=contest_videomae", *words])
    assert list(recipe.contest) == ["mamba", "perceiver", "small"]
    assert recipe.contest["mamba"].options == {"width": 64} and recipe.contest["small"].family == "mamba"
    assert "by mamba (skip linear), perceiver (skip linear), mamba (skip linear), weights" in describe(recipe)


def test_a_contestants_recipe_says_where_it_runs(tmp_path: Path) -> None:
    words = ["recipe=contest_vivit", "train.steps=3"]
    assert contestants(load_recipe(words))["mamba"].run == load_recipe(words).run, "a run of its own"
    own = contestants(load_recipe([*words, "run.dir=there", "run.name=first"]))["mamba"]
    assert (own.run.dir, own.run.name) == (str(Path("there") / "first"), "mamba")
    own = contestants(load_recipe([*words, "run.name=first"]))["mamba"]
    assert (own.run.dir, own.run.name) == (str(Path("runs") / "contest_vivit" / "first"), "mamba")
    plain = load_recipe(["recipe=mamba_vivit", "run.name=first"])
    assert contestants(plain) == {"converter": plain}
    (tmp_path / "recipe.yaml").write_text(to_yaml(own), encoding="utf-8")
    assert load_recipe(["recipe=recipe.yaml"]) == own


def test_a_deficiency_is_the_recipes_or_a_contestants_own() -> None:
    assert load_recipe(["recipe=perceiver_vivit"]).deficiency is None
    words = ["recipe=contest_vivit", "contest=[mamba,dsconv]", "deficiency=low_rank", "deficiency.strength=0.01"]
    own = contestants(load_recipe([*words, "contest.mamba.deficiency={kind: jacobian, every: 4}"]))
    assert own["dsconv"].deficiency.kind == "low_rank" and own["dsconv"].deficiency.strength == 0.01
    assert (own["mamba"].deficiency.kind, own["mamba"].deficiency.every) == ("jacobian", 4)
    assert all(from_yaml(to_yaml(recipe)) == recipe for recipe in own.values())


def test_describe() -> None:
    text = describe(load_recipe(["recipe=perceiver_all", "train.steps=7"]))
    assert "vjepa2 -> videomae, timesformer, vivit by perceiver" in text and "7 steps" in text


SECTIONS = [
    "train.steps",
    "train.lr",
    "run.name",
    "data.root",
    "targets.vivit.special",
    "converter.options",
    "x.y",
    "data",
]
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(TEXT, st.builds("{}={}".format, st.sampled_from(SECTIONS), TEXT)), max_size=4))
def test_whatever_is_typed_gives_a_recipe_or_a_refusal(words: list[str]) -> None:
    if "-h" in words:
        return
    try:
        recipe = load_recipe(["recipe=perceiver_vivit", *(word for word in words if not word.startswith("recipe="))])
    except RecipeError as error:
        assert error.problems
    else:
        assert from_yaml(to_yaml(recipe)) == recipe

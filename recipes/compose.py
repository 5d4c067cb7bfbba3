"""From a command line to a checked Recipe, and from a Recipe to plain YAML and back.

Hydra composes the recipe's YAML with the options chosen for its groups. The values typed on the command line are put
into the composed tree here, not through Hydra's grammar: where the schema wants text they are taken as they stand, so
that any path works unquoted, and everything else is read as YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.catalogue import FOLDER, find_groups, find_recipes, help_text, unknown
from recipes.check import RecipeError, Tree, check, shorten, validate
from recipes.contest import keyed_converters
from recipes.keys import is_text
from recipes.schema import Recipe

KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
MULTIPLE = ("contest", "targets")  # groups of which several options may be chosen
FLOAT = re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 that also knows 1e-3 for a number."""


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads back unchanged."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^{FLOAT.pattern}$"), list("-+0123456789"))


def _parse(text: str) -> Any:
    """The plain values of a YAML text. _Loader makes nothing else: a tag that names an object is an error."""
    return yaml.load(text, Loader=_Loader)


def load_recipe(
    argv: Sequence[str],
    *,
    program: str = "deepspeed distill/run.py",
    also: Callable[[Recipe], Iterable[str]] | None = None,
    folder: Path = FOLDER,
) -> Recipe:
    """The recipe that the arguments after the program's name ask for.

    argv: `recipe=NAME`, `group=option`, `key=value`; `--help` prints what there is and exits with 0; the launcher's
        `--local_rank=N` is passed over.
    program: the command as a user types it, for the usage line.
    also: the caller's own rules (backbones, families, ranks); its sentences join ours.
    folder: where recipes and groups stand.
    Raises RecipeError with every problem at once, before any work.
    """
    words = _drop_local_rank(argv)
    if {"--help", "-h"} & set(words):
        print(help_text(program, folder))
        raise SystemExit(0)
    pairs, problems = _split(words)
    name = pairs.pop("recipe", None)
    if name is None:
        raise RecipeError("no recipe chosen; add recipe=NAME", [*find_recipes(folder), *problems])
    if name.endswith((".yaml", ".yml")):
        tree = _read_file(Path(name).expanduser())
    else:
        tree = _compose(name, _take_groups(pairs, problems, folder), folder)
    for path, text in pairs.items():
        try:
            _assign(tree, path, _value(path, text))
        except ValueError as error:
            problems.append(str(error))
    return _checked(tree, problems, also)


def from_yaml(text: str) -> Recipe:
    """The recipe that to_yaml wrote. Raises RecipeError."""
    try:
        tree = _parse(text)
    except yaml.YAMLError as error:
        raise RecipeError("not a recipe", [f"YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise RecipeError("not a recipe", [f"a recipe is a mapping of sections, got {type(tree).__name__}"])
    return _checked(tree, [], None)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every key written out, as plain YAML."""
    return yaml.dump(asdict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def describe(recipe: Recipe) -> str:
    """What will be done, in three lines for a person."""
    data, train = recipe.data, recipe.train
    families = ", ".join(f"{spec.family} (skip {spec.skip})" for spec in keyed_converters(recipe).values())
    rendered = dict.fromkeys(("demo", "world"), f"{data.clips} rendered clips")
    source = rendered | {"folder": data.root, "csv": data.csv, "webdataset": data.tars, "store": recipe.store.path}
    source |= {"oracle": f"{data.clips} drawn clips of {recipe.oracle and recipe.oracle.kind}"}
    return "\n".join(
        [
            f"{recipe.recipe}: {recipe.student.backbone} -> {', '.join(recipe.targets)} by {families},"
            f" weights {recipe.backbones.weights}",
            f"clips: {data.source}, {source[data.source]}",
            f"training: {train.steps} steps of {train.batch} clips, lr {train.lr:g}, ZeRO {recipe.engine.zero}",
        ]
    )


def _checked(tree: Tree, problems: list[str], also: Callable[[Recipe], Iterable[str]] | None) -> Recipe:
    recipe, wrong = validate(tree)
    broken = {re.split(r"[:=]", problem, maxsplit=1)[0] for problem in (*problems, *wrong)}
    if recipe is not None:
        rules = [*check(recipe), *(also(recipe) if also else ())]
        # a rule about a key that is itself wrong would speak of the default that stands in for it
        wrong += [rule for rule in rules if not any(_speaks_of(path, rule) for path in broken)]
    if recipe is None or problems or wrong:
        count = len(problems) + len(wrong)
        title = f"recipe {tree.get('recipe', '')!s} has {count} problem{'s' * (count > 1)}"
        raise RecipeError(title, [*problems, *wrong])
    return recipe


def _speaks_of(path: str, rule: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(path)}(?!\w)", rule) is not None


def _drop_local_rank(argv: Sequence[str]) -> list[str]:
    """Without what DeepSpeed's launcher appends: --local_rank=N or --local_rank N."""
    words, rest = [], iter(argv)
    for word in rest:
        if word in ("--local_rank", "--local-rank"):
            next(rest, None)
        elif not re.fullmatch(r"--local[_-]rank=.*", word):
            words.append(word)
    return words


def _split(words: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """key -> text of the well-formed `key=value` words (the last of a key counts), and what is wrong with the rest."""
    pairs: dict[str, str] = {}
    problems = []
    for word in words:
        key, sign, text = word.partition("=")
        if key[:1] in ("+", "~"):
            problems.append(f"{word}: write key=value, without {key[: len(key) - len(key.lstrip('+~'))]}")
        elif not sign or not KEY.fullmatch(key):
            problems.append(f"{word!r}: not of the form key=value; --help lists the keys")
        else:
            pairs[key] = text
    return pairs, problems


def _take_groups(pairs: dict[str, str], problems: list[str], folder: Path) -> dict[str, str]:
    """Takes the `group=option` pairs out of `pairs`; wrong ones go to `problems`."""
    chosen = {}
    for group, options in find_groups(folder).items():
        if group not in pairs:
            continue
        text = pairs.pop(group)
        names = re.split(r"\s*,\s*", text.strip("[] "))
        if group not in MULTIPLE and len(names) > 1:
            problems.append(f"{group}={text}: choose one of {', '.join(options)}")
        elif wrong := [name for name in names if name not in options]:
            problems.extend(f"{group}={text}: {unknown('option', name, options)}" for name in wrong)
        else:
            chosen[group] = f"[{','.join(names)}]" if group in MULTIPLE else names[0]
    return chosen


def _compose(name: str, groups: dict[str, str], folder: Path) -> Tree:
    """The recipe's YAML with the chosen options of its groups, as a plain tree."""
    recipes = find_recipes(folder)
    if name not in recipes:
        raise RecipeError("no such recipe", [unknown("recipe", name, recipes)])
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = compose(name, overrides=[f"{group}={option}" for group, option in groups.items()])
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        refused = re.match(r"Could not override '(\w+)'", str(error))
        if refused and (group := refused[1]) in groups:
            rule = f"{name} chooses no {group}, so there is none to replace; take a recipe that does"
            raise RecipeError(f"recipe {name} has 1 problem", [f"{group}={groups[group]}: {rule}"]) from None
        raise RecipeError(f"{recipes[name].name} does not compose", [str(error).strip()]) from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{recipes[name].name} does not compose", ["it must be a mapping of sections"])
    # a section of which an option says nothing is left out: deficiency=none
    return {"recipe": name, **{str(key): value for key, value in tree.items() if value != {}}}


def _read_file(file: Path) -> Tree:
    """A resolved recipe from a file."""
    try:
        tree = _parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe={file} cannot be read", [str(error)]) from None
    if not isinstance(tree, dict) or "defaults" in tree:
        raise RecipeError(f"recipe={file} cannot be read", ["it must be the recipe.yaml that a run has written"])
    return tree


def _value(path: str, text: str) -> Any:
    """What was typed, as the schema wants it: text as it stands (`null` is nothing, outer quotes and ~ as in a shell),
    the rest as YAML. Raises ValueError.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}={text!r}: not valid UTF-8") from None
    if is_text(path):
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            return text[1:-1]
        return None if text == "null" else str(Path(text).expanduser()) if text.startswith("~/") else text
    try:
        value = _parse(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        forms = "a number, true, false, null, a word, [a,b] or {a: 1}"
        raise ValueError(f"{path}={shorten(text)}: not a value; write {forms}") from None
    return value


def _assign(tree: Tree, path: str, value: Any) -> None:
    """Sets a dotted path, making sections on the way. Raises ValueError where the way leads through a single value."""
    *sections, key = path.split(".")
    for depth, step in enumerate(sections, 1):
        if tree.get(step) is None:
            tree[step] = {}
        if not isinstance(tree[step], dict):
            raise ValueError(f"{path}: unknown key; {'.'.join(sections[:depth])} is a single value")
        tree = tree[step]
    tree[key] = value

"""Holds a recipe's tree against the schema and against the rules that join several keys; every problem at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import fields
from functools import cache
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from recipes.contest import CONTEST, keyed_converters, keyed_deficiencies
from recipes.keys import NAMED, hint, paths, whole_entries
from recipes.schema import Data, Deficiency, Floor, Head, Recipe

WEIGHTS = ("standin", "pretrained", "miniature")  # anything else is a folder
NEEDS = {"folder": ("root",), "csv": ("csv",), "webdataset": ("tars",)}
READS = {
    "demo": (),
    "world": ("split", "difficulty"),
    "folder": ("root",),
    "csv": ("csv", "root"),
    "webdataset": ("tars",),
    "store": (),
    "oracle": (),
}
LOW_RANK, MASKING = ("nuclear", "rank"), ("ratio", "entropy", "entropy_target")
JACOBIAN = ("jacobian", "every", "directions", "outputs")
DEFICIENCIES = {"low_rank": LOW_RANK, "masking": MASKING, "jacobian": JACOBIAN, "combined": (*LOW_RANK, *MASKING)}
COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")  # as converters.converter.NAME
TAKEN = ("clips", "student")  # folders of a feature store
BESIDE = (*get_args(Floor), "twin", "large", "shuffled_converter")  # what stands beside the contestants
PARTS = ("checkpoints", "bundle")  # folders of a run

Tree = dict[str, Any]

WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list, as in [a,b]",
    "dict_type": "must be a section of keys",
    "dataclass_type": "must be a section of keys",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
    "string_too_short": "must not be empty",
    "literal_error": "must be one of {expected}",
}


class RecipeError(ValueError):
    """What is wrong with a recipe. `problems` holds one sentence each."""

    def __init__(self, title: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n  - ".join([f"{title}:", *problems]))


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def validate(tree: Mapping[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe that a plain tree describes and all that is wrong with it. The recipe is None where a required key
    is missing or wrong; else wrong keys have been left out of it, so that the rest can be checked too.
    """
    problems: list[str] = []
    if not tree.get("converter") and not tree.get("contest"):
        problems.append("converter: required where there is no contest; choose converter=NAME, or contest=[NAME,NAME]")
    try:  # JSON mode: strict types, and mappings for dataclasses
        return _adapter().validate_json(json.dumps(tree)), problems
    except ValidationError as error:
        details = error.errors(include_url=False)
    rest = deepcopy(dict(tree))
    for detail in details:
        problems += _sentences(detail, tree)
        _remove(rest, detail["loc"][:-1] if detail["type"] == "missing" else detail["loc"])
    try:
        return _adapter().validate_json(json.dumps(rest)), problems
    except ValidationError:
        return None, problems


def _sentences(detail: Mapping[str, Any], tree: Mapping[str, Any]) -> list[str]:
    """One pydantic error in our words."""
    path, value = ".".join(map(str, detail["loc"])), detail["input"]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        return [f"{leaf}: unknown key{hint(leaf, paths(tree))}" for leaf in _leaves(path, value)]
    if kind == "missing":
        return [_missing(path, tree)]
    rule = WORDS.get(kind, detail["msg"]).format(**context)
    near = hint(str(value), re.findall(r"'([^']*)'", rule)) if kind == "literal_error" else ""
    return [f"{path or 'recipe'}: {rule}, got {shorten(json.dumps(value, ensure_ascii=False))}{near}"]


def _missing(path: str, tree: Mapping[str, Any]) -> str:
    """A required key is not there: because its section is unfinished, or because of what the section was called."""
    section, _, key = path.rpartition(".")
    group, _, name = section.partition(".")
    if path == "converter.family" and (names := whole_entries(tree, "contest")):
        places = " or ".join(CONTEST + each for each in names)
        return f"converter: this recipe is a contest, and each contestant has a converter; write {places} instead"
    if path.endswith("deficiency.kind"):
        return f"{path}: required; choose {section}={', '.join(DEFICIENCIES)} where it is a group, or write the kind"
    near = hint(name, whole_entries(tree, group), prefix=f"{group}.") if name and NAMED.get(group) == key else ""
    if near:
        return f"{section}: unknown {'target' if group == 'targets' else 'contestant'}{near} A new one needs {path}"
    return f"{path}: required, and it has no default"


def shorten(text: str, limit: int = 80) -> str:
    """At most `limit` characters of it."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _leaves(path: str, value: Any) -> Iterator[str]:
    """`trian` holding {steps: 3} is the unknown key trian.steps."""
    if not isinstance(value, dict) or not value:
        yield path
    else:
        for key, entry in value.items():
            yield from _leaves(f"{path}.{key}", entry)


def _remove(tree: Tree, path: tuple[Any, ...]) -> None:
    """Takes the offending key out; an offending list goes as a whole, and so does a section that lacks a key."""
    for depth, step in enumerate(path, 1):
        if depth == len(path) or not isinstance(tree.get(step), dict):
            tree.pop(step, None)
            return
        tree = tree[step]


def check(recipe: Recipe) -> list[str]:
    """The rules that join several keys and need no backbone, no feature and no rank; empty when all hold.

    Each sentence names the key, its value, the rule and what to change.
    """
    rules = (_check_data, _check_models, _check_converters, _check_deficiencies, _check_training, _check_head)
    return [*chain.from_iterable(rule(recipe) for rule in rules)]


def _check_data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    defaults = {entry.name: entry.default for entry in fields(Data)}
    given = {key: value for key in sorted({*chain(*READS.values())}) if (value := getattr(data, key)) != defaults[key]}
    for key in NEEDS.get(data.source, ()):
        if key not in given:
            yield f"data.{key}: required with data={data.source}; give data.{key}=..."
    for key, value in given.items():
        if key not in READS[data.source]:
            right = next(source for source, keys in READS.items() if key in keys)
            yield f"data.{key}={value} is not read with data={data.source}; add data={right}, or leave it out"
        elif key == "root" and not Path(value).is_dir():
            yield f"data.root={value}: no such folder"
        elif key == "csv" and not Path(value).is_file():
            yield f"data.csv={value}: no such file"
        elif key == "tars" and not re.search(r"[*?\[{]|::|://", value) and not Path(value).is_file():
            yield f"data.tars={value}: no such file"
    if (data.source == "oracle") != (recipe.oracle is not None):
        kind = recipe.oracle.kind if recipe.oracle else "null"
        rule = "data=oracle and an oracle need each other; take recipe=oracle"
        yield f"data={data.source} and oracle.kind={kind}: {rule}"
    if data.source == "oracle" and "pixels" in recipe.evaluate.floors:
        rest = ",".join(floor for floor in recipe.evaluate.floors if floor != "pixels")
        yield f"evaluate.floors has pixels, and an oracle has none; set evaluate.floors=[{rest}]"
    if data.source == "store" and recipe.store.path is None:
        yield "store.path: required with data=store; give store.path=..."
    if "://" in (recipe.store.path or ""):
        if data.source != "store":
            yield "store.path is a URL: features are made on a disk; read a store behind a URL with data=store"
        elif (parts := urlsplit(str(recipe.store.path))).username is not None or parts.query:
            yield "store.path: a URL without user, password and query; credentials belong where its library looks"
    elif recipe.store.cache or recipe.store.cache_gb:
        yield "store.cache and store.cache_gb are of a store behind a URL; leave them out, or give store.path=URL"
    if data.group is not None:
        try:
            if re.compile(data.group).groups < 1:
                yield f"data.group={data.group} captures nothing; put what names the group in brackets, as in ^(.*)_"
        except re.error as error:
            yield f"data.group={data.group} is not a regular expression: {error}"


def _check_models(recipe: Recipe) -> Iterator[str]:
    if not recipe.targets:
        yield "targets: at least one is needed; choose targets=[NAME]"
    for name in recipe.targets:
        if not COLUMN.fullmatch(name):
            yield f"targets.{name}: it names a folder of the store; use letters, digits, _ and -, a letter first"
        if name in TAKEN:
            yield f"targets.{name}: the store already has a folder of that name; choose another name"
    if recipe.student.clips is not None:
        rule = "every clip needs the student; give targets.NAME.clips, or leave it out"
        yield f"student.clips={recipe.student.clips}: {rule}"
    models = {"student": recipe.student, **{f"targets.{name}": entry for name, entry in recipe.targets.items()}}
    weights = {"backbones": recipe.backbones.weights, **{place: entry.weights for place, entry in models.items()}}
    for place, value in weights.items():
        if value is not None and value not in WEIGHTS and not Path(value).is_dir():
            rule = f"is none of {', '.join(WEIGHTS)}, and no folder"
            yield f"{place}.weights={value} {rule}{hint(value, WEIGHTS)}"
    for place, entry in models.items():
        yield from _check_repeats(f"{place}.special", entry.special)
        yield from _check_finite(f"{place}.options", entry.options)


def _check_converters(recipe: Recipe) -> Iterator[str]:
    if recipe.converter and recipe.contest:
        both = f"contest ({', '.join(recipe.contest)}) and converter ({recipe.converter.family})"
        yield f"{both} are both given, and a recipe has one of them; choose a contest_ recipe, or leave contest out"
    for name in recipe.contest:
        if not COLUMN.fullmatch(name):
            yield f"{CONTEST}{name}: it names a folder of the run; use letters, digits, _ and -, a letter first"
        if name in (*BESIDE, *PARTS):
            rule = "is a floor's or a twin's" if name in BESIDE else "is that of a run's own folder"
            yield f"{CONTEST}{name}: the name {rule}; choose another name"
    for place, entry in keyed_converters(recipe).items():
        yield from _check_finite(f"{place}.options", entry.options)
        width, heads = (entry.options.get(key) for key in ("width", "heads"))
        if type(width) is int and type(heads) is int and (heads < 1 or width % heads):
            yield f"{place}.options.width={width} must divide by {place}.options.heads={heads}"


def _check_deficiencies(recipe: Recipe) -> Iterator[str]:
    defaults = {entry.name: entry.default for entry in fields(Deficiency)}
    for place, entry in keyed_deficiencies(recipe).items():
        for key in sorted({*chain(*DEFICIENCIES.values())} - {*DEFICIENCIES[entry.kind]}):
            if (value := getattr(entry, key)) != defaults[key]:
                yield f"{place}.{key}={value} is not read with {place}.kind={entry.kind}; leave it out"
        if "ratio" in DEFICIENCIES[entry.kind] and entry.strength * entry.ratio >= 1:
            rule = "hide every token; their product is the share that is hidden and must be below 1"
            yield f"{place}.strength={entry.strength:g} and {place}.ratio={entry.ratio:g} {rule}"
        if entry.zero_until > entry.full_from:
            rule = f"is after {place}.full_from={entry.full_from:g}; it must not be"
            yield f"{place}.zero_until={entry.zero_until:g} {rule}"


def _check_training(recipe: Recipe) -> Iterator[str]:
    train = recipe.train
    if train.batch % train.accumulation:
        yield f"train.batch={train.batch} must divide by train.accumulation={train.accumulation}"
    if len(train.betas) != 2 or not all(0 <= beta < 1 for beta in train.betas):
        yield f"train.betas={train.betas} must be two numbers, each at least 0 and below 1"
    if round(train.warmup * train.steps) >= train.steps:
        yield f"train.warmup={train.warmup:g} is a share of train.steps={train.steps} and must leave some; lower it"
    if train.min_lr > train.lr:
        yield f"train.min_lr={train.min_lr:g} is above train.lr={train.lr:g}; the rate falls from lr to min_lr"
    name = recipe.run.name
    if train.resume == "auto" and name is None:
        yield "train.resume=auto needs run.name, the run to continue; give run.name=NAME"
    if name is not None and (name in (".", "..") or re.search(r"[/\\\0]", name)):
        yield f"run.name={name} must be one folder's name; run.dir says where it stands"
    terms = ("mse", "smooth_l1", "cosine", "gram", "moments")
    if not any(getattr(recipe.objective, term) for term in terms):
        yield f"objective: all of {', '.join(terms)} are 0, so nothing would be learned; raise one"
    for key in ("floors", "references", "probes", "mlp_rates"):
        yield from _check_repeats(f"evaluate.{key}", getattr(recipe.evaluate, key))


def _check_head(recipe: Recipe) -> Iterator[str]:
    head = recipe.head
    yield from _check_repeats("head.tasks", head.tasks)
    yield from _check_repeats("head.per_class", head.per_class)
    if not head.tasks and head != Head():
        yield "head: nothing is fitted without head.tasks; give head.tasks=[label], or leave the rest out"
    if not head.per_class:
        yield "head.per_class=[] leaves the head no label; give numbers of labels of a class, or [null] for all"
    if head.separator is not None and head.pooling == "attentive":
        yield "head.pooling=attentive is learned with one label of a clip; choose mean, or leave head.separator out"


def _check_repeats(path: str, names: list[Any]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}, key=str):
        yield f"{path}: {name} stands there {names.count(name)} times; once is enough"


def _check_finite(place: str, options: Mapping[str, Any]) -> Iterator[str]:
    for path, number in _numbers(place, options):
        if not isfinite(number):
            yield f"{path}={number}: must be a finite number"


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _numbers(f"{path}.{key}", entry)

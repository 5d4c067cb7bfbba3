"""Who may import whom: walks the syntax trees of all packages, imports inside functions included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("converters", "distill", "recipes", "shards", "teachers")
DASHBOARD = ("distill.dashboard", "distill.dashboard.*")
COMMANDS = (
    *("distill.run", "distill.apply", "distill.scoreboard", *DASHBOARD),
    *("shards.precompute", "shards.audit", "shards.importer", "teachers.miniature.__main__"),
)
# Join recipes, teachers and the store: below them, nobody knows all three.
FOR_COMMANDS = ("shards.features", "shards.functions")
ANY = tuple(pattern for package in PACKAGES for pattern in (package, f"{package}.*"))
STORE = (
    "shards",
    "shards.store",
    "shards.reader",
    "shards.column",
    "shards.disk",
)  # `shards` itself is FeatureStore's public name
JOINTS = ("converters", "converters.*", "teachers.layout", "shards.ranks", *STORE)  # what all of distill may use

# The first pattern that fits a module rules. A package's own modules are named where they are allowed.
OURS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("recipes.schema", "teachers.layout", "shards.ranks", "distill.comparable"), ()),
    (DASHBOARD, ("distill.comparable", *DASHBOARD)),
    (COMMANDS, ANY),
    (("recipes", "recipes.*"), ("recipes", "recipes.*")),
    (("converters", "converters.*"), ("converters", "converters.*", "teachers.layout")),
    (("teachers", "teachers.*"), ("teachers", "teachers.*")),
    (FOR_COMMANDS, ("shards", "shards.*", "teachers", "teachers.*", "recipes.schema")),
    (("shards", "shards.*"), ("shards", "shards.*", "teachers.layout")),
    (("distill.losses", "distill.deficiency", "distill.head", "distill.similarity"), ("teachers.layout",)),
    (("distill.metrics",), ("distill.similarity", "teachers.layout", "shards.ranks")),
    (("distill.fields",), ("teachers.layout",)),
    (("distill.oracles",), ("distill.fields", "teachers.layout")),
    (("distill.oracle_store",), ("distill.*", "shards", "shards.*", *JOINTS)),  # writes a store
    (("distill.objective",), ("distill.losses", "distill.deficiency", *JOINTS)),
    (("distill.train",), ("distill.engine", "distill.objective", "distill.pairs", *JOINTS)),
    (("distill.evaluate",), ("distill.metrics", "distill.similarity", *JOINTS)),
    (("distill.references", "distill.summary"), ("distill.*", "shards.references", *JOINTS)),
    (("distill.drawn",), ("distill.oracle_store", "recipes.schema", "shards.stored", *JOINTS)),  # a part of distill.run
    (("distill", "distill.*"), ("distill", "distill.*", *JOINTS)),
]
# Who alone may import a package from outside; nobody may import what has no one.
THEIRS = {
    "deepspeed": ("distill.engine",),
    "transformers": ("teachers.*",),
    "timm": ("teachers.*",),
    "hydra": ("recipes.*",),
    "omegaconf": ("recipes.*",),
    "av": ("shards.*",),
    **dict.fromkeys(("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), ()),
}
# What a package may import from outside, beside the standard library.
CORE = ("torch", "numpy", "einops", "safetensors")
ONLY = [
    (("teachers.layout",), ("torch",)),
    (("converters", "converters.*"), (*CORE, "huggingface_hub", "mamba_ssm", "causal_conv1d", "triton")),
    (DASHBOARD, ("numpy", "safetensors")),
]


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of ours."""
    found = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, import_module("...") with a constant name included."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in known else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(root: Path) -> list[str]:
    """`module:line imports other` for every import that the tables above do not allow."""
    known = modules(root)
    bad = []
    for name, file in known.items():
        allowed = next(targets for patterns, targets in OURS if fits(name, patterns))
        outside = next((targets for patterns, targets in ONLY if fits(name, patterns)), None)
        for line, target in imports(name, file, known):
            top = target.partition(".")[0]
            if top in PACKAGES:
                inside = target == name or (fits(name, DASHBOARD) and fits(target, DASHBOARD))
                wrong = not fits(target, allowed) or fits(target, COMMANDS)
                wrong |= target in FOR_COMMANDS and not fits(name, (*COMMANDS, *FOR_COMMANDS))
                wrong &= not inside
            else:
                wrong = top in THEIRS and not fits(name, THEIRS[top])
                wrong |= outside is not None and top not in (*outside, *sys.stdlib_module_names)
            if wrong:
                bad.append(f"{name}:{line} imports {target}")
    return sorted(set(bad))


def test_the_repository_holds_the_table() -> None:
    known = modules(ROOT)
    for package in PACKAGES:
        count = sum(name.partition(".")[0] == package for name in known)
        assert count == len(list((ROOT / package).rglob("*.py"))) > 0
    assert {"teachers.layout", "recipes.schema", "distill.train", "distill.engine", "shards.ranks"} <= set(known)
    assert not violations(ROOT)


PLANTED = [
    ("recipes/schema.py", "from recipes import check", "recipes.schema:1 imports recipes.check"),
    ("recipes/compose.py", "import converters", "recipes.compose:1 imports converters"),
    ("teachers/layout.py", "import einops", "teachers.layout:1 imports einops"),
    ("teachers/vit.py", "from shards import view", "teachers.vit:1 imports shards.view"),
    ("converters/linear.py", "from teachers import create_backbone", "converters.linear:1 imports teachers"),
    ("converters/linear.py", "import xxhash", "converters.linear:1 imports xxhash"),
    ("converters/linear.py", "from recipes.schema import Recipe", "converters.linear:1 imports recipes.schema"),
    ("shards/view.py", "def f():\n    import teachers.vit", "shards.view:2 imports teachers.vit"),
    ("shards/view.py", "from . import features", "shards.view:1 imports shards.features"),
    ("shards/view.py", "from .precompute import main", "shards.view:1 imports shards.precompute"),
    ("shards/ranks.py", "from shards.view import x", "shards.ranks:1 imports shards.view"),
    ("shards/features.py", "from recipes.schema import Recipe\nimport teachers", None),
    ("shards/features.py", "from recipes.compose import load_recipe", "shards.features:1 imports recipes.compose"),
    ("distill/losses.py", "from converters.linear import x", "distill.losses:1 imports converters.linear"),
    ("distill/train.py", "import deepspeed.ops", "distill.train:1 imports deepspeed.ops"),
    ("distill/train.py", "from distill.metrics import x", "distill.train:1 imports distill.metrics"),
    ("distill/train.py", "from teachers import vit", "distill.train:1 imports teachers.vit"),
    ("distill/train.py", "from recipes.schema import Train", "distill.train:1 imports recipes.schema"),
    ("distill/fit.py", "from shards import FeatureStore\nfrom shards.ranks import Ranks", None),
    ("distill/fit.py", "from distill import run", "distill.fit:1 imports distill.run"),
    ("distill/fit.py", "import distill.run as r", "distill.fit:1 imports distill.run"),
    ("distill/fit.py", "from shards.view import x", "distill.fit:1 imports shards.view"),
    ("distill/fit.py", "import pickle", "distill.fit:1 imports pickle"),
    ("distill/fit.py", "import transformers", "distill.fit:1 imports transformers"),
    ("distill/run.py", "from recipes.compose import load_recipe\nimport shards.features, teachers", None),
    ("distill/run.py", "from shards import precompute", "distill.run:1 imports shards.precompute"),
    ("distill/run.py", "import deepspeed", "distill.run:1 imports deepspeed"),
    ("distill/dashboard/__main__.py", "from distill.dashboard import page", None),
    ("distill/dashboard/page.py", "import torch", "distill.dashboard.page:1 imports torch"),
    ("distill/dashboard/page.py", "import distill.train", "distill.dashboard.page:1 imports distill.train"),
    (
        "teachers/vit.py",
        'from importlib import import_module\nx = import_module("distill.fit")',
        "teachers.vit:2 imports distill.fit",
    ),
]


@pytest.mark.parametrize(
    ("file", "source", "violation"), PLANTED, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(PLANTED)]
)
def test_a_planted_violation_is_found(file: str, source: str, violation: str | None, tmp_path: Path) -> None:
    for path in {path for path, _, _ in PLANTED} | {"recipes/check.py", "shards/precompute.py", "shards/__init__.py"}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("import torch\n" if path == "shards/view.py" else "")
    assert not violations(tmp_path)
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == ([violation] if violation else [])

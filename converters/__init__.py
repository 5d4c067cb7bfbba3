"""Converters: light modules that turn a student's tokens into other models' tokens.

Needs torch, numpy, einops and safetensors only.

    converter = create_converter("perceiver", student=student.layout, targets={"videomae": videomae.layout})
    tokens = converter(student_tokens)          # {"videomae": (b, 1568, 768)}, backbone units
    converter.save("bundle/"); converter = load_converter("bundle/")
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from converters.bottleneck import Rank, check_rank, narrowed, new_bottlenecks
from converters.converter import Converter, check_geometry
from converters.linear import LinearSkip
from converters.normaliser import MODES, Mode
from teachers.layout import TokenLayout

__all__ = ["FAMILIES", "Converter", "create_converter", "list_converters", "load_converter"]

# name -> "module:factory(student, targets, *, options) -> branch"; "" has no branch.
FAMILIES: dict[str, str] = {
    "mamba": "converters.mamba:mamba",
    "perceiver": "converters.perceiver:perceiver",
    "dsconv": "converters.dsconv:dsconv",
    "tokenlearner": "converters.tokenlearner:tokenlearner",
    "mlp": "converters.mlp:mlp",
    "linear": "",
    "constant": "",
}
SKIPS = ("linear", "none")


def list_converters(pattern: str = "*") -> list[str]:
    """Names of the families that match a shell pattern."""
    return sorted(fnmatch.filter(FAMILIES, pattern))


def create_converter(
    name: str,
    *,
    student: TokenLayout,
    targets: Mapping[str, TokenLayout],
    skip: Literal["linear", "none"] = "linear",
    normaliser: Mode = "position",
    options: Mapping[str, Any] | None = None,
    rank: Rank | None = None,
    mask_token: bool = False,
    seed: int = 0,
) -> Converter:
    """A new converter of family `name`, starting at the targets' mean (at the ridge, once its skips are set).

    skip: "linear" or "none" (the family alone; "constant" never has one, "linear" is nothing else). normaliser: which
    mean is taken out of the tokens. options: the family's own. rank: of all that is answered, at most (see
    converters.bottleneck); "full" factorises without a limit. mask_token: can be told that tokens are hidden.
    seed: the same gives the same bits; the global generator is neither read nor moved. Raises ValueError.
    """
    options = dict(options or {})
    factory = _factory(name, options)
    _check_settings(name, student, targets, skip, normaliser, rank)
    inner = narrowed(targets, rank)
    skipped = inner if skip == "linear" and name != "constant" else {}
    with _seeded(seed):
        branch = factory(student, inner, **options) if factory else None
        skips = {target: LinearSkip(student, layout) for target, layout in skipped.items()}
        bottlenecks = new_bottlenecks(targets, rank)
    return Converter(
        student=student,
        targets=targets,
        family=name,
        branch=branch,
        skips=skips,
        normaliser=normaliser,
        bottlenecks=bottlenecks,
        rank=rank,
        mask_token=mask_token,
        seed=seed,
    )


def load_converter(path_or_hub_id: str | Path) -> Converter:
    """A converter in eval mode from a bundle folder or a Hugging Face hub id (see converters.bundle.load)."""
    from converters.bundle import load

    return load(path_or_hub_id)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within it, the CPU's global generator is at a seed; then it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        yield


def _factory(name: str, options: Mapping[str, Any]) -> Callable[..., nn.Module] | None:
    if name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no converter family is called {name!r}; valid: {', '.join(sorted(FAMILIES))}{hint}")
    factory = None
    if FAMILIES[name]:
        module, function = FAMILIES[name].split(":")
        factory = getattr(importlib.import_module(module), function)
    _check_options(name, factory, options)
    return factory


def _check_settings(
    name: str, student: TokenLayout, targets: Mapping[str, TokenLayout], skip: str, normaliser: str, rank: Rank | None
) -> None:
    check_geometry(student, targets)
    if skip not in SKIPS:
        raise ValueError(f"skip is {skip!r}; valid: {', '.join(SKIPS)}")
    if normaliser not in MODES:
        raise ValueError(f"normaliser is {normaliser!r}; valid: {', '.join(MODES)}")
    if name == "linear" and skip == "none":
        raise ValueError("skip is 'none', but the family 'linear' is its skip; use the family 'constant' for neither")
    if name == "constant" and rank is not None:
        raise ValueError(f"rank is {rank!r}, but the family 'constant' has no map to limit; leave it out")
    check_rank(rank, targets)


def _check_options(name: str, factory: Callable[..., nn.Module] | None, options: Mapping[str, Any]) -> None:
    valid = list(inspect.signature(factory).parameters)[2:] if factory else []
    unknown = [option for option in options if option not in valid]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"family {name!r} has no option {', '.join(map(repr, unknown))}; valid: {', '.join(valid) or 'none'}{hint}"
        )

"""Converter: skip + zero-initialised branch in normalised space, one output per target, backbone units outside.

Axes: b clips, s student tokens, q target tokens, d student width, e target width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converters.bottleneck import Bottleneck, Rank
from converters.branch import Branch
from converters.linear import LinearSkip
from converters.normaliser import Mode, Normaliser
from converters.resample import Queries
from teachers.layout import TokenLayout

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
TAKEN = {"grid", *dir(nn.ModuleDict()), *dir(nn.ParameterDict())}  # names that torch's containers refuse as keys


class Converter(nn.Module):
    """Turns a student's tokens (b s d) into those of every target, {name: (b q e)}, in the backbones' own units.

    student, targets: layouts. family: the name under which `branch` was made; it may be None. skips: target ->
    LinearSkip, or empty. With neither, the answer is the targets' mean. bottlenecks: target -> what skip and branch
    answer through, or empty; rank: as it was asked for. mask_token: learn what stands for tokens that are hidden.
    Normalisers start as the identity: set them from the store.
    """

    def __init__(
        self,
        *,
        student: TokenLayout,
        targets: Mapping[str, TokenLayout],
        family: str,
        branch: nn.Module | None,
        skips: Mapping[str, LinearSkip],
        normaliser: Mode = "position",
        bottlenecks: Mapping[str, Bottleneck] | None = None,
        rank: Rank | None = None,
        mask_token: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student, self.targets = student, dict(targets)
        self.family, self.normaliser, self.seed = family, normaliser, seed
        self.branch: Branch | None = branch  # type: ignore[assignment]
        self.skips: Mapping[str, LinearSkip] = nn.ModuleDict(dict(skips))  # type: ignore[assignment]
        self.rank = rank
        self.bottlenecks: Mapping[str, Bottleneck] = nn.ModuleDict(dict(bottlenecks or {}))  # type: ignore[assignment]
        # it starts as the mean token of its place: as nothing known
        self.mask_token = nn.Parameter(torch.zeros(student.dim)) if mask_token else None
        self.student_normaliser = Normaliser(student, normaliser)
        self.target_normalisers: Mapping[str, Normaliser] = nn.ModuleDict(  # type: ignore[assignment]
            {name: Normaliser(layout, normaliser) for name, layout in targets.items()}
        )
        for name, layout in self.targets.items():
            self.register_buffer(f"centres_{name}", layout.centres(), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Mapping[str, Tensor] | None = None,
        layouts: Mapping[str, TokenLayout] | None = None,
        standardised: bool = False,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Student tokens (b s d) in backbone units -> {target: (b q e)} float32.

        positions: tokens of a target to answer for, (q,) long, strictly increasing, best kept on the CPU. layouts:
        answer on another grid of the same target. standardised: leave the output in normalised space, where the loss
        is. mask: (s,) bool, true where the mask token stands for the student's. Raises ValueError on shapes and names;
        NaN passes through (see check_finite).
        """
        self._check_tokens(tokens)
        queries = self.queries(positions, layouts)
        x = self.student_normaliser.standardise(tokens.float())
        if mask is not None:
            x = self._masked(x, mask)
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # once, for skips and branch
        branched = self.branch(x, queries) if self.branch is not None else {}
        answers = {}
        for name, asked in queries.items():
            parts = [branched[name]] if name in branched else []
            if name in self.skips:
                parts.append(self.skips[name](x, asked))
            narrow = name in self.bottlenecks
            width = self.bottlenecks[name].in_features if narrow else self.targets[name].dim
            shape = (x.shape[0], len(asked), width)
            y = sum((part.float() for part in parts), start=x.new_zeros(shape, dtype=torch.float32))
            if narrow:
                y = self.bottlenecks[name](y).float()
            whole = name not in (positions or {}) and name not in (layouts or {})
            answers[name] = y if standardised else self.target_normalisers[name].restore(y, None if whole else asked)
        return answers

    def queries(
        self, positions: Mapping[str, Tensor] | None = None, layouts: Mapping[str, TokenLayout] | None = None
    ) -> dict[str, Queries]:
        """What is asked of every target, on the converter's device. Raises ValueError."""
        for label, given in (("positions", positions), ("layouts", layouts)):
            for name in given or {}:
                self._check_target(name, label)
        asked = {}
        for name, layout in self.targets.items():
            centres = self.get_buffer(f"centres_{name}")
            other = (layouts or {}).get(name)
            if other is not None:
                self._check_layout(name, other)
                layout, centres = other, other.centres().to(centres.device)
            asked[name] = Queries.of(layout, (positions or {}).get(name), centres=centres)
        return asked

    def standardise_targets(self, name: str, y: Tensor, positions: Tensor | None = None) -> Tensor:
        """Target tokens (b q e) in backbone units -> normalised float32; those at `positions`, if given."""
        self._check_target(name, "targets")
        queries = self.queries({name: positions})[name] if positions is not None else None
        rows = self.targets[name].num_tokens if queries is None else len(queries)
        if y.ndim != 3 or y.shape[1:] != (rows, self.targets[name].dim):
            raise ValueError(
                f"targets of {name!r} are {tuple(y.shape)}, but {rows} positions of {self.targets[name].describe()} "
                f"were asked for; give (clips, {rows}, {self.targets[name].dim})"
            )
        return self.target_normalisers[name].standardise(y.float(), queries)

    def factors(self, name: str) -> list[Tensor]:
        """The weights that end the converter's answer for a target: of its skip's maps and its branch's output, (e n)
        each; with a bottleneck they are (k n), and the bottleneck's (e k) stands first."""
        found = [self.bottlenecks[name].weight] if name in self.bottlenecks else []
        if name in self.skips:
            found += [linear.weight for linear in self.skips[name].maps.values()]
        return [*found, self.branch.outputs[name].weight] if self.branch is not None else found

    def effective_maps(self, name: str) -> dict[str, Tensor]:
        """The linear maps themselves, (e n): of every part of the skip by its name, and "branch" for its output."""
        maps = self.factors(name)
        if name in self.bottlenecks:
            maps = [maps[0] @ factor for factor in maps[1:]]
        labels = [*(self.skips[name].parts if name in self.skips else ()), "branch"]
        return dict(zip(labels, maps, strict=False))

    def num_parameters(self) -> int:
        """Learnable parameters, skips included; the means and deviations are buffers and do not count."""
        return sum(parameter.numel() for parameter in self.parameters())

    def config(self) -> dict[str, Any]:
        """All that create_converter needs to build this converter again, as plain JSON types."""
        plain = {
            "family": self.family,
            "student": self.student.to_dict(),
            "targets": {name: layout.to_dict() for name, layout in self.targets.items()},
            "skip": "linear" if len(self.skips) else "none",
            "normaliser": self.normaliser,
            "options": self.branch.options() if self.branch is not None else {},
            "seed": self.seed,
        }
        rank = {"rank": self.rank} if self.rank is not None else {}
        return plain | rank | ({"mask_token": True} if self.mask_token is not None else {})

    def save(self, path: str | Path, *, card: dict[str, Any] | None = None) -> Path:
        """Write a bundle (see converters.bundle.save)."""
        from converters.bundle import save

        return save(self, path, card=card)

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 3 or tokens.shape[1:] != self.student.shape or not tokens.is_floating_point():
            raise ValueError(
                f"student tokens are {tuple(tokens.shape)} of {tokens.dtype}, but this converter reads "
                f"(clips, {self.student.num_tokens}, {self.student.dim}) floats: {self.student.describe()}; feed it "
                "tokens of the student that it was made for, or make a converter for that layout"
            )

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.mask_token is None or mask.dtype != torch.bool or mask.shape != x.shape[1:2]:
            has = "one" if self.mask_token is not None else "none"
            raise ValueError(
                f"mask is {tuple(mask.shape)} of {mask.dtype}, and this converter has {has} to put in place of tokens; "
                f"give ({x.shape[1]},) of torch.bool to a converter made with mask_token=True"
            )
        return torch.where(mask[:, None], self.mask_token, x)

    def _check_target(self, name: str, label: str) -> None:
        if name not in self.targets:
            raise ValueError(f"{label} name the target {name!r}; this converter has {', '.join(self.targets)}")

    def _check_layout(self, name: str, other: TokenLayout) -> None:
        own = self.targets[name]
        if other.dim != own.dim or other.pooled != own.pooled or other.special not in ((), own.special):
            raise ValueError(
                f"the layout asked of {name!r} is {other.describe()}, but the converter was made for {own.describe()}: "
                "only grid and extent may differ, and special tokens may be left out"
            )


def check_finite(tokens: Tensor, label: str = "student tokens") -> None:
    """Raise ValueError naming the first clip, token and channel of tokens (b s d) that is NaN or infinite.

    Not part of forward: it waits for the device. Commands call it on what they read.
    """
    bad = ~tokens.isfinite()
    if bool(bad.any()):
        first = bad.nonzero()[0]
        raise ValueError(
            f"{label}{first.tolist()} is {float(tokens[tuple(first)])}, and {int(bad.sum())} of {tokens.numel()} "
            "values are not finite; every value must be: audit the store, or run precompute again on that clip"
        )


def check_geometry(student: TokenLayout, targets: Mapping[str, TokenLayout]) -> None:
    """Raise ValueError unless a converter can be made for these layouts."""
    for what, layout in {"the student": student, **{f"target {name!r}": at for name, at in targets.items()}}.items():
        if not isinstance(layout, TokenLayout):
            raise ValueError(
                f"{what} is {layout!r}, which has no positions; give a TokenLayout, as TokenLayout((8, 14, 14), 768), "
                "or TokenLayout(None, 768) for one pooled token"
            )
    if student.grid is None:
        raise ValueError(f"the student is {student.describe()}; a converter reads a grid of tokens, not a pooled one")
    if not targets:
        raise ValueError("targets is empty; name at least one")
    names = [("target", name) for name in targets]
    names += [(f"special token of {name!r}", token) for name, layout in targets.items() for token in layout.special]
    for what, name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in TAKEN:
            raise ValueError(
                f'{what} is called {name!r}; use letters, digits, _ and -, a letter first, and neither "grid" nor an '
                "attribute of torch's ModuleDict or ParameterDict"
            )

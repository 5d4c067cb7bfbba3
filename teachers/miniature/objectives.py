"""What the miniatures are taught: masked pixels, masked latents, dense labels, the joint action.

An objective owns the network and whatever training needs beside it (heads, a decoder, an EMA target). Called with a
`Lesson`, it gives the loss and its named terms.

Axes: b clips, f frames, t h w token grid, s tokens (m of them masked, v visible), d width, k classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from teachers.miniature.vit import SEQUENCES, STD, Block, VideoViT, start

Terms = dict[str, Tensor]
REPEATS = 2  # masks of one clip
FLOW = 0.25  # a usual displacement, sides per span
PAN = "pan"  # the one factor that the background shows, not the object


@dataclass(frozen=True)
class Lesson:
    """A batch of rendered clips. video: (b f 3 y x), normalised; flow: (b f 2 y x), sides per span; mask: (b f y x);
    factors: name -> (b,) int64. impossible: name -> (b, k) bool, values that no lesson shows beside the clip's other
    factors. progress: of the training, 0 to 1."""

    video: Tensor
    flow: Tensor
    mask: Tensor
    factors: Mapping[str, Tensor]
    impossible: Mapping[str, Tensor]
    progress: float

    def surprise(self, name: str, logits: Tensor) -> Tensor:
        """Cross-entropy of a factor's labels, (b s k) -> (b s).

        Values that never come with the clip's other factors are left out of the choice (logit adjustment by a known
        prior; Menon et al., 2021). Else a model learns from the colour which shapes it need not expect, and fails on
        the pairings held out.
        """
        if name in self.impossible:
            logits = logits.masked_fill(self.impossible[name].unsqueeze(1), -torch.inf)
        labels = self.factors[name].unsqueeze(1).expand(logits.shape[:2])
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def choose_masks(clips: int, tokens: int, *, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(visible (b v), masked (b m)): indices drawn over the whole grid, without regard to space or time, as
    Feichtenhofer et al. (2022) found best: an object is then hidden at some times and seen at others."""
    order = torch.rand(clips, tokens, generator=generator).argsort(dim=1)
    count = round(tokens * (1 - ratio))
    return order[:, :count], order[:, count:]


class Predictor(nn.Module):
    """From what is visible to what is masked: mask tokens at their positions join the visible ones in a few blocks."""

    def __init__(self, network: VideoViT, *, out: int, depth: int) -> None:
        super().__init__()
        dim = network.dim
        self.enter = nn.Linear(dim, dim)
        self.mask = nn.Parameter(torch.empty(1, 1, dim))
        self.place = nn.Parameter(network.positions().detach().clone().unsqueeze(0))
        joint = SEQUENCES["joint"]
        self.blocks = nn.ModuleList(Block(dim, num_heads=4, mlp_ratio=2.0, sequences=joint) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, out)
        nn.init.trunc_normal_(self.mask, std=STD)
        self.apply(start)

    def forward(self, seen: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """(b v d) -> (b m out)"""
        hidden = self.mask + pick(self.place.expand(len(seen), -1, -1), masked)
        x = torch.cat([self.enter(seen) + pick(self.place.expand(len(seen), -1, -1), visible), hidden], dim=1)
        for block in self.blocks:
            x = block(x, None)
        return self.out(self.norm(x[:, visible.shape[1] :]))


def pick(tokens: Tensor, indices: Tensor) -> Tensor:
    """(b s d), (b m) -> (b m d)"""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class MaskedPixels(nn.Module):
    """Predicts the pixels of masked cells from the visible ones (Tong et al., VideoMAE, 2022).

    Pixels are not normalised per patch: the calm background would be raised to the height of the object. Every clip is
    masked REPEATS times, which spares rendering (Feichtenhofer et al., 2022).
    """

    def __init__(self, network: VideoViT, *, ratio: float = 0.75) -> None:
        super().__init__()
        self.network, self.ratio = network, ratio
        self.predictor = Predictor(network, out=network.cell_dim, depth=2)

    def forward(self, lesson: Lesson, generator: torch.Generator) -> tuple[Tensor, Terms]:
        found, masked = masked_prediction(self, lesson.video, generator)
        wanted = pick(again(self.network.patches(lesson.video)), masked)
        loss = F.mse_loss(found, wanted)
        return loss, {"pixels": loss, "explained": 1 - loss / wanted.var()}


class MaskedLatents(nn.Module):
    """Predicts what an EMA of the network says of masked cells when it sees everything (Bardes et al., V-JEPA, 2024).

    The target is the mean of the normalised streams after the later blocks, as in data2vec (Baevski et al., 2022): the
    last one alone can go constant. The cells' pixels are predicted beside it: at this size the latents alone stay what
    the random start made them, nearly linear in pixels and blind to the object.
    """

    def __init__(self, network: VideoViT, *, ratio: float = 0.75, momentum: float = 0.99) -> None:
        super().__init__()
        self.network, self.ratio, self.momentum = network, ratio, momentum
        self.predictor = Predictor(network, out=network.dim + network.cell_dim, depth=2)
        self.target = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def targets(self, video: Tensor) -> Tensor:
        """(b s d)"""
        stages = self.target.stages(video)[1:]
        return torch.stack([F.layer_norm(stage, stage.shape[-1:]) for stage in stages]).mean(dim=0)

    def forward(self, lesson: Lesson, generator: torch.Generator) -> tuple[Tensor, Terms]:
        found, masked = masked_prediction(self, lesson.video, generator)
        latents, pixels = found.split([self.network.dim, self.network.cell_dim], dim=-1)
        wanted = pick(again(self.targets(lesson.video)), masked)
        terms = {
            "latents": F.mse_loss(latents, wanted),
            "pixels": F.mse_loss(pixels, pick(again(self.network.patches(lesson.video)), masked)),
        }
        spread = wanted.flatten(0, 1).std(dim=0).mean()  # near 0: the target has collapsed
        shown = {"explained": 1 - terms["latents"] / wanted.var(), "spread": spread}
        return terms["latents"] + terms["pixels"], terms | shown

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the target; its momentum rises to 1."""
        momentum = 1 - (1 - self.momentum) * (1 - progress)
        for ours, theirs in zip(self.target.parameters(), self.network.parameters(), strict=True):
            ours.lerp_(theirs, 1 - momentum)


def masked_prediction(
    objective: MaskedPixels | MaskedLatents, video: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the predictor says of the masked cells, and which these are: (r b, m, out), (r b, m)."""
    video = again(video)
    tokens = math.prod(objective.network.grid)
    masks = choose_masks(len(video), tokens, ratio=objective.ratio, generator=generator)
    visible, masked = (indices.to(video.device) for indices in masks)
    return objective.predictor(objective.network.tokens(video, visible), visible, masked), masked


def again(clips: Tensor) -> Tensor:
    """(b ...) -> (r b ...), for every one of the REPEATS masks."""
    return clips.repeat(REPEATS, *[1] * (clips.ndim - 1))


class DenseHeads(nn.Module):
    """What every token says: how much of its cell the object covers, what the object is, how its cell's pixels move.

    frames: of a cell.
    """

    def __init__(
        self, dim: int, *, grid: tuple[int, int, int], frames: int, classes: Mapping[str, int], flow: bool
    ) -> None:
        super().__init__()
        self.grid, self.frames, self.flow, self.classes = grid, frames, flow, dict(classes)
        self.sizes = {"cover": 1, **({"flow": 2} if flow else {}), **classes}
        self.heads = nn.Linear(dim, sum(self.sizes.values()))

    def forward(self, tokens: Tensor, lesson: Lesson) -> tuple[Tensor, Terms]:
        """(b s d), the grid's tokens. A factor's loss is weighted by the share of a cell that shows it. Flow outweighs
        the factors: it starts at once, and they only after it.
        """
        found = dict(zip(self.sizes, self.heads(tokens).split(list(self.sizes.values()), dim=-1), strict=True))
        cover = self.cells(lesson.mask.unsqueeze(2)).squeeze(-1)
        terms = {"cover": F.binary_cross_entropy_with_logits(found.pop("cover").squeeze(-1), cover)}
        if self.flow:
            terms["flow"] = F.mse_loss(found.pop("flow"), self.cells(lesson.flow) / FLOW)
        loss = terms["cover"] + 2 * terms.get("flow", 0)
        for name, logits in found.items():
            weights = 1 - cover if name == PAN else cover
            terms[name] = (lesson.surprise(name, logits) * weights).sum() / weights.sum().clamp_min(1)
            loss = loss + terms[name] / len(self.classes)
        return loss, terms

    def cells(self, pixels: Tensor) -> Tensor:
        """Means over the cells: (b f c y x) -> (b (t h w) c)"""
        _, h, w = self.grid
        return reduce(pixels, "b (t f) c (h y) (w x) -> b (t h w) c", "mean", f=self.frames, h=h, w=w)


class Dense(nn.Module):
    """Dense labels alone."""

    def __init__(self, network: VideoViT, *, classes: Mapping[str, int], flow: bool) -> None:
        super().__init__()
        self.network = network
        self.heads = DenseHeads(network.dim, grid=network.grid, frames=network.patch[0], classes=classes, flow=flow)

    def forward(self, lesson: Lesson, generator: torch.Generator) -> tuple[Tensor, Terms]:
        return self.heads(self.network.tokens(lesson.video), lesson)


class Action(nn.Module):
    """The joint action, what does what and how fast, from the CLS token, each part by a classifier of its own.

    Classification alone stays at chance for a long time; dense labels on the other tokens start it. They are training
    wheels: the model answers with its CLS token.
    """

    def __init__(self, network: VideoViT, *, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.network, self.classes = network, dict(classes)
        self.dense = DenseHeads(network.dim, grid=network.grid, frames=network.patch[0], classes=classes, flow=True)
        self.heads = nn.Linear(network.dim, sum(classes.values()))

    def forward(self, lesson: Lesson, generator: torch.Generator) -> tuple[Tensor, Terms]:
        tokens = self.network.tokens(lesson.video)
        loss, terms = self.dense(tokens[:, :-1], lesson)
        terms = {f"dense {name}": term for name, term in terms.items()}
        logits = self.heads(tokens[:, -1:]).split(list(self.classes.values()), dim=-1)
        for name, part in zip(self.classes, logits, strict=True):
            terms[name] = lesson.surprise(name, part).mean()
            loss = loss + terms[name]
        return loss, terms


Objective = MaskedPixels | MaskedLatents | Dense | Action
OBJECTIVES: dict[str, Callable[[VideoViT, Mapping[str, int]], Objective]] = {
    "pixels": lambda network, classes: MaskedPixels(network),
    "latents": lambda network, classes: MaskedLatents(network),
    "flow": lambda network, classes: Dense(network, classes=classes, flow=True),
    "appearance": lambda network, classes: Dense(network, classes=classes, flow=False),
    "action": lambda network, classes: Action(network, classes=classes),
}

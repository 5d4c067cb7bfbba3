"""Probes: how well a small reader, fitted on frozen tokens, tells the labels of clips; every task for itself.

linear     multinomial logistic regression on the mean over the grid's tokens, their maximum, and the mean of the late
           half of the time bins minus that of the early half; a token beside the grid is read as it is
attentive  learned queries of each task attend over the tokens; what they gather goes, layer-normed, into one linear map
           (attentive probing: CAE, Chen et al. 2022; V-JEPA, Bardes et al. 2024). One query needs no projection of keys
           and values: it would be a part of the query, and of the map. The probe has no positions of its own: it is a
           function of the set of tokens, and reads only what they hold

All tasks are fitted from the same reads and share no parameter. A task starts from the generator and its own name, so
that other tasks beside it change its result by rounding only. Which decay of the linear map, and which epoch, is chosen
for each task on val, by the Brier score: accuracy on a hundred clips is too coarse for that, and cross-entropy turns at
the first overconfidence.

Axes: b clips of a batch, n clips, s tokens of a clip, d channels, k tasks, g decays, h queries of a task, f features,
c classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from distill.tokens import Batch, Held, Source, check_finite, survey
from teachers.layout import TokenLayout

Labels = Mapping[str, Tensor]  # task -> (n,) int64: the class of every clip that a source may bring, -1 without one


@dataclass(frozen=True)
class Schedule:
    """How a kind is fitted: AdamW, its rates on a cosine to 0. decays: of the linear map, one map for each. The queries
    start short, at nearly uniform attention, and decay, which keeps them from wandering before they find a signal; the
    maps start apart from each other, so that the queries do too."""

    epochs: int
    lr: float
    decays: tuple[float, ...]
    heads: int = 0  # queries of a task
    query_start: float = 0.0  # their length
    map_start: float = 0.0  # that of a class's row
    query_lr: float = 0.0
    query_decay: float = 0.0


# 14 tasks, 750 train and 125 val clips of 288 x 128, one core: 4 and 11 s
SCHEDULES = {
    "linear": Schedule(epochs=40, lr=1e-2, decays=(0.1, 1.0, 10.0)),
    "attentive": Schedule(
        epochs=12, lr=1e-2, decays=(0.3, 3.0), heads=8, query_start=0.3, map_start=0.3, query_lr=3e-2, query_decay=1.0
    ),
}
KINDS = SCHEDULES | {"query": replace(SCHEDULES["attentive"], heads=1)}  # by that one, distill.pooling pools


class Probe(nn.Module):
    """A reader for every task: what `read` makes of tokens -> logits (g b k c), -inf where train has no such class.

    known: (k c) bool, the classes that train has. mean, scale: (d,) of the tokens, or (f,) of their moments. fit_probe
    makes it; a fitted one has g = 1.
    """

    def __init__(
        self, kind: str, *, layout: TokenLayout, tasks: list[str], known: Tensor, mean: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.kind, self.layout, self.tasks, self.schedule = kind, layout, tasks, schedule_of(kind)
        for name, tensor in (("mean", mean), ("scale", scale), ("closed", ~known)):
            self.register_buffer(name, tensor)
        (count, classes), heads = known.shape, self.schedule.heads
        shape = (count, len(mean) * max(heads, 1), classes)
        self.queries = nn.Parameter(torch.zeros(count, heads, len(mean)))
        self.maps = nn.ParameterList(torch.zeros(shape) for _ in self.schedule.decays)
        self.bias = nn.Parameter(torch.zeros(len(self.maps), count, classes))

    def start(self, generator: torch.Generator) -> Probe:
        """Draws where every task starts, by its name; every decay starts at the same. Returns the probe."""
        plan, seed = self.schedule, int(torch.randint(2**62, (), generator=generator))
        for place, task in enumerate(self.tasks):
            own = hashlib.sha256(f"{seed}/{task}".encode()).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(own[:8], "big") >> 1)
            self.queries.data[place].normal_(0, plan.query_start / len(self.mean) ** 0.5, generator=draw)
            rows = torch.randn(int((~self.closed[place]).nonzero().max()) + 1, self.maps[0].shape[1], generator=draw)
            for map_ in self.maps:
                map_.data[place, :, : len(rows)] = plan.map_start * rows.T / rows.shape[1] ** 0.5
        return self

    def forward(self, read: Tensor) -> Tensor:
        weight = torch.stack(list(self.maps))
        if self.schedule.heads:
            logits = torch.einsum("bkf,gkfc->gbkc", self.gather(read), weight)
        else:
            logits = torch.einsum("bf,gkfc->gbkc", (read.squeeze(1) - self.mean) / self.scale, weight)
        return (logits + self.bias.unsqueeze(1)).masked_fill(self.closed, -math.inf)

    def gather(self, tokens: Tensor) -> Tensor:
        """What the queries find: (b s d) -> (b k f). They meet standardised tokens, whose mean shifts all alike."""
        queries = rearrange(self.queries / self.scale, "k h d -> d (k h)")
        found = (tokens @ queries).softmax(1).transpose(1, 2) @ tokens
        found = F.layer_norm((found - self.mean) / self.scale, self.mean.shape)
        return rearrange(found, "b (k h) d -> b k (h d)", k=len(self.tasks))

    def hits(self, tokens: Source, labels: Labels) -> tuple[dict[str, Tensor], Tensor]:
        """Per task (n,) float64: 1 where a clip's class is told (one that train never had is not), 0 where not, nan
        without one; and the clips, (n,). Raises ValueError on other tasks than the probe's, and on other tokens."""
        logits, clips = self.read(tokens)
        return self.right(logits, clips, labels), clips

    def read(self, tokens: Source) -> tuple[Tensor, Tensor]:
        """Logits (n k c) of the clips (n,), on the CPU."""
        logits, clips = answers(self, reading(self.kind, self.layout, tokens))
        return logits[0], clips

    def right(self, logits: Tensor, clips: Tensor, labels: Labels) -> dict[str, Tensor]:
        """The first part of `hits`, of what `read` gives."""
        if missing := [task for task in self.tasks if task not in labels]:
            raise ValueError(f"there are no labels of the task {missing[0]!r}, only of {', '.join(labels) or 'none'}")
        if unknown := [task for task in labels if task not in self.tasks]:
            raise ValueError(f"this probe was not fitted to the task {unknown[0]!r}, but to {', '.join(self.tasks)}")
        classes = label_table({task: labels[task] for task in self.tasks})[clips]
        right = (logits.argmax(-1) == classes).double().masked_fill(classes < 0, math.nan)
        return dict(zip(self.tasks, right.unbind(1), strict=True))


def fit_probe(
    kind: str,
    *,
    train: Source,
    val: Source,
    labels: Labels,
    layout: TokenLayout,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Probe:
    """The probe of every task of `labels`, fitted on train and chosen on val.

    The attentive one reads train once for its statistics and once an epoch, and val once an epoch; the linear one reads
    each once and keeps their moments. Raises ValueError on an unknown kind, on tokens that are not of the layout or not
    finite, and on a task that has no label, or one class only, in train, or none in val of a class that train has.
    """
    heads = schedule_of(kind).heads
    train, val = reading(kind, layout, train), reading(kind, layout, val)
    if not heads:
        seed = int(torch.randint(2**31, (), generator=generator))
        train, val = Held.of(train, seed=seed), Held.of(val)
    clips, batches, mean, scale = survey(train)
    classes = label_table(labels)
    known = known_classes(list(labels), classes[clips])
    probe = Probe(kind, layout=layout, tasks=list(labels), known=known, mean=mean, scale=scale)
    probe, classes = probe.start(generator).to(device), classes.to(device)
    optimizer = build_optimizer(probe)
    steps = batches * probe.schedule.epochs
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    best = Best(probe)
    for epoch in range(probe.schedule.epochs):
        for tokens, places in train(epoch):
            optimizer.zero_grad()
            losses(probe(tokens.to(device)), classes[places.to(device)]).sum().backward()
            optimizer.step()
            cosine.step()
        best.keep(brier(probe, val, classes))
    return best.settle()


def schedule_of(kind: str) -> Schedule:
    if kind not in KINDS:
        raise ValueError(f"there is no probe {kind!r}; there are {', '.join(SCHEDULES)}")
    return KINDS[kind]


def reading(kind: str, layout: TokenLayout, tokens: Source) -> Source:
    """A source of what a probe of this kind takes: tokens (b s d) as they are, or their moments, as one (b 1 f).

    Raises ValueError on tokens that are not of the layout or not finite.
    """

    def source(turn: int) -> Iterator[Batch]:
        for batch, clips in tokens(turn):
            if batch.ndim != 3 or batch.shape[1:] != layout.shape:
                raise ValueError(
                    f"tokens are {tuple(batch.shape)}, but the probe reads {layout.describe()}; give it those, or fit "
                    "another to these"
                )
            if turn == 0:  # of every source the first to be read; to look again would wait for the device at every step
                check_finite(batch, clips)
            yield (batch if schedule_of(kind).heads else moments(batch, layout).unsqueeze(1)), clips

    return source


def moments(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """What the linear probe reads: (b s d) -> (b f). A single time bin has no late half."""
    grid, parts = tokens[:, : layout.num_grid_tokens], []
    if layout.grid is not None:
        parts = [grid.mean(1), grid.amax(1)]
        if half := layout.grid[0] // 2:
            bins = rearrange(grid, "b (t p) d -> b t p d", t=layout.grid[0]).mean(2)
            parts.append(bins[:, -half:].mean(1) - bins[:, :half].mean(1))
    return torch.cat([*parts, tokens[:, layout.num_grid_tokens :].flatten(1)], dim=1)


def label_table(labels: Labels) -> Tensor:
    """(n k) int64."""
    if not labels:
        raise ValueError("there is no task to probe; give labels of at least one")
    return torch.stack([torch.as_tensor(labels[task]) for task in labels], dim=1)


def known_classes(tasks: list[str], classes: Tensor) -> Tensor:
    """(k c) bool: the classes of every task among the train clips' (n k). Raises ValueError where they are too few."""
    known = torch.stack([(classes == c).any(0) for c in range(max(2, int(classes.max()) + 1))], dim=1)
    for task, found in zip(tasks, known.sum(1).tolist(), strict=True):
        if found < 2:
            have = "all have the same" if found else "none has a"
            raise ValueError(
                f"task {task!r}: of {len(classes)} train clips {have} label, and a probe needs two; label more, or "
                "leave the task out"
            )
    return known


def build_optimizer(probe: Probe) -> torch.optim.Optimizer:
    plan = probe.schedule
    groups = [
        {"params": [probe.queries], "lr": plan.query_lr, "weight_decay": plan.query_decay},
        {"params": [probe.bias], "weight_decay": 0.0},
        *({"params": [map_], "weight_decay": decay} for map_, decay in zip(probe.maps, plan.decays, strict=True)),
    ]
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.99), fused=True)


def losses(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of every decay and task over the clips that have a class: (g b k c), (b k) -> (g k)."""
    wanted = classes.expand(logits.shape[:-1])
    found = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), ignore_index=-1, reduction="none")
    return found.view(wanted.shape).sum(1) / (classes >= 0).sum(0).clamp_min(1)


@torch.no_grad()
def answers(probe: Probe, read: Source) -> tuple[Tensor, Tensor]:
    """Logits (g n k c) and clips (n,) of one pass, on the CPU."""
    logits, clips = [], []
    for tokens, places in read(0):
        logits.append(probe(tokens.to(probe.bias.device)).cpu())
        clips.append(places.cpu())
    return torch.cat(logits, dim=1), torch.cat(clips)


def brier(probe: Probe, val: Source, classes: Tensor) -> Tensor:
    """(g k): the mean over clips of sum_c (p_c - [c is true])^2; Brier 1950. Clips of a class that train lacks are left
    out; raises ValueError where a task has no others."""
    logits, clips = answers(probe, val)
    chances, truth = logits.softmax(-1), classes.cpu()[clips]
    true = F.one_hot(truth.clamp_min(0), max(chances.shape[-1], int(truth.max()) + 1))[..., : chances.shape[-1]]
    counted = (true.bool() & ~probe.closed.cpu()).any(-1) & (truth >= 0)
    for task, found in zip(probe.tasks, counted.sum(0).tolist(), strict=True):
        if not found:
            raise ValueError(
                f"task {task!r}: none of {len(clips)} val clips has a label that a train clip has, too; label some, or "
                "leave the task out"
            )
    return ((chances - true).square().sum(-1) * counted).sum(1) / counted.sum(0)


class Best:
    """The state of every decay and task at the epoch that was best on val."""

    def __init__(self, probe: Probe) -> None:
        self.probe, self.score = probe, torch.full((len(probe.maps), len(probe.tasks)), math.inf)
        self.queries, self.maps, self.bias = self._state()

    def _state(self) -> list[Tensor]:
        """Queries (g k h d), maps (g k f c) and bias (g k c)."""
        probe = self.probe
        found = (probe.queries.expand(len(probe.maps), -1, -1, -1), torch.stack(list(probe.maps)), probe.bias)
        return [tensor.detach().clone() for tensor in found]

    def keep(self, score: Tensor) -> None:
        """Takes the present state where its score (g k) is the lowest so far."""
        better = score < self.score
        self.score = torch.where(better, score, self.score)
        rows = better.to(self.bias.device)
        for kept, now in zip((self.queries, self.maps, self.bias), self._state(), strict=True):
            kept[rows] = now[rows]

    def settle(self) -> Probe:
        """The probe with, for every task, what was best."""
        pick, tasks = self.score.argmin(0).to(self.bias.device), torch.arange(len(self.probe.tasks))
        queries, maps, bias = (tensor[pick, tasks] for tensor in (self.queries, self.maps, self.bias))
        self.probe.queries, self.probe.maps = nn.Parameter(queries), nn.ParameterList([maps])
        self.probe.bias = nn.Parameter(bias.unsqueeze(0))
        return self.probe.requires_grad_(False)

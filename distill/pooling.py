"""One vector of every clip: the student's, the teachers' and the converted tokens, pooled alike.

mean       over the grid, without what stands beside it; a pooled column is what it is. One pass over the store for all
attentive  by one query, learned with the labels (a probe of distill.probe), for every set of tokens its own; over the
           tokens beside the grid, too. No more labels are seen than a head will see

Axes: n clips of the store, b clips of a batch, s tokens, d channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from converters.converter import Converter
from distill.naming import named
from distill.probe import fit_probe
from distill.tokens import READ, open_sources
from shards.column import STUDENT
from shards.reader import scan
from shards.store import FeatureStore
from teachers.layout import TokenLayout

# (contestant, target), or (None, column) of the store -> (n d) on the CPU; rows of clips without a split are 0
Pooled = dict[tuple[str | None, str], Tensor]
ONE_QUERY = "query"  # the kind of probe


@torch.no_grad()
def pool_means(store: FeatureStore, contestants: Mapping[str, Converter], *, device: torch.device) -> Pooled:
    """The means of all tokens. contestants: of the same targets, on the device."""
    targets = next(iter(contestants.values())).targets
    layouts = {column: store.layout(column) for column in (STUDENT, *targets)}
    found: Pooled = {(None, column): torch.zeros(len(store), layout.dim) for column, layout in layouts.items()}
    found |= {(name, target): torch.zeros_like(found[None, target]) for name in contestants for target in targets}
    with tqdm(total=len(store), desc="head, pooling", unit="clip", dynamic_ncols=True) as bar:
        for batch in scan(store, indices=range(len(store)), columns=[*layouts], batch=READ, device=device):
            tokens: Mapping[tuple[str | None, str], Tensor] = {(None, column): batch[column] for column in layouts}
            for name, converter in contestants.items():
                tokens |= {(name, target): made for target, made in converter(batch[STUDENT]).items()}
            for key, made in tokens.items():
                found[key][batch["indices"].cpu()] = mean_token(made, layouts[key[1]]).cpu()
            bar.update(len(batch["indices"]))
    return found


def mean_token(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """(b s d) -> (b d)."""
    return (tokens if layout.grid is None else tokens[:, : layout.num_grid_tokens]).mean(1)


def pool_attentive(
    store: FeatureStore,
    contestants: Mapping[str, Converter],
    labels: Tensor,
    *,
    seed: int,
    device: torch.device,
) -> Pooled:
    """What a learned query gathers, layer-normed. labels: (n,) int64 as the head will see them, -1: none."""
    targets = list(next(iter(contestants.values())).targets)
    found: Pooled = {}
    for name, converter in {None: None, **contestants}.items():
        columns = targets if converter else [STUDENT, *targets]
        opened = open_sources(store, columns, converter=converter, seed=seed, device=device)
        for column in columns:
            sources = opened.pop(column)  # so that its memory goes with it
            with named(f"pool of {f'{name} to ' if name else ''}{column}"):
                probe = fit_probe(
                    ONE_QUERY,
                    train=sources["train"],
                    val=sources["val"],
                    labels={"head": labels},
                    layout=store.layout(column),
                    generator=torch.Generator().manual_seed(seed),
                    device=device,
                )
            found[name, column] = torch.zeros(len(store), store.layout(column).dim)
            for source in sources.values():
                for tokens, clips in source(0):
                    found[name, column][clips.cpu()] = probe.gather(tokens.to(device))[:, 0].cpu()
    return found

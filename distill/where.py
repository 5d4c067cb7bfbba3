"""Where a converter is wrong: errors by token position, by channel and by clip, and pictures of the clips at the ends.

Written beside a run's summary as where.safetensors and where.json; docs/metrics.md has the format.
Axes: n test clips, k shown clips, q tokens, e channels, t h w token grid, f i j frames and cells of a pixel token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from converters.converter import Converter
from distill.evaluate import Statistics, frozen_statistics, number_or_none
from distill.floors import MAIN, Floors
from distill.metrics import CENTRED, ERROR, Alignment
from distill.spectrum import components, standardised
from shards.column import PIXELS, STUDENT
from shards.ranks import Ranks
from shards.reader import scan
from shards.store import FeatureStore

VERSION = 1
ENDS = 4  # clips at either end that are shown
BASIS_CLIPS = 32  # train clips from which the colours' directions come
REACH = 2.5  # deviations of the teacher's tokens that a colour spans to either side
Tensors = dict[str, Tensor]
Record = dict[str, Any]


def look(floors: Floors, name: str, scores: Mapping[str, Mapping[str, Alignment]]) -> tuple[Tensors, Record]:
    """What the two files hold, of a contestant beside its floors. For one rank: the others have nothing to add.

    scores: candidate -> target -> its sums on the test clips, over all ranks.
    """
    store, converter = floors.store, floors.contestants[name]
    test = store.indices("test")
    tensors: Tensors = {}
    targets: dict[str, Any] = {}
    for target, alignment in scores[MAIN].items():
        tensors |= errors(target, {label: found[target] for label, found in scores.items() if target in found})
        r2c = 1 - alignment.clips[:, ERROR] / alignment.clips[:, CENTRED]
        shown = ends(r2c)
        pictures, shares = paint(floors, converter, target, [test[clip] for clip in shown])
        stills = thumbnails(store, target, [test[clip] for clip in shown])
        tensors |= {f"{target}/{kind}": picture for kind, picture in (pictures | stills).items()}
        layout = converter.targets[target]
        targets[target] = {
            "grid": layout.grid,
            "special": list(layout.special),
            "candidates": [label for label, found in scores.items() if target in found],
            "shown": [{"clip": clip, "r2c": number_or_none(float(r2c[clip]))} for clip in shown],
            "shares": shares,
            "pictures": sorted(pictures),
            "thumbnails": bool(stills),
        }
    clips = [{key: store.clips[index].get(key) for key in ("key", "source", "group", "label")} for index in test]
    return tensors, {"version": VERSION, "split": "test", "main": MAIN, "clips": clips, "targets": targets}


def errors(target: str, found: Mapping[str, Alignment]) -> Tensors:
    """Numerators of 1 - r2c for every candidate, and the denominators, which are the same for all: float64."""
    first = next(iter(found.values()))
    tensors = {
        f"{target}/spread/clips": first.clips[:, CENTRED],
        f"{target}/spread/positions": first.positions[1],
        f"{target}/spread/channels": first.channels[1],
    }
    for label, at in found.items():
        tensors[f"{target}/error/{label}/clips"] = at.clips[:, ERROR]
        tensors[f"{target}/error/{label}/positions"] = at.positions[0]
        tensors[f"{target}/error/{label}/channels"] = at.channels[0]
    return {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}


def ends(r2c: Tensor, *, count: int = ENDS) -> list[int]:
    """The clips that are worst, then those that are best, worst first; each once. One without a number is the worst,
    and never among the best."""
    order = r2c.nan_to_num(-torch.inf).argsort(stable=True).tolist()
    if len(order) <= 2 * count:
        return order
    return order[:count] + [clip for clip in order[count:] if r2c[clip].isfinite()][-count:]


@torch.inference_mode()
def paint(
    floors: Floors, converter: Converter, target: str, clips: Sequence[int]
) -> tuple[Tensors, list[float] | None]:
    """Pictures (k t h w 3) uint8 of the teacher's tokens, the converted, and what ridge makes of the student's, all in
    the three directions in which the teacher varies most; and the shares of its variance that these hold. A pooled
    target has no picture.

    The student's own tokens have another width: ridge is how they look in the teacher's space.
    """
    layout, store, device = converter.targets[target], floors.store, floors.ranks.device
    if layout.grid is None:
        return {}, None
    statistics = frozen_statistics(store, target).to(device)
    basis, shares = directions(store, target, statistics, device)
    ridge, parts = floors.ridge(converter), []
    for batch in scan(store, indices=clips, columns=[STUDENT, target], device=device):
        tokens = {"teacher": batch[target]}
        for kind, model in (("converted", converter), ("student", ridge)):
            tokens[kind] = model(batch[STUDENT])[target]
        parts.append(
            {kind: standardised(rows, statistics)[:, : layout.num_grid_tokens] @ basis for kind, rows in tokens.items()}
        )
    found = {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}
    scale = REACH * found["teacher"].flatten(0, 1).std(0).clamp_min(1e-6)
    t, h, _ = layout.grid
    return {
        kind: rearrange(((rows / scale + 1) * 127.5).clamp(0, 255).byte().cpu(), "k (t h w) c -> k t h w c", t=t, h=h)
        for kind, rows in found.items()
    }, shares


def directions(
    store: FeatureStore, target: str, statistics: Statistics, device: torch.device
) -> tuple[Tensor, list[float]]:
    """The teacher's three leading components over some train clips, (e 3), and their shares of its variance there.

    Each points so that its largest entry is positive: the same colours in every run on the same features.
    """
    everywhere = {target: torch.arange(len(statistics.mean))}
    bases, variances = components(store, everywhere, {target: statistics}, Ranks(device=device), clips=BASIS_CLIPS)
    leading, variance = bases[target][:, :3], variances[target]
    signs = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    return leading * signs, (variance[:3] / variance.sum()).tolist()


def thumbnails(store: FeatureStore, target: str, clips: Sequence[int]) -> Tensors:
    """The first frame of every time bin, (k t height width 3) uint8, from the averaged pixels that the floor reads;
    none where the store lacks them, or has them from elsewhere."""
    column = store.columns.get(PIXELS + target)
    cells = json.loads(column.origin.get("options") or "{}").get("cells") if column else None
    if column is None or not cells or column.layout.grid is None:
        return {}
    t, h, _ = column.layout.grid
    found = [
        rearrange(batch[column.name], "k (t h w) (f i j c) -> f k t (h i) (w j) c", t=t, h=h, i=cells, j=cells, c=3)[0]
        for batch in scan(store, indices=clips, columns=[column.name])
    ]
    return {"thumbnails": (torch.cat(found) * 255).round().clamp(0, 255).byte()}

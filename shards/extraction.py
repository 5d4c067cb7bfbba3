"""Clips -> feature columns: renders every clip once, runs the backbones that miss it, writes finished shards.

Everything comes in through parameters: how a clip is rendered, the backbones, the ranks. A shard is computed from its
first clip on, in fixed groups of `batch` clips, by one rank, and a clip that any column of the pass refuses is refused
by all; so the finished store is the same, byte for byte, for any number of ranks and after any interruption.

Axes: b clips of a forward, q tokens of a clip, d channels.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from shards.codec import CALIBRATION_CLIPS, CALIBRATION_FILE, Calibration, Codec, load_codec
from shards.column import CLIPS
from shards.disk import remove_temporaries
from shards.group import Clip, Computer, Group, Render, Rendered, Source, Views
from shards.manifest import Manifest
from shards.plan import Plan, Work, check_place, check_refused, make_plan, required_bytes
from shards.prefetch import Behind, prefetch
from shards.statistics import are_current, compute_statistics, save_statistics
from shards.store import FeatureStore
from shards.team import Alone, Share, Team, Unfinished, hold
from shards.writer import ShardWriter

__all__ = ["Clip", "Render", "Source", "Views", "extract"]

KEPT_CLIPS = 64  # whose tokens are kept from the calibration; more are computed again


def extract(
    path: str | Path,
    *,
    clips: Sequence[Clip],
    columns: Mapping[str, Source],
    render: Render,
    view: dict[str, Any],
    refusal: type[Exception],
    codec: str = "int8",
    clips_per_shard: int | None = None,
    covers: Mapping[str, Collection[str]] | None = None,
    extend: bool = False,
    ranks: Team | None = None,
    share: Share | None = None,
    batch: int = 1,
    device: torch.device | str = "cpu",
    threads: int = 1,
    max_refused: float = 0.5,
    free_bytes: Callable[[Path], int] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Brings a store to the point where it has every one of `columns` for every clip; finished shards stay.

    clips: in the order of the store, keys unique. render: decodes a clip once for every backbone; what it raises as
    `refusal`, and tokens that are not finite, refuse the clip by name in all columns of this pass. view: the settings
    that decide what a clip shows; digested. codec: int8 or fp16, for columns that are new. clips_per_shard: None takes
    the store's, or about 512 MB of the first column in at least 8 shards. covers: column -> the keys that it shall
    have, if not all. extend: `clips` may go on after those of the store; its other columns are then incomplete. batch:
    clips per forward, part of the bytes on devices whose results depend on it. threads: render ahead. free_bytes: of a
    folder's disk. share: of the shards that this job shall make; others make the rest.

    Raises ValueError where the store there was made otherwise (view, clips, split, labels, codec, partition, origin or
    layout of a column), naming both; OSError where the disk is too small; ValueError above the share `max_refused`;
    Unfinished where shards of other shares are not there yet.
    """
    root, team, share = Path(path), ranks or Alone(), share or Share()
    how = {"view": view, "codec": codec, "clips_per_shard": clips_per_shard, "covers": covers, "extend": extend}
    check_place(root)
    with ExitStack() as held:
        writing = hold(root, team, held, shared=share.count > 1)
        plan = make_plan(root, clips=clips, columns=columns, **how)
        if plan.work:
            free = free_bytes or (lambda folder: shutil.disk_usage(folder).free)
            check_disk(plan, free, say=say, quiet=team.rank > 0)
        sources = {name: source for name, source in columns.items() if name in plan.missing}
        computer = Computer(plan.clips, sources, render, refusal, torch.device(device), plan.covers)
        job = _Pass(plan, computer, batch=batch, threads=threads)
        team.barrier()
        if writing:
            remove_temporaries(root, mine=share.has, others=share.number == 0)
            if share.number:
                share.wait(plan.is_prepared, say=say)
            elif plan.work:
                plan.write_manifest(complete=False)
                job.prepare(world=team.world * share.count, say=say)
        team.barrier()
        work = [item for item in plan.work if share.has(item.shard)]
        job.run(work[team.rank :: team.world], quiet=team.rank > 0, max_refused=max_refused, world=team.world)
        team.barrier()
        if left := int(team.text(str(plan.left()) if team.rank == 0 else None)):
            raise Unfinished(
                f"share {share} is done; {left} of {plan.partition.shards} shards are left to other shares"
            )
        if writing:
            writing.alone()  # of several shares that have ended, one after the other completes the store
            remove_temporaries(root)
            plan.write_manifest(complete=True)
        team.barrier()
        write_statistics(root, [name for number, name in enumerate(columns) if number % team.world == team.rank])
        team.barrier()
    check_refused(plan.refusals(plan.shards), total=len(clips), share=max_refused, final=True)


def check_disk(plan: Plan, free_bytes: Callable[[Path], int], *, say: Callable[[str], None], quiet: bool) -> None:
    """Says how much will be written, and stops where it does not fit."""
    required, per_clip = required_bytes(plan)
    folder = plan.root
    while not folder.exists():
        folder = folder.parent
    free = free_bytes(folder)
    clips = sum(len(work.wanted) for work in plan.work)
    total = f"{required / 1e9:.1f} GB" if required >= 1e9 else f"{required / 1e6:.1f} MB"
    text = f"{clips} clips, {per_clip / 1e6:.2f} MB a clip, {total} in all; {free / 1e9:.1f} GB are free"
    if required > free:
        raise OSError(f"{plan.root}: {text}. Choose another store.path, fewer clips, or store.codec=int8")
    if quiet:
        return
    say(f"features: {text}")
    if found := [name for name in plan.passing if name not in plan.missing]:
        say(f"features: already there: {', '.join(found)}; to compute: {', '.join(sorted(plan.missing - {CLIPS}))}")


class _Pass:
    """One pass over the clips that miss something."""

    def __init__(self, plan: Plan, computer: Computer, *, batch: int, threads: int) -> None:
        self.plan, self.computer, self.batch, self.threads = plan, computer, batch, threads
        self.kept: dict[tuple[int, int], Group] = {}  # (shard, first clip) -> what the calibration computed
        self.codecs: dict[str, Codec] = {}

    def prepare(self, *, world: int, say: Callable[[str], None]) -> None:
        """Rank 0, before the others start: calibrates int8, and estimates the time from the first clips."""
        lacking = [
            name
            for name in self.computer.sources
            if self.plan.columns[name].codec == "int8" and not (self.plan.root / name / CALIBRATION_FILE).exists()
        ]
        train: dict[str, list[Tensor]] = {name: [] for name in lacking}
        seconds: list[float] = []
        with tqdm(desc="first clips", unit="clip", leave=False, dynamic_ncols=True) as bar:
            for shard, start, keys in self.spread():
                short = [name for name in lacking if len(train[name]) < CALIBRATION_CLIPS]
                if seconds and not any(self.calibrates(name, key) for name in short for key in keys):
                    continue
                begin = time.monotonic()
                known = self.plan.refusals([shard])
                missing = self.plan.missing
                rendered = map(self.computer.try_render, self.computer.readable(keys, known, missing))
                group = self.computer.compute(keys, known, missing, rendered)
                if group.records:  # a refusal takes no time
                    seconds.append((time.monotonic() - begin) / len(group.records))
                if sum(len(kept.records) for kept in self.kept.values()) < KEPT_CLIPS:
                    self.kept[shard, start] = group
                bar.update(len(group.records))
                for name in short:
                    own = enumerate(group.keys.get(name, ()))
                    train[name] += [group.tokens[name][row] for row, key in own if self.calibrates(name, key)]
        for name in lacking:
            calibration = Calibration.fit(train[name][:CALIBRATION_CLIPS], column=name)
            (self.plan.root / name).mkdir(exist_ok=True)
            calibration.save(self.plan.root / name)
        left = sum(len(work.wanted) for work in self.plan.work) - sum(
            len(group.records) for group in self.kept.values()
        )
        if seconds:
            pace = statistics.median(seconds)
            rest = f"about {in_words(left * pace / world)} for the other {left} clips"
            say(f"features: {rest}, at {pace:.2f} s a clip on {world} rank(s)")

    def calibrates(self, column: str, key: str) -> bool:
        """Whether a clip can calibrate a column: those of train; where it covers none of them, all that it has."""
        return self.computer.covered(column, key) and (
            self.plan.clips[key].split == "train" or column in self.without_train
        )

    @cached_property
    def without_train(self) -> frozenset[str]:
        """Columns that cover no train clip."""
        train = [key for key, clip in self.plan.clips.items() if clip.split == "train"]
        return frozenset(
            name for name in self.computer.sources if not any(self.computer.covered(name, k) for k in train)
        )

    def spread(self) -> list[tuple[int, int, tuple[str, ...]]]:
        """The groups that can calibrate some column, in an order that has nothing to do with the clips': neighbours in
        a store often share a class, and a calibration should see them all."""
        columns = list(self.computer.sources)
        groups = [
            group
            for group in self.plan.groups(self.batch)
            if any(self.calibrates(name, key) for key in group[2] for name in columns)
        ]
        return sorted(groups, key=lambda group: hashlib.sha256(group[2][0].encode()).digest())

    def run(self, work: Sequence[Work], *, quiet: bool, max_refused: float, world: int) -> None:
        """Computes and writes these shards, one after the other, while the next clips are rendered."""
        if not work:
            return
        for name in self.computer.sources:
            column = self.plan.columns[name]
            codec = load_codec(column.codec, root=self.plan.root, column=name, dim=column.layout.dim)
            self.codecs[name] = codec.to(self.computer.device)
        own = {item.shard for item in work}
        self.kept = {place: group for place, group in self.kept.items() if place[0] in own}
        kept = frozenset(self.kept)
        known = {item.shard: self.plan.refusals([item.shard]) for item in work}
        ahead = (
            key
            for item in work
            for start, keys in item.groups(self.batch)
            if (item.shard, start) not in kept
            for key in self.computer.readable(keys, known[item.shard], item.columns)
        )
        rendered = prefetch(ahead, self.computer.try_render, threads=self.threads, ahead=self.threads + self.batch)
        label = "features" if world == 1 else f"features, rank 0 of {world}"
        refused = self.plan.refusals(self.plan.shards)
        try:
            with tqdm(total=sum(len(item.wanted) for item in work), desc=label, unit="clip", disable=quiet) as bar:
                for item in work:
                    refused |= self.write(item, known[item.shard], rendered, bar)
                    check_refused(refused, total=len(self.plan.clips), share=max_refused, final=False)
        finally:
            rendered.close()

    def write(self, work: Work, known: dict[str, str], rendered: Iterator[Rendered], bar: tqdm[Any]) -> dict[str, str]:
        """One shard of every column that misses it. Returns its refusals."""
        specs = {name: {} if name == CLIPS else self.plan.columns[name].spec for name in work.columns}
        refused = {key: known[key] for key in work.keys if key in known}
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(ShardWriter(self.plan.root, column=name, shard=work.shard, spec=spec))
                for name, spec in specs.items()
            }
            with Behind() as behind:  # encodes and writes a group while the next is computed
                for start, keys in work.groups(self.batch):
                    kept = self.kept.pop((work.shard, start), None)
                    group = kept or self.computer.compute(keys, known, work.columns, rendered)
                    behind.do(partial(self.append, group, writers))
                    refused |= group.refused
                    bar.update(len(set(keys) & self.plan.wanted))
            for name, writer in writers.items():
                for key, reason in refused.items():
                    writer.refuse(key, reason)
                for key in work.keys:
                    if key not in refused and not self.computer.covered(name, key):
                        writer.leave_out(key)
                writer.finish()
        return refused

    def append(self, group: Group, writers: Mapping[str, ShardWriter]) -> None:
        """Encodes a group's tokens where they are, and appends them and the records."""
        for name, writer in writers.items():
            if name == CLIPS:
                for key, record in group.records.items():
                    writer.add_record(key, record)
            elif group.keys.get(name):
                encoded = {part: rows.cpu() for part, rows in self.codecs[name].encode(group.tokens[name]).items()}
                for row, key in enumerate(group.keys[name]):
                    writer.add(key, {part: rows[row] for part, rows in encoded.items()})


def write_statistics(root: Path, columns: Sequence[str]) -> None:
    """Computes the statistics of complete columns that have none yet, or those of fewer clips."""
    for name in columns:
        if are_current(root, name, split=Manifest.read(root).digests["split"]):
            continue
        store = FeatureStore(root, columns=[name])
        train = store.indices("train")
        if not train:
            continue
        buffer = torch.empty(store.layout(name).shape)
        encoded = prefetch(train, partial(store.read, column=name), threads=1)
        bar = tqdm(encoded, total=len(train), desc=f"statistics of {name}", unit="clip", leave=False, delay=1)
        found = compute_statistics(store.decode(tensors, name, out=buffer) for tensors in bar)
        save_statistics(root, name, found, split=store.digests["split"])


def in_words(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"

"""Reading batches: the order of training samples, and threads that read and decode ahead.

The training stream is the concatenation of the epochs' permutations, each a function of (seed, epoch) alone. Optimizer
step k takes samples [k * batch, (k + 1) * batch) of that endless stream, and each rank a contiguous part of them: no
tail, nothing dropped or padded, the same samples for any number of ranks, and resuming is starting at a step.

Axes: b clips of a micro-batch, q tokens of a clip, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import count, islice
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.prefetch import Memory, prefetch
from shards.store import FeatureStore

Batch = dict[str, Any]  # keys: list[str]; indices, label: (b,) int64; <column>: (b q d); training: step, micro
WINDOW = 16  # shards
Pairing = Mapping[str, Sequence[int]]


class SampleOrder:
    """The endless stream of samples 0 .. num_clips - 1.

    shards: of every sample; with them an epoch goes through the shards in a random order, `window` of them at a time,
    and shuffles within those: a window is fetched once, and 16 mix 14 shards into a batch of 32. Without, the whole
    epoch is one permutation.
    """

    def __init__(self, num_clips: int, *, seed: int, shards: Sequence[int] | None = None, window: int = 16) -> None:
        if num_clips < 1 or seed < 0:
            raise ValueError(f"the order of {num_clips} clips with seed {seed}: needs clips, and a seed of at least 0")
        self.num_clips, self.seed = num_clips, seed
        self._epochs: dict[int, np.ndarray] = {}
        self._shards, self._window = None if shards is None else np.asarray(shards), window

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch, from (seed, epoch) alone."""
        order = self._epochs.get(epoch)
        if order is None:
            order = self._permute(np.random.default_rng([self.seed, epoch]))
            recent = {e: kept for e, kept in self._epochs.items() if e >= epoch - 1}
            self._epochs = {**recent, epoch: order}  # rebound, not changed: several threads read it
        return order

    def _permute(self, draw: np.random.Generator) -> np.ndarray:
        if self._shards is None:
            return draw.permutation(self.num_clips)
        names, shard_of = np.unique(self._shards, return_inverse=True)
        window_of = (draw.permutation(len(names)) // self._window)[shard_of]
        return np.lexsort((draw.random(self.num_clips), window_of))

    def samples(self, start: int, stop: int) -> list[int]:
        """Samples [start, stop) of the stream."""
        places = (divmod(position, self.num_clips) for position in range(start, stop))
        return [int(self.epoch(epoch)[place]) for epoch, place in places]


def sample_indices(step: int, *, seed: int, batch: int, num_clips: int) -> list[int]:
    """The samples of one optimizer step over all ranks, as positions in 0 .. num_clips - 1."""
    return SampleOrder(num_clips, seed=seed).samples(step * batch, (step + 1) * batch)


class Loader:
    """Assembles micro-batches of at most `batch` clips: positioned reads, checksums, decoding to `device` and `dtype`.

    paired: column -> store indices, aligned with `indices`: that column is read from these clips instead (the
    shuffled control). Thread-safe. On a CPU each clip is decoded right after its read, into memory used again; on a
    GPU the encoded bytes cross through pinned buffers on a stream of their own, and are decoded there.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        columns: Sequence[str],
        indices: Sequence[int],
        batch: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        paired: Pairing | None = None,
        threads: int = 2,
    ) -> None:
        self.store, self.columns, self.indices = store, list(columns), [int(index) for index in indices]
        self.batch = batch
        self.device, self.dtype = torch.device(device), dtype
        self.paired = {name: [int(index) for index in order] for name, order in (paired or {}).items()}
        for name in (*self.columns, *self.paired):
            store.layout(name)
        for name, order in self.paired.items():
            if len(order) != len(self.indices):
                raise ValueError(f"column {name} is paired with {len(order)} clips, but {len(self.indices)} are read")
        self._codecs = {name: store.codec(name).to(self.device) for name in self.columns}
        self._memory = Memory(blocks=2 * (threads + 3) * len(self.columns))
        self._scratch: SimpleQueue[dict[str, dict[str, Tensor]]] = SimpleQueue()
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def load(self, positions: Sequence[int]) -> Batch:
        """The micro-batch of these positions in `indices`."""
        clips = [self.indices[position] for position in positions]
        batch: Batch = {
            "keys": [self.store.keys[clip] for clip in clips],
            "indices": torch.tensor(clips, dtype=torch.int64),
            "label": torch.tensor([self.store.label_indices[clip] for clip in clips], dtype=torch.int64),
        }
        scratch = self._take_scratch()
        sources = {name: self.paired.get(name, self.indices) for name in self.columns}
        fill = self._fill_gpu if self._stream else self._fill_cpu
        batch |= fill({name: [source[p] for p in positions] for name, source in sources.items()}, scratch)
        self._scratch.put(scratch)
        return batch

    def _take_scratch(self) -> dict[str, dict[str, Tensor]]:
        """Memory for encoded tensors: of one clip on a CPU, of a whole micro-batch, pinned, for a GPU."""
        try:
            return self._scratch.get_nowait()
        except Empty:
            rows = (self.batch,) if self._stream else ()
            return {name: self.store.empty(name, *rows, pinned=bool(self._stream)) for name in self.columns}

    def _fill_cpu(self, clips: dict[str, list[int]], scratch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        tokens = {}
        for name in self.columns:
            shape = self.store.layout(name).shape
            out = self._memory.empty(len(clips[name]), *shape, dtype=self.dtype)
            single = None if self.dtype == torch.float32 else self._memory.empty(*shape)
            for row, clip in zip(out, clips[name], strict=True):
                encoded = self.store.read(clip, name, out=scratch[name])
                decoded = self.store.decode(encoded, name, out=row if single is None else single)
                if single is not None:
                    row.copy_(decoded)
            tokens[name] = out.to(self.device)
        return tokens

    def _fill_gpu(self, clips: dict[str, list[int]], scratch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        tokens = {}
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            for name in self.columns:
                for row, clip in enumerate(clips[name]):
                    self.store.read(clip, name, out={part: rows[row] for part, rows in scratch[name].items()})
                filled = {part: rows[: len(clips[name])] for part, rows in scratch[name].items()}
                encoded = {part: rows.to(self.device, non_blocking=True) for part, rows in filled.items()}
                encoded = self.store.select(encoded, name, batched=True)
                tokens[name] = self._codecs[name].decode(encoded, dtype=self.dtype)
        self._stream.synchronize()  # this thread waits, the consumer does not
        return tokens

    def deliver(self, batch: Batch) -> Batch:
        """To be called by the consuming thread: ties GPU memory to the stream that will use it."""
        if self._stream:
            for name in self.columns:
                batch[name].record_stream(torch.cuda.current_stream(self.device))
        return batch


class BatchReader:
    """The training stream of one rank.

    columns: names to read. indices: the clips, as store indices (one split). batch: clips per optimizer step over all
    ranks and accumulation steps; it must divide by their product. dtype: of the tokens. window: shards that are
    shuffled together, see SampleOrder; by default 16 for a store behind a URL, and the whole of a local one.

    Iterating yields dicts {"step", "micro", "keys": list[str], "indices": (b,) int64 into the store, "label": (b,)
    int64, <column>: (b q d) on the device}: `accumulation` micro-batches a step. A failed read raises in the
    consumer. Memory: (2 threads + 2) micro-batches of tokens.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        columns: Sequence[str],
        indices: Sequence[int],
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        paired: Pairing | None = None,
        threads: int = 2,
        window: int | None = None,
    ) -> None:
        if batch < 1 or batch % (world * accumulation):
            raise ValueError(
                f"train.batch={batch} does not divide by {world} ranks x {accumulation} accumulation steps; "
                f"set it to a multiple of {world * accumulation}"
            )
        if window is None and store.mirror:
            window = WINDOW
        shards = [store.shard_of(int(index)) for index in indices] if window else None
        self.order = SampleOrder(len(indices), seed=seed, shards=shards, window=window or 1)
        self.size, self.rank, self.accumulation, self.threads = batch, rank, accumulation, threads
        self.micro = batch // (world * accumulation)
        self._loader = Loader(
            store,
            columns=columns,
            indices=indices,
            batch=self.micro,
            device=device,
            dtype=dtype,
            paired=paired,
            threads=threads,
        )
        self._open: list[Generator[Batch, None, None]] = []

    def steps(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Micro-batches of the optimizer steps start, start + 1, ... (endless, or before `stop`), read ahead."""
        numbers: Iterable[int] = count(start) if stop is None else range(start, stop)
        tasks = ((step, micro) for step in numbers for micro in range(self.accumulation))
        stream = self._stream(tasks)
        self._open.append(stream)
        return stream

    def batch(self, step: int, micro: int = 0) -> Batch:
        """One micro-batch, without reading ahead."""
        return self._loader.deliver(self._load((step, micro)))

    def close(self) -> None:
        """Stops the threads."""
        while self._open:
            self._open.pop().close()

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stream(self, tasks: Iterable[tuple[int, int]]) -> Generator[Batch, None, None]:
        results = prefetch(tasks, self._load, threads=self.threads, ahead=self.threads)
        try:
            for batch in results:
                yield self._loader.deliver(batch)
                del batch
        finally:
            results.close()

    def _load(self, task: tuple[int, int]) -> Batch:
        step, micro = task
        start = step * self.size + (self.rank * self.accumulation + micro) * self.micro
        return {"step": step, "micro": micro} | self._loader.load(self.order.samples(start, start + self.micro))


def scan(
    store: FeatureStore,
    *,
    indices: Sequence[int],
    columns: Sequence[str],
    batch: int = 4,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    paired: Pairing | None = None,
    threads: int = 2,
) -> Generator[Batch, None, None]:
    """One pass over `indices` in their order, read ahead: the batches of BatchReader without step and micro.

    The last batch may be smaller. paired: column -> store indices aligned with `indices`, which that column is read
    from instead.
    """
    loader = Loader(
        store,
        columns=columns,
        indices=indices,
        batch=batch,
        device=device,
        dtype=dtype,
        paired=paired,
        threads=threads,
    )
    positions = iter(range(len(loader.indices)))
    tasks = iter(lambda: list(islice(positions, batch)), [])
    load: Callable[[list[int]], Batch] = loader.load
    results = prefetch(tasks, load, threads=threads, ahead=threads)
    try:
        for result in results:
            yield loader.deliver(result)
            del result
    finally:
        results.close()

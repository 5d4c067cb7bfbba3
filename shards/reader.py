"""Reading batches: threads that read and decode ahead.

Optimizer step k takes samples [k * batch, (k + 1) * batch) of an endless stream (shards.order), and each rank a
contiguous part of them: no tail, nothing dropped or padded, the same samples for any number of ranks, and resuming is
starting at a step.

Axes: b clips of a micro-batch, q tokens of a clip, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import count, islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shards.order import SampleOrder
from shards.prefetch import Memory, prefetch
from shards.store import FeatureStore
from shards.tensorfile import as_bytes

if TYPE_CHECKING:
    from shards.ahead import Ahead

Batch = dict[str, Any]  # keys: list[str]; indices, label: (b,) int64; <column>: (b q d); training: step, micro
WINDOW = 16  # shards
Pairing = Mapping[str, Sequence[int]]


class Loader:
    """Assembles micro-batches of at most `batch` clips: positioned reads, checksums, decoding to `device` and `dtype`.

    decode: False leaves a column as it is stored, {part: (b, ...)} of shards.codec, on the device. paired: column ->
    store indices, aligned with `indices`: that column is read from these clips instead (the shuffled control).
    Thread-safe. On a CPU each clip is decoded right after its read, into memory used again; on a
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
        decode: bool = True,
        paired: Pairing | None = None,
        threads: int = 2,
    ) -> None:
        self.store, self.columns, self.indices = store, list(columns), [int(index) for index in indices]
        self.batch = batch
        self.device, self.dtype, self.decode = torch.device(device), dtype, decode
        self.paired = {name: [int(index) for index in order] for name, order in (paired or {}).items()}
        for name in (*self.columns, *self.paired):
            store.layout(name)
        for name, order in self.paired.items():
            if len(order) != len(self.indices):
                raise ValueError(f"column {name} is paired with {len(order)} clips, but {len(self.indices)} are read")
        self._codecs = {name: store.codec(name).to(self.device) for name in self.columns}
        parts = sum(len(store.columns[name].spec) for name in self.columns)
        self._memory = Memory(blocks=2 * (threads + 3) * parts)
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
        sources = {name: self.paired.get(name, self.indices) for name in self.columns}
        clips_of = {name: [source[position] for position in positions] for name, source in sources.items()}
        if self._stream:
            return batch | self._read_gpu(clips_of, self._stream)
        return batch | (self._read_cpu(clips_of) if self.decode else self._read_encoded(clips_of))

    def _read_cpu(self, clips: dict[str, list[int]]) -> dict[str, Tensor]:
        scratch, tokens = self._take_scratch(), {}
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
        self._scratch.put(scratch)
        return tokens

    def _read_encoded(self, clips: dict[str, list[int]]) -> dict[str, dict[str, Tensor]]:
        found = {}
        for name in self.columns:
            spec = self.store.columns[name].spec
            rows = {
                part: self._memory.empty(len(clips[name]), *shape, dtype=dtype) for part, (dtype, shape) in spec.items()
            }
            self._read_rows(name, clips[name], rows)
            found[name] = self.store.select(rows, name, batched=True)
        return found

    def _read_gpu(self, clips: dict[str, list[int]], stream: torch.cuda.Stream) -> dict[str, Any]:
        scratch, found = self._take_scratch(), {}
        with torch.cuda.stream(stream):
            for name in self.columns:
                self._read_rows(name, clips[name], scratch[name])
                filled = {part: rows[: len(clips[name])] for part, rows in scratch[name].items()}
                encoded = {part: rows.to(self.device, non_blocking=True) for part, rows in filled.items()}
                encoded = self.store.select(encoded, name, batched=True)
                found[name] = self._codecs[name].decode(encoded, dtype=self.dtype) if self.decode else encoded
        stream.synchronize()  # this thread waits, the consumer does not
        self._scratch.put(scratch)
        return found

    def _read_rows(self, column: str, clips: list[int], rows: Mapping[str, Tensor]) -> None:
        """Fills as many rows of the encoded tensors of a column."""
        whole = [(as_bytes(tensor), tensor[0].nbytes) for tensor in rows.values()]
        for row, clip in enumerate(clips):
            self.store.read_into(clip, column, [part[row * size : (row + 1) * size] for part, size in whole])

    def _take_scratch(self) -> dict[str, dict[str, Tensor]]:
        """Memory for encoded tensors: of one clip on a CPU, of a whole micro-batch, pinned, for a GPU."""
        try:
            return self._scratch.get_nowait()
        except Empty:
            rows = (self.batch,) if self._stream else ()
            return {name: self.store.empty(name, *rows, pinned=bool(self._stream)) for name in self.columns}

    def deliver(self, batch: Batch) -> Batch:
        """To be called by the consuming thread: ties GPU memory to the stream that will use it."""
        if self._stream:
            for name in self.columns:
                for tensor in (batch[name],) if self.decode else batch[name].values():
                    tensor.record_stream(torch.cuda.current_stream(self.device))
        return batch


class BatchReader:
    """The training stream of one rank.

    columns: names to read. indices: the clips, as store indices (one split). batch: clips per optimizer step over all
    ranks and accumulation steps; it must divide by their product. dtype: of the tokens. window: shards that are
    shuffled together, see SampleOrder; by default the whole of a local store, and 16 of one behind a URL, whose next
    window is fetched while this one is read (shards.ahead). decode: False leaves the columns as they are stored,
    {part: (b, ...)}, for FeatureStore.codec(column).decode to turn into tokens later.

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
        decode: bool = True,
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
        self._ahead: Ahead | None = None
        if store.mirror and shards and window:
            from shards.ahead import Ahead  # fsspec, which a local store does not need

            self._ahead = Ahead(store.mirror, self.order, shards=shards, columns=columns, window=window)
        self.size, self.rank, self.accumulation, self.threads = batch, rank, accumulation, threads
        self.micro = batch // (world * accumulation)
        self._loader = Loader(
            store,
            columns=columns,
            indices=indices,
            batch=self.micro,
            device=device,
            dtype=dtype,
            decode=decode,
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
        if self._ahead:
            self._ahead.close()
            self._ahead = None

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
        if self._ahead:
            self._ahead.reach(start)
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

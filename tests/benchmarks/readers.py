"""Reader rates: ours against plainly reading the same bytes, and against what else reads features in batches.

    python tests/benchmarks/readers.py [--clips 64] [--batch 8] [--folder DIR] [--rounds 5] [--cold]

Full geometry, shuffled, batches in one process, warm, in turn so that they meet the same load. Plain reading is preadv
of the very bytes into a ring of batch buffers: no index, no sums; the ratio to it is taken round by round. Peers read
the same values in fp16. "as stored" is what a batch holds before it is decoded (fp16; int8 and a scale a token); "fp32"
is ready for a model on a CPU, which for peers is `.float()` of their batch. --cold: the files are dropped from the page
cache before every pass, and plain reading is that of the tars from end to end. litdata, mosaicml-streaming and wids
come with pip install --no-deps litdata mosaicml-streaming wids; one that is not there is left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch.utils.data import DataLoader

from shards.addition import add_column
from shards.manifest import Column
from shards.reader import BatchReader
from shards.records import write_records
from shards.sources import Video
from shards.store import FeatureStore
from shards.videos import make_clips
from teachers.layout import TokenLayout
from teachers.torchvision_schemas import make_torchvision_importable

LAYOUTS = {"student": TokenLayout((8, 16, 16), 1024), "videomae": TokenLayout((8, 14, 14), 768)}
EPOCHS = 4  # of a pass, so that starting threads does not count
RING = 6  # batches: about as many as our reader holds
Batch = list[torch.Tensor]
Passes = Callable[[], Iterator[Batch]]  # one pass: EPOCHS over the clips, in batches


def vit_like(layout: TokenLayout, seed: int) -> torch.Tensor:
    """Tokens (q d) of one clip with a massive, a far and a near-dead channel, the same for a seed."""
    tokens = torch.randn(layout.shape, generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] *= 300
    tokens[:, 1] += 100
    tokens[:, 2] *= 1e-3
    return tokens


def make_store(root: Path, clips: int, codec: str, *, per_shard: int = 8) -> FeatureStore:
    """A store of made-up tokens at full geometry."""
    names = [f"{number:05d}.mp4" for number in range(clips)]
    found = make_clips(
        [Video(name, name, name, 1, split="train" if n else "test") for n, name in enumerate(names[:-1])]
        + [Video(names[-1], names[-1], names[-1], 1, split="val")],
        [],
    ).clips
    write_records(root, found, view={}, clips_per_shard=per_shard, more=lambda clip: {})
    for name, layout in LAYOUTS.items():
        add_column(
            FeatureStore(root, []),
            Column(name, layout, codec, {"function": "vit_like"}),
            lambda keys, layout=layout: ((key, vit_like(layout, int(key[:6]))) for key in keys),
        )
    return FeatureStore(root)


def ours(
    store: FeatureStore, batch: int, columns: Sequence[str] = tuple(LAYOUTS), *, decode: bool, epochs: int = EPOCHS
) -> Passes:
    """One reader for all passes, as one serves all epochs of a training."""
    reader = BatchReader(store, columns=columns, indices=range(len(store)), batch=batch, seed=0, decode=decode)

    def run() -> Iterator[Batch]:
        for found in reader.steps(0, epochs * (len(store) // batch)):
            yield [found["indices"]]

    return run


def plain(store: FeatureStore, batch: int, columns: Sequence[str] = tuple(LAYOUTS)) -> Passes:
    """The same bytes, clip by clip in a random order, into batch buffers that are used again."""
    shards, per_shard = store.manifest.partition.shards, store.manifest.partition.clips_per_shard
    files = {
        (name, shard): os.open(store.path / name / f"{shard:05d}.tar", os.O_RDONLY)
        for name in columns
        for shard in range(shards)
    }
    sizes = {name: sum(t.nbytes for t in store.read(0, name).values()) for name in columns}
    ring = [{name: memoryview(bytearray(batch * size)) for name, size in sizes.items()} for _ in range(RING)]

    def run() -> Iterator[Batch]:
        order = np.random.default_rng(0).permutation(len(store)).tolist() * EPOCHS
        for number in range(len(order) // batch):
            for row, index in enumerate(order[number * batch : (number + 1) * batch]):
                shard, place = divmod(index, per_shard)
                for name, size in sizes.items():
                    rows = ring[number % RING][name][row * size : (row + 1) * size]
                    os.preadv(files[name, shard], [rows], 1024 + place * (size + 1024))
            yield [torch.empty(batch, 0)]

    return run


def from_end_to_end(store: FeatureStore) -> Passes:
    """All tars once, one after the other, in large pieces: what the disk gives."""
    memory = bytearray(16 * 2**20)

    def run() -> Iterator[Batch]:
        for path in sorted(store.path.glob("*/*.tar")):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(memory):
                    pass
        yield [torch.empty(len(store), 0)]

    return run


def repeated(epoch: Callable[[], Iterable[Batch]]) -> Passes:
    return lambda: (batch for _ in range(EPOCHS) for batch in epoch())


def with_webdataset(store: FeatureStore, batch: int) -> Passes:
    """Its pipeline over the student's tars (a join of two is not to be had), shuffled in a buffer."""
    import webdataset

    urls = [str(path) for path in sorted((store.path / "student").glob("*.tar"))]

    data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(4 * batch)
    tokens = data.map(lambda sample: load(sample["safetensors"])["tokens"])
    batches = tokens.batched(batch, collation_fn=lambda samples: [torch.stack(samples)])
    return repeated(lambda: batches)


def with_wids(store: FeatureStore, batch: int) -> Passes:
    import wids

    index = [
        {"url": str(path), "nsamples": len(json.loads(path.with_suffix(".json").read_text())["members"])}
        for path in sorted((store.path / "student").glob("*.tar"))
    ]
    data = wids.ShardListDataset(index, keep=True, transformations=lambda s: load(s[".safetensors"].read())["tokens"])

    def epoch() -> Iterator[Batch]:
        order = np.random.default_rng(0).permutation(len(data)).tolist()
        for start in range(0, len(order) - batch + 1, batch):
            yield [torch.stack([data[index] for index in order[start : start + batch]])]

    return repeated(epoch)


def with_streaming(store: FeatureStore, batch: int) -> Passes:
    make_torchvision_importable()  # which streaming imports
    from streaming import MDSWriter, StreamingDataset

    folder = store.path.parent / "mds"
    columns = {name: f"ndarray:float16:{','.join(map(str, layout.shape))}" for name, layout in LAYOUTS.items()}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for index in range(len(store)):
            writer.write({name: store.read(index, name)["tokens"].numpy() for name in LAYOUTS})

    loader = DataLoader(StreamingDataset(local=str(folder), shuffle=True, batch_size=batch), batch_size=batch)
    return repeated(lambda: (list(found.values()) for found in loader))


def with_litdata(store: FeatureStore, batch: int) -> Passes:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = store.path.parent / "litdata"
    folder.mkdir(exist_ok=True)
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for index in range(len(store)):
        writer.add_item(index, {name: store.read(index, name)["tokens"] for name in LAYOUTS})
    writer.done()
    writer.merge(1)

    data = StreamingDataset(str(folder), shuffle=True, drop_last=True)
    loader = StreamingDataLoader(data, batch_size=batch, num_workers=0)
    return repeated(lambda: (list(found.values()) for found in loader))


PEERS = {
    "webdataset, student alone": with_webdataset,
    "wids, student alone": with_wids,
    "mosaicml-streaming": with_streaming,
    "litdata": with_litdata,
}


def floated(run: Passes) -> Passes:
    """What a peer's user does before a model on a CPU."""
    return lambda: ([tokens.float() for tokens in batch] for batch in run())


# --- what is measured

Section = Callable[[], dict[str, Passes]]  # made when its turn comes: some peers leave threads behind


def warm(stores: Mapping[str, FeatureStore], batch: int) -> dict[str, Section]:
    def readers(decode: bool) -> dict[str, Passes]:
        found = {f"ours, {codec}": ours(store, batch, decode=decode) for codec, store in stores.items()}
        return found | {"ours, int8, student alone": ours(stores["int8"], batch, ["student"], decode=decode)}

    def limits() -> dict[str, Passes]:
        made = {"plain": lambda store: plain(store, batch), "ours": lambda store: ours(store, batch, decode=False)}
        return {f"{n}, {c}": make(store) for c, store in stores.items() for n, make in made.items()}

    others = cache(lambda: peers(stores["fp16"], batch))
    return {
        "as stored": limits,
        "as stored, peers": lambda: readers(False) | others(),
        "fp32": lambda: readers(True) | {name: floated(run) for name, run in others().items()},
    }


def cold(stores: Mapping[str, FeatureStore], batch: int) -> dict[str, Section]:
    def limits() -> dict[str, Passes]:
        made = {"plain": from_end_to_end, "ours": lambda store: ours(store, batch, decode=False, epochs=1)}
        return {f"{n}, {c}": dropped(make(store), stores) for c, store in stores.items() for n, make in made.items()}

    return {"cold, as stored": limits}


def peers(store: FeatureStore, batch: int) -> dict[str, Passes]:
    found = {}
    for name, make in PEERS.items():
        try:
            found[name] = make(store, batch)
        except ImportError as error:
            print(f"{name}: left out ({error})")
    return found


def dropped(run: Passes, stores: Mapping[str, FeatureStore]) -> Passes:
    def start() -> Iterator[Batch]:
        for path in (path for store in stores.values() for path in store.path.glob("*/*.tar")):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return run()

    return start


def rate(run: Passes) -> float:
    """Clips per second of one pass."""
    batches = run()
    start, clips = time.perf_counter(), 0
    for batch in batches:
        clips += len(batch[0])
    return clips / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--cold", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # ours decodes in two threads of its own
    print(f"torch {torch.__version__}, load {os.getloadavg()}, {asked.clips} clips, batch {asked.batch}")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        stores = {codec: make_store(Path(folder) / codec, asked.clips, codec) for codec in ("fp16", "int8")}
        sections = (cold if asked.cold else warm)(stores, asked.batch)
        for title, section in sections.items():
            rates: dict[str, list[float]] = {}
            runs = section()
            for _ in range(asked.rounds + 1):
                for name, run in runs.items():
                    rates.setdefault(name, []).append(rate(run))
            print(table(title, {name: numbers[1:] for name, numbers in rates.items()}), flush=True)


def table(title: str, rates: Mapping[str, Sequence[float]]) -> str:
    """Beside ours, the median over rounds of its ratio to plain reading."""
    lines = [f"\n| {title} | clips/s | least | most | of plain reading |", "|---|---|---|---|---|"]
    for name, numbers in sorted(rates.items(), key=lambda item: -float(np.median(item[1]))):
        base = rates.get(name.replace("ours", "plain"), numbers)
        ratio = "" if base is numbers else f"{np.median(np.divide(numbers, base)):.2f}"
        lines.append(f"| {name} | {np.median(numbers):.0f} | {min(numbers):.0f} | {max(numbers):.0f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Reader rates: ours against plainly reading the same bytes, and against what else reads features in batches.

    python tests/benchmarks/readers.py [--clips 64] [--batch 8] [--folder DIR] [--rounds 5]

Full geometry, shuffled, one process each, warm, all in turn so that they meet the same load. Peers read the same values
in fp16; ours in both codecs, decoded to fp32. litdata, mosaicml-streaming and wids come with
pip install --no-deps litdata mosaicml-streaming wids; one that is not there is left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

from shards.addition import add_column
from shards.manifest import Column
from shards.reader import BatchReader
from shards.records import write_records
from shards.sources import Video
from shards.store import FeatureStore
from shards.videos import make_clips
from teachers.layout import TokenLayout

LAYOUTS = {"student": TokenLayout((8, 16, 16), 1024), "videomae": TokenLayout((8, 14, 14), 768)}
Passes = Callable[[], Iterator[int]]  # one pass over the clips, in batches; yields clips of a batch


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


def ours(store: FeatureStore, batch: int, columns: Sequence[str] = tuple(LAYOUTS)) -> Passes:
    def run() -> Iterator[int]:
        indices = range(len(store))
        with BatchReader(store, columns=columns, indices=indices, batch=batch, seed=0) as reader:
            for found in reader.steps(0, len(store) // batch):
                yield len(found["keys"])

    return run


def plain(store: FeatureStore, batch: int) -> Passes:
    """The same bytes, clip by clip in a random order, into memory used again: no index, no sums, no decoding."""
    files = {
        (name, shard): os.open(store.path / name / f"{shard:05d}.tar", os.O_RDONLY)
        for name in LAYOUTS
        for shard in range(store.manifest.partition.shards)
    }
    sizes = {name: sum(t.nbytes for t in store.read(0, name).values()) for name in LAYOUTS}
    memory = {name: memoryview(bytearray(size)) for name, size in sizes.items()}
    per_shard = store.manifest.partition.clips_per_shard

    def run() -> Iterator[int]:
        for number, index in enumerate(np.random.default_rng(0).permutation(len(store)).tolist(), 1):
            for name, buffer in memory.items():
                shard, place = divmod(index, per_shard)
                os.preadv(files[name, shard], [buffer], 1024 + place * (len(buffer) + 1024))
            if number % batch == 0:
                yield batch

    return run


def with_webdataset(store: FeatureStore, batch: int) -> Passes:
    """Its pipeline over the student's tars (a join of two is not to be had), shuffled in a buffer."""
    import webdataset

    urls = [str(path) for path in sorted((store.path / "student").glob("*.tar"))]

    def run() -> Iterator[int]:
        data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(4 * batch)
        for samples in data.map(lambda sample: load(sample["safetensors"])["tokens"]).batched(
            batch, collation_fn=torch.stack
        ):
            yield len(samples)

    return run


def with_wids(store: FeatureStore, batch: int) -> Passes:
    import wids

    index = [
        {"url": str(path), "nsamples": len(json.loads(path.with_suffix(".json").read_text())["members"])}
        for path in sorted((store.path / "student").glob("*.tar"))
    ]
    data = wids.ShardListDataset(index, keep=True, transformations=lambda s: load(s[".safetensors"].read())["tokens"])

    def run() -> Iterator[int]:
        order = np.random.default_rng(0).permutation(len(data)).tolist()
        for start in range(0, len(order) - batch + 1, batch):
            yield len(torch.stack([data[index] for index in order[start : start + batch]]))

    return run


def with_streaming(store: FeatureStore, batch: int) -> Passes:
    from streaming import MDSWriter, StreamingDataset

    folder = store.path.parent / "mds"
    columns = {n: f"ndarray:float16:{','.join(map(str, l.shape))}" for n, l in LAYOUTS.items()}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for index in range(len(store)):
            writer.write({name: store.read(index, name)["tokens"].numpy() for name in LAYOUTS})

    def run() -> Iterator[int]:
        data = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch)
        for number, sample in enumerate(data, 1):
            assert len(sample) == len(LAYOUTS)
            if number % batch == 0:
                yield batch

    return run


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

    def run() -> Iterator[int]:
        data = StreamingDataset(str(folder), shuffle=True, drop_last=True)
        for found in StreamingDataLoader(data, batch_size=batch, num_workers=0):
            yield len(found["student"])

    return run


def rate(run: Passes) -> float:
    """Clips per second of one pass."""
    start, clips = time.perf_counter(), 0
    for count in run():
        clips += count
    return clips / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        stores = {codec: make_store(Path(folder) / codec, arguments.clips, codec) for codec in ("fp16", "int8")}
        made: dict[str, Any] = {}
        makers = {"plain reading, fp16": plain, "webdataset, student alone": with_webdataset}
        makers |= {"wids, student alone": with_wids, "mosaicml-streaming": with_streaming, "litdata": with_litdata}
        for name, make in makers.items():
            try:
                made[name] = make(stores["fp16"], arguments.batch)
            except ImportError as error:
                print(f"{name}: left out ({error})")
        made["plain reading, int8"] = plain(stores["int8"], arguments.batch)
        made |= {f"ours, {codec}": ours(store, arguments.batch) for codec, store in stores.items()}
        made["ours, fp16, student alone"] = ours(stores["fp16"], arguments.batch, ["student"])
        rates: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(arguments.rounds + 1):
            for name, run in made.items():
                rates[name].append(rate(run))
        for name, found in sorted(rates.items(), key=lambda item: -max(item[1][1:])):
            low, middle, high = np.quantile(found[1:], [0, 0.5, 1])
            print(f"{name:28s} {middle:8.1f} clips/s ({low:.1f}-{high:.1f})")


if __name__ == "__main__":
    main()

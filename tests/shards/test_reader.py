from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import Counter
from itertools import islice

import pytest
import torch

from shards.disk import OpenFiles, StoreError
from shards.order import SampleOrder, sample_indices
from shards.prefetch import Behind, Memory, prefetch
from shards.reader import BatchReader, scan
from shards.store import FeatureStore


def reader(store: FeatureStore, **options) -> BatchReader:
    defaults = {"columns": ["student", "videomae"], "indices": store.indices("train"), "batch": 4, "seed": 3}
    return BatchReader(store, **(defaults | options))


def test_order_is_whole_epochs_of_seed_and_epoch() -> None:
    order = SampleOrder(7, seed=1)
    stream = order.samples(0, 21)
    assert [sorted(stream[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3
    assert stream[:7] != stream[7:14] and stream != SampleOrder(7, seed=2).samples(0, 21)
    assert SampleOrder(7, seed=1).samples(14, 21) == stream[14:] == order.samples(14, 21)
    assert sample_indices(2, seed=1, batch=5, num_clips=7) == stream[10:15]
    assert sample_indices(1, seed=3, batch=5, num_clips=8) == [5, 3, 0, 2, 1]  # a resumed run must find the same order
    with pytest.raises(ValueError, match="the order of 0 clips"):
        SampleOrder(0, seed=0)


def test_a_batch(store: FeatureStore) -> None:
    train = store.indices("train")
    with reader(store) as batches:
        batch = next(batches.steps())
    assert batch["step"] == 0 and batch["indices"].dtype == torch.int64
    assert batch["indices"].tolist() == [train[i] for i in sample_indices(0, seed=3, batch=4, num_clips=6)]
    assert batch["keys"] == [store.keys[i] for i in batch["indices"]]
    assert batch["label"].tolist() == [store.label_indices[i] for i in batch["indices"]]
    for row, index in enumerate(batch["indices"].tolist()):
        for name in ("student", "videomae"):
            assert torch.equal(batch[name][row], store[index][name])


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_any_number_of_ranks_sees_the_same_samples(store: FeatureStore, world: int, accumulation: int) -> None:
    expected = [sample_indices(step, seed=3, batch=4, num_clips=6) for step in range(5)]
    train = store.indices("train")
    seen: list[list[int]] = [[] for _ in range(5)]
    for rank in range(world):
        with reader(store, rank=rank, world=world, accumulation=accumulation) as batches:
            for batch in batches.steps(0, 5):
                seen[batch["step"]] += [train.index(i) for i in batch["indices"].tolist()]
    assert seen == expected
    counts = Counter(i for step in seen for i in step)
    assert set(counts.values()) <= {3, 4}  # 20 samples of 6 clips


def test_resume_is_starting_at_a_step(store: FeatureStore) -> None:
    with reader(store) as one, reader(store, threads=1) as other:
        whole = [batch["keys"] for batch in one.steps(0, 8)]
        assert [batch["keys"] for batch in islice(other.steps(5), 3)] == whole[5:]
        assert other.batch(6)["keys"] == whole[6]


def test_kept_batches_stay_as_they_are(store: FeatureStore) -> None:
    """Memory is used again only when nobody refers to it."""
    with reader(store) as batches:
        kept = list(batches.steps(0, 30))
    for batch in kept:
        for row, index in enumerate(batch["indices"].tolist()):
            assert torch.equal(batch["student"][row], store[index]["student"])
    memory = Memory(blocks=2)
    first = memory.empty(4)
    view, address = first[1:], first.data_ptr()
    assert memory.empty(4).data_ptr() != address
    del first
    assert memory.empty(4).data_ptr() != address  # a view of it is alive
    del view
    again = {memory.empty(4).data_ptr() for _ in range(3)}
    assert len(again) == 1


def test_batch_must_divide(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match=r"train.batch=4 does not divide by 3 ranks x 1 .* multiple of 3"):
        reader(store, world=3)
    with pytest.raises(StoreError, match="column 'vivit' is not open"):
        reader(store, columns=["vivit"])


def test_dtype(store: FeatureStore) -> None:
    with reader(store, dtype=torch.bfloat16) as batches:
        assert batches.batch(0)["student"].dtype == torch.bfloat16


def test_a_batch_as_it_is_stored(store: FeatureStore) -> None:
    with reader(store, decode=False) as batches:
        kept = list(batches.steps(0, 20))
    for batch in kept:  # what is kept stays as it is
        for name in ("student", "videomae"):
            tokens = store.codec(name).decode(batch[name])
            assert {part: t.dtype for part, t in batch[name].items()} == {"q": torch.int8, "scale": torch.float16}
            for row, index in enumerate(batch["indices"].tolist()):
                assert torch.equal(tokens[row], store[index][name])


def test_few_files_stay_open_and_none_that_nobody_reads(store: FeatureStore) -> None:
    files = OpenFiles(store.path, limit=2)
    first = weakref.ref(files("student", "00000.tar"))
    held = files("student", "00001.tar")
    assert files("student", "00000.tar") is first() and files("student", "00001.tar") is held
    for shard in (0, 1):
        files("videomae", f"{shard:05d}.tar")
    assert first() is None and os.pread(held.number, 6, 0).isdigit(), "who reads it keeps it open"
    number = held.number
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert copy.copy(files)("student", "00000.tar").number > 0  # as a worker process would have it
    with pytest.raises(FileNotFoundError):
        files("student", "00009.tar")


def test_a_failed_read_surfaces_and_threads_end(store: FeatureStore) -> None:
    before = threading.active_count()
    (store.path / "videomae" / "00001.tar").write_bytes(b"")
    with pytest.raises(StoreError, match="videomae/00001.tar"), reader(store) as batches:
        list(batches.steps(0, 10))
    assert threading.active_count() == before
    with reader(store, columns=["student"]) as batches:
        next(batches.steps())
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_scan_is_ordered_and_complete(store: FeatureStore) -> None:
    indices = [7, 2, 9, 0, 1]
    batches = list(scan(store, indices=indices, columns=["student"], batch=2))
    assert [batch["indices"].tolist() for batch in batches] == [[7, 2], [9, 0], [1]]
    assert torch.equal(batches[1]["student"][0], store[9]["student"])


def test_pairing_reads_other_clips(store: FeatureStore) -> None:
    indices, wrong = [0, 1, 3], [3, 0, 1]
    (batch,) = scan(store, indices=indices, columns=["student", "videomae"], batch=3, paired={"videomae": wrong})
    for row in range(3):
        assert torch.equal(batch["student"][row], store[indices[row]]["student"])
        assert torch.equal(batch["videomae"][row], store[wrong[row]]["videomae"])
    with pytest.raises(ValueError, match="videomae is paired with 2 clips, but 3 are read"):
        list(scan(store, indices=indices, columns=["student", "videomae"], paired={"videomae": [1, 2]}))
    train = store.indices("train")
    rotated = [*train[1:], train[0]]
    with reader(store, paired={"videomae": rotated}) as batches:
        batch = batches.batch(0)
    partner = rotated[train.index(int(batch["indices"][2]))]
    assert torch.equal(batch["videomae"][2], store[partner]["videomae"])


def test_prefetch_is_ordered_bounded_and_lazy() -> None:
    taken: list[int] = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    results = prefetch(tasks(), lambda number: number * 2, threads=2, ahead=3)
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert len(taken) == 8
    results.close()
    assert list(prefetch([3, 1], str, threads=2, ahead=1)) == ["3", "1"] and list(prefetch([], str)) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0], lambda number: 1 / number))


def test_behind_is_ordered_bounded_and_tells_errors() -> None:
    done: list[int] = []
    gate = threading.Event()

    def slow(number: int) -> None:
        gate.wait(5)
        done.append(number)

    with Behind() as behind:
        behind.do(lambda: slow(0))
        assert done == []  # the producer goes on
        waiting = threading.Thread(target=lambda: behind.do(lambda: slow(1)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()  # but no further than one task
        gate.set()
        waiting.join()
    assert done == [0, 1]
    with pytest.raises(ZeroDivisionError), Behind() as behind:
        behind.do(lambda: print(1 / 0))
    with pytest.raises(KeyError), Behind() as behind:
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("behind")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(store: FeatureStore) -> None:
    with reader(store, device="cuda") as batches:
        for batch in batches.steps(0, 20):
            for row, index in enumerate(batch["indices"].tolist()):
                assert batch["student"].is_cuda
                assert torch.allclose(batch["student"][row].cpu(), store[index]["student"], atol=1e-4)
    (*_, last) = scan(store, indices=range(10), columns=["student"], batch=4, device="cuda", dtype=torch.bfloat16)
    assert last["student"].shape[0] == 2 and last["student"].dtype == torch.bfloat16

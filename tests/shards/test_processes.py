"""The order of training samples over real processes: killed and resumed with other ranks, it is one and the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environments, wait_for

from shards.order import sample_indices
from shards.store import FeatureStore

STEPS, BATCH, SEED = 23, 8, 3
SCRIPT = f"""
import json, os, signal, sys, torch
sys.path[:0] = [sys.argv[4]]
from shards.ranks import Ranks
from shards.reader import BatchReader, scan
from shards.store import FeatureStore
path, start, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ranks = Ranks.join()
store = FeatureStore(path)
log = open(path + "." + sys.argv[2] + "." + str(ranks.rank), "w")
with BatchReader(store, columns=["student"], indices=store.indices("train"), batch={BATCH},
                 seed={SEED}, rank=ranks.rank, world=ranks.world) as reader:
    for batch in reader.steps(start, {STEPS}):
        print(json.dumps([batch["step"], ranks.rank, batch["keys"]]), file=log, flush=True)
        ranks.barrier()
        if batch["step"] + 1 == stop:
            os.kill(os.getpid(), signal.SIGKILL)
own = store.indices("test")[ranks.rank :: ranks.world]
parts = list(scan(store, indices=own, columns=["student"], batch=2))
count = torch.tensor([sum(len(part["keys"]) for part in parts), len(parts)])
assert ranks.sum_(count)[0] == len(store.indices("test")), count
ranks.leave()
"""


@pytest.mark.parametrize("plan", [[(1, 6), (4, 13), (2, STEPS + 1)], [(4, 9), (1, STEPS + 1)]])
def test_killed_and_resumed_with_other_ranks(tmp_path: Path, tiny, plan: list[tuple[int, int]]) -> None:
    """Eleven train clips in batches of eight: no epoch ends with a step, and five test clips leave ranks uneven."""
    path = tmp_path / "store"
    clips = [type(clip)(clip.number, "train" if clip.number < 11 else "test") for clip in tiny.clips(16)]
    tiny.extract(path, clips=clips)
    (tmp_path / "script.py").write_text(SCRIPT)
    start = 0
    for world, stop in plan:
        words = [sys.executable, str(tmp_path / "script.py"), str(path), str(start), str(stop)]
        words.append(str(Path(__file__).parents[2]))
        statuses = wait_for([subprocess.Popen(words, env=environment) for environment in environments(world)])
        assert all(statuses) if stop <= STEPS else not any(statuses)
        start = stop
    lines = [json.loads(line) for log in tmp_path.glob("store.*.*") for line in log.read_text().splitlines()]
    store = FeatureStore(path)
    train = [store.keys[index] for index in store.indices("train")]
    seen = [key for _, _, keys in sorted(lines) for key in keys]
    order = [sample_indices(step, seed=SEED, batch=BATCH, num_clips=11) for step in range(STEPS)]
    assert seen == [train[place] for step in order for place in step]
    for epoch in range(STEPS * BATCH // 11):
        assert sorted(seen[epoch * 11 : (epoch + 1) * 11]) == train  # no clip twice, none missed

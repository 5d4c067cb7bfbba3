"""An audit says what is wrong and nothing else; what storing costs, against the truth; backbones run again."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from test_features import RECIPE, write_video

from recipes.compose import load_recipe
from shards import audit
from shards.column import Sidecar, keys_digest
from shards.damage import damage_of, effect_on
from shards.features import plan_features
from shards.provenance import RECIPE as BESIDE
from shards.provenance import recall, remember
from shards.ranks import Ranks
from shards.store import FeatureStore
from teachers.layout import TokenLayout


def audited(path: Path, capsys: pytest.CaptureFixture[str], *words: str, status: int) -> str:
    code = audit.main([str(path), *words])
    said = capsys.readouterr()
    assert code == status, said
    return said.out + said.err


def test_a_sound_store(store: FeatureStore, tiny, capsys: pytest.CaptureFixture[str]) -> None:
    said = audited(store.path, capsys, status=0)
    assert "clips: 10 (6 train, 2 val, 2 test), 0 refused" in said and "everything verifies" in said
    assert "student: 2 x 2 x 2 = 8 tokens of 6, int8, 64 bytes; 10 clips, 0 refused" in said
    tiny.extract(store.path, columns={"vivit": tiny.backbone(3)}, covers={"vivit": {"000001-abc"}})
    assert "1 clips, 0 refused, 9 uncovered" in audited(store.path, capsys, status=0)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def resum(root: Path, column: str = "student", shard: int = 1) -> None:
    """Makes an index agree with its changed tar, as an attacker could."""
    import hashlib

    path = root / column / f"0000{shard}.json"
    document = json.loads(path.read_text())
    document["sha256"] = hashlib.sha256(path.with_suffix(".tar").read_bytes()).hexdigest()
    path.write_text(json.dumps(document))


def other_keys(root: Path) -> None:
    path = root / "manifest.json"
    document = json.loads(path.read_text())
    document["partition"]["keys"] = keys_digest(["a"])
    path.write_text(json.dumps(document))


def set_nan(root: Path) -> None:
    path = root / "student" / "calibration.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"\x00\x00\xc0\x7f")


def infinite_scale(root: Path) -> None:
    """A token that is not finite, with all sums in order."""
    import xxhash

    member = Sidecar.read(root, "student", 1, spec=FeatureStore(root).columns["student"].spec).members["000005-abc"]
    tar, index = root / "student" / "00001.tar", root / "student" / "00001.json"
    data = bytearray(tar.read_bytes())
    end = member.offset + member.bytes
    data[end - 2 : end] = b"\x00\x7c"  # the last scale: infinity
    tar.write_bytes(data)
    document = json.loads(index.read_text())
    document["members"]["000005-abc"]["xxh3_64"] = f"{xxhash.xxh3_64_intdigest(data[member.offset : end]):016x}"
    index.write_text(json.dumps(document))
    resum(root)


DAMAGES = {
    "student/00001.tar: its sha256 differs": lambda root: flip(root / "student/00001.tar", -1),
    "something else than its end follows the last clip": lambda root: [
        flip(root / "student/00001.tar", -1),
        resum(root),
    ],
    'student/00001.tar, clip "000004-abc": its checksum differs': lambda root: flip(root / "student/00001.tar", 700),
    'student/00001.tar, clip "000004-abc": its tar header is another': lambda root: [
        flip(root / "student/00001.tar", 3),
        resum(root),
    ],
    "student/00001.tar: is missing": lambda root: (root / "student/00001.tar").unlink(),
    "videomae/00002.json: is missing": lambda root: (root / "videomae/00002.json").unlink(),
    "clips/00000.tar: 100 bytes, but its index says": lambda root: (root / "clips/00000.tar").write_bytes(b"0" * 100),
    "student/00001.tar.tmp: a writer is at work": lambda root: (root / "student/00001.tar.tmp").write_bytes(b""),
    "manifest.json cannot be read": lambda root: (root / "manifest.json").write_text("{"),
    "mean must be finite": lambda root: (root / "student/stats.safetensors").write_bytes(b""),
    "calibration.safetensors": set_nan,
    "stats.safetensors is missing": lambda root: (root / "videomae/stats.safetensors").unlink(),
    "the digest of the shards' keys": other_keys,
    'student, clip "000005-abc": tokens are not finite': infinite_scale,
    "columns.student.coverage.clips is 11, not 10": lambda root: (root / "manifest.json").write_text(
        (root / "manifest.json")
        .read_text()
        .replace('"clips": 10,\n        "refused"', '"clips": 11,\n        "refused"', 1)
    ),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_every_damage_is_said(store: FeatureStore, capsys: pytest.CaptureFixture[str], said: str) -> None:
    DAMAGES[said](store.path)
    if said == "mean must be finite":
        said = "stats.safetensors is damaged"
    out = audited(store.path, capsys, status=1)
    assert said in out and "wrong: " in out


def edit(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_an_index_does_not_lead_an_audit_astray(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    """Offsets that overlap, or lie far out in a file that takes no room; a record that is no record by its size."""
    index, tar = store.path / "student/00000.json", store.path / "student/00000.tar"
    sound, data = index.read_text(), tar.read_bytes()
    keys = list(json.loads(sound)["members"])

    def move(place: int, offset: int, total: int = len(data)) -> str:
        edit(index, lambda d: [d.update(bytes=total), d["members"][keys[place]].update(offset=offset)])
        os.truncate(tar, total)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = audited(store.path, capsys, status=1)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
        index.write_text(sound)
        tar.write_bytes(data)
        return said

    said = move(1, 512)
    assert f'student/00000.json, clip "{keys[1]}": offset is 512, not ' in said and "1 problem(s)" in said
    assert f'clip "{keys[-1]}": offset is 1400000000, not' in move(-1, 14 * 10**8, 15 * 10**8)
    said = move(0, 512, 15 * 10**8)
    assert f"student/00000.json: bytes is 1500000000, but its clips and the end fill {len(data)}" in said
    records = store.path / "clips/00000"
    edit(records.with_suffix(".json"), lambda d: d["members"][keys[0]].update(bytes=2**30, offset=512))
    edit(records.with_suffix(".json"), lambda d: d.update(bytes=2**31))
    os.truncate(records.with_suffix(".tar"), 2**31)
    said = audited(store.path, capsys, status=1)
    assert f'clips/00000.json, clip "{keys[0]}": its record has 1073741824 bytes; at most 1048576 are read' in said


def test_an_audit_stops_at_a_thousand_problems(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.path / "manifest.json"
    edit(path, lambda d: d["partition"].update(clips=10**5, clips_per_shard=1, shards=10**5))
    said = audited(store.path, capsys, status=1)
    assert "1000 problem(s), where the search stopped" in said and "and 950 more" in said
    edit(path, lambda d: d["partition"].update(clips=10**7, shards=10**7))
    said = audited(store.path, capsys, status=1)
    assert "10000000 clips, 1 a shard, make 10000000 shards; five digits name 100000" in said
    assert "store.clips_per_shard=100 or more" in said


def rough(layout: TokenLayout, tiny):
    """A backbone whose tokens look like a video transformer's: a massive, a far and a near-dead channel."""

    class Rough(tiny.backbone):
        def __call__(self, video):
            rows = []
            for number in (video.flatten(1)[:, 0] * 255).round().int().tolist():
                tokens = torch.randn(self.layout.shape, generator=torch.Generator().manual_seed(number))
                tokens[:, 0] *= 1000
                tokens[:, 1] += 500
                tokens[:, 2] *= 1e-6
                rows.append(tokens)
            return torch.stack(rows)

    return Rough(layout=layout)


def test_damage_against_the_truth(tmp_path: Path, tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """From an int8 store's steps alone, what an fp16 store of the same tokens measures."""
    layout = TokenLayout((2, 8, 8), 32)
    found = {}
    for codec in ("int8", "fp16"):
        tiny.extract(tmp_path / codec, columns={"student": rough(layout, tiny)}, codec=codec)
        found[codec] = damage_of(FeatureStore(tmp_path / codec), "student")
    steps, true = found["int8"], found["fp16"]
    assert true.measured and not steps.measured and true.clips == 10
    assert steps.relative == pytest.approx(true.relative, rel=0.05) and 0.003 < true.relative < 0.01
    assert steps.worst == pytest.approx(true.worst, rel=0.2) and 1 - steps.cosine == pytest.approx(
        1 - true.cosine, rel=0.1
    )
    said = audited(tmp_path / "int8", capsys, "--damage", status=0)
    assert "damage: student: relative error 0." in said and "damage: 0.004 MB a clip in all" in said


class Shifted:
    """A 'converter' that knows its answer up to the error of its input."""

    def __init__(self, layout: TokenLayout) -> None:
        self.targets = {"videomae": layout}

    def __call__(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"videomae": tokens}


def test_the_effect_on_alignment(tmp_path: Path, tiny) -> None:
    layout = TokenLayout((2, 8, 8), 32)
    columns = {"student": rough(layout, tiny), "videomae": rough(layout, tiny)}
    tiny.extract(tmp_path, columns=columns, codec="fp16")
    store = FeatureStore(tmp_path)
    stored, again = effect_on(store, Shifted(layout), student="student")["videomae"]
    assert stored == 1 and 1e-5 < 1 - again < 1e-4
    assert 1 - again == pytest.approx(damage_of(store, "student").relative ** 2, rel=0.5)


def test_targets_of_several_recipes_are_remembered(tmp_path: Path) -> None:
    recipe = ["recipe=perceiver_videomae", "data=folder", f"data.root={tmp_path}"]
    remember(tmp_path, load_recipe(recipe))
    remember(tmp_path, load_recipe([*recipe, "targets=[vivit]"]))
    told = recall(tmp_path)
    assert told is not None and set(told["targets"]) == {"videomae", "vivit"} and "run" not in told
    (tmp_path / BESIDE).write_text("[" * 100_000)
    assert recall(tmp_path) is None


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for number in range(6):
        write_video(tmp_path / "videos" / "ab"[number % 2] / f"{number}.mp4", seed=number)
    words = [*RECIPE, f"data.root={tmp_path / 'videos'}", f"store.path={tmp_path / 'store'}"]
    plan_features(load_recipe(words), Ranks(), say=lambda text: None).extract()
    return tmp_path / "store"


def test_backbones_run_again(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = audited(made, capsys, "--rerun", "2", status=0)
    cosines = [float(line.rpartition(" ")[2]) for line in said.splitlines() if line.startswith("rerun: 0")]
    assert len(cosines) == 4 and min(cosines) > 0.999
    for number in range(6):  # other pictures in as many bytes, which the plan does not notice
        path = made.parent / "videos" / "ab"[number % 2] / f"{number}.mp4"
        size = path.stat().st_size
        write_video(path, seed=100 + number)
        data = path.read_bytes()
        path.write_bytes(data[:size].ljust(size, b"\0"))
    said = audited(made, capsys, "--rerun", "6", status=1)
    assert 'clip "' in said and "run again, its tokens have cosine" in said


def test_a_rerun_needs_the_recipe_and_the_videos(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made.parent / "videos/a/0.mp4").unlink()
    assert "clips: there 6, here 5" in audited(made, capsys, "--rerun", "1", status=2)
    (made / BESIDE).unlink()
    assert "has no recipe.json, which tells where its videos are" in audited(made, capsys, "--rerun", "1", status=2)
    assert "everything verifies" in audited(made, capsys, status=0)

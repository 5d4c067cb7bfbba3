"""Mutations of a store: what disks, networks and people with bad intentions do to files."""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ABSURD: list[Any] = [
    *(-1, 0, 1, 2**31, 2**62, 2**63, 10**400, 1e308, float("nan"), True, None, "", "x", "../../outside", "/etc/passwd"),
    *("\x00", "-1", "f" * 17, "a" * 100_000, [], [[[[]]]], {}, {"a": 1}, [1, 2, 3]),
]
NAMES = ["../../outside", "/outside", "a/../../b", "000000-abc.safetensors", "..", "", "nul\x00byte"]


def flip_bits(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 8, 100))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def shift(path: Path, draw: random.Random) -> None:
    """A block is doubled, lost, or moved."""
    data = path.read_bytes()
    start, size = draw.randrange(len(data)), draw.choice((1, 7, 64, 512, 1024))
    block = data[start : start + size]
    rest = data[:start] + data[start + size :]
    place = draw.randrange(len(rest) + 1)
    path.write_bytes(draw.choice((data[:start] + block + data[start:], rest, rest[:place] + block + rest[place:])))


def garble(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.choice((0, 1, 8, 100, 5000))))


def absurd_length(path: Path, draw: random.Random) -> None:
    """The length of a safetensors header, in a file or at a block of a tar."""
    data = bytearray(path.read_bytes())
    start = 0 if path.suffix == ".safetensors" else 512 * draw.randrange(max(1, len(data) // 512))
    data[start : start + 8] = draw.choice((2**63, 2**40, 100_000_000, len(data), 0, 2)).to_bytes(8, "little")
    path.write_bytes(data)


def bomb(path: Path, draw: random.Random) -> None:
    """A file that seems to be enormous, and takes no room on the disk."""
    os.truncate(path, draw.choice((2**30, 2**35, 2**40)))


def replace_by_link(path: Path, draw: random.Random) -> None:
    outside = path.parents[2] / "outside"
    path.unlink()
    path.symlink_to(draw.choice((outside / "secret", "/dev/zero", "/etc/passwd", path, "nowhere")))


def replace_by_pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path) if draw.random() < 0.7 else path.mkdir()


def exchange(path: Path, draw: random.Random) -> None:
    """Takes the place of another file of its kind."""
    others = [other for other in path.parents[1].glob(f"*/*{path.suffix}") if other != path]
    if others:
        shutil.copyfile(draw.choice(others), path)


def edit_json(path: Path, draw: random.Random) -> None:
    """Some entries of a document become absurd, get lost, or get another name."""
    document = json.loads(path.read_text())
    for _ in range(draw.choice((1, 1, 2))):
        inner = document
        while True:
            place = draw.choice(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
            if not (isinstance(inner[place], (dict, list)) and inner[place] and draw.random() < 0.8):
                break
            inner = inner[place]
        kind = draw.random()
        if kind < 0.15 and isinstance(inner, dict):
            inner[draw.choice([*NAMES, "a" * 300, "x"])] = inner.pop(place)
        elif kind < 0.3:
            del inner[place]
        else:
            inner[place] = draw.choice(ABSURD)
        if not document:
            break
    path.write_text(json.dumps(document))


def nest(path: Path, draw: random.Random) -> None:
    path.write_text(draw.choice(("[", '{"a":')) * draw.choice((1000, 200_000)))


def rename_member(path: Path, draw: random.Random) -> None:
    """A tar whose member has a name or a kind that leads elsewhere; header sums are right."""
    data = bytearray(path.read_bytes())
    start = 512 * draw.randrange(max(1, len(data) // 512))
    info = tarfile.TarInfo(draw.choice(NAMES).replace("\x00", "") or "x")
    info.type = draw.choice((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
    info.linkname = "../../outside" if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    info.size = draw.choice((0, 100, 8**11 - 1))
    data[start : start + 512] = info.tobuf(tarfile.USTAR_FORMAT)[:512]
    path.write_bytes(data)


def vouch(path: Path, draw: random.Random) -> None:
    """Bits of a tar flip, and its index is made to agree, as an attacker can: all sums are right."""
    import hashlib

    import xxhash

    flip_bits(path, draw)
    data, index = path.read_bytes(), path.with_suffix(".json")
    document = json.loads(index.read_text())
    document["sha256"] = hashlib.sha256(data).hexdigest()
    for entry in document["members"].values():
        body = data[entry["offset"] : entry["offset"] + entry["bytes"]]
        entry["xxh3_64"] = f"{xxhash.xxh3_64_intdigest(body):016x}"
    index.write_text(json.dumps(document))


def lie(path: Path, draw: random.Random) -> None:
    """A manifest that is sound by itself and says other than the store: labels, counts, digests, a partition."""
    document = json.loads(path.read_text())
    column = draw.choice(sorted(document["columns"]))
    kind = draw.choice(("label", "refused", "coverage", "digest", "partition"))
    if kind == "label":
        document["labels"][draw.randrange(len(document["labels"]))] += "x"
    elif kind == "refused":
        document["refused"]["clips"] += draw.choice((1, 100))
    elif kind == "coverage":
        document["columns"][column]["coverage"][draw.choice(("clips", "refused", "uncovered"))] = 7
    elif kind == "digest":
        document["digests"][draw.choice(("split", "view"))] = f"{draw.randrange(2**60):064x}"
    else:
        clips = draw.choice((10**4, 10**5, 10**7))
        document["partition"] |= {"clips": clips, "clips_per_shard": 1, "shards": clips}
    path.write_text(json.dumps(document))


def misplace(path: Path, draw: random.Random) -> None:
    """An index whose offsets overlap, or lie far out in a tar that is long and takes no room."""
    document = json.loads(path.read_text())
    members = list(document["members"].values())
    if draw.random() < 0.5:
        document["bytes"] = 15 * 10**8
        os.truncate(path.with_suffix(".tar"), document["bytes"])
        members[-1]["offset"] = draw.choice((members[-1]["offset"], 14 * 10**8))
    else:
        one, other = draw.sample(members, 2)
        one["offset"] = other["offset"]
    path.write_text(json.dumps(document))


ANY = [flip_bits, cut, shift, garble, bomb, replace_by_link, replace_by_pipe, exchange]
BY_SUFFIX: dict[str, list[Callable[[Path, random.Random], None]]] = {
    ".json": [*ANY, edit_json, edit_json, edit_json, edit_json, nest],
    ".tar": [*ANY, rename_member, rename_member, absurd_length, vouch],
    ".safetensors": [*ANY, absurd_length],
}
UNREAD = ("lie", "misplace")  # what a reader may not notice, and an audit has to


def mutate(root: Path, seed: int) -> tuple[str, str]:
    """Changes one file of a store. Returns (its name, what was done); the same for the same seed."""
    draw = random.Random(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = draw.choice(files)
    special = {"manifest.json": [lie] * 4}.get(path.name, [misplace] if path.suffix == ".json" else [])
    change = draw.choice([*BY_SUFFIX[path.suffix], *special])
    change(path, draw)
    return str(path.relative_to(root)), change.__name__

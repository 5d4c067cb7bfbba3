"""manifest.json: what a store holds, how it was made, and how its keys are divided into shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.codec import check_codec, encoded_spec
from shards.column import SCHEMA, check_column
from shards.disk import StoreError, read_inside, write_atomically
from shards.tensorfile import Spec
from teachers.layout import TokenLayout

MANIFEST = "manifest.json"
MOST_SHARDS = 10**5  # that five digits name
MAKE = "python -m shards.precompute recipe=NAME writes what is missing"


def digest(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Column:
    """A named function of a clip.

    origin: function, weights, checkpoint, revision, licence: what identifies the function, on any machine.
    coverage: complete (bool), and then clips and refused (counts).
    """

    name: str
    layout: TokenLayout
    codec: str
    origin: dict[str, Any]
    coverage: dict[str, Any] = field(default_factory=lambda: {"complete": False})

    @property
    def complete(self) -> bool:
        return self.coverage.get("complete") is True

    @property
    def reference(self) -> bool:
        """Whether its function sees the clips otherwise than they are (shards.references): nothing to learn from."""
        return "sees" in self.origin

    @property
    def spec(self) -> Spec:
        """The encoded tensors of every clip."""
        return encoded_spec(self.codec, self.layout.shape)

    def to_dict(self) -> dict[str, Any]:
        return {**self.origin, "layout": self.layout.to_dict(), "codec": self.codec, "coverage": self.coverage}

    @classmethod
    def from_dict(cls, name: str, data: dict[str, Any]) -> Column:
        origin = {key: value for key, value in data.items() if key not in ("layout", "codec", "coverage")}
        layout = TokenLayout.from_dict(data["layout"])
        return cls(check_column(name), layout, check_codec(data["codec"]), origin, dict(data["coverage"]))


@dataclass(frozen=True)
class Partition:
    """Which keys stand in which shard: clips in order, `clips_per_shard` at a time.

    keys: digest over all of them, see column.keys_digest. Raises ValueError for more shards than five digits name.
    """

    clips: int
    clips_per_shard: int
    keys: str

    def __post_init__(self) -> None:
        if self.shards > MOST_SHARDS:
            raise ValueError(
                f"{self.clips} clips, {self.clips_per_shard} a shard, make {self.shards} shards; five digits name "
                f"{MOST_SHARDS}: make a store with store.clips_per_shard={-(-self.clips // MOST_SHARDS)} or more"
            )

    @property
    def shards(self) -> int:
        return -(-self.clips // self.clips_per_shard)

    def to_dict(self) -> dict[str, Any]:
        return {"clips": self.clips, "clips_per_shard": self.clips_per_shard, "shards": self.shards, "keys": self.keys}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Partition:
        counts = data["clips"], data["clips_per_shard"]
        if any(type(count) is not int for count in counts):
            raise ValueError(f"partition {data} must hold whole numbers")
        if min(counts) < 1:
            raise ValueError(f"partition {data} does not add up")
        partition = cls(*counts, str(data["keys"]))
        if partition.shards != data["shards"]:
            raise ValueError(f"partition {data} does not add up")
        return partition


@dataclass(frozen=True)
class Manifest:
    """digests: split, view, data, as 64 hex digits. labels: names, in the order of the label index.

    view: what every backbone is shown, as settings. refused: {"clips": count, "first": {key: reason}}.
    """

    view: dict[str, Any]
    digests: dict[str, str]
    labels: list[str]
    partition: Partition
    columns: dict[str, Column]
    refused: dict[str, Any] = field(default_factory=lambda: {"clips": 0, "first": {}})

    def write(self, root: Path) -> None:
        document = {
            "schema": SCHEMA,
            "view": self.view,
            "digests": self.digests,
            "labels": self.labels,
            "partition": self.partition.to_dict(),
            "columns": {name: column.to_dict() for name, column in sorted(self.columns.items())},
            "refused": self.refused,
        }
        write_atomically(root / MANIFEST, [json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"])

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Raises StoreError where there is no store, or a damaged one."""
        try:
            document = json.loads(read_inside(root, MANIFEST))
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{root} is no feature store: it has no {MANIFEST}; {MAKE}") from None
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{root}/{MANIFEST} cannot be read ({error})") from None
        try:
            if document["schema"] != SCHEMA:
                raise StoreError(f"{root}/{MANIFEST} has schema {document['schema']!r}; this version reads {SCHEMA}")
            columns = {name: Column.from_dict(name, entry) for name, entry in document["columns"].items()}
            return cls(
                view=dict(document["view"]),
                digests={str(name): str(value) for name, value in document["digests"].items()},
                labels=[str(label) for label in document["labels"]],
                partition=Partition.from_dict(document["partition"]),
                columns=columns,
                refused=dict(document["refused"]),
            )
        except StoreError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{root}/{MANIFEST} is damaged ({error!r})") from None

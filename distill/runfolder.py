"""The folder that a run writes: recipe, metrics, checkpoints, summary, bundle."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.disk import commit, sync_folder, write_atomically
from shards.ranks import Ranks

KEPT_CHECKPOINTS = 2


class RunFolder:
    """`path` with its files. Rank 0 writes; every rank may read."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.bundle = path / "bundle"
        self._journal: TextIO | None = None

    @classmethod
    def open(cls, path: Path, *, resume: bool, ranks: Ranks) -> RunFolder:
        """A new folder, or with `resume` one that may exist. Raises FileExistsError for an existing one otherwise."""
        if ranks.main and not resume and path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} exists; choose another run.name, or continue it with train.resume=auto")
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, writes=ranks.main)

    # --- metrics.jsonl

    def log(
        self,
        step: int,
        split: str,
        metric: str,
        value: float,
        *,
        target: str | None = None,
        converter: str | None = None,
    ) -> None:
        """Appends one object as a line, and flushes it."""
        if not self.writes:
            return
        line: dict[str, Any] = {"step": step, "split": split, "target": target, "metric": metric, "value": value}
        if converter is not None:
            line["converter"] = converter
        if self._journal is None:
            self._journal = open(self.metrics, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as the run
        self._journal.write(json.dumps(line) + "\n")

    def log_losses(self, step: int, losses: Mapping[str, Mapping[str, float]], *, main: str) -> None:
        """{learner: {"loss" or "target/term": value}}: the main learner's loss and terms, the others' losses under a
        metric of their own, so that there is one `loss` a step."""
        for name, terms in losses.items():
            for term, value in terms.items():
                target, _, metric = term.rpartition("/")
                if name == main:
                    self.log(step, "train", metric, value, target=target or None)
                elif metric == "loss":
                    self.log(step, "train", f"loss_of_{name}", value, converter=name)

    def log_scores(
        self, step: int, split: str, metric: str, found: Mapping[str, float], *, converter: str | None = None
    ) -> None:
        """One line per target."""
        for target, value in found.items():
            self.log(step, split, metric, value, target=target, converter=converter)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def rewind(self, step: int) -> None:
        """Drops half lines, and lines past `step`, which a resumed run writes again."""
        self.close()
        if self.metrics.exists():
            kept = [json.dumps(line) for line in read_metrics(self.metrics) if line["step"] <= step]
            write_atomically(self.metrics, [(line + "\n").encode() for line in kept])

    # --- JSON and text

    def write(self, name: str, content: str | Mapping[str, Any]) -> None:
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        write_atomically(self.path / name, [text.encode()])

    # --- checkpoints

    def save_checkpoint(self, step: int, states: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]) -> None:
        """One folder per checkpoint: NAME.safetensors per learner and record.json. It appears whole or not at all."""
        if not self.writes:
            return
        final = self.checkpoints / f"step-{step:08d}"
        temporary = self.checkpoints / f".{final.name}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, state in states.items():
            save_file(dict(state), temporary / f"{name}.safetensors")
        (temporary / "record.json").write_text(json.dumps({"step": step, **record}, indent=2))
        for file in temporary.iterdir():
            sync(file)
        shutil.rmtree(final, ignore_errors=True)
        sync_folder(temporary)
        commit(temporary, final)
        for old in self.saved()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def saved(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*")) if self.checkpoints.exists() else []

    def newest_checkpoint(self) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
        """(record, {learner: state}) of the newest checkpoint, or None."""
        saved = self.saved()
        if not saved:
            return None
        record = json.loads((saved[-1] / "record.json").read_text())
        return record, {file.stem: load_file(file) for file in sorted(saved[-1].glob("*.safetensors"))}


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; what a killed process left half written is passed over."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                yield entry


def timestamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def sync(path: Path) -> None:
    """Asks the disk to hold what was written to a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())

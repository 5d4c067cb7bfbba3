"""The folder that a run writes: recipe, metrics, events, checkpoints, summary, where it is wrong, bundle."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from distill.checkpoint import Checkpoint, checkpoint_name, read_checkpoint, write_checkpoint
from distill.events import Events
from shards.disk import commit, write_atomically
from shards.ranks import Ranks

KEPT_CHECKPOINTS = 2
log = logging.getLogger(__name__)


class RunFolder:
    """`path` with its files, and the name of the run to which it belongs. Rank 0 writes; every rank may read."""

    def __init__(self, path: Path, *, run: str | None = None, writes: bool = True) -> None:
        self.path, self.run, self.writes = path, run or path.name, writes
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.bundle = path / "bundle"
        self._journal: TextIO | None = None
        self._events: Events | None = None

    @classmethod
    def open(cls, path: Path, *, part: str | None = None, resume: bool, ranks: Ranks) -> RunFolder:
        """The folder of the run at `path`, or of its contestant `part`: a new one, or with `resume` one that may exist.

        Raises FileExistsError for any other run that holds a file, for a plain run in a contest's place or the reverse,
        and for a contestant who comes to a run that has saved others: they would all start again with it.
        """
        own = path / part if part else path

        def make() -> None:
            if ranks.main and not resume and any(not file.is_dir() for file in path.rglob("*")):
                raise FileExistsError(f"{path} exists; choose another run.name, or continue it with train.resume=auto")
            if ranks.main and (problem := misplaced(path, part)):
                raise FileExistsError(f"{path} {problem}, or choose another run.name")
            own.mkdir(parents=True, exist_ok=True)

        ranks.first(make)
        return cls(own, run=path.name, writes=ranks.main)

    # --- metrics.jsonl

    def log(
        self,
        step: int,
        split: str,
        metric: str,
        value: float | None,
        *,
        target: str | None = None,
        converter: str | None = None,
        weights: str | None = None,
    ) -> None:
        """Appends one object as a line, and flushes it. weights: which ones were chosen, once training has ended."""
        if not self.writes:
            return
        line: dict[str, Any] = {"step": step, "split": split, "target": target, "metric": metric, "value": value}
        line |= {key: name for key, name in (("converter", converter), ("weights", weights)) if name is not None}
        if self._journal is None:
            self._journal = open(self.metrics, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as the run
        self._journal.write(json.dumps(line) + "\n")
        if self._events is not None:
            self._events.add(line)

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
        self,
        step: int,
        split: str,
        metric: str,
        found: Mapping[str, float | None],
        *,
        converter: str | None = None,
        weights: str | None = None,
    ) -> None:
        """One line per target."""
        for target, value in found.items():
            self.log(step, split, metric, value, target=target, converter=converter, weights=weights)

    def last(self, split: str, metric: str) -> float | None:
        """The number that a metric was when it was last taken down; None where it never was."""
        lines = read_metrics(self.metrics) if self.metrics.exists() else ()
        found = [line.get("value") for line in lines if (line.get("split"), line.get("metric")) == (split, metric)]
        return next((value for value in reversed(found) if isinstance(value, int | float)), None)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def rewind(self, step: int, *, events: bool = False) -> None:
        """Drops half lines and whatever lies past the checkpoint of `step`: a resumed run writes it again. events: what
        is logged from here on goes to TensorBoard's files in `tensorboard/`, too."""
        if not self.writes:
            return
        self.close()
        if self.metrics.exists():
            lines = [line for line in read_metrics(self.metrics) if line["step"] <= step and "weights" not in line]
            write_atomically(self.metrics, [(json.dumps(line) + "\n").encode() for line in lines])
        for left in self.checkpoints.glob(".step-*"):
            shutil.rmtree(left)
        for damaged in self.saved():
            if damaged.name > checkpoint_name(step):
                shutil.rmtree(damaged)
        if events:
            self._events = Events(self.path / "tensorboard", purge=step + 1)

    # --- JSON and text

    def write(self, name: str, content: str | Mapping[str, Any]) -> None:
        """Writes a file of the folder, whole or not at all."""
        if not self.writes:
            return
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        write_atomically(self.path / name, [text.encode()])

    def write_where(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """where.safetensors, then where.json: the latter is there only with the former."""
        if self.writes:
            write_atomically(self.path / "where.safetensors", [save(dict(tensors))])
            self.write("where.json", record)

    # --- checkpoints

    def save_checkpoint(self, step: int, states: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]) -> None:
        """One folder per checkpoint: NAME.safetensors per learner and record.json. It appears whole or not at all.

        Raises OSError where the disk is full; the checkpoints before it stand.
        """
        if not self.writes:
            return
        final = self.checkpoints / checkpoint_name(step)
        temporary = self.checkpoints / f".{final.name}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_checkpoint(temporary, states, {"step": step, **record})
            shutil.rmtree(final, ignore_errors=True)
            commit(temporary, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"{final} cannot be written ({error}); free the disk, then continue with train.resume=auto "
                f"run.name={self.run}"
            ) from error
        for old in self.saved()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def saved(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*")) if self.checkpoints.exists() else []


def misplaced(path: Path, part: str | None) -> str | None:
    """Why the run at `path` cannot go on as a plain one, or as a contest with the contestant `part`, and what to do."""
    inside = sorted(recipe.parent.name for recipe in path.glob("*/recipe.yaml"))
    own = path / (inside[0] if inside else "") / "recipe.yaml"
    alone = f"recipe={own} train.resume=auto run.dir={own.parent.parent} run.name={own.parent.name}"
    if part is None and inside:
        return f"holds a contest of {', '.join(inside)}; continue it so, or one of them with {alone}"
    if part and (path / "recipe.yaml").exists():
        return f"holds a run without a contest; continue it with {alone}"
    if part and part not in inside and any(path.glob("*/checkpoints/step-*")):
        return f"was started without {part}; continue it so"
    return None


def newest_checkpoints(folders: Sequence[RunFolder]) -> list[Checkpoint] | None:
    """Of every folder the checkpoint of the newest step that all of them have whole, since a run may be killed between
    saving in one and in the next; None where nothing has been saved yet, or not in all at the very first time.

    Raises ValueError where one folder has no checkpoint and others would lose theirs by starting again with it, and
    where there is no step of which all checkpoints are whole.
    """
    saved = [{path.name: path for path in folder.saved()} for folder in folders]
    if not all(saved):
        check_first_save(folders)
        return None
    for name in sorted(set.intersection(*(set(paths) for paths in saved)), reverse=True):
        try:
            return [read_checkpoint(path := paths[name]) for paths in saved]
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("%s is damaged (%s); it is passed over", path, error)
    if len(folders) == 1:
        rule = f"all {len(saved[0])} checkpoints are damaged; delete the folder to start from step 0"
        raise ValueError(f"{folders[0].checkpoints}: {rule}")
    raise ValueError(f"{folders[0].path.parent}: no step is whole for all contestants: {catching_up(folders)}")


def check_first_save(folders: Sequence[RunFolder]) -> None:
    """Raises ValueError where some folders have checkpoints, others none, and no kill at the first save explains it."""
    having = [folder for folder in folders if folder.saved()]
    without = [folder for folder in folders if not folder.saved()]
    if all(len(folder.saved()) == 1 and not (folder.path / "summary.json").exists() for folder in having):
        return
    rest, names = (",".join(folder.path.name for folder in group) for group in (having, without))
    listed = ", ".join(str(folder.path) for folder in without)
    raise ValueError(
        f"{listed}: no checkpoint, but there are some of {rest}, which would start again with it. Give the same "
        f"command with contest=[{names}] train.resume=auto run.name={folders[0].run} to train {names} from step 0, "
        f"with contest=[{rest}] to continue without, or rename {folders[0].path.parent} to start all anew"
    )


def catching_up(folders: Sequence[RunFolder]) -> str:
    """Which steps every folder has whole, and the command that brings those behind to the others."""
    steps = {folder.path.name: whole_steps(folder) for folder in folders}
    listed = "; ".join(f"{name} has {', '.join(map(str, found)) or 'none'}" for name, found in steps.items())
    newest = max((found[-1] for found in steps.values() if found), default=0)
    if not newest:
        damaged = ", ".join(str(folder.checkpoints) for folder in folders)
        return f"{listed}. Delete {damaged} to start from step 0"
    behind = ",".join(name for name, found in steps.items() if not found or found[-1] < newest)
    return (
        f"{listed}. Give the same command with contest=[{behind}] train.resume=auto run.name={folders[0].run}, which "
        f"trains {behind} to the end; then continue all"
    )


def whole_steps(folder: RunFolder) -> list[int]:
    """The steps of the checkpoints that can be read, oldest first."""
    steps = []
    for path in folder.saved():
        with suppress(OSError, ValueError, SafetensorError):
            steps.append(read_checkpoint(path)[0]["step"])
    return steps


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

"""What metrics.jsonl holds, for TensorBoard as well."""

from __future__ import annotations

import atexit
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# A switch of the package's own: where TensorFlow is installed, it would be imported (seconds, and a share of the GPU)
WITHOUT_TENSORFLOW = "tensorboard.compat.notf"


class Events:
    """Event files in a folder. The package is imported when the first one is opened.

    purge: events of this step and later ones, which a resumed run writes again, are dropped by the reader. Raises
    ValueError, saying what to do, where the package is not there.
    """

    def __init__(self, folder: Path, *, purge: int) -> None:
        sys.modules.setdefault(WITHOUT_TENSORFLOW, ModuleType(WITHOUT_TENSORFLOW))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(f"no events can be written ({error}); install it, or set run.tensorboard=false") from error
        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=10)
        atexit.register(self._writer.close)  # a run that is stopped closes nothing

    def add(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl, as split/metric[/target][/converter][/weights]; without a value it is left out."""
        if line["value"] is not None:
            names = (line["split"], line["metric"], line["target"], line.get("converter"), line.get("weights"))
            self._writer.add_scalar("/".join(name for name in names if name), line["value"], line["step"])

    def close(self) -> None:
        self._writer.close()
        atexit.unregister(self._writer.close)

"""Where a backbone's weights come from, and how that is written down.

Four sources: "standin" (seeded, built on the spot), "pretrained" (published on the hub), "miniature" (those of the
miniature backbones, which come with this package), or a local folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

STANDIN, PRETRAINED, MINIATURE = "standin", "pretrained", "miniature"
SHIPPED = Path(__file__).resolve().parent / "miniature" / "weights"
WEIGHT_FILES = ("*.safetensors", "*.bin")


class WeightsNotFound(ValueError):
    """Weights that cannot be had; the message says what was tried and how to provide them."""


@dataclass(frozen=True)
class Published:
    """Published weights: hub id, commit (None: not pinned), licence. A local folder may not know its id."""

    checkpoint: str | None
    revision: str | None
    licence: str | None


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """What the user asked for."""

    weights: str = STANDIN
    checkpoint: str | None = None
    revision: str | None = None
    licence: str | None = None

    @property
    def standin(self) -> bool:
        return self.weights == STANDIN

    @property
    def pretrained(self) -> bool:
        return self.weights == PRETRAINED

    def published(self, default: Published) -> Published:
        """The checkpoint to fetch: the family's default, or the one that the user names (then unpinned by default)."""
        ours = self.checkpoint in (None, default.checkpoint)
        checkpoint = self.checkpoint or default.checkpoint
        revision = self.revision or (default.revision if ours else None)
        if revision is None:
            log.info('weights of "%s" are unpinned: set revision to a commit of it to fix them', checkpoint)
        return Published(checkpoint, revision, self.licence or default.licence)

    def declared(self, default: Published) -> Published:
        """What a local folder is said to hold. Its licence is taken to be the family's unless the user knows better."""
        return Published(self.checkpoint, self.revision, self.licence or default.licence)

    def folder(self, name: str) -> Path:
        """The folder that holds this backbone's config.json. Raises WeightsNotFound."""
        root = SHIPPED if self.weights == MINIATURE else Path(self.weights).expanduser()
        for folder in (root, root / name):
            if (folder / "config.json").is_file():
                return folder
        if self.weights == MINIATURE:
            has = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))) or "none"
            raise WeightsNotFound(
                f'{name}: no weights="{MINIATURE}" come with this package for it; there are: {has}. Give it weights of '
                f'its own (in a recipe: its weights, beside backbones.weights), or use weights="{STANDIN}"'
            )
        raise WeightsNotFound(
            f'{name}: weights="{self.weights}" is neither "{STANDIN}" nor "{PRETRAINED}" nor a folder of weights: '
            f"there is no {root / 'config.json'} and no {root / name / 'config.json'}; give a folder that "
            "save_pretrained wrote, or one that holds such a folder per backbone name"
        )


def origin(
    function: str,
    *,
    weights: str | None,
    published: Published | None = None,
    options: dict[str, Any] | None = None,
    note: str | None = None,
) -> dict[str, str | None]:
    """What identifies the function that a backbone computes: JSON-able, never a path of this machine.

    weights: "standin", "pretrained", "local:<digest>", or None for a backbone that has none.
    """
    return {
        "function": function,
        "weights": weights,
        "checkpoint": published.checkpoint if published else None,
        "revision": published.revision if published else None,
        "licence": published.licence if published else None,
        "options": json.dumps(options, sort_keys=True) if options else None,
        "note": note,
    }


def digest_of_weights(folder: Path) -> str:
    """First 16 hex digits of a sha256 over what decides a folder's function, in the order of the names: its weights,
    and its JSON files, for a configuration or another mean of the colours makes another function of the same weights.
    """
    pattern = next((pattern for pattern in WEIGHT_FILES if any(folder.glob(pattern))), None)
    if pattern is None:
        raise WeightsNotFound(f"{folder} holds no weights ({' or '.join(WEIGHT_FILES)}); save_pretrained writes them")
    digest = hashlib.sha256()
    for path in sorted([*folder.glob(pattern), *folder.glob("*.json")]):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def network_errors() -> tuple[type[BaseException], ...]:
    """What may be raised when something is neither cached nor reachable.

    A proxy's refusal comes as an error of the hub's HTTP client, which has changed its name over the years; the hub's
    own error derives from it.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)


def unavailable(name: str, published: Published, error: BaseException) -> WeightsNotFound:
    """The error for published weights that are neither cached nor reachable."""
    revision = f" --revision {published.revision}" if published.revision else ""
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return WeightsNotFound(
        f'{name}: the published weights "{published.checkpoint}" (revision {published.revision or "unpinned"}) are '
        f"not in the local cache and could not be fetched ({type(error).__name__}: {reason}). On a machine with "
        f"network run `hf download {published.checkpoint}{revision} --local-dir FOLDER/{name}`, bring FOLDER here and "
        'set weights to it (in a recipe: backbones.weights=FOLDER); or use weights="standin" to try the machinery'
    )

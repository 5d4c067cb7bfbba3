"""Models of transformers, built or loaded: stand-in, published, or from a local folder.

Loading is strict: a folder of another family, or one that lacks weights which the network runs, is an error and
never a network with random parts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from teachers.standin import CONFIGS, build_seeded
from teachers.torchvision_schemas import make_torchvision_importable
from teachers.weights import (
    PRETRAINED,
    STANDIN,
    Published,
    WeightSource,
    digest_of_weights,
    network_errors,
    unavailable,
)

log = logging.getLogger(__name__)

Colour = tuple[float, float, float]
Normalisation = tuple[Colour, Colour]  # mean and deviation per colour, of values in [0, 1]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # [0, 1] -> [-1, 1]
NONE: Normalisation = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Family:
    """What sets one family apart.

    model: its class in transformers. order: of its grid tokens; a CLS, where there is one, comes first.
    normalisation: used where a checkpoint brings no preprocessor file.
    build: arguments of the model's constructor. call: arguments of its forward.
    idle: prefixes of weights that are never run, and may therefore be missing.
    """

    name: str
    model: str
    order: str
    cls: bool
    published: Published
    normalisation: Normalisation
    build: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    idle: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A model, and what its backbone says about it."""

    model: Any  # a PreTrainedModel: its configuration is not typed
    weights: str
    published: Published | None
    normalisation: Normalisation
    options: dict[str, Any]


def load(family: Family, source: WeightSource, *, seed: int, standin: dict[str, Any] | None = None) -> Loaded:
    """The family's model with the weights that `source` asks for.

    seed: of the stand-in's weights. standin: changes to the stand-in's configuration.
    Raises WeightsNotFound when there are none, ValueError when they are of another model.
    """
    make_torchvision_importable()
    import transformers

    model_class = getattr(transformers, family.model)
    if source.standin:
        config = model_class.config_class(**{**CONFIGS[family.name], **(standin or {})})
        model = build_seeded(lambda: model_class(config, **family.build), seed=seed)
        return Loaded(model, STANDIN, None, family.normalisation, {"seed": seed})
    if source.pretrained:
        published = source.published(family.published)
        try:
            model = from_pretrained(model_class, family, str(published.checkpoint), published.revision)
        except network_errors() as error:
            raise unavailable(family.name, published, error) from error
        commit = getattr(model.config, "_commit_hash", None) or published.revision
        published = Published(published.checkpoint, commit, published.licence)
        normalisation = read_normalisation(family, str(published.checkpoint), commit)
        return Loaded(model, PRETRAINED, published, normalisation, {})
    folder = source.folder(family.name)
    weights = f"local:{digest_of_weights(folder)}"
    with quiet():
        model = from_pretrained(model_class, family, str(folder), None)
    normalisation = read_normalisation(family, str(folder), None)
    return Loaded(model, weights, source.declared(family.published), normalisation, {})


def from_pretrained(model_class: Any, family: Family, where: str, revision: str | None) -> Any:
    """model_class.from_pretrained in fp32, refusing what would leave random weights in the network."""
    config, _ = model_class.config_class.get_config_dict(where, revision=revision)
    kind = model_class.config_class.model_type
    if config.get("model_type") != kind:
        raise ValueError(
            f'{family.name}: "{where}" holds a model of type "{config.get("model_type")}" but "{kind}" is needed; '
            f"give a checkpoint of {family.model}"
        )
    with torch.random.fork_rng(devices=[]), quiet(bars=True):
        model, report = model_class.from_pretrained(
            where, revision=revision, dtype=torch.float32, output_loading_info=True, **family.build
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(family.idle))
    if missing or report["mismatched_keys"]:
        wrong = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise ValueError(
            f'{family.name}: "{where}" lacks {len(wrong)} weights of {family.model}, or has them in another shape '
            f"({', '.join(wrong[:3])} ...); give a folder that its save_pretrained wrote"
        )
    return model


def read_normalisation(family: Family, where: str, revision: str | None) -> Normalisation:
    """Mean and deviation from the checkpoint's preprocessor file; the family's published ones where it has none."""
    from transformers.utils import cached_file

    for filename in PREPROCESSORS:
        try:
            path = cached_file(where, filename, revision=revision, _raise_exceptions_for_missing_entries=False)
        except network_errors():  # the weights came from the cache and there is no network to look further
            path = None
        found = parse_normalisation(json.loads(Path(path).read_text())) if path else None
        if found:
            return found
    mean, std = family.normalisation
    log.info(
        "%s: no preprocessor file beside the weights; mean %s and deviation %s as published", family.name, mean, std
    )
    return family.normalisation


def parse_normalisation(data: dict[str, Any]) -> Normalisation | None:
    """Mean and deviation on [0, 1] out of a preprocessor file; None where it does not say.

    ViViT's files scale by 1/127.5, for an input in [-1, 1]. Some of them ask for mean and deviation 0.5 as well,
    which is the same thing said twice: it is done once.
    """
    data = data.get("video_processor") or data.get("image_processor") or data
    if data.get("do_normalize", True):
        mean, std = data.get("image_mean"), data.get("image_std")
        return (colour(mean), colour(std)) if mean is not None and std is not None else None
    centred = data.get("do_rescale", True) and data.get("rescale_factor", 1 / 255) > 1.5 / 255
    return HALF if centred else NONE


def colour(value: float | list[float]) -> Colour:
    """One number per colour."""
    red, green, blue = [value] * 3 if isinstance(value, (int, float)) else value
    return float(red), float(green), float(blue)


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """No reports of transformers, nor its progress bars unless `bars`; afterwards as it was before."""
    from transformers.utils import logging as reports

    verbosity, had_bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    if not bars:
        reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)
        if had_bars and not bars:
            reports.enable_progress_bar()

"""Small video models that we trained ourselves on the rendered world, weights in the repository.

Five backbones with different objectives on different grids, so that their features are learned and disagree for a
reason: `models` says what each is, `objectives` what it was taught; `python -m teachers.miniature train NAME` trains
one. weights="miniature" are those that come with this package, a folder those that you trained, and "standin" a random
start, the floor that every claim about them has to beat.
"""

from __future__ import annotations

from functools import partial

from teachers.backbone import Backbone
from teachers.miniature.models import MEAN, MINIATURES, STD
from teachers.miniature.record import read_weights
from teachers.standin import build_seeded
from teachers.weights import MINIATURE, STANDIN, Published, WeightSource, digest_of_weights, origin

LICENCE = "Apache-2.0"


def build(
    name: str,
    source: WeightSource,
    *,
    special: tuple[str, ...] = (),
    frames: int | None = None,
    pixels: int | None = None,
    seed: int = 0,
) -> Backbone:
    """A miniature by its name in MINIATURES.

    frames, pixels: for the record; a miniature knows no geometry but its own. seed: of a stand-in's random start.
    Raises ValueError on another geometry, and where the weights do not match their recorded hash.
    """
    model = MINIATURES[name]
    for what, asked, own in (("frames", frames, model.frames), ("pixels", pixels, model.pixels)):
        if asked not in (None, own):
            raise ValueError(
                f"{name} is asked for {what}={asked}, but it was trained on {model.frames} frames of {model.pixels} "
                f"pixels and knows no other geometry; leave {what} out, or train another"
            )
    if special:
        raise ValueError(f"{name} has no special tokens, but {list(special)} are asked for; leave special empty")
    network = build_seeded(model.network, seed=seed)
    weights, published, note = STANDIN, None, "a random start"
    if source.pretrained:
        raise ValueError(
            f'{name} is not published anywhere; its weights come with this package: set weights to "{MINIATURE}" '
            "(in a recipe: backbones=miniature)"
        )
    if not source.standin:
        folder = source.folder(name)
        record = read_weights(folder, network, model=name)
        digest = digest_of_weights(folder)
        shipped = source.weights == MINIATURE
        if shipped and source.revision not in (None, digest):
            raise ValueError(
                f"{name}: revision {source.revision} is asked for, but the weights that come with this package are "
                f"{digest}; take the version that had them"
            )
        weights = MINIATURE if shipped else f"local:{digest}"
        published = Published(None, digest if shipped else source.revision, source.licence or LICENCE)
        note = f"{record.steps} steps of {record.batch} clips, seed {record.seed}, world {record.world}"
    return Backbone(
        network,
        name=name,
        layout=model.layout,
        frames=model.frames,
        pixels=model.pixels,
        mean=MEAN,
        std=STD,
        origin=origin(
            f"teachers.miniature:{name}",
            weights=weights,
            published=published,
            options={"seed": seed} if source.standin else None,
            note=note,
        ),
    )


miniature_student = partial(build, "miniature_student")
miniature_masked = partial(build, "miniature_masked")
miniature_motion = partial(build, "miniature_motion")
miniature_frames = partial(build, "miniature_frames")
miniature_pooled = partial(build, "miniature_pooled")

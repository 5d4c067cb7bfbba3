"""`large`: a converter without a budget, of the same family, as a reference for what the budget costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from converters import Converter, create_converter

log = logging.getLogger(__name__)
GROWTH = 20  # times the parameters,
ENOUGH = 50_000_000  # or so many, whichever is less
DEEPER = 2  # times the blocks, where the family has some
WIDEST = 32  # times the width


def enlarged(converter: Converter, made_of: Mapping[str, Any]) -> Converter:
    """The first that has GROWTH times the parameters, or ENOUGH, of the same family at twice the blocks and whole
    multiples of the width, up to WIDEST (a warning says what that lacks); it is deprived of nothing.

    made_of: the converter's configuration. Raises ValueError for a family without a width.
    """
    options = dict(made_of["options"])
    if "width" not in options:
        raise ValueError(f"{converter.family} has no width that `large` could multiply; leave large out")
    if "blocks" in options:
        options["blocks"] *= DEEPER
    wanted = min(GROWTH * converter.num_parameters(), ENOUGH)
    for times in range(2, WIDEST + 1):
        found = create_converter(
            converter.family,
            student=converter.student,
            targets=converter.targets,
            skip=made_of["skip"],
            normaliser=converter.normaliser,
            options=options | {"width": times * options["width"]},
            seed=converter.seed,
        )
        if found.num_parameters() >= wanted:
            return found
    grown = found.num_parameters() / converter.num_parameters()
    log.warning("large: %s has but %.1f times the parameters at %d times the width", found.family, grown, WIDEST)
    return found

"""The functions that a recipe's columns are: student, teachers, averaged pixels, and teachers that see otherwise.

What identifies each is known without building it; that is what a store is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from recipes.schema import Backbone as BackboneSpec
from recipes.schema import Recipe
from shards.column import PIXELS, STUDENT
from shards.ranks import Ranks
from shards.references import FRAMES, SHIFT, reference_column, reference_names
from teachers import create_backbone
from teachers.altered import on_frames, on_shifted
from teachers.backbone import Backbone

Asked = dict[str, dict[str, Any]]  # column -> what it was asked to be


def asked_columns(recipe: Recipe, ranks: Ranks) -> Asked:
    """Every column of a recipe's videos; a teacher's references stand behind it."""
    shared = {"precision": precision(recipe, ranks)}
    columns: Asked = {STUDENT: asked_of(recipe.student, recipe) | shared}
    for name, spec in recipe.targets.items():
        columns[name] = asked_of(spec, recipe) | shared
        if "pixels" in recipe.evaluate.floors:
            columns[PIXELS + name] = {"pixels_under": asked_of(spec, recipe), "student": columns[STUDENT]}
        for reference in reference_names(recipe.evaluate.references):
            beside = {"student": columns[STUDENT]} if reference == FRAMES else {}
            columns[reference_column(reference, name)] = {"reference": reference, "teacher": columns[name]} | beside
    return columns


def references_of(recipe: Recipe) -> dict[str, str]:
    """column -> the target whose teacher sees the clip otherwise."""
    return {
        reference_column(reference, name): name
        for name in recipe.targets
        for reference in reference_names(recipe.evaluate.references)
    }


def build_columns(recipe: Recipe, ranks: Ranks, asked: Mapping[str, Any]) -> dict[str, Backbone]:
    """The backbones of the columns `asked`; a teacher and its references are one network."""
    sources = {STUDENT: build(recipe.student, recipe, ranks)}
    for name, spec in recipe.targets.items():
        sources[name] = build(spec, recipe, ranks)
    for name in recipe.targets:
        if PIXELS + name in asked:
            sources[PIXELS + name] = pixels_under(sources[name], sources[STUDENT])
        for reference in reference_names(recipe.evaluate.references):
            column = reference_column(reference, name)
            if column not in asked:
                continue  # there is no test clip
            if reference == FRAMES:
                sources[column] = on_frames(sources[name], sources[STUDENT].frames)
            else:
                sources[column] = on_shifted(sources[name], int(reference.removeprefix(SHIFT)))
    return sources


def build(spec: BackboneSpec, recipe: Recipe, ranks: Ranks) -> Backbone:
    """One backbone of a recipe."""
    return create_backbone(
        spec.backbone,
        weights=weights_of(spec, recipe),
        checkpoint=spec.checkpoint,
        revision=spec.revision,
        licence=spec.licence,
        special=tuple(stored_special(spec)),
        options=spec.options,
        autocast=torch.bfloat16 if precision(recipe, ranks) == "bf16" else None,
    )


def asked_of(spec: BackboneSpec, recipe: Recipe) -> dict[str, Any]:
    """What identifies the function that a column was asked to be, on any machine: no path, a local folder by digest."""
    from teachers.weights import PRETRAINED, STANDIN, WeightSource, digest_of_weights

    weights = weights_of(spec, recipe)
    if weights not in (STANDIN, PRETRAINED):
        weights = "local:" + digest_of_weights(WeightSource(weights=weights).folder(spec.backbone))
    asked = {name: getattr(spec, name) for name in ("backbone", "checkpoint", "revision", "options")}
    return json.loads(json.dumps(asked | {"weights": weights, "special": stored_special(spec)}))


def stored_special(spec: BackboneSpec) -> list[str]:
    """Tokens beside the grid that the store keeps: those of the recipe, and those that the model's own head reads."""
    return [*spec.stored, *(name for name in spec.special if name not in spec.stored)]


def weights_of(spec: BackboneSpec, recipe: Recipe) -> str:
    return spec.weights or recipe.backbones.weights


def precision(recipe: Recipe, ranks: Ranks) -> str:
    """The precision that the backbones run in."""
    if recipe.backbones.precision != "auto":
        return recipe.backbones.precision
    return "bf16" if ranks.device.type == "cuda" else "fp32"


def pixels_under(teacher: Backbone, student: Backbone) -> Backbone:
    """The backbone that averages the pixels under each of the teacher's tokens; under the student's if it is pooled."""
    model = student if teacher.layout.grid is None else teacher
    grid = model.layout.grid
    assert grid is not None
    frames = max(model.frames // grid[0], 1) * grid[0]
    cells = next(n for n in (4, 2, 1) if all(model.pixels % (side * n) == 0 for side in grid[1:]))
    return create_backbone("pixels", options={"grid": grid, "frames": frames, "pixels": model.pixels, "cells": cells})

"""Command: a bundle on a video file, or over a store's student column.

python -m distill.apply BUNDLE VIDEO --out FILE.safetensors
python -m distill.apply BUNDLE STORE --column NAME
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from converters import Converter, load_converter
from converters.bundle import read_config
from converters.converter import check_finite
from shards.column import STUDENT
from shards.decode import Refusal
from shards.derive import derive
from shards.manifest import MANIFEST, Manifest
from shards.videos import Clip
from shards.view import render_views
from teachers import BACKBONES, create_backbone
from teachers.backbone import Backbone
from teachers.layout import TokenLayout

IDENTITY = ("function", "weights", "checkpoint", "revision", "options")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m distill.apply", description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("bundle", help="a bundle's folder, or a hub id")
    parser.add_argument("source", type=Path, help="a video file, or a feature store")
    parser.add_argument("--out", type=Path, help="video: where the converted tokens go, a tensor per target")
    parser.add_argument("--column", help="store: name of the new column (of several targets: NAME_target)")
    parser.add_argument("--weights", help="video: a folder with the student's weights, where the bundle's were local")
    parser.add_argument("--start", type=float, help="video: seconds; default as in training, around the middle")
    parser.add_argument("--end", type=float)
    arguments = parser.parse_args(argv)
    try:
        if (arguments.source / MANIFEST).exists():
            apply_to_store(arguments)
        else:
            apply_to_video(arguments)
    except (ValueError, OSError, Refusal) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def apply_to_video(arguments: argparse.Namespace) -> None:
    """One clip of a video -> student -> converter -> a safetensors file, {target: (q e) float32}."""
    if arguments.out is None:
        raise ValueError(f"{arguments.source} is no feature store; to convert a video, say --out FILE.safetensors")
    converter, config = load(arguments.bundle)
    student = build_student(config, weights=arguments.weights)
    check_layout(student.layout, converter)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = student_tokens(student.to(device), arguments, config)
    check_finite(tokens)
    with torch.inference_mode():
        converted = converter.to(device)(tokens)
    save_file({name: rows[0].cpu().contiguous() for name, rows in converted.items()}, arguments.out)
    shapes = ", ".join(f"{name} {tuple(rows.shape[1:])}" for name, rows in converted.items())
    print(f"{arguments.out}: {shapes} from {arguments.source} on {device}")


def student_tokens(student: Backbone, arguments: argparse.Namespace, config: dict[str, Any]) -> Tensor:
    """The student's answer to the clip, (1 s d); the view is that of training."""
    seconds = ((config.get("training") or {}).get("view") or {}).get("clip_seconds")
    if seconds is None:
        raise ValueError("the bundle does not say what view it was trained on; export it again from a run")
    path = arguments.source
    size = path.stat().st_size
    span = (arguments.start, arguments.end)
    clip = Clip("clip", str(path), None, path.name, "test", *span, (0, 1), path.name, size)
    request = (student.frames, student.pixels)
    _, views, notes = render_views(clip, [request], clip_seconds=float(seconds))
    for note in notes:
        print(f"{path.name}: {note}")
    device = next((tensor.device for tensor in student.parameters()), torch.device("cpu"))
    return student(views[request][None].to(device).float() / 255)


def apply_to_store(arguments: argparse.Namespace) -> None:
    """The store's student column -> one new column per target."""
    if arguments.column is None:
        raise ValueError(f"{arguments.source} is a feature store; say --column NAME for the converted tokens")
    converter, config = load(arguments.bundle)
    columns = Manifest.read(arguments.source).columns
    if STUDENT not in columns:
        raise ValueError(f"{arguments.source} has no column {STUDENT!r}; there are {', '.join(columns) or 'none'}")
    check_layout(columns[STUDENT].layout, converter)
    ours, theirs = config["origins"][STUDENT], columns[STUDENT].origin
    differing = [
        f"{key} {theirs.get(key)}, not {ours.get(key)}" for key in IDENTITY if ours.get(key) != theirs.get(key)
    ]
    if differing:
        raise ValueError(f"the store's student is another than the bundle's: {'; '.join(differing)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    converter.to(device)
    for target, layout in converter.targets.items():
        name = arguments.column if len(converter.targets) == 1 else f"{arguments.column}_{target}"
        origin = {"function": "converters:load_converter", "bundle": digest(arguments.bundle), "target": target}
        derive(
            arguments.source,
            column=name,
            source=STUDENT,
            function=lambda tokens, target=target: converter(tokens)[target],
            layout=layout,
            origin=origin | {"licence": config["origins"].get(target, {}).get("licence")},
            device=device,
        )
        print(f"{arguments.source}: column {name}, {layout.describe()}")


def load(bundle: str) -> tuple[Converter, dict[str, Any]]:
    """The converter and its config. Raises ValueError for a bundle that does not say where its tokens come from."""
    converter = load_converter(bundle)
    config = read_config(bundle)
    if STUDENT not in (config.get("origins") or {}):
        raise ValueError(f"{bundle} does not say which student it converts; export it again from a run")
    return converter, config


def build_student(config: dict[str, Any], *, weights: str | None) -> Backbone:
    """The frozen student that the bundle names. Raises ValueError where it cannot be the same."""
    origin = config["origins"][STUDENT]
    names = {function: name for name, function in BACKBONES.items()}
    if origin.get("function") not in names:
        raise ValueError(f"the bundle's student is {origin.get('function')!r}; there are {', '.join(names)}")
    stated = origin.get("weights") or "standin"
    if stated.startswith("local:") and weights is None:
        raise ValueError(f"the bundle's student has weights {stated}; say --weights FOLDER where they are")
    student = create_backbone(
        names[origin["function"]],
        weights=weights if stated.startswith("local:") else stated,  # type: ignore[arg-type]
        checkpoint=origin.get("checkpoint"),
        revision=origin.get("revision"),
        licence=origin.get("licence"),
        options=json.loads(origin["options"]) if origin.get("options") else None,
    )
    if student.origin.get("weights") != origin.get("weights"):
        raise ValueError(f"{weights} holds weights {student.origin['weights']}; the bundle was trained on {stated}")
    return student


def check_layout(layout: TokenLayout, converter: Converter) -> None:
    if layout != converter.student:
        raise ValueError(f"the student gives {layout.describe()}; the converter reads {converter.student.describe()}")


def digest(bundle: str) -> str:
    """Identifies a bundle by its files, on any machine."""
    import hashlib

    found = hashlib.sha256()
    folder = Path(bundle)
    if not folder.is_dir():
        return bundle
    for name in ("config.json", "model.safetensors"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())

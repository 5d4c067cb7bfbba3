"""A converter as a folder: model.safetensors, config.json, README.md. No pickle, no code from the file.

A bundle may come from a stranger: its config is checked value by value, the family looked up in FAMILIES, and the
modules are laid out without memory and held against the tensors' header before anything is allocated.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from converters import card as model_card
from converters import create_converter
from converters.converter import Converter
from teachers.layout import TokenLayout

VERSION = 1
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CARD_ENTRIES = ("name", "origins", "digests", "metrics", "training")
ENTRIES = {"family", "student", "targets", "skip", "normaliser", "options", "seed"}
OPTIONAL = {"rank": None, "mask_token": False}  # of deficient converters only
MAX_CONFIG_BYTES = 16 << 20
MAX_TARGETS = 64
LARGEST = (1 << 16, 256, 64, 1 << 16)  # tokens, longest axis, special tokens, dim of a layout that is read

log = logging.getLogger(__name__)


def save(converter: Converter, path: str | Path, *, card: dict[str, Any] | None = None) -> Path:
    """Write the bundle into the folder `path`, replacing one that is there. Returns the folder.

    card: what the model card and config.json say beside the geometry: name, origins (backbone -> function, weights,
    checkpoint, revision, licence; under "student" and the targets' names), digests, metrics (target -> name -> number),
    training (anything JSON). Numbers that are not finite are written as null.
    """
    card = _plain(card or {}, "card")
    unknown = sorted(set(card) - set(CARD_ENTRIES))
    if unknown:
        raise ValueError(f"card has the entries {', '.join(unknown)}; valid: {', '.join(CARD_ENTRIES)}")
    config = {"version": VERSION, "converter": converter.config(), "parameters": converter.num_parameters(), **card}
    for name, licence in model_card.non_commercial(config):
        log.warning("the weights of %s are %s: this converter is for non-commercial use", name, licence)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in converter.state_dict().items()}
    wrong = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype != torch.float32]
    if wrong:
        raise ValueError(f"{wrong[0]} is not float32; bundles are: call converter.float() before it is saved")
    _check_finite(converter, "this converter")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / MODEL, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    _replace(folder / CONFIG, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    readme = model_card.render(config, converter)
    _replace(folder / CARD, lambda temporary: temporary.write_text(readme, encoding="utf-8"))
    return folder


def load(path_or_hub_id: str | Path) -> Converter:
    """The converter of a bundle, in eval mode; outputs are those of the saved one, bit for bit.

    Raises FileNotFoundError if there is no bundle, ValueError naming file and entry if it is damaged or foreign.
    """
    folder = _locate(path_or_hub_id)
    arguments = _read_config(folder / CONFIG)
    _check_tensors(folder, arguments)
    converter = create_converter(**arguments)
    converter.load_state_dict(load_file(folder / MODEL))
    _check_finite(converter, str(folder / MODEL))
    for name, normaliser in [("student", converter.student_normaliser), *converter.target_normalisers.items()]:
        try:
            normaliser.set_(normaliser.mean.clone(), normaliser.scale.clone())
        except ValueError as error:
            raise ValueError(f"{folder / MODEL}, normaliser of {name!r}: {error}") from None
    return converter.eval()


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of a bundle folder, parsed: version, converter, and what the card said. Raises ValueError."""
    file = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes; a bundle's config has at most {MAX_CONFIG_BYTES}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a number of 5000 digits
        raise ValueError(f"{file} is not JSON ({error}); export the bundle again") from None
    if not isinstance(config, dict) or config.get("version") != VERSION:
        version = config.get("version") if isinstance(config, dict) else None
        raise ValueError(f"{file}: version is {version!r}, but this software reads version {VERSION}")
    return config


def _locate(path_or_hub_id: str | Path) -> Path:
    folder = Path(path_or_hub_id)
    if not folder.is_dir():
        if isinstance(path_or_hub_id, Path) or not HUB_ID.fullmatch(path_or_hub_id):
            raise FileNotFoundError(f"{path_or_hub_id} is no folder; give a bundle's folder, or a hub id: owner/name")
        folder = _download(path_or_hub_id)
    for name in (CONFIG, MODEL):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; a bundle has {MODEL}, {CONFIG} and {CARD}")
    return folder


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"there is no folder {hub_id}, and huggingface_hub is not installed to look for it on the hub: "
            "pip install huggingface_hub, or download the bundle and give its folder"
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[MODEL, CONFIG, CARD]))
    except Exception as error:  # the hub's client raises what its transport raises
        raise FileNotFoundError(
            f"there is no folder {hub_id}, and the hub did not give it ({type(error).__name__}: {error}); "
            "download the bundle elsewhere and give its folder"
        ) from error


def _read_config(file: Path) -> dict[str, Any]:
    """Arguments of create_converter, every value checked."""
    entry = read_config(file).get("converter")
    if not isinstance(entry, dict) or set(entry) - set(OPTIONAL) != ENTRIES:
        raise ValueError(
            f"{file}: converter has the entries {', '.join(sorted(ENTRIES))}, no others; got {entry!r:.200}"
        )
    kinds = {"family": str, "targets": dict, "skip": str, "normaliser": str, "options": dict, "seed": int}
    for name, kind in kinds.items():
        if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
            raise ValueError(f"{file}: converter.{name} is {entry[name]!r:.100}; it must be a {kind.__name__}")
    if len(entry["targets"]) > MAX_TARGETS:
        raise ValueError(f"{file}: converter.targets has {len(entry['targets'])} entries; at most {MAX_TARGETS}")
    if not 0 <= entry["seed"] < 1 << 63:
        raise ValueError(f"{file}: converter.seed is {entry['seed']}; it must be from 0 to 2^63 - 1")
    targets = {name: _layout(data, f"{file}: converter.targets.{name}") for name, data in entry["targets"].items()}
    student = _layout(entry["student"], f"{file}: converter.student")
    rest = {name: entry[name] for name in ("skip", "normaliser", "options", "seed")}
    rest |= {name: entry.get(name, usual) for name, usual in OPTIONAL.items()}
    if not isinstance(rest["mask_token"], bool):
        raise ValueError(f"{file}: converter.mask_token is {entry['mask_token']!r:.100}; it must be a bool")
    return {"name": entry["family"], "student": student, "targets": targets, **rest}


def _layout(data: Any, where: str) -> TokenLayout:
    try:
        layout = TokenLayout.from_dict(data)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{where} is no layout: {error}") from None
    sizes = (layout.num_tokens, max(layout.grid or (1,)), len(layout.special), layout.dim)
    if any(size > most for size, most in zip(sizes, LARGEST, strict=True)):
        raise ValueError(f"{where} has (tokens, longest axis, special, dim) {sizes}; at most {LARGEST} are read")
    return layout


def _check_tensors(folder: Path, arguments: dict[str, Any]) -> None:
    """Raise ValueError unless model.safetensors holds exactly the tensors of the converter that the config tells."""
    with torch.device("meta"):
        try:
            wanted = create_converter(**arguments).state_dict()
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG}: {error}") from None
    try:
        with safe_open(folder / MODEL, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in found.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / MODEL} cannot be read ({error}); copy or export the bundle again") from None
    expected = {name: (tuple(tensor.shape), "F32") for name, tensor in wanted.items()}
    problems = [f"{name} is missing" for name in sorted(set(expected) - set(shapes))]
    problems += [f"{name} is unknown" for name in sorted(set(shapes) - set(expected))]
    for name in sorted(set(shapes) & set(expected)):
        if shapes[name] != expected[name]:
            problems.append(f"{name} is {_show(shapes[name])}, the config asks for {_show(expected[name])}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{folder / MODEL} does not fit {CONFIG}: {'; '.join(problems[:5])}{more}")


def _check_finite(converter: Converter, where: str) -> None:
    for name, parameter in converter.named_parameters():
        bad = parameter.detach()[~parameter.detach().isfinite()]
        if len(bad):
            raise ValueError(f"{where}: {name} holds {float(bad[0])}, {len(bad)} entries not finite; train it again")


def _show(entry: tuple[tuple[int, ...], str]) -> str:
    return f"{entry[1]} {entry[0]}"


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then take its place: no reader ever sees half a file."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any, where: str) -> Any:
    """The same tree in JSON types; numbers that are not finite become None. Raises ValueError naming the entry."""
    if isinstance(value, dict):
        return {str(name): _plain(part, f"{where}.{name}") for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{where}[{at}]") for at, part in enumerate(value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}; a card holds JSON types only")

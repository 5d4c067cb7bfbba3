"""Where weights come from: folders, hub, origins, preprocessor files, and every way in which they can be missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers import create_backbone
from teachers.hf_model import HALF, NONE, parse_normalisation, quiet
from teachers.weights import Published, WeightsNotFound, WeightSource, digest_of_weights


@pytest.fixture
def copy(tiny: Any, tmp_path: Path) -> Path:
    """A videomae folder that a test may spoil."""
    return Path(shutil.copytree(tiny("videomae")[1], tmp_path / "videomae"))


def spoil(folder: Path, change: Any) -> None:
    """Rewrite the folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_parent_folder_serves_each_backbone_by_its_name(copy: Path) -> None:
    direct, by_name = (create_backbone("videomae", weights=str(folder)) for folder in (copy, copy.parent))
    assert direct.origin == by_name.origin
    with pytest.raises(WeightsNotFound, match=r"timesformer/config\.json"):
        create_backbone("timesformer", weights=str(copy.parent))


def test_origin_of_a_folder_names_its_content_and_not_its_place(copy: Path) -> None:
    before = create_backbone("videomae", weights=str(copy), checkpoint="me/mine").origin
    assert before["weights"] == f"local:{digest_of_weights(copy)}" and before["checkpoint"] == "me/mine"
    assert before["licence"] == "CC-BY-NC-4.0" and str(copy.parent) not in json.dumps(before)
    spoil(copy, lambda tensors: next(iter(tensors.values())).add_(1))
    after = create_backbone("videomae", weights=str(copy), checkpoint="me/mine", licence="MIT").origin
    assert after["weights"] != before["weights"] and after["licence"] == "MIT"
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.1, "image_std": 0.2}))
    assert create_backbone("videomae", weights=str(copy)).origin["weights"] != after["weights"]  # other colours


def test_pins_hold_for_the_default_checkpoint_only(caplog: pytest.LogCaptureFixture) -> None:
    default = Published("hub/model", "abc", "MIT")
    assert WeightSource().published(default) == default
    with caplog.at_level("INFO"):
        assert WeightSource(checkpoint="hub/other").published(default).revision is None
    assert '"hub/other" are unpinned' in caplog.text
    assert WeightSource(checkpoint="hub/other", revision="def").published(default).revision == "def"


@pytest.mark.parametrize("name", ["videomae", "timm_frames"])
def test_published_weights_that_cannot_be_had(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    command = r"hf download tokenbridge/none-such --revision 0123 --local-dir FOLDER/" + name
    with pytest.raises(WeightsNotFound, match=command):
        create_backbone(name, weights="pretrained", checkpoint="tokenbridge/none-such", revision="0123")


def test_a_proxy_that_refuses_is_told_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    def refuse(*_: object) -> None:
        raise HfHubHTTPError.__bases__[0]("407 proxy authentication required")

    monkeypatch.setattr("teachers.hf_model.from_pretrained", refuse)
    with pytest.raises(WeightsNotFound, match="407 proxy authentication required"):
        create_backbone("videomae", weights="pretrained")


def test_folders_without_weights_are_refused(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(WeightsNotFound, match='weights="standing" is neither'):
        create_backbone("videomae", weights="standing")
    (copy / "model.safetensors").unlink()
    with pytest.raises(WeightsNotFound, match="holds no weights"):
        create_backbone("videomae", weights=str(copy))


def test_a_folder_of_another_family_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match='holds a model of type "vivit" but "videomae" is needed'):
        create_backbone("videomae", weights=str(tiny("vivit")[1]))


def test_missing_and_misshapen_weights_are_refused(copy: Path) -> None:
    key = "encoder.layer.1.output.dense.weight"
    spoil(copy, lambda tensors: tensors.pop(next(name for name in tensors if name.endswith(key))))
    with pytest.raises(ValueError, match=r"lacks 1 weights of VideoMAEModel.*output\.dense\.weight"):
        create_backbone("videomae", weights=str(copy))


@pytest.mark.parametrize(
    ("filename", "nest"), [("preprocessor_config.json", None), ("processor_config.json", "video_processor")]
)
def test_mean_and_deviation_come_from_the_preprocessor_file(filename: str, nest: str | None, copy: Path) -> None:
    data: dict[str, Any] = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (copy / filename).write_text(json.dumps({nest: data} if nest else data))
    backbone = create_backbone("videomae", weights=str(copy))
    assert torch.allclose(backbone.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(backbone.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def test_without_a_preprocessor_file_the_published_values_hold(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        backbone = create_backbone("videomae", weights=str(copy))
    assert "no preprocessor file" in caplog.text
    assert torch.allclose(backbone.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"image_mean": 0.5, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}, HALF),  # ViViT on Kinetics
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, HALF),  # ViViT otherwise
        ({"do_normalize": False}, NONE),
        ({"size": 224}, None),
    ],
)
def test_what_a_preprocessor_file_says(data: dict[str, Any], expected: Any) -> None:
    assert parse_normalisation(data) == expected


def test_quiet_leaves_the_reports_as_they_were() -> None:
    from transformers.utils import logging as reports

    def state() -> tuple[int, bool]:
        return reports.get_verbosity(), reports.is_progress_bar_enabled()

    verbosity = reports.get_verbosity()
    reports.set_verbosity_info()
    try:
        before = state()
        with pytest.raises(KeyError), quiet():
            assert state() == (reports.ERROR, False)
            raise KeyError
        assert state() == before
    finally:
        reports.set_verbosity(verbosity)


def test_loading_prints_nothing(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    create_backbone("videomae", weights=str(copy))
    assert capfd.readouterr() == ("", "")

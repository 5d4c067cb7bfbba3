"""Backbones are found by name, and finding them costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from teachers import BACKBONES, backbone_options, create_backbone, list_backbones


def test_names_and_patterns() -> None:
    assert list_backbones("[!m]*") == ["pixels", "timesformer", "timm_frames", "videomae", "vivit", "vjepa2"]
    miniatures = ["miniature_frames", "miniature_masked", "miniature_motion", "miniature_pooled", "miniature_student"]
    assert list_backbones("miniature_*") == miniatures and len(list_backbones()) == 11
    assert list_backbones("vi*") == ["videomae", "vivit"] and list_backbones("none") == []


def test_options_are_the_factorys_own() -> None:
    assert backbone_options("timesformer") == ["frames", "seed"]
    assert backbone_options("pixels") == ["cells", "frames", "grid", "pixels"]
    assert all(backbone_options(name) for name in BACKBONES)


def test_unknown_names_list_the_valid_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'no backbone "vidoemae"; there are \[.*did you mean "videomae"\?'):
        create_backbone("vidoemae")
    with pytest.raises(ValueError, match=r'vjepa2 has no option "frame"; its options are .*did you mean "frames"\?'):
        create_backbone("vjepa2", options={"frame": 8})


def test_light_import() -> None:
    """Neither the package, nor its registry, nor the pixels backbone pull a model library."""
    code = (
        "import sys, teachers; assert 'torch' not in sys.modules; "
        "[teachers.backbone_options(name) for name in teachers.BACKBONES]; teachers.create_backbone('pixels'); "
        "print([name for name in ('transformers', 'timm', 'torchvision', 'huggingface_hub') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

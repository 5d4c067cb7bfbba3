"""Bundles: what is written, and every way in which a stranger's file is refused."""

from __future__ import annotations

import json
import logging
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import STUDENT, draw, stir, tiny

from converters import load_converter
from converters.bundle import read_config

CARD = {
    "name": "demo | converter",
    "origins": {
        "student": {"function": "f", "weights": "standin", "checkpoint": None, "revision": None, "licence": "mit"},
        "videomae": {"weights": "pretrained", "checkpoint": "a/b", "revision": "c0ffee", "licence": "CC-BY-NC-4.0"},
        "vivit": {"weights": "pretrained", "licence": "apache-2.0"},
    },
    "digests": {"data": "d1", "split": "5p"},
    "metrics": {"videomae": {"r2c": 0.5, "cka": float("nan")}},
}


@pytest.fixture
def bundle(tmp_path):
    return stir(tiny("perceiver")).save(tmp_path / "bundle", card=CARD)


def edit(bundle, change):
    config = json.loads((bundle / "config.json").read_text())
    change(config)
    (bundle / "config.json").write_text(json.dumps(config))


def edit_tensors(bundle, change):
    tensors = load_file(bundle / "model.safetensors")
    change(tensors)
    save_file(tensors, bundle / "model.safetensors")


def test_the_folder_says_everything(bundle):
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = read_config(bundle)
    assert config["version"] == 1
    assert config["origins"]["videomae"]["revision"] == "c0ffee"
    assert config["metrics"]["videomae"] == {"r2c": 0.5, "cka": None}
    card = (bundle / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    for part in (
        "c0ffee",
        "CC-BY-NC-4.0",
        "Non-commercial",
        "2 x 3 x 3",
        "0.5000",
        "d1",
        "load_converter",
        "not given",
    ):
        assert part in card
    assert "apache-2.0: what was trained" not in card


def test_export_of_non_commercial_weights_warns(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        tiny("linear").save(tmp_path / "a", card=CARD)
        assert "videomae are CC-BY-NC-4.0" in caplog.text
        caplog.clear()
        tiny("linear").save(tmp_path / "b", card={"origins": {"vivit": {"licence": "apache-2.0"}}})
    assert not caplog.text
    assert "license: apache-2.0" in (tmp_path / "b" / "README.md").read_text()
    tiny("linear").save(tmp_path / "c", card={"origins": {"student": {"weights": "local:0", "licence": None}}})
    assert "license: other" in (tmp_path / "c" / "README.md").read_text()


@pytest.mark.parametrize("licence", ["cc by nc 4.0", "CC-BY-NC-SA-4.0", "Non-Commercial research", "noncommercial"])
def test_non_commercial_licences_are_known(licence, tmp_path):
    tiny("linear").save(tmp_path, card={"origins": {"student": {"licence": licence}}})
    assert "Non-commercial" in (tmp_path / "README.md").read_text()


def test_saving_again_replaces(bundle, tokens):
    other = stir(tiny("linear")).eval()
    other.save(bundle)
    assert torch.equal(load_converter(bundle)(tokens)["vivit"], other(tokens)["vivit"])
    assert len(list(bundle.iterdir())) == 3


def test_names_cannot_break_out_of_the_card(tmp_path):
    tiny("linear").save(tmp_path, card={"origins": {"student": {"licence": "x | y\n---\nlicense: mit"}}})
    assert "| x \\| y --- license: mit |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("card", "match"),
    [({"licences": {}}, "licences; valid: name"), ({"metrics": {"a": torch.ones(1)}}, r"card.metrics.a is a Tensor")],
)
def test_a_card_of_other_things(card, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        tiny("linear").save(tmp_path, card=card)


def test_weights_that_are_not_finite_are_refused_at_the_door(tmp_path):
    converter = tiny("perceiver")
    converter.branch.latents.data[2, 3] = float("inf")
    with pytest.raises(ValueError, match="branch.latents holds inf"):
        converter.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_half_precision_is_refused_at_the_door(tmp_path):
    with pytest.raises(ValueError, match=r"bfloat16\) is not float32"):
        tiny("linear").bfloat16().save(tmp_path)


CONFIGS = {
    "version": (lambda c: c.update(version=2), "version is 2, but .* version 1"),
    "family": (lambda c: c["converter"].update(family="os:system"), "no converter family is called 'os:system'"),
    "kind": (lambda c: c["converter"].update(options=[1]), r"converter.options is \[1\]; it must be a dict"),
    "extra": (lambda c: c["converter"].update(code="x"), "the entries family"),
    "missing": (lambda c: c["converter"].pop("skip"), "the entries family"),
    "option": (lambda c: c["converter"]["options"].update(widht=3), "no option 'widht'"),
    "width": (lambda c: c["converter"]["options"].update(width=10**9), "width is 1000000000"),
    "blocks": (lambda c: c["converter"]["options"].update(blocks=10**9), "blocks is 1000000000"),
    "seed": (lambda c: c["converter"].update(seed=-1), "seed is -1"),
    "grid": (lambda c: c["converter"]["student"].update(grid=[10**9] * 3), r"converter.student has .*\(10000000000000"),
    "dim": (lambda c: c["converter"]["student"].update(dim=10**12), "1000000000000"),
    "long": (lambda c: c["converter"]["student"].update(grid=[300, 1, 1]), r"\(300, 300, 0, 24\); at most"),
    "bool": (lambda c: c["converter"]["student"].update(dim=True), "dim is True"),
    "empty": (lambda c: c["converter"]["student"].update(grid=[]), r"grid is \(\)"),
    "float": (lambda c: c["converter"]["student"].update(dim=24.5), "24.5"),
    "extent": (lambda c: c["converter"]["student"].update(extent=[[0, float("inf")]] * 3), "inf"),
    "special": (lambda c: c["converter"]["targets"]["vivit"].update(special="cls"), "'cls'"),
    "layout": (lambda c: c["converter"]["targets"].update(vivit=7), "converter.targets.vivit is no layout: .* 7"),
    "targets": (lambda c: c["converter"].update(targets={f"a{i}": {} for i in range(65)}), "65 entries; at most 64"),
    "other": (
        lambda c: c["converter"]["targets"]["vivit"].update(dim=11),
        r"vivit.weight is F32 \(10, 16\).* \(11, 16\)",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_hostile_configs(case, bundle):
    change, match = CONFIGS[case]
    edit(bundle, change)
    with pytest.raises(ValueError, match=match) as caught:
        load_converter(bundle)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "[1, 2]", "\x00", '{"version": 1}', "[" * 100_000, '{"version": ' + "9" * 5000 + "}"]
)
def test_configs_that_are_none(text, bundle):
    (bundle / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json"):
        load_converter(bundle)


def poke(tensors, name, value):
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = value


TENSORS = {
    "missing": (lambda t: t.pop("branch.latents"), "branch.latents is missing"),
    "unknown": (lambda t: t.update(more=torch.ones(1)), "more is unknown"),
    "shape": (lambda t: t.update({"branch.latents": torch.ones(7, 16)}), r"latents is F32 \(7, 16\), .* \(6, 16\)"),
    "dtype": (lambda t: t.update({"branch.latents": torch.ones(6, 16).half()}), "latents is F16"),
    "scale": (lambda t: poke(t, "student_normaliser.scale", 0.0), "'student': scale of channel 0 is 0.0"),
    "mean": (lambda t: poke(t, "target_normalisers.vivit.mean", float("nan")), "'vivit': mean of channel 0 is nan"),
    "weight": (lambda t: t["branch.latents"].fill_(float("nan")), "branch.latents holds nan"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors(case, bundle):
    change, match = TENSORS[case]
    edit_tensors(bundle, change)
    with pytest.raises(ValueError, match=match) as caught:
        load_converter(bundle)
    assert "model.safetensors" in str(caught.value)


def test_damaged_and_absent_files(bundle, tmp_path):
    model = bundle / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        load_converter(bundle)
    model.write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        load_converter(bundle)
    model.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors"):
        load_converter(str(bundle))
    with pytest.raises(FileNotFoundError, match="absent is no folder"):
        load_converter(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_converter("./absent/bundle/")


def test_a_hub_id(bundle, tokens, monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(hub_id, allow_patterns):
            if hub_id != "owner/name":
                raise OSError("offline")
            return str(bundle)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert load_converter("owner/name").student == STUDENT
    with pytest.raises(FileNotFoundError, match=r"owner/other.*offline"):
        load_converter("owner/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"owner/name.*pip install huggingface_hub"):
        load_converter("owner/name")


def test_training_goes_on_after_loading(bundle):
    converter = load_converter(bundle).train()
    converter(draw(1, *STUDENT.shape))["vivit"].sum().backward()
    assert converter.branch.latents.grad is not None


def test_the_card_shows_floors_and_stand_ins(tmp_path):
    floors = {"ridge": {"videomae": {"r2c": 0.87312}}, "pixels": {"videomae": {"r2c": None}}, "odd": 3}
    card = {"origins": {"student": {"weights": "standin"}}, "training": {"floors": floors}}
    tiny("linear").save(tmp_path, card=card)
    text = (tmp_path / "README.md").read_text()
    assert "| ridge | videomae | 0.8731 |" in text and "| pixels |" not in text
    assert "The weights of student are random" in text
    tiny("linear").save(tmp_path, card={"training": [1]})
    assert "floors" not in (tmp_path / "README.md").read_text()

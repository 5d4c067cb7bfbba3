"""One contract for every registered family, and for variants of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import STUDENT, TARGETS, VARIANTS, draw, stir, tiny

from converters import FAMILIES, create_converter, load_converter
from teachers.layout import TokenLayout

ALL = [*FAMILIES, *VARIANTS]
LEARNED = [name for name in ALL if name != "constant"]
BRANCHED = [name for name in ALL if FAMILIES.get(name) != ""]
SUBSETS = {"videomae": torch.tensor([0, 5, 17]), "timesformer": torch.tensor([2, 3, 30, 36])}


def test_there_are_families():
    assert len(FAMILIES) >= 4
    assert BRANCHED


@pytest.mark.parametrize("normaliser", ["position", "global"])
@pytest.mark.parametrize("family", ALL)
def test_shape_and_finite(family, normaliser, tokens):
    answers = stir(tiny(family, normaliser=normaliser))(tokens)
    assert {name: tuple(y.shape) for name, y in answers.items()} == {
        name: (2, *layout.shape) for name, layout in TARGETS.items()
    }
    assert all(y.isfinite().all() and y.dtype == torch.float32 for y in answers.values())


@pytest.mark.parametrize("family", ALL)
def test_units_are_a_fixed_map_away(family, tokens):
    converter = stir(tiny(family))
    answers, inside = converter(tokens), converter(tokens, standardised=True)
    for name, y in answers.items():
        torch.testing.assert_close(converter.standardise_targets(name, y), inside[name], atol=1e-5, rtol=1e-4)
        part = converter.standardise_targets(name, y[:, :1], torch.tensor([0]))
        torch.testing.assert_close(part, inside[name][:, :1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", BRANCHED)
def test_starts_exactly_at_its_skip(family, tokens):
    converter = tiny(family)
    for name, skip in converter.skips.items():
        skip.set_({part: draw(TARGETS[name].dim, STUDENT.dim, seed=3) for part in skip.parts})
    linear = tiny("linear")
    linear.skips.load_state_dict(converter.skips.state_dict())
    for name, y in converter(tokens).items():
        assert torch.equal(y, linear(tokens)[name])
    for name, y in tiny(family, skip="none")(tokens).items():
        assert torch.equal(y, tiny("constant")(tokens)[name])


@pytest.mark.parametrize("skip", ["linear", "none"])
@pytest.mark.parametrize("family", LEARNED)
def test_gradient_reaches_every_parameter_after_one_step(family, skip, tokens):
    if family == "linear" and skip == "none":
        pytest.skip("the family linear is its skip")
    converter = tiny(family, skip=skip)
    optimizer = torch.optim.SGD(converter.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        answers = converter(tokens, standardised=True)
        sum((y - draw(*y.shape, seed=5)).square().mean() for y in answers.values()).backward()
        optimizer.step()
    without = [name for name, parameter in converter.named_parameters() if not bool((parameter.grad != 0).any())]
    assert without == []


@pytest.mark.parametrize("family", ALL)
def test_a_subset_of_positions_is_that_part_of_the_whole(family, tokens):
    converter = stir(tiny(family))
    whole, part = converter(tokens), converter(tokens, positions=SUBSETS)
    for name, y in whole.items():
        torch.testing.assert_close(part[name], y[:, SUBSETS[name]] if name in SUBSETS else y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_another_grid_of_the_same_target(family, tokens):
    converter = stir(tiny(family))
    finer = TokenLayout((2, 9, 9), 12)
    answers = converter(tokens, layouts={"videomae": finer}, positions={"videomae": torch.arange(40, 160)})
    assert answers["videomae"].shape == (2, 120, 12)
    middle = torch.tensor([(t * 9 + 3 * y + 1) * 9 + 3 * x + 1 for t in range(2) for y in range(3) for x in range(3)])
    centres = converter(tokens, layouts={"videomae": finer}, positions={"videomae": middle})["videomae"]
    torch.testing.assert_close(centres, converter(tokens)["videomae"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_clips_do_not_see_each_other(family, tokens):
    converter = stir(tiny(family)).eval()
    for name, y in converter(tokens).items():
        torch.testing.assert_close(converter(tokens[1:])[name], y[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_bf16_is_close_to_fp32(family, tokens):
    converter = stir(tiny(family))
    exact = converter(tokens, standardised=True)
    seen = []
    for module in converter.skips.values():
        module.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = converter(tokens.bfloat16(), standardised=True)
    assert set(seen) <= {torch.bfloat16}
    for name, y in exact.items():
        assert rough[name].dtype == torch.float32
        assert (rough[name] - y).norm() <= 0.03 * y.norm()


@pytest.mark.parametrize("family", ALL)
def test_the_seed_alone_decides_the_bits(family):
    before = torch.random.get_rng_state()
    first = tiny(family, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = tiny(family, seed=7).state_dict(), tiny(family, seed=8).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.state_dict().items())
    if family in BRANCHED:
        assert not all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("family", ALL)
def test_saved_and_loaded_bit_for_bit(family, tokens, tmp_path):
    converter = stir(tiny(family, seed=3)).eval()
    loaded = load_converter(converter.save(tmp_path / "bundle"))
    assert not loaded.training
    assert loaded.config() == converter.config()
    for name, y in converter(tokens).items():
        assert torch.equal(loaded(tokens)[name], y)


def test_a_bundle_loads_without_the_training_stack(tokens, tmp_path):
    """In a fresh process: same bits, and neither deepspeed nor transformers."""
    for family in ALL:
        converter = stir(tiny(family)).eval()
        converter.save(tmp_path / family)
        save_file(converter(tokens), tmp_path / f"{family}.safetensors")
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    script = f"""
import sys
from safetensors.torch import load_file, save_file
from converters import load_converter
tokens = load_file("tokens.safetensors")["tokens"]
for family in {ALL}:
    save_file(load_converter(family)(tokens), family + ".again.safetensors")
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"deepspeed", "transformers", "timm", "av", "hydra"}}, loaded
"""
    path = [entry for entry in sys.path if entry]
    environment = {"PYTHONPATH": ":".join(path), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for family in ALL:
        ours, theirs = (load_file(tmp_path / f"{family}{end}") for end in (".safetensors", ".again.safetensors"))
        assert all(torch.equal(y, theirs[name]) for name, y in ours.items())


@pytest.mark.parametrize("family", ALL)
def test_nothing_is_left_on_another_device(family):
    """The meta device refuses to meet tensors of the CPU."""
    converter = tiny(family).to("meta")
    answers = converter(torch.empty(2, *STUDENT.shape, device="meta"), positions=SUBSETS)
    assert all(y.device.type == "meta" for y in answers.values())


@pytest.mark.parametrize("family", ALL)
def test_exports_with_any_batch(family, tokens):
    two = {name: TARGETS[name] for name in ("timesformer", "vivit")}  # grid, special and pooled; a third takes seconds
    converter = stir(tiny(family, targets=two)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(converter, (tokens,), dynamic_shapes={"tokens": {0: batch}})
    three = draw(3, *STUDENT.shape, seed=4)
    for name, y in converter(three).items():
        torch.testing.assert_close(program.module()(three)[name], y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_config_builds_the_same_modules(family):
    config = tiny(family).config()
    again = create_converter(
        config["family"],
        student=TokenLayout.from_dict(config["student"]),
        targets={name: TokenLayout.from_dict(layout) for name, layout in config["targets"].items()},
        **{name: config[name] for name in ("skip", "normaliser", "options", "seed")},
    )
    assert again.num_parameters() == tiny(family).num_parameters()
    assert again.config() == config

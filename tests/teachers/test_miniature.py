"""The miniatures: their geometry, what each can and cannot see, their objectives, their training and their weights."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shards.world import FACTORS, draw_scenes, impossible, render
from teachers import create_backbone
from teachers.miniature import MINIATURES
from teachers.miniature.__main__ import main, teach
from teachers.miniature.objectives import OBJECTIVES, DenseHeads, Lesson, MaskedLatents, choose_masks
from teachers.miniature.record import Record
from teachers.miniature.training import Trainer, rate
from teachers.miniature.vit import ConvStem, VideoViT, start
from teachers.weights import SHIPPED, WeightsNotFound

QUICK = ("--batch", "3", "--device", "cpu", "--checkpoint-every", "2")


def lesson_for(name: str, *, clips: int = 4, seed: int = 0, progress: float = 0.0) -> Lesson:
    model = MINIATURES[name]
    scenes = draw_scenes(clips, generator=torch.Generator().manual_seed(seed), unseen=False)
    seen = render(scenes, frames=model.frames, pixels=model.pixels)
    return Lesson((seen.video - 0.5) / 0.25, seen.flow, seen.mask, scenes.factors, impossible(scenes.factors), progress)


def objective_for(name: str, seed: int = 0) -> Any:
    model = MINIATURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return OBJECTIVES[model.objective](model.network(), {key: len(FACTORS[key]) for key in model.factors})


@pytest.mark.parametrize("name", MINIATURES)
def test_about_0_8_million_parameters(name: str) -> None:
    parameters = sum(parameter.numel() for parameter in MINIATURES[name].network().parameters())
    assert 0.7e6 < parameters < 0.95e6


def test_no_two_grids_are_alike_but_for_their_time() -> None:
    student, masked, motion = (MINIATURES[f"miniature_{name}"].grid for name in ("student", "masked", "motion"))
    assert masked[1] < student[1] and motion[0] == 2 * student[0]


def test_frames_does_not_know_when_it_looks() -> None:
    model = create_backbone("miniature_frames")
    video = torch.rand(1, 8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 7, 0, 2, 6, 4, 5])
    there, back = model(video).view(8, 36, 128), model(video[:, order]).view(8, 36, 128)
    torch.testing.assert_close(back, there[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["miniature_student", "miniature_masked", "miniature_motion", "miniature_pooled"])
def test_the_others_do(name: str) -> None:
    model = create_backbone(name)
    video = torch.rand(1, model.frames, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert (model(video.flip(1)).mean(dim=1) - model(video).mean(dim=1)).abs().max() > 1e-3


def test_divided_attention_reaches_the_whole_grid_and_one_block_does_not_mix_clips() -> None:
    torch.manual_seed(0)
    net = VideoViT(grid=(3, 2, 2), patch=(1, 2), dim=16, depth=1, num_heads=2, attending="divided").eval()
    video = torch.rand(2, 3, 3, 4, 4)
    changed = video.clone()
    changed[0, 2, :, :2, :2] = 1  # cell (2, 0, 0) of the first clip
    moved = (net(changed) - net(video)).abs().amax(dim=-1) > 1e-7
    assert moved[0].all() and not moved[1].any()


def test_attention_within_frames_stays_there() -> None:
    torch.manual_seed(0)
    net = VideoViT(grid=(3, 2, 2), patch=(1, 2), dim=16, depth=2, num_heads=2, attending="frames").eval()
    video = torch.rand(1, 3, 3, 4, 4)
    changed = video.clone()
    changed[0, 1] = 1
    moved = (net(changed) - net(video)).abs().amax(dim=-1)[0] > 1e-7
    assert moved.tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_a_hidden_token_is_not_seen() -> None:
    net = MINIATURES["miniature_masked"].network().eval()
    visible, masked = choose_masks(2, 72, ratio=0.75, generator=torch.Generator().manual_seed(1))
    assert visible.shape == (2, 18) and masked.shape == (2, 54)
    assert all(sorted([*a, *b]) == list(range(72)) for a, b in zip(visible.tolist(), masked.tolist(), strict=True))
    video = torch.rand(2, 8, 3, 48, 48)
    t, y, x = masked[0, 0].item() // 36, masked[0, 0].item() // 6 % 6, masked[0, 0].item() % 6
    changed = video.clone()
    changed[0, 4 * t : 4 * t + 4, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 0
    assert torch.equal(net.tokens(changed, visible), net.tokens(video, visible))
    assert not torch.equal(net.tokens(changed), net.tokens(video))


def test_dense_labels_stand_in_their_cells() -> None:
    heads = DenseHeads(8, grid=(2, 2, 2), frames=2, classes={"pan": 5, "shape": 6}, flow=True)
    pixels = torch.zeros(1, 4, 2, 8, 8)
    pixels[0, 2:, 1, :4, 4:] = 3  # y of cell (1, 0, 1)
    cells = heads.cells(pixels)
    assert cells[0, 5].tolist() == [0, 3] and cells.abs().sum() == 3


@pytest.mark.parametrize("name", MINIATURES)
def test_every_objective_falls_on_one_batch(name: str) -> None:
    objective, lesson = objective_for(name), lesson_for(name)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(12):
        loss, terms = objective(lesson, torch.Generator().manual_seed(0))
        assert all(term.isfinite() for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    unused = [
        key for key, parameter in objective.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert unused == []


def test_an_impossible_value_is_no_choice() -> None:
    """Whatever is said of it costs nothing and teaches nothing: the others share all of the choice."""
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    never = torch.tensor([[False, True, False, False], [False, False, False, True]])
    nothing = torch.zeros(0)
    lesson = Lesson(
        nothing, nothing, nothing, {"a": torch.tensor([2, 0]), "b": torch.tensor([1, 3])}, {"a": never}, 0.0
    )
    found = lesson.surprise("a", logits)
    for clip, (label, left) in enumerate(((1, [0, 2, 3]), (0, [0, 1, 2]))):
        expected = -logits[clip][:, left].log_softmax(-1)[:, label]
        torch.testing.assert_close(found[clip], expected)
    found.sum().backward()
    assert not logits.grad.masked_select(never.unsqueeze(1)).any() and logits.grad.abs().sum() > 1
    torch.testing.assert_close(lesson.surprise("b", logits)[1], -logits[1].log_softmax(-1)[:, 3])


def test_the_target_follows_the_network_and_learns_nothing_itself() -> None:
    objective = objective_for("miniature_student")
    assert isinstance(objective, MaskedLatents)
    loss, terms = objective(lesson_for("miniature_student"), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(parameter.grad is None for parameter in objective.target.parameters()) and terms["spread"] > 0.5
    with torch.no_grad():
        objective.network.place.add_(1)
    before = objective.target.place.clone()
    objective.after_step(0.0)
    moved = (objective.target.place - before).mean().item()
    assert moved == pytest.approx(1 - objective.momentum, rel=1e-3)
    objective.after_step(1.0)  # at the end it stands still
    assert (objective.target.place - before).mean().item() == pytest.approx(moved)


def test_the_rate_warms_up_and_falls() -> None:
    assert rate(0) == 0.01 and rate(0.05) == pytest.approx(1) and rate(1) == pytest.approx(0.01)
    assert rate(0.02) < rate(0.04) < rate(0.05) > rate(0.5) > rate(0.9)


def test_a_training_that_goes_on_ends_as_one_without_a_break(tmp_path: Path, capsys: Any) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    name, options = "miniature_student", ["--steps", "4", *QUICK]
    assert main(["train", name, "--out", str(whole), *options]) == 0
    run_until(2, parts, name)
    assert main(["train", name, "--out", str(parts), *options]) == 0
    a, b = (load_file(out / name / "model.safetensors") for out in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(tensor.dtype == torch.float16 for tensor in a.values())
    record = Record.read(whole / name / "config.json")
    assert (record.steps, record.batch, record.seed) == (4, 3, 0) and record.seconds > 0 and "latents" in record.losses
    assert (
        record.command
        == f"python -m teachers.miniature train {name} --steps 4 --batch 3 --lr 0.002 --seed 0 --difficulty 0.5"
    )
    assert str(tmp_path) not in json.dumps(record.__dict__)
    assert "backbones.weights=" in capsys.readouterr().out


def run_until(step: int, out: Path, name: str) -> None:
    """Trains as the command does, and dies after the checkpoint of `step`."""
    save = Trainer.save

    def save_and_die(self: Trainer, path: Path) -> None:
        save(self, path)
        if self.step == step:
            raise OSError("died")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_die)
        assert main(["train", name, "--out", str(out), "--steps", "4", *QUICK]) == 1


def test_another_seed_gives_other_weights_and_other_settings_do_not_go_on(tmp_path: Path, capsys: Any) -> None:
    name = "miniature_masked"
    options = ["train", name, "--steps", "2", "--out", str(tmp_path), *QUICK]
    assert main(options) == 0
    first = (tmp_path / name / "model.safetensors").read_bytes()
    assert main([*options, "--seed", "1"]) == 1
    assert "of another training (seed 0 there, 1 here); give the same, or another --out" in capsys.readouterr().err
    (tmp_path / name / "checkpoint.safetensors").unlink()
    assert main([*options, "--seed", "1"]) == 0
    assert (tmp_path / name / "model.safetensors").read_bytes() != first


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "miniature_masked", "--steps", "6", "--out", str(tmp_path), "--lr", "1e9", *QUICK]) == 1
    assert "lower the rate (--lr)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("miniature")
    assert main(["train", "miniature_pooled", "--steps", "1", "--out", str(out), *QUICK]) == 0
    return out


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Weights that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "weights"))


def test_trained_weights_are_a_backbones(trained: Path) -> None:
    backbone = create_backbone("miniature_pooled", weights=str(trained))
    direct = create_backbone("miniature_pooled", weights=str(trained / "miniature_pooled"))
    assert backbone.origin == direct.origin and backbone.origin["weights"].startswith("local:")
    assert backbone(torch.rand(2, 8, 3, 48, 48)).shape == (2, 1, 128)
    assert "1 steps of 3 clips, seed 0" in backbone.origin["note"]
    assert not torch.equal(backbone.network.cls, create_backbone("miniature_pooled").network.cls)


def change_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["cls"] += 1
    save_file(tensors, file)


def change_record(**entries: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_weights, r"its sha256 is \w{16}\.\.\. but config\.json beside it records \w{16}"),
        (change_record(model="miniature_motion"), "holds weights of miniature_motion, not of miniature_pooled"),
        (change_record(colour=3), r"no record of a miniature's training .*colour"),
        (lambda folder: (folder / "config.json").write_text("{"), "no record of a miniature's training"),
    ],
)
def test_weights_that_are_not_as_recorded(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder / "miniature_pooled")
    with pytest.raises(ValueError, match=message):
        create_backbone("miniature_pooled", weights=str(folder))


def test_weights_of_another_network(folder: Path) -> None:
    import hashlib

    file = folder / "miniature_pooled" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("cls")
    save_file(tensors, file)
    change_record(sha256=hashlib.sha256(file.read_bytes()).hexdigest())(file.parent)
    with pytest.raises(ValueError, match="does not hold the weights of miniature_pooled as it is built here"):
        create_backbone("miniature_pooled", weights=str(folder))


@pytest.mark.parametrize("options", [{"frames": 16}, {"pixels": 64}])
def test_another_geometry_is_refused(options: dict[str, int]) -> None:
    (key, value) = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"asked for {key}={value}, but it was trained on 8 frames of 48 pixels"):
        create_backbone("miniature_masked", options=options)
    assert create_backbone("miniature_masked", options={"frames": 8, "pixels": 48}).frames == 8


def test_what_a_miniature_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"has no special tokens, but \['cls'\]"):
        create_backbone("miniature_pooled", special=("cls",))
    with pytest.raises(ValueError, match="not published anywhere; its weights come with this package"):
        create_backbone("miniature_masked", weights="pretrained")
    with pytest.raises(WeightsNotFound, match='videomae: no weights="miniature" come with this package'):
        create_backbone("videomae", weights="miniature")


def test_convolutions_start_with_every_cell_at_its_place() -> None:
    torch.manual_seed(0)
    stem = ConvStem((2, 4), 8).apply(start)
    video = torch.rand(1, 4, 3, 16, 16)
    assert stem(video).shape == (1, 2 * 4 * 4, 8)
    for frame, y, x in ((0, 0, 0), (3, 15, 15), (1, 6, 9)):
        changed = video.clone()
        changed[0, frame, :, y, x] += 5
        moved = (stem(changed) - stem(video)).abs().amax(-1).view(2, 4, 4)
        # the norm over a cell's frames moves all a little; the cell that holds the pixel moves most
        assert moved.flatten().argmax() == frame // 2 * 16 + y // 4 * 4 + x // 4
        assert not moved[1 - frame // 2].any()


def test_convolutions_look_equally_far_over_all_edges_and_start_by_looking_over_none() -> None:
    stem = ConvStem((1, 8), 16)

    def seen() -> list[list[int]]:
        """Rows and columns of a 24 x 24 frame that the middle one of its 3 x 3 cells depends on."""
        frame = torch.rand(1, 3, 24, 24, requires_grad=True)
        x = frame
        for layer in stem.layers:
            x = layer(x) if isinstance(layer, torch.nn.Conv2d) else x  # the norms mix whole frames
        x[0, :, 1, 1].sum().backward()
        assert frame.grad is not None
        moved = frame.grad[0].abs().sum(0)
        return [(moved.amax(side) > 0).nonzero().flatten().tolist() for side in (1, 0)]

    assert seen() == [list(range(1, 23))] * 2
    stem.apply(start)
    assert seen() == [list(range(8, 16))] * 2


def test_nothing_hides_from_convolutions() -> None:
    net = VideoViT(grid=(2, 2, 2), patch=(1, 2), dim=16, num_heads=2, stem=True)
    with pytest.raises(ValueError, match="convolutions look over a cell's edge, so tokens cannot be hidden"):
        net.tokens(torch.rand(1, 2, 3, 4, 4), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="6 pixels of a patch are no power of 2"):
        ConvStem((1, 6), 16)


def test_fewer_frames_are_of_any_time() -> None:
    """The model that is blind to time is taught by single frames, and must see where the others' clips end."""
    arguments = argparse.Namespace(batch=64, difficulty=0.5)
    model, options = MINIATURES["miniature_frames"], {"device": torch.device("cpu"), "progress": 0.0}
    lesson, again = (teach(model, arguments, generator=torch.Generator().manual_seed(0), **options) for _ in range(2))
    assert lesson.video.shape == (64, 1, 3, 48, 48) and torch.equal(lesson.video, again.video)
    scenes = draw_scenes(64, generator=torch.Generator().manual_seed(0), unseen=False)
    middle = render(scenes, frames=1, pixels=48)
    fast = scenes.factors["speed"] == 2
    apart = (lesson.mask - middle.mask)[fast].abs().flatten(1).sum(1) / middle.mask[fast].flatten(1).sum(1)
    assert (apart > 0.2).float().mean() > 0.7


def test_a_cls_token_needs_joint_attention() -> None:
    with pytest.raises(ValueError, match="attending is 'divided', but a CLS token needs joint attention"):
        VideoViT(grid=(2, 2, 2), patch=(1, 2), attending="divided", pooled=True)


@pytest.mark.parametrize("name", MINIATURES)
def test_the_weights_that_come_with_the_package(name: str) -> None:
    folder = SHIPPED / name
    assert (folder / "model.safetensors").stat().st_size <= 2 * 10**6
    backbone, record = create_backbone(name, weights="miniature"), Record.read(folder / "config.json")
    assert backbone.origin["weights"] == "miniature" and backbone.origin["licence"] == "Apache-2.0"
    assert (record.steps, record.batch) == (MINIATURES[name].steps, MINIATURES[name].batch)
    assert f"{record.steps} steps" in backbone.origin["note"]
    with pytest.raises(ValueError, match="revision 0123 is asked for, but the weights that come with this package are"):
        create_backbone(name, weights="miniature", revision="0123")
    assert create_backbone(name, weights="miniature", revision=backbone.origin["revision"]).origin == backbone.origin

"""Probes read what was planted, each kind what it can, every task for itself; and say what they cannot be fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from distill.probe import (
    SCHEDULES,
    Best,
    Labels,
    Probe,
    brier,
    build_optimizer,
    fit_probe,
    known_classes,
    losses,
    moments,
)
from distill.tokens import Batch, Held, survey
from recipes.schema import Evaluate
from teachers.layout import TokenLayout

LAYOUT = TokenLayout(grid=(4, 2, 2), dim=12)
TRAIN, VAL, TEST = range(0, 320), range(320, 400), range(400, 800)
CLASSES = 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(classes: int = CLASSES, *, seed: int = 0) -> Tensor:
    return torch.randint(classes, (800,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def world() -> tuple[Tensor, Labels]:
    """800 clips. `everywhere` is a code added to all tokens. `marked` is the code of the one token, somewhere, that
    bears a mark; all others bear codes that mean nothing. `turned` is told by what comes late minus what comes early.
    `none` is drawn by lot."""
    labels = {"everywhere": draw(seed=1), "marked": draw(seed=2), "turned": draw(2, seed=3), "none": draw(seed=4)}
    codes = torch.eye(CLASSES)
    tokens = 0.3 * normal(800, *LAYOUT.shape)
    tokens[..., 0:4] += 0.5 * codes[labels["everywhere"]].unsqueeze(1)
    others = torch.randint(CLASSES, tokens.shape[:2], generator=torch.Generator().manual_seed(5))
    places = torch.randint(LAYOUT.num_tokens, (800,), generator=torch.Generator().manual_seed(6))
    others[torch.arange(800), places] = labels["marked"]
    tokens[..., 4:8] += 2 * codes[others]
    tokens[torch.arange(800), places, 8] += 3
    tokens[:, 8:, 9] += labels["turned"].unsqueeze(1)
    tokens[..., 9] += 3 * normal(800, 1, seed=7)
    return tokens, labels


def held(tokens: Tensor, clips: range, *, seed: int | None = None) -> Held:
    return Held(tokens[list(clips)], torch.tensor(clips), seed)


def fit(kind: str, tokens: Tensor, labels: Labels, *, layout: TokenLayout = LAYOUT, seed: int = 0) -> Probe:
    return fit_probe(
        kind,
        train=held(tokens, TRAIN, seed=seed),
        val=held(tokens, VAL),
        labels=labels,
        layout=layout,
        generator=torch.Generator().manual_seed(seed),
    )


def accuracies(probe: Probe, tokens: Tensor, labels: Labels) -> dict[str, float]:
    hits, clips = probe.hits(held(tokens, TEST), labels)
    assert clips.tolist() == list(TEST) and all(len(right) == len(TEST) for right in hits.values())
    return {task: float(right.nanmean()) for task, right in hits.items()}


@pytest.fixture(scope="module")
def fitted(world: tuple[Tensor, Labels]) -> dict[str, Probe]:
    return {kind: fit(kind, *world) for kind in SCHEDULES}


def test_each_kind_reads_what_it_can(world: tuple[Tensor, Labels], fitted: dict[str, Probe]) -> None:
    linear, attentive = (accuracies(fitted[kind], *world) for kind in ("linear", "attentive"))
    assert linear["everywhere"] > 0.9 and attentive["everywhere"] > 0.9
    assert attentive["marked"] > 0.9 and linear["marked"] < 0.5
    assert linear["turned"] > 0.9 and attentive["turned"] < 0.7  # these tokens do not say when they are
    assert abs(linear["none"] - 1 / CLASSES) < 0.08 and abs(attentive["none"] - 1 / CLASSES) < 0.08


def test_an_attentive_probe_knows_no_order_but_what_tokens_hold(
    world: tuple[Tensor, Labels], fitted: dict[str, Probe]
) -> None:
    tokens, _ = world
    order = torch.randperm(LAYOUT.num_tokens, generator=torch.Generator().manual_seed(1))
    read = fitted["attentive"](tokens[:8])
    assert torch.allclose(read, fitted["attentive"](tokens[:8, order]), atol=1e-4)
    assert not torch.allclose(read, fitted["attentive"](tokens[8:16]), atol=1e-2)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_seed_gives_the_same_probe_and_another_another(kind: str, world: tuple[Tensor, Labels]) -> None:
    tokens, labels = world
    labels = {"none": labels["none"]}
    torch.manual_seed(1)
    one = fit(kind, tokens, labels).state_dict()
    torch.manual_seed(2)
    again, other = (fit(kind, tokens, labels, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["maps.0"], other["maps.0"])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_other_tasks_beside_a_task_change_nothing(
    kind: str, world: tuple[Tensor, Labels], fitted: dict[str, Probe]
) -> None:
    """But rounding: sums may be taken in another order."""
    tokens, labels = world
    alone = fit(kind, tokens, {"marked": labels["marked"]})
    together = fitted[kind]
    place = together.tasks.index("marked")
    assert torch.allclose(alone.maps[0][0], together.maps[0][place], atol=2e-3)
    assert torch.allclose(alone.queries[0], together.queries[place], atol=2e-3)
    clips = held(tokens, TEST)
    one, both = alone.hits(clips, {"marked": labels["marked"]})[0], together.hits(clips, labels)[0]
    assert (one["marked"] == both["marked"]).double().mean() > 0.99


def test_a_task_with_more_classes_leaves_the_start_of_others(world: tuple[Tensor, Labels]) -> None:
    statistics = {"mean": torch.zeros(12), "scale": torch.ones(12), "layout": LAYOUT}
    few, many = torch.tensor([[True, True, False]]), torch.tensor([[True, True, True]])
    alone = Probe("attentive", tasks=["a"], known=few[:, :2], **statistics)  # type: ignore[arg-type]
    both = Probe("attentive", tasks=["b", "a"], known=torch.cat([many, few]), **statistics)  # type: ignore[arg-type]
    for probe in (alone, both):
        probe.start(torch.Generator().manual_seed(3))
    assert torch.equal(alone.queries[0], both.queries[1]) and not torch.equal(alone.queries[0], both.queries[0])
    assert torch.equal(alone.maps[1][0], both.maps[1][1, :, :2])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_channels_of_any_size_are_read(kind: str, world: tuple[Tensor, Labels], fitted: dict[str, Probe]) -> None:
    """A massive channel, one that never moves, an offset: none changes what is told."""
    tokens, labels = world
    task = {"marked": labels["marked"]}
    other = torch.cat([tokens * torch.logspace(-2, 2, 12) + 5, torch.full((800, 16, 1), 7.0)], dim=2)
    other[..., 11] *= 1000
    found = accuracies(fit(kind, other, task, layout=TokenLayout(grid=(4, 2, 2), dim=13)), other, task)
    assert found["marked"] > accuracies(fitted[kind], tokens, labels)["marked"] - 0.05


@pytest.mark.parametrize("kind", SCHEDULES)
def test_clips_without_a_label_teach_nothing_and_count_nowhere(kind: str, world: tuple[Tensor, Labels]) -> None:
    """Half of the labels are right, and the others missing or wrong."""
    tokens, labels = world
    right = labels["everywhere"].clone()
    right[::2] = -1
    wrong = torch.where(right < 0, (labels["everywhere"] + 1) % CLASSES, right)
    hits, _ = fit(kind, tokens, {"missing": right, "wrong": wrong}).hits(
        held(tokens, TEST), {"missing": right, "wrong": wrong}
    )
    assert hits["missing"][::2].isnan().all() and not hits["missing"][1::2].isnan().any()
    assert hits["missing"].nanmean() > 0.9 and hits["wrong"][1::2].mean() < 0.9


def test_losses_are_means_over_the_clips_with_a_label() -> None:
    logits = normal(2, 5, 3, 4).requires_grad_()
    logits.data[:, :, 0, 3] = -math.inf  # a class that the first task does not have
    classes = torch.tensor([[0, 1, -1], [1, 3, -1], [-1, 3, -1], [2, -1, -1], [0, -1, -1]])
    found = losses(logits, classes)
    by_hand = -sum(logits[1, clip, 1].log_softmax(-1)[classes[clip, 1]] for clip in range(3)) / 3
    assert found.shape == (2, 3) and found[1, 1].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert (found[:, 2] == 0).all()
    found.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[:, 2, 0] == 0).all() and (logits.grad[:, 3:, 1] == 0).all()


def fixed(logits: Tensor, known: Tensor) -> Probe:
    """A probe of (g k c) logits, whatever it is shown."""
    statistics = {"mean": torch.zeros(12), "scale": torch.ones(12), "layout": LAYOUT}
    probe = Probe("attentive", tasks=["a", "b"], known=known, **statistics)  # type: ignore[arg-type]
    probe.bias.data.copy_(logits)
    return probe


def test_brier_scores_the_labels_that_train_has() -> None:
    known = torch.tensor([[True, True, True], [True, True, False]])
    logits = normal(2, 2, 3)
    probe = fixed(logits, known)
    classes = torch.tensor([[0, 1], [2, 5], [-1, 2], [1, -1]])  # 5 and 2 are classes of b that train does not have
    found = brier(probe, held(normal(4, *LAYOUT.shape), range(4)), classes)
    chances = logits[1].masked_fill(~known, -math.inf).softmax(-1)
    a = sum((chances[0] - torch.eye(3)[c]).square().sum() for c in (0, 2, 1)) / 3
    assert found[1].tolist() == pytest.approx([float(a), float((chances[1] - torch.eye(3)[1]).square().sum())])


def test_the_best_epoch_is_kept_for_every_task_and_decay() -> None:
    known = torch.ones(2, 3, dtype=torch.bool)
    probe = fixed(torch.zeros(2, 2, 3), known)
    best = Best(probe)
    for epoch, score in enumerate([[[0.5, 0.4], [0.6, 0.9]], [[0.6, 0.3], [0.2, 0.8]], [[0.7, 0.9], [0.3, 0.9]]]):
        probe.bias.data[:] = torch.tensor([[10.0 * epoch], [10.0 * epoch + 1]]).unsqueeze(1)
        probe.queries.data[:] = epoch
        probe.maps[0].data[:], probe.maps[1].data[:] = epoch, epoch + 0.5
        best.keep(torch.tensor(score))
    settled = best.settle()
    assert settled.bias[0, :, 0].tolist() == [11, 10]  # of a the second decay, of b the first, both of epoch 1
    assert settled.queries[:, 0, 0].tolist() == [1, 1] and settled.maps[0][:, 0, 0].tolist() == [1.5, 1]
    assert len(settled.maps) == 1 and not any(p.requires_grad for p in settled.parameters())


def test_rates_and_decays_reach_their_weights() -> None:
    probe = fixed(torch.zeros(2, 2, 3), torch.ones(2, 3, dtype=torch.bool))
    groups = {id(group["params"][0]): group for group in build_optimizer(probe).param_groups}
    found = [(groups[id(w)]["lr"], groups[id(w)]["weight_decay"]) for w in (probe.queries, probe.bias, *probe.maps)]
    plan = probe.schedule
    assert found == [(plan.query_lr, plan.query_decay), (plan.lr, 0), *((plan.lr, decay) for decay in plan.decays)]
    assert len(set(plan.decays)) == 2


def test_kinds_are_those_of_the_schema() -> None:
    assert list(get_args(get_args(get_type_hints(Evaluate)["probes"])[0])) == list(SCHEDULES)


def test_moments_of_grids_and_of_what_stands_beside_them() -> None:
    tokens = normal(3, 13, 2)
    whole = moments(tokens, TokenLayout(grid=(3, 2, 2), dim=2, special=("cls",)))
    bins = tokens[:, :12].view(3, 3, 4, 2).mean(2)
    expected = [tokens[:, :12].mean(1), tokens[:, :12].amax(1), bins[:, 2] - bins[:, 0], tokens[:, 12]]
    assert torch.allclose(whole, torch.cat(expected, dim=1), atol=1e-6)
    assert moments(tokens[:, :12], TokenLayout(grid=(1, 3, 4), dim=2)).shape == (3, 4)
    assert torch.equal(moments(tokens[:, :1], TokenLayout(grid=None, dim=2)), tokens[:, 0])


def test_pooled_tokens_are_probed(world: tuple[Tensor, Labels]) -> None:
    tokens, labels = world
    pooled, layout = tokens.mean(1, keepdim=True), TokenLayout(grid=None, dim=12)
    task = {"everywhere": labels["everywhere"]}
    for kind in SCHEDULES:
        assert accuracies(fit(kind, pooled, task, layout=layout), pooled, task)["everywhere"] > 0.9


def test_a_class_that_train_never_had_counts_as_not_told(world: tuple[Tensor, Labels]) -> None:
    tokens, labels = world
    changed = labels["everywhere"].clone()
    changed[400:410] = 9
    probe = fit("linear", tokens, {"everywhere": labels["everywhere"]})
    hits, _ = probe.hits(held(tokens, TEST), {"everywhere": changed})
    assert (hits["everywhere"][:10] == 0).all() and hits["everywhere"][10:].mean() > 0.9


def test_statistics_and_sizes_of_a_source() -> None:
    tokens = normal(70, 4, 5) * torch.tensor([1.0, 2, 3, 4, 0]) + 6
    clips, batches, mean, scale = survey(Held(tokens, torch.arange(70), 3))
    assert sorted(clips.tolist()) == list(range(70)) and batches == 3
    assert torch.allclose(mean, tokens.mean((0, 1)), atol=1e-5)
    assert torch.allclose(scale[:4], tokens[..., :4].flatten(0, 1).std(0, correction=0), rtol=1e-4)
    assert 0.015 < float(scale[4]) < 0.03  # 1% of the median


def test_every_pass_has_an_order_of_its_own() -> None:
    source = Held(torch.arange(70.0).view(70, 1, 1), torch.arange(70), 3)
    passes = [torch.cat([clips for _, clips in source(turn)]).tolist() for turn in (0, 1, 0)]
    assert passes[0] == passes[2] != passes[1] and sorted(passes[1]) == list(range(70))
    assert all(torch.equal(tokens[:, 0, 0].long(), clips) for tokens, clips in source(4))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_tokens_are_never_held_but_read_again(kind: str, world: tuple[Tensor, Labels]) -> None:
    """A source that counts its passes, and whose batches are gone with the next one."""
    tokens, labels = world
    passes = dict.fromkeys(("train", "val"), 0)

    def counted(split: str, source: Held) -> Callable[[int], Iterator[Batch]]:
        def read(turn: int) -> Iterator[Batch]:
            passes[split] += 1
            for batch, clips in source(turn):
                mine = batch.clone()
                yield mine, clips
                mine.fill_(math.nan)

        return read

    probe = fit_probe(
        kind,
        train=counted("train", held(tokens, TRAIN, seed=0)),
        val=counted("val", held(tokens, VAL)),
        labels={"everywhere": labels["everywhere"]},
        layout=LAYOUT,
        generator=torch.Generator().manual_seed(0),
    )
    epochs = SCHEDULES[kind].epochs
    assert passes == ({"train": 1, "val": 1} if kind == "linear" else {"train": epochs + 1, "val": epochs})
    assert accuracies(probe, tokens, {"everywhere": labels["everywhere"]})["everywhere"] > 0.9


def test_what_cannot_be_fitted_is_said(world: tuple[Tensor, Labels]) -> None:
    tokens, labels = world
    everywhere = labels["everywhere"]
    empty, single, val = (everywhere.clone() for _ in range(3))
    empty[list(TRAIN)], single[list(TRAIN)], val[list(VAL)] = -1, 2, -1
    with pytest.raises(ValueError, match="task 'size': of 320 train clips none has a label.*leave the task out"):
        fit("linear", tokens, {"everywhere": everywhere, "size": empty})
    with pytest.raises(ValueError, match="task 'size': of 320 train clips all have the same label"):
        fit("attentive", tokens, {"size": single})
    with pytest.raises(ValueError, match="task 'size': none of 80 val clips has a label that a train clip has"):
        fit("linear", tokens, {"everywhere": everywhere, "size": val})
    with pytest.raises(ValueError, match="no probe 'mlp'; there are linear, attentive"):
        fit("mlp", tokens, labels)
    with pytest.raises(ValueError, match="no task to probe"):
        fit("linear", tokens, {})
    with pytest.raises(ValueError, match=r"tokens are \(32, 16, 12\), but the probe reads 4 x 2 x 2 = 16 tokens of 13"):
        fit("attentive", tokens, labels, layout=TokenLayout(grid=(4, 2, 2), dim=13))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("clip", "split"), [(17, "train"), (333, "val"), (444, "test")])
def test_tokens_that_are_not_finite_are_named(
    clip: int, split: str, kind: str, world: tuple[Tensor, Labels], fitted: dict[str, Probe]
) -> None:
    tokens, labels = world[0].clone(), world[1]
    tokens[clip, 3, 4] = math.inf if split == "val" else math.nan
    with pytest.raises(ValueError, match=f"clip {clip}: .* not finite"):
        if split == "test":
            fitted[kind].hits(held(tokens, TEST), labels)
        else:
            fit(kind, tokens, labels)


def test_unknown_tasks_are_named(world: tuple[Tensor, Labels], fitted: dict[str, Probe]) -> None:
    tokens, labels = world
    with pytest.raises(ValueError, match="not fitted to the task 'size', but to everywhere, marked"):
        fitted["linear"].hits(held(tokens, TEST), {**labels, "size": labels["none"]})
    with pytest.raises(ValueError, match="no labels of the task 'everywhere', only of none"):
        fitted["linear"].hits(held(tokens, TEST), {"none": labels["none"]})


def test_known_classes_are_those_of_train() -> None:
    classes = torch.tensor([[0, 2], [3, -1], [0, 0]])
    assert known_classes(["a", "b"], classes).tolist() == [[True, False, False, True], [True, False, True, False]]

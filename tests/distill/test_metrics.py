"""Alignment metrics against their definitions written down again, and the table of converters that mislead."""

from __future__ import annotations

import pytest
import torch

from distill.metrics import METRICS, Alignment, Reference, Statistics, group_weights, interval, pieces
from distill.similarity import reading_order


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def world() -> dict:
    """64 train and 32 test clips of a teacher with strong position means, uneven channels and a little content."""
    places, width = 24, 16
    scale = torch.logspace(-1, 1, width)
    means = 3 * scale * (normal(places, width, seed=1) + 2)
    train, test = (means + scale * normal(clips, places, width, seed=clips) for clips in (640, 32))
    mean = train.mean(0)
    deviation = (train - mean).square().mean((0, 1)).sqrt()
    return {"teacher": test, "statistics": Statistics(mean, deviation, train.mean((0, 1))), "scale": scale}


def measure(world: dict, converted: torch.Tensor) -> dict[str, float]:
    metric = Alignment(world["statistics"], num_clips=len(converted), cka_positions=24)
    for clips in torch.arange(len(converted)).split(5):
        metric.update(clips, converted[clips], world["teacher"][clips])
    return metric.compute()


def test_definitions(world: dict) -> None:
    teacher, stats = world["teacher"], world["statistics"]
    converted = teacher + 0.3 * world["scale"] * normal(*teacher.shape, seed=9)
    found = measure(world, converted)

    def energy(x: torch.Tensor) -> float:
        return float((x / stats.scale).double().square().sum())

    error = energy(converted - teacher)
    assert found["r2c"] == pytest.approx(1 - error / energy(teacher - stats.mean))
    assert found["r2"] == pytest.approx(1 - error / energy(teacher - stats.global_mean))
    assert found["nmse"] == pytest.approx(error / teacher.numel())
    ours, theirs = ((x - stats.mean) / stats.scale for x in (converted, teacher))
    assert found["smooth_l1"] == pytest.approx(float(torch.nn.functional.smooth_l1_loss(ours, theirs)), rel=1e-5)
    assert found["cos_std"] == pytest.approx(float(torch.cosine_similarity(ours, theirs, dim=-1).mean()), abs=1e-6)
    raw = torch.cosine_similarity(converted, teacher, dim=-1).double().mean()
    assert found["cosine"] == pytest.approx(float(raw), abs=1e-6)


def test_a_large_mean_cancels_nothing() -> None:
    """In float32, sums of squares around 0 give 1.007 for an R2 of 0.750 at a mean of 4000; shifted ones do not."""
    teacher = 4000 + normal(64, 6, 8).double()
    converted = teacher + 0.5 * normal(64, 6, 8, seed=1).double()
    statistics = Statistics(teacher.mean(0).float(), torch.ones(8), teacher.mean((0, 1)).float())
    metric = Alignment(statistics, num_clips=64)
    metric.update(torch.arange(64), converted.float(), teacher.float())
    exact = 1 - float((converted - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum())
    assert metric.compute()["r2c"] == pytest.approx(exact, abs=2e-3) and exact == pytest.approx(0.75, abs=0.03)


def test_pieces_cover_every_token_once(world: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = world["teacher"] + normal(*world["teacher"].shape, seed=5)
    whole = measure(world, converted)
    monkeypatch.setattr("distill.metrics.CACHED", 7 * 16)  # 24 tokens in pieces of 7
    covered = torch.zeros(3, 24)
    for rows, at in pieces(world["teacher"][:3]):
        covered[rows, at] += 1
    assert len(pieces(world["teacher"][:3])) == 12 and torch.equal(covered, torch.ones(3, 24))
    assert measure(world, converted) == pytest.approx(whole, rel=1e-6, nan_ok=True)


@pytest.fixture(scope="module")
def crowd() -> dict:
    """A teacher as in the table of misleading converters: clips and positions have means of their own, channels are
    uneven, and a few directions hold most of the content."""
    clips, places, width = 256, 24, 32
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mixing = torch.linalg.qr(draw(width, width)).Q * torch.logspace(0.6, -0.4, width)
    content = 0.8 * draw(clips, places, width) @ mixing.T + 0.5 * draw(clips, 1, width) @ mixing.T
    teacher = 6 + 0.8 * draw(places, width) + content
    mean = teacher.mean(0)
    scale = (teacher - mean).square().mean((0, 1)).sqrt()
    return {"teacher": teacher, "statistics": Statistics(mean, scale, teacher.mean((0, 1)))}


def misleading(crowd: dict) -> dict[str, torch.Tensor]:
    """name -> what such a converter answers."""
    teacher, stats = crowd["teacher"], crowd["statistics"]
    standard = (teacher - stats.mean) / stats.scale
    vectors = torch.linalg.eigh(standard.flatten(0, 1).T @ standard.flatten(0, 1)).eigenvectors
    leading = standard @ vectors[:, -8:] @ vectors[:, -8:].T
    noise, turn = normal(*teacher.shape, seed=3), torch.linalg.qr(normal(32, 32, seed=4)).Q
    found = {
        "perfect": standard,
        "5% noise": standard + 0.05**0.5 * noise,
        "half noise": standard + 0.5**0.5 * noise,
        "position mean": torch.zeros_like(standard),
        "clip mean": standard.mean(1, keepdim=True).expand_as(standard),
        "8 components": leading,
        "shrunk": 0.3 * standard,
        "rotated": standard @ turn,
        "shuffled tokens": standard[:, torch.randperm(24, generator=torch.Generator().manual_seed(5))],
        "another clip": standard.roll(1, dims=0),
    }
    found = {name: tokens * stats.scale + stats.mean for name, tokens in found.items()}
    return found | {"constant": stats.global_mean.expand_as(teacher)}


# converter -> metric -> (low, high): what each metric says of it; the table stands in docs/metrics.md
MISLEADING: dict[str, dict[str, tuple[float, float]]] = {
    "perfect": {"r2c": (1, 1), "cos_std": (1, 1), "cka": (0.999, 1.001), "knn": (1, 1)},
    "5% noise": {"r2c": (0.94, 0.96), "cosine": (0.98, 1), "cka": (0.95, 1)},
    "half noise": {"r2c": (0.48, 0.52), "cosine": (0.97, 1), "cka": (0.7, 1), "knn": (0.5, 0.99)},
    "constant": {"r2c": (-1, -0.1), "r2": (-0.001, 0.001), "cosine": (0.9, 1), "cos_std": (-0.1, 0.1), "cka": (0, 0)},
    "position mean": {"r2c": (0, 0), "r2": (0.1, 0.6), "cosine": (0.94, 1), "cos_std": (0, 0), "cka": (0, 0)},
    "clip mean": {"r2c": (0.1, 0.5), "knn": (1, 1)},
    "8 components": {"r2c": (0.5, 0.85), "cosine": (0.97, 1), "cka": (0.92, 1)},
    "shrunk": {"r2c": (0.509, 0.511), "cos_std": (1, 1), "cka": (0.999, 1.001), "knn": (1, 1)},
    "rotated": {"r2c": (-2, -0.5), "cos_std": (-0.2, 0.2), "cka": (0.999, 1.001), "knn": (1, 1)},
    "shuffled tokens": {"r2c": (-1.5, 0), "knn": (1, 1), "cka": (-0.1, 0.5)},
    "another clip": {"r2c": (-1.2, -0.8), "cosine": (0.8, 1), "cka": (-0.05, 0.05), "knn": (0, 0.1)},
}


def test_misleading_converters(crowd: dict) -> None:
    """The headline alone tells all of them apart: a converter that is no use scores 0 or less."""
    for name, tokens in misleading(crowd).items():
        found = measure(crowd, tokens)
        for metric, (low, high) in MISLEADING[name].items():
            assert low - 1e-5 <= found[metric] <= high + 1e-5, (name, metric, found[metric])


def test_invariances(crowd: dict) -> None:
    """Which metrics do not change where both sides are turned, scaled or permuted, or only the converter's."""
    teacher, stats = crowd["teacher"], crowd["statistics"]
    converted = misleading(crowd)["half noise"]
    found = measure(crowd, converted)

    def moved(change, *, both: bool) -> dict[str, float]:
        ours, theirs = (change((x - stats.mean) / stats.scale) for x in (converted, teacher))
        ours = ours * stats.scale + stats.mean
        world = crowd | ({"teacher": theirs * stats.scale + stats.mean} if both else {})
        return measure(world, ours)

    turn, order = (
        torch.linalg.qr(normal(32, 32, seed=6)).Q,
        torch.arange(32).roll(7),
    )
    similar = ("cka", "knn")

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x @ turn

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    def permuted(x: torch.Tensor) -> torch.Tensor:
        return x[..., order]

    for change in (turned, scaled, permuted):
        for both in (True, False):
            after = moved(change, both=both)
            assert [after[name] for name in similar] == pytest.approx([found[name] for name in similar], abs=1e-3)
            if both:
                assert after["r2c"] == pytest.approx(found["r2c"], abs=1e-5)
                assert after["cos_std"] == pytest.approx(found["cos_std"], abs=1e-5)
                scale = after["nmse"] / found["nmse"]  # an error has a scale, the shares above have none
                assert scale == pytest.approx(9 if change is scaled else 1, rel=1e-4)
                if change is permuted:
                    assert after["smooth_l1"] == pytest.approx(found["smooth_l1"], rel=1e-5)
            else:
                assert after["r2c"] < found["r2c"] - 0.1


def test_memory_is_bounded_at_full_size() -> None:
    """3136 x 768 over 1280 clips: what is kept does not grow with the clips that have been seen."""
    tokens, width, clips = 3136, 768, 1280
    statistics = Statistics(torch.zeros(tokens, width), torch.ones(width), torch.zeros(width))
    metric, order = Alignment(statistics, num_clips=clips), reading_order(clips)
    both = normal(4, tokens, width, seed=1)
    theirs, kept = Reference.of(both, statistics), []
    for at in range(0, 160, 4):
        metric.update(torch.tensor(order[at : at + 4]), both, theirs)
        kept.append(held(metric))
    assert max(kept[20:]) <= max(kept[:20]) < 12e6


def held(metric: Alignment) -> int:
    """Bytes of the tensors that a metric has but for the frozen statistics."""
    parts = [vars(metric), vars(metric.similarity)]
    whole = [value for part in parts for value in part.values() if isinstance(value, torch.Tensor)]
    rows = [tensor for block in metric.similarity.open.values() for pair in block for tensor in pair]  # type: ignore
    return sum(tensor.untyped_storage().nbytes() for tensor in (*whole, *rows))


def test_ranks_sum_to_the_same(crowd: dict) -> None:
    teacher = crowd["teacher"]
    converted = teacher + normal(*teacher.shape, seed=5)
    whole = measure(crowd, converted)
    ours = [Alignment(crowd["statistics"], num_clips=256, cka_positions=24) for _ in range(3)]
    for rank, metric in enumerate(ours):
        for clip in reading_order(256, rank=rank, world=3):
            metric.update(torch.tensor([clip]), converted[clip : clip + 1], teacher[clip : clip + 1])
    ours[0].reduce(Summed(ours))  # type: ignore[arg-type]
    assert ours[0].compute() == pytest.approx(whole, abs=1e-6, nan_ok=True) and set(whole) == set(METRICS)


class Summed:
    """Ranks in one process: adds up what all of them hold, in the order in which reduce asks."""

    def __init__(self, all_ranks: list[Alignment]) -> None:
        held = [[m.clips, m.channels, m.positions, *m.similarity.tensors()] for m in all_ranks]  # type: ignore[union-attr]
        self.sums = iter([torch.stack(list(same)).sum(0) for same in zip(*held, strict=True)])

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(next(self.sums))


def test_a_minibatch_that_ranks_divide_is_an_error(crowd: dict) -> None:
    metric = Alignment(crowd["statistics"], num_clips=256)
    other = Alignment(crowd["statistics"], num_clips=256)
    for rank, half in enumerate((metric, other)):
        for clips in torch.arange(256)[rank * 128 : rank * 128 + 128].split(32):
            half.update(clips, crowd["teacher"][clips], crowd["teacher"][clips])
    metric.reduce(Summed([metric, other]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 of 8 minibatches"):
        metric.compute()


def test_the_teachers_side_is_found_once(world: dict) -> None:
    teacher = world["teacher"]
    apart, shared = (Alignment(world["statistics"], num_clips=32) for _ in range(2))
    reference = Reference.of(teacher, world["statistics"])
    apart.update(torch.arange(32), 0.9 * teacher, teacher)
    shared.update(torch.arange(32), 0.9 * teacher, reference)
    assert shared.compute() == pytest.approx(apart.compute(), nan_ok=True)


def test_a_missing_or_doubled_clip_is_an_error(world: dict) -> None:
    metric = Alignment(world["statistics"], num_clips=3)
    metric.update(torch.tensor([0, 0]), world["teacher"][:2], world["teacher"][:2])
    with pytest.raises(ValueError, match="clip 0 of 3"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\(2, 23, 16\)"):
        metric.update(torch.tensor([0, 1]), world["teacher"][:2, 1:], world["teacher"][:2])
    with pytest.raises(ValueError, match="num_clips=0 must be at least 1"):
        Alignment(world["statistics"], num_clips=0)


def test_bootstrap_draws_groups_not_clips() -> None:
    weights = group_weights(["a", "a", "b", "c"], resamples=500)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert weights[:, [0, 2, 3]].sum(1).unique().tolist() == [3]
    low, high = interval(torch.arange(1001, dtype=torch.float64))
    assert (low, high) == pytest.approx((25, 975))


def test_r2c_by_channel_and_position(world: dict) -> None:
    teacher = world["teacher"]
    converted = teacher.clone()
    converted[:, :, 3] = world["statistics"].mean[:, 3]
    converted[:, 5] = world["statistics"].mean[5]
    metric = Alignment(world["statistics"], num_clips=32)
    metric.update(torch.arange(32), converted, teacher)
    assert float(metric.r2c_by_channel()[3]) == pytest.approx(0, abs=1e-6)
    assert float(metric.r2c_by_position()[5]) == pytest.approx(0, abs=1e-6)
    assert metric.r2c_by_channel()[4] > 0.9 and metric.r2c_by_position()[6] > 0.9

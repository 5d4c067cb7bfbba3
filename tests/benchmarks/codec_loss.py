"""What int8 features cost a converter and a head trained on them, against fp16: paired, over seeds.

    python tests/benchmarks/codec_loss.py --out DIR [--seeds 0 1 2 3 4] [--steps 300] [key=value ...]

miniatures: recipe=miniature trained on both stores; both converters are scored on the fp16 store's test clips, given
the student as their own store has it; heads (converted tokens, and with the residual) are fitted and told within a
store. oracles: a converter on the tokens themselves, and on the same as int8 gives them back, scored on clean clips.
Differences are int8 less fp16; the interval over seeds is Student's t.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from head import STUDENT_T
from torch import Tensor

from converters import Converter, create_converter, load_converter
from distill import run
from distill.arms import run_arm
from distill.compensation import labels_of, set_benches
from distill.oracles import FieldOracle, NonlinearOracle, Oracle
from distill.pooling import pool_means
from recipes.compose import load_recipe
from shards.codec import CALIBRATION_CLIPS, Calibration, Int8
from shards.features import plan_features
from shards.ranks import Ranks
from shards.store import FeatureStore

CODECS = ("fp16", "int8")
ARMS = ("converted", "converted_supervised")
TASKS = ("texture", "size", "count", "speed")
# a family that learns each in a few hundred steps, for a loss to be seen
ORACLES: Mapping[str, tuple[Oracle, str, dict[str, int]]] = {
    "field": (FieldOracle(), "perceiver", {"width": 32, "latents": 16, "heads": 2}),
    "nonlinear": (NonlinearOracle(), "dsconv", {"width": 64, "blocks": 1, "kernel": 3}),
}

Found = dict[str, dict[str, float]]  # codec -> measure -> value


# --- miniatures


def on_miniatures(seed: int, out: Path, words: Sequence[str], ranks: Ranks) -> Found:
    found: Found = {}
    recipes = {
        codec: load_recipe(
            [
                "recipe=miniature",
                f"store.path={out / codec}",
                f"store.codec={codec}",
                f"train.seed={seed}",
                f"run.dir={out / 'runs'}",
                f"run.name={codec}-{seed}",
                "evaluate.floors=[ridge]",
                "evaluate.probes=[]",
                *words,
            ]
        )
        for codec in CODECS
    }
    bundles = {codec: out / "runs" / f"{codec}-{seed}" / "bundle" for codec in CODECS}
    for codec, recipe in recipes.items():
        if not bundles[codec].is_dir():
            run.distill(recipe, ranks)
    truth = plan_features(recipes["fp16"], ranks, say=lambda text: None).open()
    for codec, recipe in recipes.items():
        store = plan_features(recipe, ranks, say=lambda text: None).open()
        converter = load_converter(bundles[codec])
        found[codec] = {f"r2c {target}": value for target, value in r2c(converter, store, truth).items()}
        found[codec] |= told(store, converter, seed, ranks)
    return found


@torch.inference_mode()
def r2c(converter: torch.nn.Module, store: FeatureStore, truth: FeatureStore) -> dict[str, float]:
    """On the test clips of two stores of the same clips; statistics are the truth's."""
    assert store.keys == truth.keys
    spaces = {target: truth.statistics(target) for target in converter.targets}
    error, spread = dict.fromkeys(spaces, 0.0), dict.fromkeys(spaces, 0.0)
    for index in truth.indices("test"):
        wanted, converted = truth[index], converter(store[index]["student"].unsqueeze(0))
        for target, space in spaces.items():
            tokens = wanted[target]
            error[target] += float(((converted[target][0] - tokens) / space["scale"]).square().double().sum())
            spread[target] += float(((tokens - space["mean"]) / space["scale"]).square().double().sum())
    return {target: 1 - error[target] / spread[target] for target in spaces}


def told(store: FeatureStore, converter: torch.nn.Module, seed: int, ranks: Ranks) -> dict[str, float]:
    """Accuracy on test, the mean over tasks and targets."""
    pooled, hits = pool_means(store, {"main": converter}, device=ranks.device), {arm: [] for arm in ARMS}
    for task in TASKS:
        labels, classes = labels_of(store, task, None)
        for bench in set_benches(store, pooled, labels, len(classes), seed=seed).values():
            for arm in ARMS:
                hits[arm].append(float(run_arm(arm, bench, rank=8, seed=seed).hits.nanmean()))
    return {f"accuracy, {arm}": mean(values) for arm, values in hits.items()}


# --- oracles


def on_oracles(seed: int, steps: int) -> Found:
    found: Found = {codec: {} for codec in CODECS}
    for name, (oracle, family, options) in ORACLES.items():
        train = oracle.sample(1024, torch.Generator().manual_seed(seed))
        test = oracle.sample(128, torch.Generator().manual_seed(10_000 + seed))
        codecs = [Int8(name, Calibration.fit(list(tokens[:CALIBRATION_CLIPS]), column=name)) for tokens in train]
        stored = [codec.decode(codec.encode(tokens)) for codec, tokens in zip(codecs, train, strict=True)]
        seen = codecs[0].decode(codecs[0].encode(test[0]))
        for codec, (student, teacher), given in zip(CODECS, (train, stored), (test[0], seen), strict=True):
            converter = create_converter(
                family, student=oracle.student, targets={"t": oracle.teacher}, seed=seed, options=options
            )
            learn(converter, student, teacher, seed, steps)
            with torch.inference_mode():
                made = torch.cat([converter(some)["t"] for some in given.split(32)])
            error, spread = (float(x.square().double().sum()) for x in (made - test[1], test[1]))
            found[codec][f"R2 {name}"] = 1 - error / spread
    return found


def learn(converter: Converter, student: Tensor, teacher: Tensor, seed: int, steps: int) -> None:
    optimizer = torch.optim.AdamW(converter.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(student), (8,), generator=order)
        optimizer.zero_grad()
        (converter(student[rows])["t"] - teacher[rows]).square().mean().backward()
        optimizer.step()


# --- what is said


def table(title: str, seeds: Sequence[Found]) -> str:
    lines = [f"| {title}, {len(seeds)} seeds | fp16 | int8 | int8 - fp16 | 95% over seeds |", "|---|---|---|---|---|"]
    for measure in seeds[0]["fp16"]:
        each = [found["int8"][measure] - found["fp16"][measure] for found in seeds]
        means = [mean(found[codec][measure] for found in seeds) for codec in CODECS]
        half = STUDENT_T[len(each) - 1] * stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        cells = [f"{means[0]:.4f}", f"{means[1]:.4f}", f"{mean(each):+.4f}"]
        lines.append(f"| {measure} | {' | '.join(cells)} | {mean(each) - half:+.4f} .. {mean(each) + half:+.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="of recipe=miniature")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=300, help="on an oracle; 0: none")
    asked = parser.parse_args()
    ranks = Ranks.join()
    if asked.steps:
        print("\n" + table("oracles", [on_oracles(seed, asked.steps) for seed in asked.seeds]), flush=True)
    print("\n" + table("miniatures", [on_miniatures(seed, asked.out, asked.words, ranks) for seed in asked.seeds]))


if __name__ == "__main__":
    main()

"""What a training step costs: every family, beside the report's skeletons and what a user would take instead.

    python tests/benchmarks/steps.py --threads 1 [--mambapy DIR] [--peers DIR] [--sections family contest cost memory]

Full geometry, random weights. In every round each thing of a table runs once, in turn; a figure is the median of the
rounds. A family may be named with a label, `perceiver:small`, and take options by that name, so that two settings of
it meet in one run: --families perceiver perceiver:small --options '{"perceiver:small": {"width": 192}}'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from peers import PEERS
from skeletons import AttentionResampler, LinearResampler, StateSpaceResampler, TokenLearnerResampler, mamba_block
from timing import PRECISIONS, Runs, medians, training_step
from torch import nn

from converters import Converter, create_converter
from converters.resample import stratified
from distill.cost import count_macs
from teachers.layout import TokenLayout

STUDENT = TokenLayout((8, 16, 16), 1024)
TARGETS = {
    "videomae": TokenLayout((8, 14, 14), 768),
    "timesformer": TokenLayout((16, 14, 14), 768),
    "vivit": TokenLayout(None, 768),
}
FAMILIES = ("perceiver", "dsconv", "mamba", "tokenlearner")
SKELETONS: dict[str, Callable[..., nn.Module]] = {
    "skeleton A": AttentionResampler,
    "skeleton B": LinearResampler,
    "skeleton C": partial(StateSpaceResampler, block=mamba_block),
    "skeleton D": TokenLearnerResampler,
}
OWN = dict(zip(FAMILIES, ("skeleton A", "skeleton B", "skeleton C", "skeleton D"), strict=True))
SECTIONS = ("family", "contest", "cost", "memory")
QUERIES = 512
MEMORY_BATCH = 4
Options = Mapping[str, Mapping[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), help="names, or name:label")
    parser.add_argument("--options", type=json.loads, default={}, help="options by family, as JSON")
    parser.add_argument("--against", nargs="*", default=[""], help="parts of the names of skeletons and peers; all")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--mambapy", default="", help="folder that holds the package mambapy")
    parser.add_argument("--peers", default="", help="folder that holds the package perceiver-pytorch")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # one measurement of memory, in a process of its own
    given = parser.parse_args()
    sys.path += [folder for folder in (given.mambapy, given.peers) if folder]
    torch.set_num_threads(given.threads)
    if given.peak:
        print(peak(**json.loads(given.peak)))
        return
    print(f"torch {torch.__version__}, {given.threads} threads, load {os.getloadavg()}, ms per clip; {bf16_line()}")
    if "family" in given.sections:
        for batch in given.batches:
            compare_parts(given.families, given.options, batch=batch, precisions=given.precisions, rounds=given.rounds)
    if "contest" in given.sections:
        settings = [("videomae", batch, list(PEERS)) for batch in given.batches]
        for target, batch, peers in [*settings, ("timesformer", 2, [])]:
            chosen = [name for name in [*SKELETONS, *peers] if any(part in name for part in given.against)]
            models = contestants(given.families, given.options, target=target, against=chosen)
            for precision in given.precisions:
                contest(models, target=target, batch=batch, precision=precision, rounds=given.rounds)
    if "cost" in given.sections:
        print_costs(given.families, given.options)
    if "memory" in given.sections:
        for precision in given.precisions:
            print_peaks(given.families, given.options, precision=precision, threads=given.threads)
    print(f"load at the end {os.getloadavg()}")


def bf16_line() -> str:
    """Without bf16 in hardware, products in bf16 take 10-30 times those in fp32: figures then say nothing."""
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return f"{torch.backends.cpu.get_cpu_capability()}, bf16 {'in hardware' if native else 'EMULATED'}"


def compare_parts(families: list[str], options: Options, *, batch: int, precisions: list[str], rounds: int) -> None:
    """Branch alone, skip alone and both, towards VideoMAE, at all positions and at some."""
    layouts = {"videomae": TARGETS["videomae"]}
    tokens = torch.randn(batch, *STUDENT.shape)
    some = {"videomae": stratified(layouts["videomae"], QUERIES, torch.Generator().manual_seed(0))}
    parts = {"skip": family("linear", layouts, {}, skip="linear")}
    for name in families:
        parts[f"{name}, branch"] = family(name, layouts, options, skip="none")
        parts[f"{name}, both"] = family(name, layouts, options, skip="linear")
    asked = {"all": None, str(QUERIES): some}
    runs: Runs = {
        f"{part} {precision} {which}": training_step(model, tokens, precision=precision, asked=asked[which])
        for part, model in parts.items()
        for precision in precisions
        for which in asked
    }
    times = medians(runs, rounds)
    columns = [(precision, which) for precision in precisions for which in asked]
    head(f"batch {batch}", *(f"{precision}, {which}" for precision, which in columns))
    for part in parts:
        row(part, *(times[f"{part} {precision} {which}"] / batch for precision, which in columns))


def contestants(families: list[str], options: Options, *, target: str, against: list[str]) -> dict[str, nn.Module]:
    """Branches of the families, and whatever is there of the others; what is not is printed."""
    layout = TARGETS[target]
    models: dict[str, nn.Module] = {name: family(name, {target: layout}, options, skip="none") for name in families}
    for name in against:
        try:
            models[name] = {**SKELETONS, **PEERS}[name](STUDENT, layout)
        except ImportError as error:
            print(f"{name} is left out: {error} (see --help)")
    return models


def contest(models: Mapping[str, nn.Module], *, target: str, batch: int, precision: str, rounds: int) -> None:
    """A table of times, with each family's time as a share of every other's; in bold that of its own skeleton."""
    tokens = torch.randn(batch, *STUDENT.shape)
    times = medians({name: training_step(at, tokens, precision=precision) for name, at in models.items()}, rounds)
    families = [name for name in models if name not in SKELETONS and name not in PEERS]
    head(f"{target}, batch {batch}, {precision}", "M parameters", "ms", *(f"{name} / it" for name in families))
    for name, model in models.items():
        shares = [f"{times[ours] / times[name]:.3f}" for ours in families]
        shares = [
            f"**{share}**" if OWN.get(ours.partition(":")[0]) == name else share
            for ours, share in zip(families, shares, strict=True)
        ]
        row(name, millions(model), times[name] / batch, *shares)


def print_costs(families: list[str], options: Options) -> None:
    """Parameters with and without the skip, and multiply-accumulates of a forward pass with it, for every target."""
    head("with its skip / branch alone", *(f"{to}: {what}" for to in (*TARGETS, "all") for what in ("M", "GMAC")))
    tokens = torch.randn(1, *STUDENT.shape, device="meta")
    for name in families:
        cells = []
        for layouts in [*({target: layout} for target, layout in TARGETS.items()), TARGETS]:
            models = [family(name, layouts, options, skip=skip) for skip in ("linear", "none")]
            cells.append(" / ".join(f"{millions(model):.2f}" for model in models))
            cells.append(" / ".join(f"{count_macs(model.to('meta'), tokens) / 1e9:.2f}" for model in models))
        row(name, *cells)


def print_peaks(families: list[str], options: Options, *, precision: str, threads: int) -> None:
    """Memory that a step needs beyond what lies there before it, each measured in a process of its own."""
    head(f"peak of a step in MB, batch {MEMORY_BATCH}, {precision}, with its skip", *TARGETS, "all")
    for name in families:
        cells = []
        for target in (*TARGETS, "all"):
            asked = {"name": name, "target": target, "options": options, "precision": precision}
            command = [sys.executable, __file__, "--threads", str(threads), "--peak", json.dumps(asked)]
            cells.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        row(name, *cells)


def peak(name: str, target: str, options: Options, precision: str) -> float:
    """MB of the first training step at most, over what is resident before it, inputs included (Linux).

    The kernel's mark of this process image, not getrusage's ru_maxrss: that one survives exec, so a child of a large
    process would start at its parent's size.
    """
    layouts = TARGETS if target == "all" else {target: TARGETS[target]}
    step = training_step(
        family(name, layouts, options, skip="linear"), torch.randn(MEMORY_BATCH, *STUDENT.shape), precision=precision
    )
    before = status("VmRSS")
    step()
    return (status("VmHWM") - before) / 1e3


def status(entry: str) -> float:
    """kB of an entry of this process's status."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def family(name: str, layouts: Mapping[str, TokenLayout], options: Options, *, skip: Any) -> Converter:
    """A converter with no weights left at zero, as it is after its first steps."""
    converter = create_converter(
        name.partition(":")[0], student=STUDENT, targets=layouts, skip=skip, options=options.get(name)
    )
    for parameter in converter.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return converter


def millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def head(*cells: str) -> None:
    print(f"\n| {' | '.join(cells)} |\n|{'---|' * len(cells)}", flush=True)


def row(*cells: str | float) -> None:
    print(f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:.4g}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()

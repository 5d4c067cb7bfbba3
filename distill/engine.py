"""Engine: one objective under DeepSpeed, with its schedule, its average of weights, and its exact state.

The only importer of deepspeed. Its checkpoints are not used: they are pickles, tied to a number of ranks. What a
resumed run needs (parameters, their average, the two moments, the step) is gathered here under the parameters' names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
log = logging.getLogger(__name__)


class Engine:
    """Wraps an objective (whose weights must be set before) for training.

    lr: rate of the parameters; those whose name is in `slow` (a name -> share map) run at that share of it.
    micro_batch: clips per rank and micro-batch; the optimizer steps after every `accumulation` micro-batches.
    ema: the average's decay is min(ema, (1+t)/(10+t)); 0 keeps no average.
    precision: "bf16" runs the forward pass under autocast, parameters stay fp32; "fp32" does not.
    """

    def __init__(
        self,
        objective: nn.Module,
        *,
        device: torch.device,
        steps: int,
        micro_batch: int,
        accumulation: int = 1,
        lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup: float = 0.05,
        slow: Mapping[str, float] | None = None,
        weight_decay: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.99),
        clip_norm: float = 1.0,
        ema: float = 0.999,
        precision: str = "fp32",
        zero: int = 0,
    ) -> None:
        self.steps, self.warmup, self.min_lr, self.decay = steps, warmup, min_lr, ema
        self.step_count = 0
        objective.to(device)
        self.parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if ema else {}
        optimizer = torch.optim.AdamW(
            parameter_groups(self.parameters, lr=lr, slow=slow or {}, weight_decay=weight_decay),
            lr=lr,
            betas=betas,
            fused=True,
        )
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.deepspeed = start_deepspeed(
            objective,
            optimizer,
            {
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": clip_norm,
                "zero_optimization": {"stage": zero},
                "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        self._open_moments()

    def forward(self, *inputs: object) -> dict[str, Tensor]:
        """The objective's terms for one micro-batch."""
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch. DeepSpeed counts micro-batches by its own step(), which does nothing but count
        until the last one; that last one is left to `step`, so that the caller can look at the loss before."""
        self.deepspeed.backward(loss)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()

    def step(self) -> None:
        """Moves the weights, once per optimizer step, after the backward of its last micro-batch."""
        assert self.deepspeed.is_gradient_accumulation_boundary(), "micro-batches are missing"
        scale = schedule(self.step_count, steps=self.steps, warmup=self.warmup)
        for group, rate in zip(self.deepspeed.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = self.min_lr + (rate - self.min_lr) * scale if rate > self.min_lr else rate
        self.deepspeed.step()
        self._update_average()
        self.step_count += 1

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average:
            decay = min(self.decay, (1 + self.step_count) / (10 + self.step_count))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the objective carries the average of its weights. Not for training: DeepSpeed has its own copy."""
        if not self.average:
            yield
            return
        with torch.no_grad():
            held = {name: p.detach().clone() for name, p in self.parameters.items()}
            for name, parameter in self.parameters.items():
                parameter.copy_(self.average[name])
            try:
                yield
            finally:
                for name, parameter in self.parameters.items():
                    parameter.copy_(held[name])

    @torch.no_grad()
    def keep_average(self) -> None:
        """Ends the training with the average as the objective's weights."""
        for name, value in self.average.items():
            self.parameters[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, whole on every rank (a collective call): name -> tensor on the CPU.

        Raises ValueError where weights or moments are not finite: a finite loss may have gradients that are not,
        and what they leave must not push a whole checkpoint out.
        """
        found: dict[str, Tensor] = {"step": torch.tensor(self.step_count)}
        for name, parameter in self.parameters.items():
            found[f"parameter/{name}"] = parameter.detach()
            if self.average:
                found[f"average/{name}"] = self.average[name]
            for moment in MOMENTS:
                found[f"{moment}/{name}"] = self._moment(parameter, moment)
        sick = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
        if sick:
            raise ValueError(
                f"after step {self.step_count} {sick[0]} is not finite ({len(sick)} such tensors); nothing is "
                "saved, the last checkpoint stands. Lower train.lr or train.clip_norm"
            )
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a state of any number of ranks. The parameters themselves must have been loaded into the objective
        before the engine was built (`load_parameters`): DeepSpeed undoes what is set afterwards."""
        self.step_count = int(state["step"])
        for name in self.average:
            self.average[name].copy_(state[f"average/{name}"])
        for counters in self._adamw.state.values():
            counters["step"].fill_(self.step_count)
        for name, parameter in self.parameters.items():
            if not torch.equal(parameter.detach().cpu(), state[f"parameter/{name}"]):
                raise ValueError(
                    f"{name} differs from the checkpoint's; call load_parameters before building the engine"
                )
            for moment in MOMENTS:
                self._set_moment(parameter, moment, state[f"{moment}/{name}"])

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._partitioned:
            from deepspeed.utils import safe_get_full_optimizer_state

            return safe_get_full_optimizer_state(parameter, moment)
        return self.deepspeed.optimizer.state[parameter][moment]

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        value = value.to(parameter.device)
        if self._partitioned:
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            self.deepspeed.optimizer.state[parameter][moment].copy_(value)

    def _open_moments(self) -> None:
        """Makes the moments that AdamW would make at its first step. ZeRO links a parameter to its part of them after
        the first step of the first group, when those of the other groups do not exist yet, and never looks again."""
        for group in self._adamw.param_groups:
            for flat in group["params"]:
                step = torch.zeros((), device=flat.device)
                self._adamw.state[flat] = {"step": step} | {moment: torch.zeros_like(flat) for moment in MOMENTS}
        if self._partitioned:
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _partitioned(self) -> bool:
        return hasattr(self.deepspeed.optimizer, "optimizer")  # ZeRO wraps the optimizer that it partitions

    @property
    def _adamw(self) -> torch.optim.AdamW:
        return self.deepspeed.optimizer.optimizer if self._partitioned else self.deepspeed.optimizer


def choose_precision(asked: str, device: torch.device) -> str:
    """fp32 or bf16; auto: bf16 on a GPU. Says so where the processor can only emulate it."""
    precision = ("bf16" if device.type == "cuda" else "fp32") if asked == "auto" else asked
    on_mkldnn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    if precision == "bf16" and on_mkldnn and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("this CPU has no bf16: it is emulated, and a step takes some 20 times as long as in fp32")
    return precision


def schedule(step: int, *, steps: int, warmup: float) -> float:
    """Share of the full rate at a step: linear over the first `warmup` share of the steps, then a cosine to 0."""
    opening = max(1, round(warmup * steps))
    if step < opening:
        return (step + 1) / opening
    return 0.5 * (1 + math.cos(math.pi * (step - opening) / max(1, steps - opening)))


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], *, lr: float, slow: Mapping[str, float], weight_decay: float
) -> list[dict]:
    """One group per (rate, decay). Vectors (norms, biases) are not decayed, nor what is marked `_no_weight_decay`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = lr * next((share for part, share in slow.items() if part in name.split(".")), 1.0)
        decay = weight_decay if parameter.ndim > 1 and not getattr(parameter, "_no_weight_decay", False) else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def load_parameters(objective: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts a state's parameters into an objective, before its engine is built. Names and shapes must agree."""
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    saved = {name.removeprefix("parameter/") for name in state if name.startswith("parameter/")}
    if saved != set(parameters):
        odd = sorted(saved.symmetric_difference(parameters))
        raise ValueError(f"the checkpoint is of another converter: {len(odd)} parameters differ, first {odd[0]!r}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = state[f"parameter/{name}"]
            if value.shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(value.shape)} in the checkpoint, {tuple(parameter.shape)} here")
            parameter.copy_(value)


def start_deepspeed(objective: nn.Module, optimizer: torch.optim.Optimizer, config: dict) -> Any:
    """deepspeed.initialize, quiet, and without its just-in-time build of a CPU collective that needs a compiler."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config, dist_init_required=False)
    return engine

"""The loop that trains a miniature: lessons in, an average of the weights out; checkpoints from which it goes on."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from teachers.miniature.objectives import Lesson, MaskedLatents, Objective
from teachers.miniature.vit import VideoViT

BETAS, WEIGHT_DECAY, CLIP_NORM, WARMUP, EMA = (0.9, 0.95), 0.05, 1.0, 0.05, 0.999
RECENT = 100  # steps that the recorded losses are means over


class Trainer:
    """An objective, its optimizer and the average of the network's weights.

    settings: what a checkpoint must agree in: steps, lr, seed and whatever the caller adds.
    """

    def __init__(self, objective: Objective, *, settings: Mapping[str, Any], device: torch.device) -> None:
        self.objective, self.settings, self.device = objective.to(device), dict(settings), device
        self.average: VideoViT = copy.deepcopy(objective.network).requires_grad_(False)
        self.parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        decayed = {True: WEIGHT_DECAY, False: 0.0}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters if (p.ndim == 2) is matrix], "weight_decay": decay}
                for matrix, decay in decayed.items()
            ],
            lr=settings["lr"],
            betas=BETAS,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        self.recent: deque[dict[str, float]] = deque(maxlen=RECENT)

    def generator(self) -> torch.Generator:
        """Of this step, and of no other: a run that goes on draws what one without a break draws."""
        return torch.Generator().manual_seed((int(self.settings["seed"]) << 32) + self.step)

    def train(self, lesson: Callable[[torch.Generator, float], Lesson], *, checkpoint: Path, every: int) -> None:
        """Until the last step. lesson: (generator, progress) -> the batch of a step."""
        steps, start = int(self.settings["steps"]), time.monotonic() - self.seconds
        bar = tqdm(total=steps, initial=self.step, desc="train", unit="step", mininterval=1)
        while self.step < steps:
            generator, progress = self.generator(), self.step / steps
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings["lr"] * rate(progress)
            loss, terms = self.objective(lesson(generator, progress), generator)
            if not torch.isfinite(loss):
                raise ValueError(f"the loss is {loss.item()} at step {self.step}; lower the rate (--lr)")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._average(progress)
            self.recent.append({name: term.item() for name, term in terms.items()})
            self.step, self.seconds = self.step + 1, time.monotonic() - start
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in self.losses().items()}, refresh=False)
            if self.step % every == 0 or self.step == steps:
                self.save(checkpoint)
        bar.close()

    @torch.no_grad()
    def _average(self, progress: float) -> None:
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        for ours, theirs in zip(self.average.parameters(), self.objective.network.parameters(), strict=True):
            ours.lerp_(theirs, 1 - decay)
        if isinstance(self.objective, MaskedLatents):
            self.objective.after_step(progress)

    def losses(self) -> dict[str, float]:
        """Means of the terms over the last steps."""
        return {name: sum(row[name] for row in self.recent) / len(self.recent) for name in self.recent[-1]}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps, by name; the live tensors."""
        found = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        found |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.objective.named_parameters():
            for kind, tensor in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{kind}.{name}"] = tensor
        return found

    def save(self, path: Path) -> None:
        """Replaces the checkpoint at `path`, at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"settings": self.settings, "step": self.step, "seconds": self.seconds, "recent": list(self.recent)}
        draft = path.with_name(path.name + ".tmp")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, draft, metadata={"state": json.dumps(state)})
        os.replace(draft, path)

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises ValueError where it was made with other settings."""
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            saved, given = state["settings"], self.settings
            differing = [name for name in given | saved if given.get(name) != saved.get(name)]
            if differing:
                pairs = ", ".join(f"{name} {saved.get(name)} there, {given.get(name)} here" for name in differing)
                raise ValueError(f"{path} is of another training ({pairs}); give the same, or another --out")
            tensors = {name: file.get_tensor(name).to(self.device) for name in file.keys()}  # noqa: SIM118
        self.step, self.seconds = state["step"], state["seconds"]
        self.recent.extend(state["recent"])
        for name, parameter in self.objective.named_parameters():
            kinds = {kind: f"optimizer.{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq")}
            if kinds["step"] in tensors:
                self.optimizer.state[parameter] = {kind: tensors.pop(key) for kind, key in kinds.items()}
        for module, prefix in ((self.objective, "objective."), (self.average, "average.")):
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)


def rate(progress: float) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine to a hundredth."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))

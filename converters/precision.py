"""What is calculated in float32 on purpose, autocast or not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Within it, matrix products keep the precision of what they are given. (The meta device has no autocast.)"""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()

"""Student tokens at the tiny geometry."""

from __future__ import annotations

import pytest
import torch
from small import STUDENT, draw


@pytest.fixture
def tokens() -> torch.Tensor:
    return draw(2, *STUDENT.shape)

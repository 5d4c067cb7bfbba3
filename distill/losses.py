"""Pure losses between converted and teacher tokens, both in normalised space.

Axes: b clips, q target tokens, e teacher width. Every loss is a mean, so that it does not depend on the batch or on how
many positions were sampled, and is computed in float32 whatever precision the converter ran in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(converted: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error. In normalised space this is 1 - r2c up to a constant factor.

    converted, teacher: (b q e). Returns a scalar.
    """
    return F.mse_loss(converted.float(), teacher.float())


def smooth_l1(converted: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss with its corner at one deviation, for teachers with heavy tails. (b q e) -> scalar."""
    return F.smooth_l1_loss(converted.float(), teacher.float())


def cosine(converted: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each token, averaged. (b q e) -> scalar."""
    return 1 - F.cosine_similarity(converted.float(), teacher.float(), dim=-1).mean()


def gram(converted: Tensor, teacher: Tensor, *, tokens: int = 128) -> Tensor:
    """Squared difference of the two matrices of cosines between the tokens of a clip, averaged.

    It asks that tokens relate to each other as the teacher's do (similarity-preserving distillation, Tung and Mori
    2019; DINOv3's Gram anchoring). At most `tokens` evenly spaced tokens enter. (b q e) -> scalar; 0 for a lone token.
    """
    count = converted.shape[1]
    if count < 2:
        return converted.new_zeros((), dtype=torch.float32)
    step = max(1, -(-count // tokens))
    ours, theirs = (F.normalize(x[:, ::step].float(), dim=-1) for x in (converted, teacher))
    return F.mse_loss(ours @ ours.transpose(1, 2), theirs @ theirs.transpose(1, 2))


def moments(converted: Tensor, teacher: Tensor) -> Tensor:
    """Soft match of each channel's mean and deviation over the batch, as the report proposes. (b q e) -> scalar."""
    ours, theirs = converted.float().flatten(0, 1), teacher.float().flatten(0, 1)
    if len(ours) < 2:
        return F.mse_loss(ours.mean(0), theirs.mean(0))
    return F.mse_loss(ours.mean(0), theirs.mean(0)) + F.mse_loss(ours.std(0), theirs.std(0))

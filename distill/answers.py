"""How good a classifier's answers are: accuracy, macro-F1, calibration.

Axes: n clips, c classes. logits (n c), -inf for a class that train never had: a clip of such a class is not told.
truth: (n,) int64, -1 without a label; or, of several labels, (n c), 1 where one holds, 0 where not, -1 where unknown.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of a calibration error


def told(logits: Tensor, truth: Tensor, *, top: int = 1) -> Tensor:
    """(n,) float64: 1 where a clip's class is among the `top` likeliest, 0 where not; of several labels the share that
    is told, each at even odds; nan without any. A tie is told by the lower class alone."""
    if truth.ndim == 1:
        found = logits.argsort(dim=1, descending=True, stable=True)[:, :top]
        reachable = ~logits.gather(1, truth.clamp_min(0)[:, None])[:, 0].isneginf()
        return ((found == truth[:, None]).any(1) & reachable).double().masked_fill(truth < 0, torch.nan)
    counted = truth >= 0
    right = ((logits > 0) == (truth > 0)) & counted
    return right.sum(1).double() / counted.sum(1)


def scores(logits: Tensor, truth: Tensor) -> dict[str, float]:
    """accuracy (top-1, or the share of the labels that is told), top5 where there are more than 5 classes that
    compete, macro_f1, ece."""
    found = {"accuracy": float(told(logits, truth).nanmean())}
    if truth.ndim == 1 and logits.shape[1] > 5:
        found["top5"] = float(told(logits, truth, top=5).nanmean())
    return found | {"macro_f1": macro_f1(logits, truth), "ece": expected_calibration_error(logits, truth)}


def macro_f1(logits: Tensor, truth: Tensor) -> float:
    """Mean over classes of 2 tp / (2 tp + fp + fn), those left out that no clip has and none is said to have."""
    if truth.ndim == 1:
        kept, classes = truth >= 0, logits.shape[1]
        said, true = F.one_hot(logits.argmax(1)[kept], classes), F.one_hot(truth[kept], classes)
    else:
        said, true = ((logits > 0) & (truth >= 0)).long(), (truth > 0).long()
    both, either = (said * true).sum(0), said.sum(0) + true.sum(0)
    return float((2 * both[either > 0] / either[either > 0]).double().mean())


def expected_calibration_error(logits: Tensor, truth: Tensor, *, bins: int = BINS) -> float:
    """ECE over equal-width bins of confidence: the mean over clips of |accuracy - mean confidence| of a clip's bin; a
    clip's confidence is the probability of its answer (Guo et al. 2017).

    Of several labels: the mean over classes of the binary one, |share that holds - mean probability| (Naeini et al.
    2015); classes without a known label are left out.
    """
    if truth.ndim == 1:
        kept = truth >= 0
        confidence, answer = logits[kept].softmax(1).max(1)
        return float(_gap(confidence, (answer == truth[kept]), bins))
    chances = logits.sigmoid()
    each = [_gap(chances[known, c], truth[known, c] > 0, bins) for c, known in enumerate((truth >= 0).T) if known.any()]
    return float(torch.stack(each).mean())


def _gap(confidence: Tensor, right: Tensor, bins: int) -> Tensor:
    """Bins are closed above: (0, 1/15], (1/15, 2/15], ..., 0 itself in the first."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(confidence.double(), edges)
    difference = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, confidence.double() - right.double())
    return difference.abs().sum() / len(confidence)

"""How alike two sets of representations are, whatever maps them to each other: CKA, neighbours, Procrustes; streaming.

Axes: n clips, b of them at a time, p positions of a target that enter CKA, e width.

All three look at rows that are independent clips, never at the tokens of one clip, which are not: pooled over tokens,
unbiased CKA says 0.8 of independent data. Memory is bounded, whatever n: see each class. docs/metrics.md has the
definitions and the traps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CKA_CLIPS = 32  # of a minibatch, at least; the last bits of a thousand clips are spread over all of them
CKA_MINIMUM = 4  # the unbiased estimator divides by n - 3
NEIGHBOURS = 10
KNN_CLIPS = 512  # among which neighbours are sought
PROCRUSTES_CLIPS = 10  # per channel; with fewer, independent data look alike (0.27 at 10, 0.76 at 1)


def num_blocks(clips: int) -> int:
    """Into how many minibatches CKA divides clips: clip i belongs to minibatch i % blocks, so that neighbours in the
    list, which may come from one video, stand in different ones."""
    return max(1, clips // CKA_CLIPS)


class Similarity:
    """Accumulates cka, knn and procrustes of one converter and one target over a known list of clips.

    Read clips in the order of `reading_order`: then 2 (CKA_CLIPS .. 2 CKA_CLIPS) p e floats are open at a time, beside
    2 KNN_CLIPS e for neighbours, and e^2 doubles where there are clips enough for Procrustes.
    """

    def __init__(self, *, num_clips: int, width: int, device: torch.device) -> None:
        sums = {"dtype": torch.float64, "device": device}
        self.num_clips, self.blocks = num_clips, num_blocks(num_clips)
        self.open: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.hsic = torch.zeros(4, **sums)  # cross, ours, theirs, minibatches
        self.step = -(-num_clips // KNN_CLIPS)
        self.means = torch.zeros(2, -(-num_clips // self.step), width, device=device)
        self.enough = num_clips >= PROCRUSTES_CLIPS * width
        self.cross = torch.zeros(width if self.enough else 0, width, **sums)
        self.sums, self.squares = torch.zeros(2, width, **sums), torch.zeros(2, **sums)

    def update(self, clips: Tensor, tokens: tuple[Tensor, Tensor], means: tuple[Tensor, Tensor]) -> None:
        """clips: (b,) places in the list. Ours and theirs, standardised: tokens (b p e) at the positions of CKA, and
        means over all tokens (b e)."""
        for row, clip in enumerate(clips.tolist()):
            self._add(clip, tokens[0][row].clone(), tokens[1][row].clone())
            if clip % self.step == 0:
                for side in (0, 1):
                    self.means[side, clip // self.step] += means[side][row]
        if self.enough:
            ours, theirs = (rows.double() for rows in means)
            self.cross += ours.T @ theirs
            for side, rows in enumerate((ours, theirs)):
                self.sums[side] += rows.sum(0)
                self.squares[side] += rows.square().sum()

    def _add(self, clip: int, ours: Tensor, theirs: Tensor) -> None:
        """Keeps a clip's tokens until its minibatch is whole."""
        block = clip % self.blocks
        rows = self.open.setdefault(block, [])
        rows.append((ours, theirs))
        if len(rows) == len(range(block, self.num_clips, self.blocks)):
            x, y = (torch.stack(side, dim=1) for side in zip(*self.open.pop(block), strict=True))
            if x.shape[1] >= CKA_MINIMUM:
                self.hsic += torch.cat([hsics(x, y), self.hsic.new_ones(1)])

    def tensors(self) -> list[Tensor]:
        """All that ranks have to add up; a minibatch must not be divided between them."""
        return [self.hsic, self.means, self.cross, self.sums, self.squares]

    def compute(self) -> dict[str, float]:
        """cka, knn, procrustes; nan where there are too few clips. Raises ValueError where a minibatch was divided."""
        if self.num_clips >= CKA_MINIMUM and int(self.hsic[3]) != self.blocks:
            raise ValueError(
                f"{int(self.hsic[3])} of {self.blocks} minibatches of CKA are whole; give each rank the clips that "
                "reading_order names"
            )
        cross = self.cross - torch.outer(self.sums[0], self.sums[1]) / self.num_clips if self.enough else self.cross
        squares = self.squares - self.sums.square().sum(1) / self.num_clips
        return {
            "cka": ratio(self.hsic),
            "knn": mutual_neighbours(self.means[0], self.means[1]),
            "procrustes": procrustes(cross, squares) if self.enough else float("nan"),
        }


def reading_order(clips: int, *, rank: int = 0, world: int = 1) -> list[int]:
    """The places in the list that a rank reads, minibatch after minibatch: whole ones only, so that CKA is the same
    over any number of ranks. Where there are fewer minibatches than ranks, the last ranks read nothing."""
    blocks = num_blocks(clips)
    return [clip for block in range(rank, blocks, world) for clip in range(block, clips, blocks)]


def hsics(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased HSIC of x (p n d) with y (p n e), x with x and y with y, each the mean over positions: (3,)."""
    k, m = (rows.double() @ rows.double().transpose(1, 2) for rows in (x, y))
    return torch.stack([unbiased_hsic(a, b).mean() for a, b in ((k, m), (k, k), (m, m))])


def unbiased_hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased HSIC estimator of two kernel matrices (... n n), n >= 4 (Song et al. 2012, eq. 5). Kernels must not
    be centred before: that biases it."""
    n = k.shape[-1]
    eye = torch.eye(n, dtype=torch.bool, device=k.device)
    k, m = k.masked_fill(eye, 0), m.masked_fill(eye, 0)
    trace = (k * m).sum((-2, -1))
    means = k.sum((-2, -1)) * m.sum((-2, -1)) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (k.sum(-2) * m.sum(-2)).sum(-1)
    return (trace + means - cross) / (n * (n - 3))


def ratio(hsic: Tensor) -> float:
    """CKA of sums (cross, ours, theirs, minibatches); nan without a minibatch or of sums that are not finite, 0 where
    one side does not vary."""
    cross, ours, theirs, count = hsic.tolist()
    if not count or not hsic.isfinite().all():
        return float("nan")
    return cross / (ours * theirs) ** 0.5 if ours > 0 and theirs > 0 else 0.0


def mutual_neighbours(x: Tensor, y: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """The share of a clip's nearest neighbours in x (n d) that are such in y (n e), too: by cosine, the clip itself
    left out, mean over clips (Huh et al. 2024). nan where there are not twice as many clips as neighbours, or
    a clip is not finite."""
    if len(x) < 2 * neighbours or not (x.isfinite().all() and y.isfinite().all()):
        return float("nan")
    near = []
    for rows in (x, y):
        unit = F.normalize(rows.double(), dim=1)
        found = (unit @ unit.T).fill_diagonal_(-torch.inf).topk(neighbours, dim=1).indices
        near.append(torch.zeros(len(x), len(x), dtype=torch.bool, device=x.device).scatter_(1, found, True))
    return float((near[0] & near[1]).sum(1).double().mean() / neighbours)


def procrustes(cross: Tensor, squares: Tensor) -> float:
    """1 where one side is the other, turned, mirrored and scaled: the nuclear norm of X'Y (d e) over |X| |Y|, from
    centred sums; squares: (2,), |X|^2 and |Y|^2 (Williams et al. 2021). 0 where one side does not vary, nan
    where a sum is not finite."""
    if not (cross.isfinite().all() and squares.isfinite().all()):
        return float("nan")
    size = float(squares.clamp(min=0).prod().sqrt())
    return float(torch.linalg.svdvals(cross).sum()) / size if size > 0 else 0.0

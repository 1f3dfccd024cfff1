"""Losses of reward models on comparisons.

Shapes: R branches with one reward each, C comparisons (of a better branch with a worse one of the same tree).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(slots=True)
class Comparisons:
    """better_C, worse_C: indices of branches. weight_C: 1 over the number of comparisons in the tree, so that every
    tree, pair or group, weighs 1."""

    better_C: torch.Tensor
    worse_C: torch.Tensor
    weight_C: torch.Tensor


def comparisons(labels_R: torch.Tensor, tree_R: torch.Tensor) -> Comparisons:
    """All comparisons between branches of the same tree whose labels differ. tree_R: the number of each branch's
    tree. A pair has one comparison; k positives among n have k(n - k)."""
    better_C, worse_C = torch.nonzero(
        (tree_R[:, None] == tree_R[None, :]) & (labels_R[:, None] > labels_R[None, :]), as_tuple=True
    )
    tree_C = tree_R[better_C]
    counts = torch.bincount(tree_C, minlength=1)
    return Comparisons(better_C, worse_C, 1.0 / counts[tree_C])


def bradley_terry_loss(
    better_C: torch.Tensor, worse_C: torch.Tensor, margins_C: torch.Tensor, centre_coef: float = 0.0
) -> torch.Tensor:
    """-log sigma(r+ - r- - margin) + centre_coef (r+ + r-)^2 per comparison, [C].

    The first term is Bradley and Terry's likelihood, with the margin of Llama 2 (arXiv 2307.09288, eq. 2); the second
    keeps rewards around zero, which comparisons leave open (arXiv 2312.09244, eq. 2).
    """
    loss_C = -logsigmoid(better_C - worse_C - margins_C)
    return loss_C + centre_coef * (better_C + worse_C) ** 2 if centre_coef else loss_C


def listwise_loss(
    rewards_R: torch.Tensor,
    pairs: Comparisons,
    margins_R: torch.Tensor | None = None,
    centre_coef: float = 0.0,
) -> torch.Tensor:
    """The mean over a tree's comparisons of their Bradley-Terry losses, summed over trees. Units: trees.

    For k positives among n this is -1/(k(n-k)) sum_{i in pos} sum_{j in neg} log sigma(r_i - r_j), Qwen2.5-Math's loss
    (arXiv 2409.12122); for a pair the Bradley-Terry loss; for graded labels InstructGPT's over all ranked
    pairs (arXiv 2203.02155, eq. 1). margins_R: by how much a branch should be ahead of every worse one.
    """
    better_C, worse_C = rewards_R[pairs.better_C], rewards_R[pairs.worse_C]
    margins_C = torch.zeros_like(better_C) if margins_R is None else margins_R[pairs.better_C]
    return (pairs.weight_C * bradley_terry_loss(better_C, worse_C, margins_C, centre_coef)).sum()

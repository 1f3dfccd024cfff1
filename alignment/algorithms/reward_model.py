"""Reward models on packed comparisons: a prompt once, a branch per answer, one number at each branch's end token.

Shapes: R branches of a packed row (its scored positions, one each), C comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from alignment.config import check_values
from alignment.data.epochs import Epochs
from alignment.distributed import gather_objects, rank, world_size
from alignment.errors import UserError
from alignment.evaluate import pass_rate
from alignment.losses.reward import Comparisons, comparisons, listwise_loss
from alignment.models.scalar import ScalarModel
from alignment.packing import cut
from alignment.types import Batch, Episode, PackedBatch, Tree

COLUMNS = {"labels", "margins", "branches"}
BINS = 10


@dataclass
class RewardModelConfig:
    """The loss on a comparison."""

    centre_coef: float = field(default=0.0, metadata={"help": "Weight of (r+ + r-)^2, which keeps rewards near zero."})

    def __post_init__(self):
        check_values(self, "0 or more", "centre_coef")


class RewardModeling:
    """Algorithm for the trainer: epochs over `trees` (see encode_preference_rows with an end token), `batch_size` pairs
    or groups per step over all ranks. Raises UserError for trees that are not such comparisons."""

    reads_policy = False

    def __init__(self, trees: Sequence[Tree], batch_size: int, seed: int, config: RewardModelConfig):
        self.epochs, self.config = Epochs(trees, batch_size, seed), config
        self.steps_per_epoch = self.epochs.steps_per_epoch
        check_trees(self.epochs.trees)

    def collect(self, step: int) -> Episode:
        own = self.epochs.take(step)
        return Episode([Batch(own, len(own))], {"epoch": (step / self.steps_per_epoch, 1)})

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        rewards_R = model(micro)
        pairs = compared(micro)
        loss = listwise_loss(rewards_R, pairs, micro.columns["margins"], self.config.centre_coef)
        return loss, comparison_stats(rewards_R.detach(), pairs)

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self.epochs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs.load_state_dict(state)


def check_trees(trees: Sequence[Tree]) -> None:
    """Raises UserError for the first tree that is not atomic, or has a branch that is not scored at its last token
    alone, or no two branches with different labels."""
    for number, tree in enumerate(trees, 1):
        parents = {segment.parent for segment in tree.segments}
        leaves = [segment for i, segment in enumerate(tree.segments) if i not in parents]
        scored = [np.flatnonzero(s.scored).tolist() if s.scored is not None else [] for s in tree.segments]
        ends = [[len(s.token_ids) - 1] if i not in parents else [] for i, s in enumerate(tree.segments)]
        if not tree.atomic or scored != ends:
            raise UserError(
                f"comparison {number}: expected an atomic tree whose branches are scored at their end token alone; "
                "encode_preference_rows makes them when it is given an end_token"
            )
        if not all(set(leaf.columns) == COLUMNS for leaf in leaves):
            raise UserError(f"comparison {number}: every branch needs the columns {', '.join(sorted(COLUMNS))}")
        if len({float(leaf.columns["labels"][-1]) for leaf in leaves}) < 2:
            raise UserError(f"comparison {number}: its branches have the same label, so there is nothing to compare")


def compared(micro: PackedBatch) -> Comparisons:
    """The comparisons of a packed row. A tree's branches stand together, and each knows how many they are."""
    branches = micro.columns["branches"].long().tolist()
    tree_of: list[int] = []
    while len(tree_of) < len(branches):
        tree_of += [len(tree_of)] * branches[len(tree_of)]
    labels_R = micro.columns["labels"]
    return comparisons(labels_R, torch.tensor(tree_of, device=labels_R.device))


def comparison_stats(rewards_R: torch.Tensor, pairs: Comparisons) -> dict[str, Any]:
    """Of a micro-batch; every tree weighs 1. accuracy: the better branch has the larger reward (a tie counts as not).
    log_loss: -log sigma(r+ - r-), without margin and centring."""
    margin_C = rewards_R[pairs.better_C] - rewards_R[pairs.worse_C]
    trees = pairs.weight_C.sum()
    return {
        "accuracy": ((pairs.weight_C * (margin_C > 0)).sum(), trees),
        "margin": ((pairs.weight_C * margin_C).sum(), trees),
        "log_loss": (-(pairs.weight_C * torch.nn.functional.logsigmoid(margin_C)).sum(), trees),
        "reward/mean": (rewards_R.sum(), rewards_R.numel()),
        "reward/mean_square": ((rewards_R**2).sum(), rewards_R.numel()),
    }


@dataclass(frozen=True, slots=True)
class TreeRewards:
    """What one held-out tree gave: a reward per branch, and r+ - r- per comparison."""

    rewards: list[float]
    margins: list[float]


@torch.no_grad()
def tree_rewards(model: ScalarModel, trees: Sequence[Tree], max_tokens: int) -> list[TreeRewards]:
    """The model's rewards of comparisons, in the order of the trees."""
    place = {id(leaf): i for i, tree in enumerate(trees) for leaf in tree.segments}
    out: list[TreeRewards | None] = [None] * len(trees)
    for micro in cut(trees, max_tokens):
        rewards_R, pairs = model(micro.to(model.device)).cpu(), compared(micro)
        margin_C = rewards_R[pairs.better_C] - rewards_R[pairs.worse_C]
        rewards: dict[int, list[float]] = {}
        margins: dict[int, list[float]] = {}
        tree_of = [place[id(segment)] for segment in micro.sources]
        for i, value in zip(tree_of, rewards_R.tolist(), strict=True):
            rewards.setdefault(i, []).append(value)
        for row, value in zip(pairs.better_C.tolist(), margin_C.tolist(), strict=True):
            margins.setdefault(tree_of[row], []).append(value)
        for i in rewards:
            out[i] = TreeRewards(rewards[i], margins[i])
    return [found for found in out if found is not None]


def heldout_rewards(model: ScalarModel, trees: Sequence[Tree], max_tokens: int) -> dict[str, float]:
    """On held-out comparisons, over all ranks: accuracy with its 95 % interval (clustered by tree), mean margin,
    log_loss, calibration error, and mean and standard deviation of the rewards."""
    own = tree_rewards(model, trees[rank() :: world_size()], max_tokens)
    return summarise(gather_objects(own))


def summarise(found: Sequence[TreeRewards]) -> dict[str, float]:
    """See heldout_rewards; every tree weighs 1, however many comparisons it has."""
    accuracy = pass_rate([[float(margin > 0) for margin in tree.margins] for tree in found])
    margins_C = np.array([margin for tree in found for margin in tree.margins])
    weights_C = np.array([1 / len(tree.margins) for tree in found for _ in tree.margins])
    rewards_R = np.array([reward for tree in found for reward in tree.rewards])
    return {
        "accuracy": accuracy.value,
        "ci_low": accuracy.low,
        "ci_high": accuracy.high,
        "margin": float(np.average(margins_C, weights=weights_C)),
        "log_loss": float(np.average(np.logaddexp(0, -margins_C), weights=weights_C)),
        "calibration_error": calibration_error(margins_C, weights_C),
        "reward/mean": float(rewards_R.mean()),
        "reward/std": float(rewards_R.std()),
        "comparisons": float(len(margins_C)),
        "trees": float(len(found)),
    }


def calibration_error(margins_C: np.ndarray, weights_C: np.ndarray) -> float:
    """The expected calibration error (arXiv 1706.04599, eq. 3): how far sigma(|r+ - r-|), the model's confidence in the
    order it gives, is from how often that order is right, on average over 10 bins of confidence from 0.5 to 1. A tie
    is right half the time."""
    confidence_C = 1 / (1 + np.exp(-np.abs(margins_C)))
    right_C = np.where(margins_C == 0, 0.5, margins_C > 0)
    bin_C = np.minimum((BINS * (2 * confidence_C - 1)).astype(int), BINS - 1)
    gaps = np.bincount(bin_C, weights_C * (right_C - confidence_C), minlength=BINS)
    return float(np.abs(gaps).sum() / weights_C.sum())

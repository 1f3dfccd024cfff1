"""Direct preference optimization on packed pairs: a prompt once, its chosen and its rejected branch as children.

arXiv 2305.18290 (DPO); the variants are in alignment.losses.preference. Shapes: P pairs, N scored tokens, R rows (the
branches of a packed row: chosen, rejected, chosen, rejected, …).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from alignment.algorithms.reference import REFERENCE, branch_sums, branches_of
from alignment.config import check_values
from alignment.data.epochs import Epochs
from alignment.distributed import MetricSums, rank, world_size
from alignment.errors import UserError
from alignment.losses.preference import (
    PairLogprobs,
    cdpo_loss,
    chosen_nll,
    dpo_loss,
    ipo_loss,
    length_normalised_loss,
)
from alignment.models import Policy
from alignment.packing import cut
from alignment.types import Batch, Episode, PackedBatch, Segment, Tree

LOSSES: dict[str, Callable[[PairLogprobs, float], torch.Tensor]] = {
    "dpo": dpo_loss,
    "ipo": ipo_loss,
    "length_normalised": length_normalised_loss,
}


@dataclass
class DpoConfig:
    """The loss on a pair."""

    loss: Literal["dpo", "cdpo", "ipo", "length_normalised"] = field(
        default="dpo", metadata={"help": "docs/dpo.md has the formulas."}
    )
    beta: float = field(default=0.1, metadata={"help": "Strength of the pull to the reference."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Of cdpo: how probable a wrong label is."})
    nll_coef: float = field(default=0.0, metadata={"help": "Of -log p per token of the chosen branch."})

    def __post_init__(self):
        check_values(self, "above 0", "beta")
        check_values(self, "0 or more", "nll_coef")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing: {self.label_smoothing} is not valid, it has to be 0 or more, below 0.5")
        if (self.label_smoothing > 0) != (self.loss == "cdpo"):
            raise UserError(
                f"label_smoothing: {self.label_smoothing} does not go with `loss: {self.loss}`; `loss: cdpo` needs a "
                "value above 0, the other losses have none"
            )


class Dpo:
    """Algorithm for the trainer: epochs over `trees`, `batch_size` pairs per step over all ranks.

    add_reference: called with the pairs of each step to score them under the reference (see Reference); None when they
    have been scored already. Raises UserError for trees that are not pairs.
    """

    def __init__(
        self,
        trees: Sequence[Tree],
        batch_size: int,
        seed: int,
        config: DpoConfig,
        add_reference: Callable[[Sequence[Tree]], None] | None = None,
    ):
        self.epochs = Epochs(trees, batch_size, seed)
        self.steps_per_epoch = self.epochs.steps_per_epoch
        self.config, self.add_reference = config, add_reference
        self.reads_policy = getattr(add_reference, "reads_policy", False)
        check_pairs(self.epochs.trees, scored=add_reference is None)

    def collect(self, step: int) -> Episode:
        own = self.epochs.take(step)
        if self.add_reference is not None:
            self.add_reference(own)
        return Episode([Batch(own, len(own))], {"epoch": (step / self.steps_per_epoch, 1)})

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        return pair_loss(model, micro, self.config)

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self.epochs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs.load_state_dict(state)


def check_pairs(trees: Sequence[Tree], scored: bool) -> None:
    """Raises UserError for the first tree that is not a prompt (or nothing) with two branches that carry loss and, with
    `scored`, have their reference log-probabilities."""
    for number, tree in enumerate(trees, 1):
        branches = branches_of(tree)
        above = tree.segments[:-2]
        parents = [segment.parent for segment in tree.segments]
        if parents not in ([-1, 0, 0], [-1, -1]) or not tree.atomic or any(_carries_loss(s) for s in above):
            raise UserError(
                f"pair {number}: expected an atomic tree of a prompt and two branches, as encode_preference_rows makes "
                "it of a row with `chosen` and `rejected`; rows with more completions are for reward models"
            )
        if not all(_carries_loss(branch) for branch in branches):
            raise UserError(f"pair {number}: a branch has no token that carries loss")
        if scored and not all(REFERENCE in branch.columns for branch in branches):
            raise UserError(f"pair {number}: the reference's log-probabilities are missing")


def _carries_loss(segment: Segment) -> bool:
    return segment.scored is not None and bool(segment.scored.any())


# --- the loss ---------------------------------------------------------------------------------------------------------


def pair_loss(model: torch.nn.Module, micro: PackedBatch, config: DpoConfig) -> tuple[torch.Tensor, dict[str, Any]]:
    """Sum of the losses of the pairs in a packed row, units: pairs; and their statistics. The log-probabilities are the
    model's own (temperature 1, whole vocabulary), however the branches were sampled."""
    pairs = pair_logprobs(model(micro).logprobs_N, micro)
    loss_P = _losses(pairs, config)
    n = loss_P.numel()
    stats = pair_stats(pairs, config.beta)
    if config.nll_coef:
        nll_P = chosen_nll(pairs)
        stats["nll"] = (nll_P.detach().sum(), n)
        loss_P = loss_P + config.nll_coef * nll_P
    return loss_P.sum(), stats


def pair_logprobs(logprobs_N: torch.Tensor, micro: PackedBatch) -> PairLogprobs:
    """The branches of a packed row as pairs."""
    sums_R = branch_sums(logprobs_N, micro)
    reference_R = torch.zeros_like(sums_R.detach())
    reference_R[micro.score_row_N] = micro.columns[REFERENCE]
    tokens_R = torch.bincount(micro.score_row_N, minlength=micro.rows)
    return PairLogprobs(sums_R[::2], sums_R[1::2], reference_R[::2], reference_R[1::2], tokens_R[::2], tokens_R[1::2])


def _losses(pairs: PairLogprobs, config: DpoConfig) -> torch.Tensor:
    if config.loss == "cdpo":
        return cdpo_loss(pairs, config.beta, config.label_smoothing)
    return LOSSES[config.loss](pairs, config.beta)


@torch.no_grad()
def pair_stats(pairs: PairLogprobs, beta: float) -> dict[str, Any]:
    """Implicit rewards beta log(pi/pi_ref) of both branches, their difference, how often the chosen one's is larger
    (a tie counts as not), and log-probabilities; names as in TRL."""
    chosen_P, rejected_P = beta * pairs.chosen_ratio_P, beta * pairs.rejected_ratio_P
    n = chosen_P.numel()
    return {
        "rewards/chosen": (chosen_P.sum(), n),
        "rewards/rejected": (rejected_P.sum(), n),
        "rewards/margins": ((chosen_P - rejected_P).sum(), n),
        "rewards/accuracies": ((chosen_P > rejected_P).sum(), n),
        "logps/chosen": (pairs.chosen_P.sum(), n),
        "logps/rejected": (pairs.rejected_P.sum(), n),
    }


@torch.no_grad()
def heldout_pairs(policy: Policy, trees: Sequence[Tree], config: DpoConfig, max_tokens: int) -> dict[str, float]:
    """Loss and statistics of held-out pairs, which have been scored under the reference, over all ranks."""
    sums = MetricSums()
    for micro in cut(trees[rank() :: world_size()], max_tokens):
        loss, stats = pair_loss(policy, micro.to(policy.device), config)
        sums.add({"loss": (loss, micro.rows // 2), **stats})
    return sums.reduce(policy.device)

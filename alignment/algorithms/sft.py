"""Supervised fine-tuning on packed rows: -log p of the tokens that carry loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from alignment.data.epochs import Epochs
from alignment.distributed import MetricSums
from alignment.models import Policy
from alignment.packing import cut
from alignment.packing.sequence_parallel import ALONE, SequenceGroup
from alignment.types import Batch, Episode, PackedBatch, Tree


class Sft:
    """Epochs over `trees`, `batch_size` of them per step over all ranks; those of `group` share their rows."""

    reads_policy = False

    def __init__(self, trees: list[Tree], batch_size: int, seed: int, group: SequenceGroup = ALONE):
        self.epochs, self.group = Epochs(trees, batch_size, seed, group), group
        self.trees, self.steps_per_epoch = self.epochs.trees, self.epochs.steps_per_epoch

    def collect(self, step: int) -> Episode:
        own = self.epochs.take(step)
        batch = Batch(own, sum(_weight(tree) for tree in own) / self.group.size)
        return Episode([batch], {"epoch": (step / self.steps_per_epoch, 1)})

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        """-sum(weight * log p). Units: the sum of the weights (tokens when there are none)."""
        weights_N = micro.columns.get("weights", 1.0)
        return model(micro, loss=lambda logprobs_N, _: -(logprobs_N * weights_N).sum()).total, {}

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self.epochs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs.load_state_dict(state)


def _weight(tree: Tree) -> float:
    return sum(
        float(s.columns["weights"][s.scored].sum()) if "weights" in s.columns else float(s.scored.sum())
        for s in tree.segments
        if s.scored is not None
    )


@torch.no_grad()
def heldout_loss(policy: Policy, trees: list[Tree], max_tokens: int, group: SequenceGroup = ALONE) -> dict[str, float]:
    """Mean -log p per scored token over all ranks, and its exponential."""
    sums = MetricSums()
    for micro in cut(trees[group.number :: group.groups], max_tokens):
        own = group.own_part(micro)
        if own.empty:
            continue
        logprobs = policy(own.to(policy.device)).logprobs_N
        sums.add({"loss": (-logprobs.sum(), logprobs.numel())})
    loss = sums.reduce(policy.device)["loss"]
    return {"loss": loss, "perplexity": float(np.exp(loss))}

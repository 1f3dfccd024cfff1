"""Supervised fine-tuning on packed rows: -log p of the tokens that carry loss."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from alignment.distributed import MetricSums, rank, world_size
from alignment.errors import UserError
from alignment.models import Policy
from alignment.packing import cut
from alignment.types import Batch, Episode, PackedBatch, Tree


def sft_loss(logprobs_N: torch.Tensor, weights_N: torch.Tensor | None) -> torch.Tensor:
    """-sum(weight * log p). Units: the sum of the weights (tokens when there are none)."""
    return -(logprobs_N if weights_N is None else logprobs_N * weights_N).sum()


class Sft:
    """Epochs over `trees` in seeded random order, `batch_size` rows per step over all ranks.

    The rows of a step are dealt to the ranks by length, so that each gets about as many tokens.
    """

    def __init__(self, trees: list[Tree], batch_size: int, seed: int):
        if not trees:
            raise UserError("there is no row to train on: the data set is empty or every row was dropped")
        self.trees, self.batch_size, self.seed = trees, batch_size, seed
        self.steps_per_epoch = max(1, len(trees) // batch_size)
        self.data_fingerprint = _fingerprint(trees)

    def collect(self, step: int) -> Episode:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.trees))
        rows = [self.trees[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]
        own = deal(rows, world_size())[rank()]
        batch = Batch(own, sum(_weight(tree) for tree in own))
        return Episode([batch], {"epoch": (step / self.steps_per_epoch, 1)})

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        logprobs_N = model(micro).logprobs_N
        return sft_loss(logprobs_N, micro.columns.get("weights")), {}

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"data_fingerprint": self.data_fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["data_fingerprint"] != self.data_fingerprint:
            raise UserError(
                f"the training data changed since the checkpoint (fingerprint {state['data_fingerprint']} then, "
                f"{self.data_fingerprint} now): restore it, or start a new run with another output_dir"
            )


def _fingerprint(trees: list[Tree]) -> str:
    """Of tokens and masks."""
    digest = hashlib.sha256()
    for tree in trees:
        for segment in tree.segments:
            digest.update(np.asarray(segment.token_ids, np.int32).tobytes())
            digest.update(b"" if segment.scored is None else np.packbits(segment.scored).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def _weight(tree: Tree) -> float:
    return sum(
        float(s.columns["weights"][s.scored].sum()) if "weights" in s.columns else float(s.scored.sum())
        for s in tree.segments
        if s.scored is not None
    )


def deal(trees: list[Tree], ranks: int) -> list[list[Tree]]:
    """Longest first, each to the rank with the fewest tokens so far."""
    hands: list[list[Tree]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for tree in sorted(trees, key=lambda t: -t.tokens):
        r = tokens.index(min(tokens))
        hands[r].append(tree)
        tokens[r] += tree.tokens
    return hands


@torch.no_grad()
def heldout_loss(policy: Policy, trees: list[Tree], max_tokens: int) -> dict[str, float]:
    """Mean -log p per scored token over all ranks, and its exponential."""
    sums = MetricSums()
    for micro in cut(trees[rank() :: world_size()], max_tokens):
        logprobs = policy(micro.to(policy.device)).logprobs_N
        sums.add({"loss": (-logprobs.sum(), logprobs.numel())})
    loss = sums.reduce(policy.device)["loss"]
    return {"loss": loss, "perplexity": float(np.exp(loss))}

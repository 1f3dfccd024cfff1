"""Scoring trees without gradients: reference and old log-probabilities, values, rewards; once per episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from alignment.models.actor_critic import ActorCritic
from alignment.models.policy import Policy
from alignment.models.scalar import ScalarModel
from alignment.packing import cut
from alignment.types import PackedBatch, Tree


@torch.no_grad()
def add_logprobs(policy: Policy, trees: Sequence[Tree], column: str, max_tokens: int, temperature: float = 1.0) -> None:
    """Write the policy's log-probability of every scored token into `segment.columns[column]`."""
    for micro in _with_scored_tokens(trees, max_tokens):
        _write(micro, column, policy(micro.to(policy.device), temperature=temperature).logprobs_N)


@torch.no_grad()
def add_scalars(model: ScalarModel, trees: Sequence[Tree], column: str, max_tokens: int) -> None:
    """Write the model's number (value or reward) at every scored token into `segment.columns[column]`."""
    for micro in _with_scored_tokens(trees, max_tokens):
        _write(micro, column, model(micro.to(model.device)))


@torch.no_grad()
def add_values(model: ActorCritic, trees: Sequence[Tree], column: str, max_tokens: int) -> None:
    """Write the value of the state before every scored token into `segment.columns[column]`."""
    for micro in _with_scored_tokens(trees, max_tokens):
        _write(micro, column, model(micro.to(model.device), value_only=True).values_N)


def _with_scored_tokens(trees: Sequence[Tree], max_tokens: int) -> list[PackedBatch]:
    return [micro for micro in cut(trees, max_tokens) if micro.rows]


def _write(micro: PackedBatch, column: str, values_N: torch.Tensor) -> None:
    ends = np.flatnonzero(np.diff(micro.score_row_N.cpu().numpy())) + 1
    for segment, values in zip(micro.sources, np.split(values_N.float().cpu().numpy(), ends), strict=True):
        assert segment.scored is not None
        full = np.zeros(len(segment.token_ids), dtype=np.float32)
        full[segment.scored] = values
        segment.columns[column] = full

"""Scoring trees without gradients: reference and old log-probabilities, values, rewards; once per episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from alignment.models.actor_critic import ActorCritic
from alignment.models.policy import Policy
from alignment.models.scalar import ScalarModel
from alignment.packing import BFLOAT16, cut
from alignment.types import PackedBatch, Segment, Tree


@torch.no_grad()
def add_logprobs(policy: Policy, trees: Sequence[Tree], column: str, max_tokens: int, temperature: float = 1.0) -> None:
    """Write the policy's log-probability of every scored token into `segment.columns[column]`."""
    for micro in _with_scored_tokens(trees, max_tokens):
        write_column(micro, column, policy(micro.to(policy.device), temperature=temperature).logprobs_N)


@torch.no_grad()
def add_scalars(model: ScalarModel, trees: Sequence[Tree], column: str, max_tokens: int) -> None:
    """Write the model's number (value or reward) at every scored token into `segment.columns[column]`."""
    for micro in _with_scored_tokens(trees, max_tokens):
        write_column(micro, column, model(micro.to(model.device)))


@torch.no_grad()
def add_values(
    model: ActorCritic,
    trees: Sequence[Tree],
    column: str,
    max_tokens: int,
    logprobs: str | None = None,
    temperature: float = 1.0,
) -> None:
    """Write the value of the state before every scored token into `segment.columns[column]` and, where `logprobs` names
    a column, the policy's log-probability of the token into that: one pass where policy and value share a backbone."""
    for micro in _with_scored_tokens(trees, max_tokens):
        out = model(micro.to(model.device), temperature, value_only=logprobs is None)
        write_column(micro, column, out.values_N)
        if logprobs is not None:
            write_column(micro, logprobs, out.scores.logprobs_N)


def _with_scored_tokens(trees: Sequence[Tree], max_tokens: int) -> list[PackedBatch]:
    return [micro for micro in cut(trees, max_tokens) if micro.rows]


def write_column(micro: PackedBatch, column: str, values_N: torch.Tensor, bfloat16: bool = False) -> None:
    """Hand values at the scored positions of a packed row, [N] or [N, W], back to its segments as a float32 column, or
    one of bfloat16; zero at tokens that are not scored."""
    ends = np.flatnonzero(np.diff(micro.score_row_N.cpu().numpy())) + 1
    numbers = values_N.bfloat16().view(torch.uint16) if bfloat16 else values_N.float()
    for segment, values in zip(micro.sources, np.split(numbers.cpu().numpy(), ends), strict=True):
        segment.columns[column] = at_scored(segment, values)


def at_scored(segment: Segment, values: np.ndarray) -> np.ndarray:
    """Values at the scored tokens of a segment, as a column of all its tokens, zero elsewhere."""
    assert segment.scored is not None
    dtype = BFLOAT16 if values.dtype == BFLOAT16 else np.float32
    full = np.zeros((len(segment.token_ids), *values.shape[1:]), dtype=dtype)
    full[segment.scored] = values
    return full

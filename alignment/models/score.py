"""Scoring trees without gradients: reference and old log-probabilities, once per episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from alignment.models.policy import Policy
from alignment.packing import cut
from alignment.types import Tree


@torch.no_grad()
def add_logprobs(policy: Policy, trees: Sequence[Tree], column: str, max_tokens: int, temperature: float = 1.0) -> None:
    """Write the policy's log-probability of every scored token into `segment.columns[column]`."""
    for micro in cut(trees, max_tokens):
        if not micro.rows:  # no token of it is scored
            continue
        logprobs = policy(micro.to(policy.device), temperature=temperature).logprobs_N.float().cpu().numpy()
        splits = np.split(logprobs, np.flatnonzero(np.diff(micro.score_row_N.cpu().numpy())) + 1)
        for segment, values in zip(micro.sources, splits, strict=True):
            assert segment.scored is not None
            full = np.zeros(len(segment.token_ids), dtype=np.float32)
            full[segment.scored] = values
            segment.columns[column] = full

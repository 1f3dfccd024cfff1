"""Clipped policy-gradient losses and the pieces around them.

Shapes: N scored tokens, R rows (one per completion); row_N says which completion a token belongs to.
A surrogate gives one loss per token and the norm it is summed with: sum(loss_N * norm_N), divided by its units over
all micro-batches and ranks. Terms added per token (KL, entropy) use the same norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch


@dataclass(slots=True)
class Surrogate:
    """loss_N: one loss per token. norm_N: its factor in the sum. ratio_N: importance ratio.
    clipped_low_N, clipped_high_N: where the clip cuts the gradient off."""

    loss_N: torch.Tensor
    norm_N: torch.Tensor
    ratio_N: torch.Tensor
    clipped_low_N: torch.Tensor
    clipped_high_N: torch.Tensor

    def where(self, mask_N: torch.Tensor) -> Surrogate:
        """The tokens of the mask only."""
        return Surrogate(*(getattr(self, field.name)[mask_N] for field in fields(self)))


SurrogateLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float, float], Surrogate]


def _clipped(ratio_N, norm_N, advantages_N, clip_low: float, clip_high: float) -> Surrogate:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A): PPO (arXiv 1707.06347, eq. 7), clip-higher (arXiv 2503.14476)."""
    surrogate = torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N)
    low = (ratio_N < 1 - clip_low) & (advantages_N < 0)
    high = (ratio_N > 1 + clip_high) & (advantages_N > 0)
    return Surrogate(-surrogate, norm_N, ratio_N.detach(), low, high)


def row_sum(values_N: torch.Tensor, row_N: torch.Tensor, rows: int) -> torch.Tensor:
    """Sum of the values of each row, [R]."""
    return torch.zeros(rows, dtype=values_N.dtype, device=values_N.device).index_add(0, row_N, values_N)


def _inverse_lengths(row_N: torch.Tensor, rows: int) -> torch.Tensor:
    """1 / (tokens of the row), per token."""
    return torch.bincount(row_N, minlength=rows).clamp_min(1).reciprocal()[row_N]


def token_loss(
    logprobs_N, old_logprobs_N, advantages_N, row_N, rows: int, clip_low: float, clip_high: float
) -> Surrogate:
    """Every token counts the same. Units: tokens (DAPO, arXiv 2503.14476, eq. 8), or completions x max_tokens for
    Dr. GRPO's constant normalisation (arXiv 2503.20783)."""
    ratio_N = (logprobs_N - old_logprobs_N).exp()
    return _clipped(ratio_N, torch.ones_like(ratio_N), advantages_N, clip_low, clip_high)


def sequence_mean_loss(
    logprobs_N, old_logprobs_N, advantages_N, row_N, rows: int, clip_low: float, clip_high: float
) -> Surrogate:
    """Mean over the tokens of each completion. Units: completions (GRPO, arXiv 2402.03300, eq. 3)."""
    ratio_N = (logprobs_N - old_logprobs_N).exp()
    return _clipped(ratio_N, _inverse_lengths(row_N, rows), advantages_N, clip_low, clip_high)


def gspo_loss(
    logprobs_N, old_logprobs_N, advantages_N, row_N, rows: int, clip_low: float, clip_high: float
) -> Surrogate:
    """One ratio per completion, the geometric mean of its tokens'. Units: completions (GSPO, arXiv 2507.18071,
    eq. 5-7)."""
    inverse_N = _inverse_lengths(row_N, rows)
    mean_R = row_sum((logprobs_N - old_logprobs_N) * inverse_N, row_N, rows)
    return _clipped(mean_R.exp()[row_N], inverse_N, advantages_N, clip_low, clip_high)


def k3(logprobs_N: torch.Tensor, ref_logprobs_N: torch.Tensor) -> torch.Tensor:
    """Unbiased, non-negative estimate of KL(policy || reference) per token: exp(-d) - 1 + d, d = logprob - ref."""
    log_ratio = ref_logprobs_N - logprobs_N
    return log_ratio.exp() - 1 - log_ratio

"""Divergences between a teacher's and a student's next-token distributions, with their gradients.

Shapes: B positions, V tokens of the vocabulary, S outcomes of a distribution, K the teacher's most probable tokens.
p is the teacher's distribution, q the student's:

  forward_kl            KL(p || q) = sum p (log p - log q)
  reverse_kl            KL(q || p) = sum q (log q - log p)
  generalised_jsd(b)    b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q     (arXiv 2306.13649, eq. 1)

all in nats. `compare_full` takes the outcomes to be all tokens, `compare_top_k` the teacher's K most probable tokens
and one bucket for all others. The gradient is in closed form: automatic differentiation would keep several buffers of
logits alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLOOR = -1e4
"""A log-probability this low is that of an impossible outcome; with -inf in its place, p log p would be NaN."""


@dataclass(slots=True)
class Pair:
    """Both distributions of some positions over the same outcomes, all [B, S]; log_p and log_q in nats."""

    log_p: torch.Tensor
    log_q: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor


Divergence = Callable[[Pair], tuple[torch.Tensor, torch.Tensor]]
"""The divergence of each position, [B], and its slope d/d log q, [B, S], up to a multiple of q in each row (which the
normalisation of q takes out again)."""


def forward_kl(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p || q): the student covers whatever the teacher may say."""
    value_B = torch.linalg.vecdot(pair.p, pair.log_p - pair.log_q)
    return value_B, -pair.p


def reverse_kl(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q || p): the student says only what the teacher may say."""
    slope = (pair.log_q - pair.log_p).mul_(pair.q)
    return slope.sum(-1), slope


def generalised_jsd(beta: float) -> Divergence:
    """Between the two: with beta towards 0 its gradient is that of beta KL(p || q), towards 1 that of
    (1 - beta) KL(q || p). Raises ValueError unless 0 < beta < 1."""
    if not 0 < beta < 1:
        raise ValueError(f"beta of the generalised JSD has to be between 0 and 1, got {beta}")

    def jsd(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        mixture = (beta * pair.p).add_(pair.q, alpha=1 - beta)
        log_m = mixture.clamp_min_(torch.finfo(mixture.dtype).tiny).log_()
        slope = (pair.log_q - log_m).mul_(pair.q).mul_(1 - beta)
        kl_p = torch.linalg.vecdot(pair.p, pair.log_p - log_m)
        return beta * kl_p + slope.sum(-1), slope

    return jsd


@dataclass(slots=True)
class Compared:
    """divergence_B, entropy_B (the student's, over all tokens), teacher_entropy_B (over its outcomes): nats.
    gradient_BV: of the divergence by the student's logits."""

    divergence_B: torch.Tensor
    entropy_B: torch.Tensor
    teacher_entropy_B: torch.Tensor
    gradient_BV: torch.Tensor


def compare_full(student_logits_BV: torch.Tensor, teacher_logits_BV: torch.Tensor, divergence: Divergence) -> Compared:
    """Over all tokens. Logits after temperature."""
    log_p, log_q = teacher_logits_BV.log_softmax(-1), student_logits_BV.log_softmax(-1)
    pair = Pair(log_p, log_q, log_p.exp(), log_q.exp())
    value_B, slope = divergence(pair)
    entropy_B = -torch.linalg.vecdot(pair.q, log_q)
    teacher_entropy_B = -torch.linalg.vecdot(pair.p, log_p)
    # d log q_i / d logit_j = [i = j] - q_j
    gradient = slope.addcmul_(pair.q, slope.sum(-1, keepdim=True), value=-1)
    return Compared(value_B, entropy_B, teacher_entropy_B, gradient)


def compare_top_k(
    student_logits_BV: torch.Tensor, ids_BK: torch.Tensor, log_p_BK1: torch.Tensor, divergence: Divergence
) -> Compared:
    """Over the K tokens `ids` (different ones, int64) and one bucket for all others; log_p: the teacher's
    log-probabilities of these K + 1 outcomes. A token that is impossible (FLOOR) is put into the bucket, whatever its
    id, so that places may be left empty. Logits after temperature."""
    absent_BK = log_p_BK1[:, :-1] < FLOOR / 2
    ids_BK = torch.where(absent_BK, ids_BK[:, :1], ids_BK)
    top_BK = student_logits_BV.gather(1, ids_BK).masked_fill(absent_BK, float("-inf"))
    rest_BV = student_logits_BV.scatter(1, ids_BK, float("-inf"))
    rest_lse_B1 = rest_BV.logsumexp(-1, keepdim=True)
    log_q = torch.cat([top_BK, rest_lse_B1], -1).log_softmax(-1).clamp_min(FLOOR)
    log_p = log_p_BK1.float().clamp_min(FLOOR)
    pair = Pair(log_p, log_q, log_p.exp(), log_q.exp())
    value_B, slope = divergence(pair)
    # the distribution within the bucket; -inf where there is no other token
    log_r_BV = rest_BV.sub_(rest_lse_B1.masked_fill(rest_lse_B1.isneginf(), 0.0)).clamp_min_(FLOOR)
    r_BV = log_r_BV.exp()
    entropy_B = -torch.linalg.vecdot(pair.q, log_q) - pair.q[:, -1] * torch.linalg.vecdot(r_BV, log_r_BV)
    teacher_entropy_B = -torch.linalg.vecdot(pair.p, log_p)
    outcome_gradient = slope - pair.q * slope.sum(-1, keepdim=True)
    # d log(sum of the bucket) / d logit_j = r_j, which is 0 at the tokens that are no part of it
    gradient = r_BV.mul_(outcome_gradient[:, -1:]).scatter_add_(1, ids_BK, outcome_gradient[:, :-1])
    return Compared(value_B, entropy_B, teacher_entropy_B, gradient)


def top_k_of(logits_BV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most probable tokens, [B, k], and the log-probabilities of these and of all others together, [B, k + 1].
    The logits are overwritten."""
    top_BK, ids_BK = logits_BV.topk(k)
    rest_B1 = logits_BV.scatter_(1, ids_BK, float("-inf")).logsumexp(-1, keepdim=True)
    return ids_BK, torch.cat([top_BK, rest_B1], -1).log_softmax(-1).clamp_min(FLOOR)


def with_rest(log_p_BK: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of K tokens, [B, K], with that of all others together behind them, [B, K + 1], normalised:
    rounded ones can add up to a little more than 1."""
    rest_B1 = 1 - log_p_BK.double().exp().sum(-1, keepdim=True)
    log_rest_B1 = rest_B1.clamp_min(math.exp(-80)).log()
    return torch.cat([log_p_BK.double(), log_rest_B1], -1).log_softmax(-1).clamp_min(FLOOR).float()

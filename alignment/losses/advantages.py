"""Advantages from rewards.

Shapes: P prompts, G samples per prompt (NaN marks a sample without a reward); R rows, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TINY = 1e-6
"""A group whose standard deviation is at most this fraction of its largest reward counts as all equal."""


def group_advantages(rewards_PG: np.ndarray, divide_by_std: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(reward - group mean) [/ group standard deviation], and which groups carry no signal.

    Unscored samples (NaN) are left out of mean and deviation and get advantage 0. The deviation is the sample
    deviation (n - 1). A group that is all equal, or has fewer than two scored samples, gets 0 exactly, never
    rounding noise over a small number. arXiv 2402.03300, section 4.1.2; without the division arXiv 2503.20783.
    Returns advantages [P, G] and flat [P] (True where the group has no signal).
    """
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    scored = ~np.isnan(rewards)
    count = scored.sum(1, keepdims=True)
    values = np.where(scored, rewards, 0.0)
    mean = values.sum(1, keepdims=True) / np.maximum(count, 1)
    centred = np.where(scored, rewards - mean, 0.0)
    std = np.sqrt((centred**2).sum(1, keepdims=True) / np.maximum(count - 1, 1))
    flat = (std <= TINY * np.abs(values).max(1, keepdims=True, initial=0.0)) | (count < 2)
    scale = np.where(flat, 1.0, std) if divide_by_std else 1.0
    return np.where(flat, 0.0, centred / scale), flat[:, 0]


def gae(
    rewards: Sequence[np.ndarray], values: Sequence[np.ndarray], gamma: float = 1.0, lam: float = 0.95
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Generalised advantage estimates and the returns (advantage + value), row by row.

    delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma lambda A_(t+1); behind the last token everything is 0
    (arXiv 1506.02438, eq. 11-16). rewards, values: one array per row, of equal lengths.
    """
    lengths = np.array([len(r) for r in rewards], dtype=int)
    shape = len(lengths), int(lengths.max(initial=0)) + 1
    inside_RL = np.arange(shape[1]) < lengths[:, None]
    rewards_RL, values_RL, advantages_RL = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    if len(lengths):
        rewards_RL[inside_RL], values_RL[inside_RL] = np.concatenate(rewards), np.concatenate(values)
    delta_RL = rewards_RL[:, :-1] + gamma * values_RL[:, 1:] - values_RL[:, :-1]
    for t in range(shape[1] - 2, -1, -1):
        advantages_RL[:, t] = inside_RL[:, t] * (delta_RL[:, t] + gamma * lam * advantages_RL[:, t + 1])
    advantages = [row[:n] for row, n in zip(advantages_RL, lengths, strict=True)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]

"""Advantages from rewards. Shapes: P prompts, G samples per prompt; NaN marks a sample without a reward."""

from __future__ import annotations

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

"""The value function's loss. Shapes: N scored tokens."""

from __future__ import annotations

import torch


def clipped_value_loss(
    values_N: torch.Tensor, old_values_N: torch.Tensor, returns_N: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """1/2 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) per token, and where the clip cuts the gradient off.

    The clip of PPO's reference implementation; Qwen1 (arXiv 2309.16609, section 3.2.2) uses 0.15. clip = 0: no clip.
    Units: tokens. Returns loss_N and clipped_N (bool).
    """
    error_N = (values_N - returns_N).square()
    if not clip:
        return 0.5 * error_N, torch.zeros_like(error_N, dtype=torch.bool)
    near_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    clipped_error_N = (near_N - returns_N).square()
    outside_N = (values_N - old_values_N).abs() > clip
    return 0.5 * torch.maximum(error_N, clipped_error_N), outside_N & (clipped_error_N > error_N)

"""Which entries of an update a merge keeps, and how two kept updates become one (arXiv 2405.17931).

Shapes: n entries of a flattened tensor, k of them kept. Places are int64 [k]; None stands for all entries.
"""

from __future__ import annotations

import math

import torch


def random_entries(n: int, keep: float, generator: torch.Generator) -> torch.Tensor | None:
    """Ascending places of a Bernoulli(keep) mask, on the generator's device.

    The gaps between kept entries are geometric, so only about n * keep numbers are drawn.
    """
    if keep == 1:
        return None
    draws = int(n * keep + 6 * math.sqrt(n * keep) + 8)
    places, last = [], -1.0
    while last < n - 1:  # six standard deviations to spare: once is nearly always enough
        gaps = torch.empty(draws, dtype=torch.float64, device=generator.device).geometric_(keep, generator=generator)
        places.append(gaps.cumsum_(0).add_(last))
        last = float(places[-1][-1])
    drawn = torch.cat(places) if len(places) > 1 else places[0]
    return drawn[drawn < n].long()


def largest_entries(values: torch.Tensor, keep: float) -> torch.Tensor | None:
    """Places of the ceil(keep * n) entries largest in magnitude; which of several equal ones is not specified."""
    count = math.ceil(keep * values.numel())
    return None if count == values.numel() else values.abs().topk(count, sorted=False).indices


def elect(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b where the signs agree (or one is 0), else whichever is larger in magnitude; a if they are equal."""
    return torch.where(a.sign() * b.sign() >= 0, a + b, torch.where(a.abs() >= b.abs(), a, b))


def adam_update(
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    places: torch.Tensor | None,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.Tensor:
    """-lr * m_hat / (sqrt(v_hat) + eps) at the places, float32, from the moments after `step` updates."""
    denominator = take(exp_avg_sq, places).sqrt().div_(math.sqrt(1 - betas[1] ** step)).add_(eps)
    return torch.div(take(exp_avg, places), denominator, out=denominator).mul_(-lr / (1 - betas[0] ** step))


def take(tensor: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """The entries at the places, float32. With None possibly the tensor itself, so not to be written to."""
    return (tensor if places is None else tensor.index_select(0, places)).float()


def add_at(tensor: torch.Tensor, places: torch.Tensor | None, values: torch.Tensor) -> None:
    """tensor[places] += values (float32), in place, rounded once to the tensor's type."""
    if places is None:
        tensor.add_(values)
    elif tensor.dtype == torch.float32:
        tensor.index_add_(0, places, values)
    else:
        tensor.index_copy_(0, places, take(tensor, places).add_(values).to(tensor.dtype))

"""Merging the update of one flattened tensor with its task vector (arXiv 2405.17931): OnDARE, OnTIES, all entries.

n entries, k of them kept; places are int64 [k], values float32 [k]. Work on all entries goes chunk by chunk:
temporaries stay small, on a processor in its cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

SAMPLE = 1 << 14
CPU_CHUNK, DEVICE_CHUNK = 1 << 18, 1 << 24
DELTA, TAU = 0, 1  # the two terms of a merge; OnDARE draws a mask for each

Where = torch.Tensor | slice


@dataclass(slots=True)
class Update:
    """Weights theta [n] and what their update follows from: Adam's moments after `step` updates and, within a cycle of
    step-K, the weights `anchor` that the cycle began with. Weight decay has been applied to both."""

    theta: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    anchor: torch.Tensor | None
    step: int
    lr: float
    betas: tuple[float, float]
    eps: float

    def at(self, where: Where) -> torch.Tensor:
        """Delta_c + Delta: theta - anchor, and Adam's -lr * m_hat / (sqrt(v_hat) + eps)."""
        root = math.sqrt(1 - self.betas[1] ** self.step)
        denominator = take(self.exp_avg_sq, where).sqrt().div_(root).add_(self.eps)
        size = -self.lr / (1 - self.betas[0] ** self.step)
        update = torch.div(take(self.exp_avg, where), denominator, out=denominator).mul_(size)
        if self.anchor is not None:
            update.add_(take(self.theta, where)).sub_(take(self.anchor, where))
        return update

    def undo(self) -> None:
        """Take Delta_c back."""
        if self.anchor is not None:
            self.theta.copy_(self.anchor)


def merge_whole(update: Update, tau: torch.Tensor | None, alpha: float, by_sign: bool) -> None:
    """Everything is kept (p = 1). tau: [n] on any device. by_sign: OnTIES."""
    for where in chunks(update.theta):
        theta = update.theta[where]
        step = update.at(where).mul_(1 - alpha)
        if update.anchor is not None:
            theta.copy_(update.anchor[where])
        if tau is not None:
            pull = tau[where].to(theta.device).float() * alpha
            step = elect(step, pull) if by_sign else step.add_(pull)
        theta.add_(step)


def merge_random(
    update: Update, tau: torch.Tensor | None, alpha: float, scale: float, draw: Callable[[int], torch.Tensor]
) -> None:
    """OnDARE: theta + (1 - alpha) F(Delta) + alpha F(tau), F(x) = scale * x at places drawn for the term, else 0.

    tau: [n] on any device. draw(term): places on theta's device."""
    theta, places = update.theta, draw(DELTA)
    step = update.at(places).mul_((1 - alpha) * scale)
    update.undo()
    add_at(theta, places, step)
    if tau is not None:
        places = draw(TAU)
        pull = take(tau, places.to(tau.device)).to(theta.device)
        add_at(theta, places, pull.mul_(alpha * scale))


def merge_largest(update: Update, tau: tuple[torch.Tensor, torch.Tensor] | None, alpha: float, keep: float) -> None:
    """OnTIES: theta + elect((1 - alpha) F(Delta), alpha F(tau)), F keeps the entries largest in magnitude.

    tau: places and values of F(tau), on any device."""
    theta = update.theta
    places, step = largest_entries(update.at, theta, keep)
    step.mul_(1 - alpha)
    update.undo()
    if tau is not None:
        tau_places, pull = tau[0].to(theta.device), tau[1].to(theta.device).float() * alpha
        spot = torch.searchsorted(places, tau_places).clamp_(max=places.numel() - 1)
        shared = places[spot] == tau_places
        spot = spot[shared]
        against = torch.zeros_like(pull)
        against[shared] = step[spot]
        step[spot] = 0.0  # its share stands in what is elected
        add_at(theta, tau_places, elect(against, pull))
    add_at(theta, places, step)


def elect(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b where the signs agree (or one is 0), else whichever is larger in magnitude; a if they are equal."""
    return torch.where(a.sign() * b.sign() >= 0, a + b, torch.where(a.abs() >= b.abs(), a, b))


def random_entries(n: int, keep: float, generator: torch.Generator) -> torch.Tensor:
    """Ascending places of a Bernoulli(keep) mask (keep < 1), on the generator's device.

    The gaps between kept entries are geometric, so only about n * keep numbers are drawn.
    """
    draws = int(n * keep + 6 * math.sqrt(n * keep) + 8)
    places, last = [], -1.0
    while last < n - 1:  # six standard deviations to spare: once is nearly always enough
        gaps = torch.empty(draws, dtype=torch.float64, device=generator.device).geometric_(keep, generator=generator)
        places.append(gaps.cumsum_(0).add_(last))
        last = float(places[-1][-1])
    drawn = torch.cat(places) if len(places) > 1 else places[0]
    return drawn[: int(torch.searchsorted(drawn, float(n)))].long()


def largest_entries(
    values_at: Callable[[slice], torch.Tensor], like: torch.Tensor, keep: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending places of the ceil(keep * n) entries largest in magnitude, and their values; which of several equal
    ones is not specified. values_at gives the values at a slice of the n entries of `like`.

    A threshold from a sample, low enough that more entries reach it than are asked for, leaves few to be ranked.
    """
    n = like.numel()
    count, stride = math.ceil(keep * n), max(1, n // SAMPLE)
    sample, rank = values_at(slice(None, None, stride)).abs(), int(2 * count / stride) + 8
    threshold = float(sample.topk(rank).values[-1]) if rank < sample.numel() else 0.0
    places, values = _at_least(threshold, values_at, like)
    if places.numel() < count:  # the sample was not like the whole
        places, values = _at_least(0.0, values_at, like)
    kept = torch.zeros_like(places, dtype=torch.bool)
    kept[values.abs().topk(count, sorted=False).indices] = True  # as a mask, they stay in their order
    return places[kept], values[kept]


def _at_least(
    threshold: float, values_at: Callable[[slice], torch.Tensor], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    places, values = [], []
    for where in chunks(like):
        chunk = values_at(where)
        here = (chunk.abs() >= threshold).nonzero().squeeze(1)
        values.append(chunk[here])
        places.append(here.add_(where.start))
    return torch.cat(places), torch.cat(values)


def chunks(tensor: torch.Tensor) -> Iterator[slice]:
    size = CPU_CHUNK if tensor.device.type == "cpu" else DEVICE_CHUNK
    return (slice(start, start + size) for start in range(0, tensor.numel(), size))


def take(tensor: torch.Tensor, where: Where) -> torch.Tensor:
    """The entries there, float32. Of a slice possibly a view, so not to be written to."""
    return (tensor[where] if isinstance(where, slice) else tensor.index_select(0, where)).float()


def add_at(tensor: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """tensor[places] += values, in place; no place occurs twice."""
    if tensor.dtype == torch.float32:
        tensor.index_add_(0, places, values)
    else:
        tensor.index_copy_(0, places, take(tensor, places).add_(values).to(tensor.dtype))

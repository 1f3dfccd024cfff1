"""Pieces of PPO with a state or a reduction of their own: running rewards, KL steering, whitening, pretraining text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from alignment.data.epochs import trees_fingerprint
from alignment.distributed import all_sum, rank, world_size
from alignment.types import Tree


class RunningMoments:
    """Mean and deviation of all rewards seen so far, over all ranks."""

    def __init__(self):
        self.count = self.total = self.squares = 0.0

    def update(self, values: Sequence[float], device: torch.device) -> None:
        array = np.asarray(values, dtype=np.float64)
        count, total, squares = all_sum([len(array), float(array.sum()), float((array**2).sum())], device)
        self.count, self.total, self.squares = self.count + count, self.total + total, self.squares + squares

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2)) if self.count else 1.0

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "total": self.total, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.total, self.squares = state["count"], state["total"], state["squares"]


class AdaptiveKl:
    """The coefficient of the KL penalty, fixed or steered to a target (arXiv 1909.08593, section 2.2)."""

    def __init__(self, coefficient: float, target: float, horizon: int):
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, completions: int) -> None:
        """kl: nats per completion."""
        if self.target:
            error = min(0.2, max(-0.2, kl / self.target - 1))
            self.coefficient *= 1 + error * completions / self.horizon


def whiten(rows: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
    """(x - mean) / deviation over the values of all rows and ranks; the mean is not added back."""
    flat = np.concatenate(rows) if rows else np.zeros(0)
    count, total = all_sum([len(flat), float(flat.sum())], device)
    mean = total / max(1.0, count)
    (squares,) = all_sum([float(((flat - mean) ** 2).sum())], device)
    std = math.sqrt(squares / max(1.0, count - 1))
    return [(row - mean) / (std + 1e-8) for row in rows]


def explained_variance(values: Sequence[np.ndarray], returns: Sequence[np.ndarray], device: torch.device) -> float:
    """1 - Var(return - value) / Var(return), over the tokens of all ranks; 0 when the returns do not vary."""
    sums = np.zeros(5)
    for v, r in zip(values, returns, strict=True):
        error = r - v
        sums += [len(r), r.sum(), (r**2).sum(), error.sum(), (error**2).sum()]
    count, total, squares, error_total, error_squares = all_sum(sums.tolist(), device)
    if not count:
        return 0.0
    variance = squares / count - (total / count) ** 2
    return 1 - (error_squares / count - (error_total / count) ** 2) / variance if variance > 1e-12 else 0.0


class Pretraining:
    """Pretraining text for the ptx term (arXiv 2203.02155, eq. 2): `ratio` tokens of it per completion token."""

    def __init__(self, trees: Sequence[Tree], ratio: float, seed: int):
        self.trees, self.ratio, self.seed = list(trees), ratio, seed
        self.fingerprint = trees_fingerprint(self.trees)

    def take(
        self, place: int, units: float, coefficient: float, columns: Iterable[str], device: torch.device
    ) -> list[Tree]:
        """This rank's texts for update number `place`. Their column `ptx_weight` makes the sum over all ranks, divided
        by `units` (completion tokens), coefficient x (their own mean loss). Other columns are 0."""
        order = np.random.default_rng([self.seed, 1, place]).permutation(len(self.trees))
        chosen: list[Tree] = []
        while sum(t.scored_tokens for t in chosen) < self.ratio * units and len(chosen) < len(self.trees):
            chosen.append(self.trees[order[len(chosen)]])
        weight = coefficient * units / max(1, sum(t.scored_tokens for t in chosen))
        return [_with_columns(tree, weight, columns) for tree in chosen[rank() :: world_size()]]


def _with_columns(tree: Tree, weight: float, columns: Iterable[str]) -> Tree:
    segments: list[Any] = []
    for segment in tree.segments:
        length = len(segment.token_ids)
        values = {name: np.zeros(length, dtype=np.float32) for name in columns}
        segments.append(type(segment)(segment.token_ids, segment.parent, segment.scored, values, None))
        values["ptx_weight"] = np.full(length, weight, dtype=np.float32)
    return Tree(segments, tree.atomic)

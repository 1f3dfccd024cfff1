"""Sums, maxima and lists over ranks. With one process every function returns its input."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from alignment.errors import EngineLost

LONGEST_WAIT = timedelta(hours=6)
"""For the slowest rank. NCCL's own limit of ten minutes is less than a long rollout takes, a large model's save, or the
wait for a server that is lost."""


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def _reduce(values: list[float], operation, device) -> list[float]:
    if not is_distributed():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


def all_sum(values: list[float], device: torch.device) -> list[float]:
    """Sum of each value over the ranks, in float64."""
    return _reduce(values, dist.ReduceOp.SUM if is_distributed() else None, device)


def all_max(values: list[float], device: torch.device) -> list[float]:
    """Maximum of each value over the ranks."""
    return _reduce(values, dist.ReduceOp.MAX if is_distributed() else None, device)


def gather_objects(items: list[Any]) -> list[Any]:
    """The lists of all ranks, one after the other in the order of the ranks."""
    if not is_distributed():
        return items
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def barrier() -> None:
    if is_distributed():
        dist.barrier()


FAILED = "alignment/failed"
"""Where a rank that fails leaves its message, in the store that the ranks met through."""


def tell_failure(message: str) -> None:
    """Let the other ranks know why their collectives will break off."""
    with contextlib.suppress(RuntimeError):  # the store may be gone already
        if is_distributed() and not _failures():
            _store().set(FAILED, f"rank {dist.get_rank()}: {message}")


def failure_elsewhere(wait_s: float = 5.0) -> str | None:
    """What another rank failed with, if one did; called when a collective broke off. Nothing for the rank itself."""
    if not is_distributed():
        return None
    with contextlib.suppress(RuntimeError):
        end = time.monotonic() + wait_s  # the message and the broken connection race each other
        while not (found := _failures()) and time.monotonic() < end:
            time.sleep(0.1)
        return found if found and not found.startswith(f"rank {dist.get_rank()}:") else None
    return "another rank is gone, and its message with it"


def _failures() -> str:
    store = _store()
    return store.get(FAILED).decode() if store.check([FAILED]) else ""


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def together(action: Callable[[], Any]) -> None:
    """Run something on every rank. An EngineLost on any of them is raised on all, so that they stop in one place."""
    try:
        action()
        lost: list[str] = []
    except EngineLost as error:
        lost = [str(error)]
    if everywhere := gather_objects(lost):
        raise EngineLost(everywhere[0])


class MetricSums:
    """Metrics of one step over micro-batches and ranks.

    `add` takes a dictionary of (sum, count) pairs, reduced to sum/count; of (sum, None), reduced to the sum; and of
    single values, reduced by maximum. Tensors stay on their device until `reduce`.
    """

    def __init__(self):
        self._sums: dict[str, tuple[Any, Any]] = {}
        self._totals: dict[str, Any] = {}
        self._maxima: dict[str, Any] = {}

    def add(self, stats: dict[str, Any]) -> None:
        for name, value in stats.items():
            if not isinstance(value, tuple):
                old = self._maxima.get(name)
                self._maxima[name] = value if old is None else max(float(old), float(value))
            elif value[1] is None:
                self._totals[name] = self._totals.get(name, 0.0) + value[0]
            else:
                total, count = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (total + value[0], count + value[1])

    def reduce(self, device: torch.device) -> dict[str, float]:
        """Means, totals and maxima over all ranks; every rank gets them. A rank without a metric adds nothing."""
        names = sorted(set(gather_objects(sorted(self._sums))))
        totals = sorted(set(gather_objects(sorted(self._totals))))
        maxima = sorted(set(gather_objects(sorted(self._maxima))))
        pairs = [self._sums.get(name, (0.0, 0.0)) for name in names]
        sums = all_sum([float(x) for pair in pairs for x in pair], device)
        whole = all_sum([float(self._totals.get(name, 0.0)) for name in totals], device)
        tops = all_max([float(self._maxima.get(name, float("-inf"))) for name in maxima], device)
        means = {name: sums[2 * i] / sums[2 * i + 1] for i, name in enumerate(names) if sums[2 * i + 1]}
        return {**means, **dict(zip(totals, whole, strict=True)), **dict(zip(maxima, tops, strict=True))}

"""What the trainer asks of the way in which a model is spread over processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from alignment.distributed import all_sum
from alignment.errors import UserError


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers that this rank holds, counted in its memory: of the parameters, and of those that its optimizer updates,
    each beside the model's."""

    parameters: int
    all_parameters: int
    updated: int
    all_updated: int

    def __str__(self) -> str:
        parts = []
        for held, total, what in (
            (self.parameters, self.all_parameters, "parameters"),
            (self.updated, self.all_updated, "optimizer state"),
        ):
            parts.append(f"{held / max(1, total):.1%} of the {what}")
        return "each rank holds " + ", ".join(parts)


class Sharding(Protocol):
    """model: what is called with micro-batches. module: the same without wrappers. optimizer: has the groups whose
    learning rates are set before each step."""

    model: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Around the passes of a micro-batch."""
        ...

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradient of the mean of all ranks' losses."""
        ...

    def clip(self, max_norm: float) -> dict[str, torch.Tensor]:
        """Norms of the gradient of each part before clipping; each is clipped by itself."""
        ...

    def step(self) -> None:
        """Update the weights and forget the gradient."""
        ...

    def whole(self, for_saving: bool = False) -> AbstractContextManager[Any]:
        """Within it the model that the trainer was given has all its weights, on every rank; `for_saving` on rank 0
        alone, in the CPU's memory. Called on all ranks."""
        ...

    def shares(self) -> Shares: ...

    def save_optimizer(self, folder: Path) -> None:
        """Called on all ranks."""
        ...

    def load_optimizer(self, folder: Path) -> str:
        """Called on all ranks. Returns what could not be taken over, as a message, or nothing."""
        ...


def clip_sets(parts: Mapping[str, Any]) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each part, whose gradients are clipped together; a shared one counts once."""
    seen: set[int] = set()
    sets: dict[str, list[nn.Parameter]] = {}
    for name, part in parts.items():
        sets[name] = [p for p in part.parameters() if p.requires_grad and id(p) not in seen]
        seen |= {id(p) for p in sets[name]}
    return sets


def load_state(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Take over a saved state; the settings are this run's. Raises UserError when its groups are others."""
    own = [{name: group[name] for name in ("weight_decay", "betas", "eps")} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(content)
    except ValueError as error:
        raise UserError(
            f"the optimizer's state in the checkpoint is of other groups of parameters ({error}): set weight_decay to "
            "0, or above 0, as it was, and train the same parameters; or start a new run with another output_dir"
        ) from error
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def norm_over_ranks(local: Iterable[torch.Tensor], device: torch.device) -> float:
    """Of a gradient whose pieces are spread over the ranks."""
    return math.sqrt(all_sum([square_sum(local)], device)[0])


def square_sum(tensors: Iterable[torch.Tensor]) -> float:
    squares = [torch.linalg.vector_norm(t, dtype=torch.float32).double() ** 2 for t in tensors if t.numel()]
    return float(torch.stack(squares).sum()) if squares else 0.0


def clip_factor(norm: float, max_norm: float) -> float:
    """As torch.nn.utils.clip_grad_norm_ has it."""
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0

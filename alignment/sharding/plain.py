"""The whole model on every process: one process, or DDP, by accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from alignment.distributed import rank
from alignment.sharding.base import Shares, clip_sets, load_state

FILE = "optimizer.pt"


class Plain:
    """See Sharding."""

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer):
        self.accelerator, self.module = accelerator, module
        self.model, self.optimizer = accelerator.prepare(module, optimizer)
        self.sets = clip_sets(module.parts)  # type: ignore[arg-type]

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        self.accelerator.sync_gradients = last
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.accelerator.backward(loss)

    def clip(self, max_norm: float) -> dict[str, torch.Tensor]:
        limit = max_norm or float("inf")
        return {name: self.accelerator.clip_grad_norm_(ps, limit) for name, ps in self.sets.items()}

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def whole(self, for_saving: bool = False) -> AbstractContextManager[Any]:
        return nullcontext()

    def shares(self) -> Shares:
        held = sum(p.numel() for p in self.module.parameters())
        updated = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
        return Shares(held, held, updated, updated)

    def save_optimizer(self, folder: Path) -> None:
        if rank() == 0:
            torch.save(self.optimizer.state_dict(), folder / FILE)

    def load_optimizer(self, folder: Path) -> str:
        if not (folder / FILE).is_file():
            return "its optimizer state was sharded by DeepSpeed: the moments start anew"
        load_state(self.optimizer, torch.load(folder / FILE, map_location="cpu", weights_only=True))
        return ""

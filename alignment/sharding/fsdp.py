"""FSDP2: torch's `fully_shard`, applied here and not by accelerate, which runs DDP in its place on CPUs.

Every decoder layer is a unit, and what is around them (embeddings, heads) another; the gradient of each micro-batch is
reduced and scattered at once, so no rank ever holds all of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from alignment.distributed import rank
from alignment.errors import UserError
from alignment.models.trunk import base_of
from alignment.sharding.base import Shares, clip_factor, clip_sets, load_state, norm_over_ranks
from alignment.sharding.plain import FILE
from alignment.sharding.twin import split_off_twin, whole


class Fsdp2:
    """See Sharding. Raises UserError for quantised weights."""

    def __init__(self, accelerator: Accelerator, policy: nn.Module, optimizer: torch.optim.Optimizer, bf16: bool):
        self.accelerator, self.policy, self.optimizer, self.device = accelerator, policy, optimizer, accelerator.device
        refuse_quantised(policy, "FSDP2")
        names = {id(p): name for name, p in policy.named_parameters(remove_duplicate=False)}
        self.module = self.model = split_off_twin(policy)
        policy.to(self.device)  # the empty weights say where the model computes
        # gathered in bfloat16 where products are taken in it; gradients are reduced in float32, inputs are autocast's
        kinds = MixedPrecisionPolicy(cast_forward_inputs=False)
        if bf16:
            kinds = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(self.device.type, (accelerator.num_processes,))
        for layer in decoder_layers(self.module):
            fully_shard(layer, mesh=mesh, mp_policy=kinds)
        fully_shard(self.module, mesh=mesh, mp_policy=kinds)
        self.module.to(self.device)  # buffers; parameters are where the mesh is
        sharded = dict(self.module.named_parameters(remove_duplicate=False))
        for group in optimizer.param_groups:
            group["params"] = [sharded[names[id(p)]] for p in group["params"]]
        self.sets = clip_sets(self.module.parts)  # type: ignore[arg-type]

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()

    def clip(self, max_norm: float) -> dict[str, torch.Tensor]:
        norms = {}
        for name, parameters in self.sets.items():
            gradients = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
            norm = norm_over_ranks(gradients, self.device)
            factor = clip_factor(norm, max_norm)
            if gradients and factor < 1:
                torch._foreach_mul_(gradients, factor)
            norms[name] = torch.tensor(norm)
        return norms

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def whole(self, for_saving: bool = False) -> AbstractContextManager[Any]:
        device = torch.device("cpu") if for_saving else self.device
        return whole(self.policy, self.module, _gather, device, keep=not for_saving or rank() == 0)

    def shares(self) -> Shares:
        parameters = list(self.module.parameters())
        updated = [p for group in self.optimizer.param_groups for p in group["params"]]
        return Shares(_held(parameters), _total(parameters), _held(updated), _total(updated))

    def save_optimizer(self, folder: Path) -> None:
        """The same file as one process writes."""
        content = self.optimizer.state_dict()
        full: dict[Any, dict[str, Any]] = {}
        for i, state in content["state"].items():
            full[i] = {}
            for name, value in state.items():
                found = _gather(value) if isinstance(value, torch.Tensor) else value
                if rank() == 0:  # the others let it go at once
                    full[i][name] = found.cpu() if isinstance(found, torch.Tensor) else found
        if rank() == 0:
            torch.save({**content, "state": full}, folder / FILE)

    def load_optimizer(self, folder: Path) -> str:
        if not (folder / FILE).is_file():
            return "its optimizer state was sharded by DeepSpeed: the moments start anew"
        content = torch.load(folder / FILE, map_location="cpu", weights_only=True, mmap=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, state in content["state"].items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameters[i].shape and value.dim():
                    state[name] = _cut(value, parameters[i])
        load_state(self.optimizer, content)
        return ""


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The modules that transformers keeps in one piece, of all parts, each once."""
    found: dict[int, nn.Module] = {}
    for part in module.parts.values():  # type: ignore[union-attr, operator]
        base = base_of(part)
        names = set(base._no_split_modules or ())
        found |= {id(m): m for m in base.modules() if type(m).__name__ in names}
    return list(found.values())


def refuse_quantised(module: nn.Module, name: str) -> None:
    for part in module.parts.values():  # type: ignore[union-attr, operator]
        if getattr(base_of(part), "is_quantized", False):
            raise UserError(
                f"launch: {name} would cut quantised weights (load_in_4bit, load_in_8bit) into pieces that mean "
                "nothing by themselves; they are small, so use accelerate_configs/ddp.yaml or zero2.yaml"
            )


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _cut(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part, as `like` is cut."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _held(tensors: list[Any]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def _total(tensors: list[Any]) -> int:
    return sum(t.numel() for t in tensors)

"""A model in two: one that is sharded and trained, and one that is whole while others read it.

Sharded modules gather their parameters in hooks around `forward`, and every rank has to take part. Sampling, scoring
and evaluating take different numbers of passes on each rank, and go through parts of the model. So they use the first
object, ordinary modules without hooks, whose weights are gathered beforehand by all ranks at the same place and let go
afterwards; the twin that is trained has the same structure and owns the parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def split_off_twin(model: nn.Module) -> nn.Module:
    """The twin: modules of its own with the parameters, buffers and settings of `model`, which is left with empty
    parameters. What is shared within the model (tied weights, a backbone) is shared within each of the two."""
    twin = _copy(model, {})
    empty = {id(p): nn.Parameter(_nothing(p), requires_grad=p.requires_grad) for p in model.parameters()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = empty[id(parameter)]
    return twin


def _copy(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """The same object again with containers of its own: neither hooks nor parameters that one of the two gets show up
    in the other; plain settings (a config, a flag object) are the same."""
    if id(module) in seen:
        return seen[id(module)]
    other = seen[id(module)] = copy.copy(module)
    for name, value in module.__dict__.items():
        if isinstance(value, (dict, set, list)):
            other.__dict__[name] = copy.copy(value)
    other._modules = {name: None if m is None else _copy(m, seen) for name, m in module._modules.items()}
    return other


def _nothing(like: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    return torch.empty(0, dtype=like.dtype, device=device or like.device)


@contextmanager
def whole(
    model: nn.Module,
    twin: nn.Module,
    gather: Callable[[nn.Parameter], torch.Tensor],
    device: torch.device,
    keep: bool = True,
) -> Iterator[None]:
    """Within the block `model` has all weights of its twin, on `device`. gather(parameter) is called by all ranks, one
    parameter after the other, and returns a tensor of its own; with keep=False this rank drops what it gets."""
    names = dict(model.named_parameters())
    source = dict(twin.named_parameters())
    home = {name: p.device for name, p in names.items()}
    try:
        with torch.no_grad():
            for name, parameter in names.items():
                found = gather(source[name])
                if keep:
                    parameter.data = found.to(device)
        for module, other in zip(model.modules(), twin.modules(), strict=True):
            module.training = other.training
            for name, buffer in module._buffers.items():
                if buffer is not None and keep:
                    module._buffers[name] = buffer.to(device)
        yield
    finally:
        for name, parameter in names.items():
            parameter.data = _nothing(parameter, home[name])

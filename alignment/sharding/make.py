"""The sharding that a launch asks for, with the proof that it happened."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from alignment.errors import UserError
from alignment.sharding.base import Sharding
from alignment.sharding.fsdp import Fsdp2
from alignment.sharding.launch import Launch
from alignment.sharding.plain import Plain

SLACK = 0.1
"""How much more than its share of the numbers a rank may hold: small tensors that stay whole, padding."""


def make_sharding(
    launch: Launch, accelerator: Accelerator, policy: nn.Module, optimizer: torch.optim.Optimizer, bf16: bool
) -> Sharding:
    """Spread `policy` over the ranks. Raises UserError when what should be sharded is not, counted in this process's
    memory."""
    if launch.kind == "plain":
        return Plain(accelerator, policy, optimizer)
    if launch.kind == "fsdp2":
        sharding: Sharding = Fsdp2(accelerator, policy, optimizer, bf16)
        whole_parameters = False
    else:
        from alignment.sharding.zero import Zero

        assert launch.deepspeed is not None
        sharding = Zero(accelerator, policy, optimizer, launch.deepspeed)
        whole_parameters = sharding.stage < 3
    shares, world = sharding.shares(), accelerator.num_processes
    limit = 1 / world + SLACK
    held = shares.updated / max(1, shares.all_updated), shares.parameters / max(1, shares.all_parameters)
    if world > 1 and (held[0] > limit or (held[1] > limit and not whole_parameters)):
        raise UserError(
            f"launch: {launch.name} over {world} processes was asked for, but {shares}. The model may be too small to "
            "cut (ZeRO-3: stage3_param_persistence_threshold), or the configuration leaves it whole: use "
            "accelerate_configs/ddp.yaml"
        )
    return sharding

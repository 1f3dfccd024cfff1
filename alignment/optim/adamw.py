"""AdamW over the trainable parameters, with weight decay on matrices and a peak learning rate per child module."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from alignment.config import TrainConfig
from alignment.distributed import rank
from alignment.errors import UserError
from alignment.sharding.launch import read_launch

logger = logging.getLogger(__name__)


def make_optimizer(
    model: nn.Module, config: TrainConfig, learning_rates: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices only. `learning_rates` gives the peak for the
    parameters below a child module (`{"value": 5e-6}`), where it is not config.learning_rate."""
    betas = (config.adam_beta1, config.adam_beta2)
    groups = parameter_groups(model, config, learning_rates or {})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_eps, fused=True)


def parameter_groups(model: nn.Module, config: TrainConfig, learning_rates: Mapping[str, float]) -> list[dict]:
    """Groups of one peak learning rate (`peak`) and weight decay each. Rank 0 logs a warning when whole weights in half
    precision are to be trained without a float32 copy."""
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = learning_rates.get(name.partition(".")[0], config.learning_rate)
            decay = config.weight_decay if parameter.dim() >= 2 else 0.0
            members.setdefault((peak, decay), []).append(parameter)
    if not members:
        raise UserError("no parameter is trainable: merge a loaded adapter into its base model, or set use_peft")
    _warn_of_half_precision(model)
    return [{"params": ps, "weight_decay": decay, "peak": peak} for (peak, decay), ps in members.items()]


def _warn_of_half_precision(model: nn.Module) -> None:
    """ZeRO alone updates a float32 copy. A weight of 0.02 has neighbours 1.2e-4 away in bfloat16, so that steps of
    fine-tuning round away."""
    half = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name and parameter.dtype in (torch.bfloat16, torch.float16)
    )
    if half and rank() == 0 and read_launch().kind != "zero":
        logger.warning(
            "%s trainable weights are in half precision, in which most steps of fine-tuning round to nothing: train "
            "float32 weights (`dtype: float32`, with `bf16: true` to compute in bfloat16) or adapters (use_peft)",
            f"{half:,}",
        )

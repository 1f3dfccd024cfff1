"""DeepSpeed ZeRO, stages 1 to 3: optimizer state, gradients and parameters in flat partitions.

DeepSpeed is started here and not by accelerate, so that the group of processes, autocast and the types of weights are
those of every other configuration: weights stay in their own type, and `bf16` computes in bfloat16. Clipping is ours,
too: DeepSpeed knows one norm over everything, and looks at it within its step, when it is too late to stop. Of weights
in half precision DeepSpeed updates a float32 copy, which checkpoints hold beside the moments.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from alignment.distributed import all_max, rank, world_size
from alignment.errors import UserError
from alignment.models.head import ScoringHead
from alignment.models.trunk import base_of
from alignment.sharding.base import Shares, clip_factor, clip_sets, norm_over_ranks
from alignment.sharding.fsdp import refuse_quantised
from alignment.sharding.twin import split_off_twin, whole


class Zero:
    """See Sharding. Raises UserError for quantised weights in stage 3."""

    def __init__(
        self, accelerator: Accelerator, policy: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
    ):
        if accelerator.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.utils.logger.setLevel("ERROR")
        # its shared-memory operation for CPUs is compiled at the first start, and a start that is killed meanwhile
        # leaves a lock that all later ones wait for; torch's own collectives serve
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.accelerator, self.policy, self.device = accelerator, policy, accelerator.device
        zero = settings["zero_optimization"]
        self.stage = int(zero["stage"])
        if self.stage == 3:
            refuse_quantised(policy, "ZeRO-3")
            _refuse_other_heads(policy)
        self.module = split_off_twin(policy) if self.stage == 3 else policy
        self.module.to(self.device)
        policy.to(self.device)
        sets = clip_sets(self.module.parts)  # type: ignore[arg-type]
        _split_groups(optimizer, sets)
        self.reached: set[str] = set()  # parts that the gradient came to
        for name, parameters in sets.items():
            for p in parameters:
                p.register_hook(lambda gradient, name=name: self.reached.add(name))
        self.all_updated = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        updated = (p for group in optimizer.param_groups for p in group["params"])
        self.half_precision = any(p.dtype in (torch.float16, torch.bfloat16) for p in updated)
        self.offloaded = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
        inner = _offloadable(optimizer) if self.offloaded else optimizer
        inner.register_step_pre_hook(_leave_resting_groups)
        engine, _, _, _ = deepspeed.initialize(
            model=self.module, optimizer=inner, config=_complete(settings, policy), dist_init_required=False
        )
        self.model, self.engine, self.zero = engine, engine, engine.optimizer
        self.optimizer = inner

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        # autocast would keep a bfloat16 copy of every weight that stage 3 has gathered and let go
        bf16, cached = self.accelerator.mixed_precision == "bf16", self.stage < 3
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=cached)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        with torch.autocast(self.device.type, enabled=False):
            self.engine.backward(loss)

    @torch.no_grad()
    def clip(self, max_norm: float) -> dict[str, torch.Tensor]:
        norms: dict[str, torch.Tensor] = {}
        groups = list(self._groups())
        for part in dict.fromkeys(group["part"] for group, _, _ in groups):
            own = [gradients for group, _, gradients in groups if group["part"] == part]
            norm = norm_over_ranks([g for gradients in own for g in gradients], self.device)
            factor = clip_factor(norm, max_norm)
            for gradient in (g for gradients in own for g in gradients):
                if factor < 1:
                    gradient.mul_(factor)
            for group in self.optimizer.param_groups:
                if group["part"] == part:
                    group["rests"] = part not in self.reached  # a gradient of zeros moves weights by Adam's momentum
            norms[part] = torch.tensor(norm)
        return norms

    def step(self) -> None:
        self.engine.step()
        self.reached.clear()

    def whole(self, for_saving: bool = False) -> AbstractContextManager[Any]:
        if self.stage < 3:
            return nullcontext()
        device = torch.device("cpu") if for_saving else self.device
        return whole(self.policy, self.module, _gather, device, keep=not for_saving or rank() == 0)

    def shares(self) -> Shares:
        parameters: list[Any] = list(self.module.parameters())
        held = sum(max(p.ds_tensor.numel(), p.numel()) if hasattr(p, "ds_tensor") else p.numel() for p in parameters)
        total = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
        updated = sum(flat.numel() for _, flat, _ in self._groups())
        return Shares(held, total, updated, self.all_updated)

    def save_optimizer(self, folder: Path) -> None:
        """A file per rank: DeepSpeed's partitions are those of this number of ranks."""
        states = [self.optimizer.state.get(flat, {}) for _, flat, _ in self._groups()]
        content: dict[str, Any] = {**self._identity(), "states": states}
        if self.half_precision:
            content["weights"] = [flat.detach() for _, flat, _ in self._groups()]
        torch.save(content, folder / f"optimizer-rank-{rank()}.pt")

    def load_optimizer(self, folder: Path) -> str:
        path = folder / f"optimizer-rank-{rank()}.pt"
        content = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        same = self._identity().items() <= content.items()
        if all_max([float(not same)], self.device)[0]:
            return (
                "its optimizer state is not that of ZeRO of this stage on as many ranks: the weights go on, the "
                "moments start anew"
            )
        for (_, flat, _), weights in zip(self._groups(), content.get("weights", ())):
            flat.data.copy_(weights)
        for (_, flat, _), state in zip(self._groups(), content["states"], strict=True):
            moved = {k: v.to(flat.device) if isinstance(v, torch.Tensor) and v.dim() else v for k, v in state.items()}
            self.optimizer.state[flat] = moved
        return ""

    def _identity(self) -> dict[str, Any]:
        """What the partitions and their states depend on."""
        return {"world_size": world_size(), "stage": self.stage, "offloaded": self.offloaded}

    def _groups(self) -> Iterator[tuple[dict[str, Any], torch.Tensor, list[torch.Tensor]]]:
        """Of each partition of this rank: the parameter group it belongs to, its weights, and its gradient in pieces
        (none between two steps)."""
        if self.stage == 3:
            partitions = self.zero.fp32_partitioned_groups_flat
            owners = [self.zero.sub_group_to_group_id[i] for i in range(len(partitions))]
        else:
            partitions = self.zero.single_partition_of_fp32_groups
            owners = list(range(len(partitions)))
        for i, (flat, owner) in enumerate(zip(partitions, owners, strict=True)):
            if self.offloaded:
                gradients = [] if flat.grad is None else [flat.grad]
            else:
                gradients = list(self.zero.averaged_gradients.get(i) or [])
            yield self.optimizer.param_groups[owner], flat, gradients


def _refuse_other_heads(policy: nn.Module) -> None:
    """A head with adapters is called once per chunk of positions, on each rank another number of times."""
    for part in policy.parts.values():  # type: ignore[union-attr, operator]
        head = base_of(part).get_output_embeddings()
        if head is not None and not isinstance(head, ScoringHead):
            raise UserError(
                "lora_target_modules: adapters on lm_head do not go with ZeRO-3; leave it out, or use "
                "accelerate_configs/fsdp2.yaml"
            )


def _split_groups(optimizer: torch.optim.Optimizer, sets: dict[str, list[nn.Parameter]]) -> None:
    """Groups of one part each, since a partition is cut from one group and parts are clipped by themselves."""
    part_of = {id(p): name for name, parameters in sets.items() for p in parameters}
    split = []
    for group in optimizer.param_groups:
        names = group.get("param_names")
        for part in sets:
            places = [i for i, p in enumerate(group["params"]) if part_of.get(id(p)) == part]
            if places:
                own = {**group, "params": [group["params"][i] for i in places], "part": part, "rests": False}
                if names is not None:
                    own["param_names"] = [names[i] for i in places]
                split.append(own)
    optimizer.param_groups[:] = split


def _leave_resting_groups(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """DeepSpeed gives a part without gradient one of zeros; it has to stay as it is, like a parameter without one."""
    for group in optimizer.param_groups:
        if group.get("rests"):
            for p in group["params"]:
                p.grad = None


def _offloadable(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """AdamW for weights in the CPU's memory."""
    if type(optimizer) is not torch.optim.AdamW:
        return optimizer
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    defaults = optimizer.defaults
    return DeepSpeedCPUAdam(
        optimizer.param_groups, lr=defaults["lr"], betas=defaults["betas"], eps=defaults["eps"], adamw_mode=True
    )


def _complete(settings: dict[str, Any], policy: nn.Module) -> dict[str, Any]:
    """DeepSpeed's configuration. Micro-batches, clipping and precision are the trainer's."""
    width = max(base_of(part).config.get_text_config().hidden_size for part in policy.parts.values())  # type: ignore[union-attr, operator]
    zero = copy.deepcopy(settings["zero_optimization"])
    automatic = {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }
    for name, value in automatic.items():
        if zero.get(name, "auto") == "auto":  # DeepSpeed's own default is a bucket of 500 million numbers, always there
            zero[name] = value
    given = {k: v for k, v in settings.items() if v != "auto" and k not in ("optimizer", "scheduler")}
    return {
        **given,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size(),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }


def _gather(parameter: Any) -> torch.Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()

"""What the launcher asked for, read from the environment that `accelerate launch` sets, and whether that is what runs.

accelerate falls back in silence where it cannot do what it was asked: on a CPU its FSDP becomes DDP, `--cpu
--num_processes 2` becomes one process, and DeepSpeed two independent trainings. Here FSDP2 and ZeRO are applied by the
toolkit itself, the same way on CPUs and GPUs, so accelerate is told about neither, and whatever still differs from what
was asked stops the run.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator

from alignment.distributed import all_sum
from alignment.errors import UserError

Kind = Literal["plain", "fsdp2", "zero"]
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Launch:
    """kind: plain is one process or DDP. world_size: processes that were started together, as the launcher says.
    deepspeed: its configuration, for ZeRO."""

    kind: Kind
    world_size: int
    deepspeed: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        if self.kind == "zero":
            assert self.deepspeed is not None
            return f"DeepSpeed ZeRO-{self.deepspeed['zero_optimization']['stage']}"
        if self.kind == "fsdp2":
            return "FSDP2"
        return "DDP" if self.world_size > 1 else "one process"


@functools.cache
def read_launch() -> Launch:
    """Read, and take out of the environment what would make accelerate or transformers shard by themselves; once per
    process. Raises UserError for a launch that would run something else than it says."""
    _refuse_lost_processes()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to find out
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    fsdp, deepspeed = (_take_flag(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # micro-batches are cut by tokens
    if _take_flag("ACCELERATE_USE_MEGATRON_LM"):
        raise UserError("launch: Megatron-LM is not supported; use one of accelerate_configs/")
    if deepspeed:
        _refuse_other_launcher()
        return Launch("zero", world_size, _read_deepspeed())
    if not fsdp:
        return Launch("plain", world_size)
    _check_fsdp(world_size)
    return Launch("fsdp2", world_size)


def check_processes(launch: Launch, accelerator: Accelerator) -> None:
    """Raises UserError unless the processes that were started together are one group that can add numbers up."""
    found = accelerator.num_processes
    counted = int(all_sum([1.0], accelerator.device)[0])
    if found == counted == launch.world_size:
        return
    raise UserError(
        f"launch: {launch.world_size} processes were started, but they form a group of {min(found, counted)}: each "
        "would train by itself. Start them with `accelerate launch --config_file accelerate_configs/…`, or with "
        "`torchrun --nproc_per_node N`"
    )


def check_rest(launch: Launch) -> None:
    """Raises UserError for a launch that cannot serve parameters without a gradient."""
    offload = ((launch.deepspeed or {}).get("zero_optimization") or {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none":
        raise UserError(
            "launch: with the optimizer on the CPU DeepSpeed needs a gradient of every parameter in every step, and "
            "some have none here (value_warmup_steps): use accelerate_configs/zero3.yaml, or value_warmup_steps 0"
        )


def _take_flag(name: str) -> bool:
    return os.environ.pop(name, "false").lower() in ("true", "1")


def _refuse_lost_processes() -> None:
    """`accelerate launch --cpu --num_processes 2` sets the rendezvous of two processes, and starts one."""
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if by_accelerate and not any(name in os.environ for name in ("WORLD_SIZE", *MPI_SIZES)):
        raise UserError(
            "launch: accelerate was asked for several processes and started one, as it does with --cpu or `use_cpu: "
            "true`. On CPUs start them with `torchrun --nproc_per_node 2 recipes/….py …`, or with `accelerate launch "
            "--config_file accelerate_configs/ddp.yaml --num_processes 2 recipes/….py …` (without --cpu)"
        )


def _refuse_other_launcher() -> None:
    """On several machines accelerate's default is DeepSpeed's launcher, which without its own list of hosts starts what
    is on this machine, as a training of its own."""
    if os.environ.get("CROSS_SIZE") == "1":  # the machines that DeepSpeed's launcher knows of; torchrun does not set it
        raise UserError(
            "launch: DeepSpeed's own launcher started the processes of this machine alone: put "
            "`deepspeed_multinode_launcher: standard` into deepspeed_config of the launch configuration"
        )


def _check_fsdp(world_size: int) -> None:
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise UserError("launch: FSDP1 is not supported; set `fsdp_version: 2`, as in accelerate_configs/fsdp2.yaml")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError("launch: fsdp_offload_params is not supported; use accelerate_configs/zero3_offload.yaml")
    if world_size == 1:
        raise UserError(
            "launch: FSDP2 was asked for, but one process runs, so nothing would be sharded: set --num_processes, or "
            "use accelerate_configs/single_gpu.yaml"
        )


def _read_deepspeed() -> dict[str, Any]:
    """The configuration that accelerate makes of its YAML or of a JSON file of DeepSpeed's."""
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise UserError("launch: DeepSpeed is not installed: pip install -e '.[deepspeed]'") from error
    from accelerate import DeepSpeedPlugin

    config = dict(DeepSpeedPlugin().deepspeed_config)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2, 3):
        raise UserError(f"launch: zero_stage {stage} is not valid, it has to be 1, 2 or 3")
    for precision in ("fp16", "bf16"):
        if config.pop(precision, {}).get("enabled") is True:
            raise UserError(
                f"launch: take {precision} out of DeepSpeed's configuration. Weights stay in their own type (`dtype`) "
                "in every configuration; `bf16: true` in the recipe computes in bfloat16"
            )
    return config

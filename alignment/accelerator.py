"""The accelerator of a training process."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed

from alignment.checkpoint import check_folder
from alignment.config import TrainConfig
from alignment.distributed import LONGEST_WAIT
from alignment.sharding import check_processes, check_rest, read_launch
from alignment.trackers import check_trackers, start_trackers


def make_accelerator(config: TrainConfig, some_parameters_rest: bool = False) -> Accelerator:
    """One accelerator per process; on a machine without CUDA it stays on the CPU. `some_parameters_rest`: in some
    steps a part of the model takes no part in the loss. FSDP2 and ZeRO are the trainer's to apply (alignment.sharding).

    Raises UserError when the processes are not what the launcher was asked for, when the launch cannot serve parameters
    that rest, when output_dir cannot be written, and for trackers that are not there."""
    check_folder(config.output_dir)
    check_trackers(config.report_to)
    set_seed(config.seed)
    launch = read_launch()
    if some_parameters_rest:
        check_rest(launch)
    accelerator = Accelerator(
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=some_parameters_rest),
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
        ],
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.bf16 else "no",
        log_with=config.report_to or None,
        project_dir=config.output_dir,
    )
    check_processes(launch, accelerator)
    if config.report_to:
        start_trackers(accelerator, config)
    return accelerator

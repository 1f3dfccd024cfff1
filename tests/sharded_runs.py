"""Small real runs of every method under every configuration, for tests and for the table of docs/scale.md.

python -m tests.sharded_runs OUTPUT_DIR CONFIGURATIONS METHODS [steps] [save_every], in one process or under torchrun.
Configurations are names of files in accelerate_configs/; what a launcher would read from the file is set here, so that
one group of processes can run several. Each run leaves its metrics, checkpoints and `shares.json` in
OUTPUT_DIR/METHOD/CONFIGURATION.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch.distributed.tensor import DTensor

from alignment.accelerator import make_accelerator
from alignment.algorithms.sft import Sft
from alignment.config import TrainConfig
from alignment.distributed import rank, world_size
from alignment.models import Policy
from alignment.packing import conversation
from alignment.packing.sequence_parallel import make_sequence_group
from alignment.sharding import make, read_launch
from tests.tiny import tiny_model
from tests.training import rows, train
from tests.training_distill import train_distill
from tests.training_dpo import train_dpo, train_online
from tests.training_grpo import train_grpo
from tests.training_ppo import train_ppo
from tests.training_reward import train_reward_model

CONFIGURATIONS = Path(__file__).parent.parent / "accelerate_configs"


def train_shared(size: int, model: str, folder: str, steps: int, save_every: int):
    """SFT of rows that `size` ranks share (all in one process share nothing). Micro-batches of two rows and more; the
    first row carries loss on its last tokens alone, which stand on one rank."""
    trees = rows()
    trees[0] = conversation(trees[0].segments[0].token_ids, np.arange(trees[0].tokens) >= trees[0].tokens - 2)
    make_accelerator(TrainConfig(output_dir=folder))
    group = make_sequence_group(min(size, world_size()), attention_heads=4)
    settings = {"save_every": save_every, "max_tokens_per_micro_batch": 60, "learning_rate": 1e-3}
    return train(folder, steps, Sft(trees, 5, 1, group), Policy(tiny_model(model)), group, **settings)


METHODS: dict[str, Callable[[str, int, int], Any]] = {
    # small steps: large ones on a random model let differences of rounding grow from step to step, and routers choose
    # their experts by comparing numbers that rounding can swap
    "sft": lambda folder, steps, every: train(
        folder,
        steps,
        policy=Policy(tiny_model("qwen3")),
        save_every=every,
        max_tokens_per_micro_batch=60,
        learning_rate=1e-3,
    ),
    "sft_uneven": lambda folder, steps, every: train(  # one row per step: rank 1 has none
        folder, steps, Sft(rows(), 1, seed=1), Policy(tiny_model("qwen3")), save_every=every, learning_rate=1e-3
    ),
    "sft_moe_uneven": lambda folder, steps, every: train(
        folder, steps, Sft(rows(), 1, seed=1), Policy(tiny_model("qwen3_moe")), save_every=every, learning_rate=1e-4
    ),
    "sft_half": lambda folder, steps, every: train(
        folder, steps, policy=Policy(tiny_model("qwen3").to(torch.bfloat16)), save_every=every
    ),
    "sft_moe": lambda folder, steps, every: train(
        folder,
        steps,
        policy=Policy(tiny_model("qwen3_moe")),
        save_every=every,
        max_tokens_per_micro_batch=60,
        learning_rate=1e-3,
    ),
    "sft_pairs": lambda folder, steps, every: train_shared(2, "qwen3", folder, steps, every),
    "sft_fours": lambda folder, steps, every: train_shared(4, "qwen3", folder, steps, every),
    "sft_moe_pairs": lambda folder, steps, every: train_shared(2, "qwen3_moe", folder, steps, every),
    "reward_model": lambda folder, steps, every: train_reward_model(folder, steps, every, 60),
    "dpo": lambda folder, steps, every: train_dpo(folder, steps, every, 60),
    "online_dpo": lambda folder, steps, every: train_online(folder, steps, every),
    # plain sampling, since top-p and top-k cut between hundreds of tokens about as probable, where rounding decides
    # sooner or later; and small steps, since the gradient is large
    "ppo": lambda folder, steps, every: train_ppo(
        folder,
        steps,
        every,
        mini_batches=2,
        ptx_coef=0.5,
        value_warmup_steps=4,  # goes round the prompts twice: ranks keep what they have sampled
        sampling={"top_p": 1.0},
        learning_rate=1e-4,
        value_learning_rate=2e-4,
    ),
    "grpo": lambda folder, steps, every: train_grpo(folder, steps, every, learning_rate=1e-3, top_k=0),
    "grpo_remote": lambda folder, steps, every: train_grpo(
        folder, steps, every, learning_rate=1e-3, top_k=0, remote=True
    ),
    "distill": lambda folder, steps, every: train_distill("mixed", folder, steps, every),
    "distill_top_k": lambda folder, steps, every: train_distill("top_k", folder, steps, every),
    "distill_stored": lambda folder, steps, every: train_distill("stored", folder, steps, every),
    "distill_uneven": lambda folder, steps, every: train_distill("single", folder, steps, every),  # rank 1 has none
}


def as_launched(configuration: str) -> None:
    """Set what `accelerate launch --config_file` sets, for a process that read another launch before."""
    read_launch.cache_clear()
    if configuration == "single":
        return
    content = yaml.safe_load((CONFIGURATIONS / f"{configuration}.yaml").read_text())
    if content["distributed_type"] == "FSDP":
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        os.environ["FSDP_VERSION"] = str(content["fsdp_config"]["fsdp_version"])
    if content["distributed_type"] == "DEEPSPEED":
        settings = content["deepspeed_config"]
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(settings["zero_stage"])
        for what in ("optimizer", "param"):
            device = settings.get(f"offload_{what}_device", "none")
            os.environ[f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE"] = device


def live_bytes() -> int:
    """Of all tensors of this process, each memory block once."""
    gc.collect()
    blocks: dict[int, int] = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor):
            tensor = found.to_local() if isinstance(found, DTensor) else found
            storage = tensor.untyped_storage()
            blocks[storage.data_ptr()] = storage.nbytes()
    blocks.pop(0, None)  # of what has no memory, as on the device meta
    return sum(blocks.values())


def main(output: str, configurations: str, methods: str, steps: str = "12", save_every: str = "0") -> None:
    torch.set_num_threads(1)
    made = make.make_sharding
    last: list[Any] = []

    def remember(*arguments):
        last[:] = [made(*arguments)]
        return last[0]

    import alignment.trainer

    alignment.trainer.make_sharding = remember
    for configuration in configurations.split(","):
        for method in methods.split(","):
            as_launched(configuration)
            folder = Path(output) / method / configuration
            before = live_bytes()
            trained = METHODS[method](str(folder), int(steps), int(save_every))
            held = {**dataclasses.asdict(last[0].shares()), "bytes": live_bytes() - before}
            del trained
            last.clear()
            if rank() == 0:
                (folder / "shares.json").write_text(json.dumps(held))
                print(f"finished {method} {configuration}", flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

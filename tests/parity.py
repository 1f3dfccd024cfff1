"""The common ground of the parity tests: one optimizer, one start, and how two runs are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from alignment.algorithms.reward_model import RewardModeling
from alignment.algorithms.sft import Sft
from alignment.metrics import read_metrics
from alignment.types import Algorithm
from tests.training import train

# eps keeps Adam from magnifying rounding where a gradient is almost zero; clipping and decay are large enough to show.
LEARNING_RATE, WEIGHT_DECAY, BETAS, EPS, CLIP = 1e-2, 0.1, (0.8, 0.95), 1e-4, 0.5


def trl_settings(folder: Path, steps: int, clip: float = CLIP) -> dict[str, Any]:
    """Arguments that TRL's trainers share, for float32 on the CPU without anything random in the forward pass."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": WEIGHT_DECAY,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPS,
        "max_grad_norm": clip,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trl_row_settings(folder: Path, steps: int, batch: int, accumulate: int) -> dict[str, Any]:
    """For the trainers that take rows: `batch` rows a step, in the order in which they are given."""
    return trl_settings(folder, steps) | {
        "per_device_train_batch_size": batch // accumulate,
        "gradient_accumulation_steps": accumulate,
        "train_sampling_strategy": "sequential",
        "max_length": 512,
    }


def order(algorithm: Sft | RewardModeling, steps: int) -> list[int]:
    """The rows in the order in which the steps take them."""
    place = {id(tree): i for i, tree in enumerate(algorithm.epochs.trees)}
    return [place[id(t)] for step in range(steps) for t in algorithm.collect(step).batches[0].trees]


def run_ours(
    folder: Path, steps: int, policy: nn.Module, algorithm: Algorithm, max_tokens: int = 16384, clip: float = CLIP
) -> list[dict[str, float]]:
    """Train in place; returns the metrics of each step."""
    settings = {"learning_rate": LEARNING_RATE, "lr_schedule": "constant", "warmup_steps": 0}
    adam = {"adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_eps": EPS, "weight_decay": WEIGHT_DECAY}
    limits = {"max_tokens_per_micro_batch": max_tokens, "max_grad_norm": clip}
    train(str(folder), steps, algorithm, policy, **settings, **adam, **limits)
    return read_metrics(folder / "metrics.jsonl", "train")


def trl_log(trainer: Any) -> list[dict[str, float]]:
    """What a TRL trainer logged, one entry per optimizer step."""
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def trained(trainer: Any) -> nn.Module:
    """The model of a TRL trainer."""
    return trainer.model


def assert_same_curve(ours: list[dict[str, float]], theirs: list[dict[str, float]], rel: float = 5e-6) -> None:
    """Loss and gradient norm before clipping, step by step."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel, abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=rel)


def assert_same_weights(ours: nn.Module, theirs: nn.Module, start: nn.Module, atol: float = 2e-6) -> None:
    """Every parameter of both models agrees, and every one of them has moved by far more than the tolerance."""
    theirs_by_name, start_by_name = dict(theirs.named_parameters()), dict(start.named_parameters())
    names = [name for name, _ in ours.named_parameters()]
    assert sorted(names) == sorted(theirs_by_name)
    for name, parameter in ours.named_parameters():
        difference = (parameter.cpu() - theirs_by_name[name].cpu()).abs().max().item()
        moved = (parameter.cpu() - start_by_name[name].cpu()).abs().max().item()
        assert difference <= atol, f"{name}: differs by {difference:.2e}"
        assert moved > 200 * atol, f"{name}: moved by {moved:.2e} only"

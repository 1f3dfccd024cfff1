"""TRL's side of a comparison: its trainers as they come, with a gate after each step."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from transformers import Trainer, TrainerCallback

from benchmarks.sides import Gate


def select_like_on_gpu() -> None:
    """TRL's Triton path scores labelled positions only, its path for other devices scores all of them. This takes the
    GPU path's selection (not its kernels) on the CPU: the baseline whose ratio holds on other machines, too."""
    import trl.trainer.utils as utils

    utils._use_triton = lambda device: True


def common_arguments(settings: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Arguments of every TRL config: what both sides share, and `settings`."""
    return {
        "output_dir": tempfile.mkdtemp(prefix="bench-trl-"),
        "per_device_train_batch_size": batch_size,
        "max_steps": 10**6,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        **settings,
    }


def time_generation(model, gate: Gate) -> None:
    """Marks the seconds of `model.generate` as a phase of the step."""
    generate = model.generate

    def timed(*args, **kwargs):
        start = time.perf_counter()
        out = generate(*args, **kwargs)
        gate.mark("generation", time.perf_counter() - start)
        return out

    model.generate = timed


class GateCallback(TrainerCallback):
    """Stops at the gate before the first step and after every step."""

    def __init__(self, gate: Gate):
        self.gate, self.losses = gate, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.gate.ready()

    def on_log(self, args, state, control, logs=None, **kwargs):
        named = {name: logs[name] for name in ("grad_norm", "entropy") if name in logs}
        self.gate.step(loss=sum(self.losses), **named)
        self.losses.clear()


def train(trainer: Trainer, gate: Gate) -> None:
    """Runs until the parent says stop. The loss is taken unrounded from `compute_loss`."""
    callback, compute_loss = GateCallback(gate), trainer.compute_loss

    def spy(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        callback.losses.append(float(loss.detach()))
        return loss

    trainer.compute_loss = spy
    trainer.add_callback(callback)
    trainer.train()

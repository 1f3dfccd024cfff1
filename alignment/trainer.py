"""The loop that trains every method.

A step asks the algorithm for an episode, and for each of its batches cuts the trees into packed micro-batches, sums
the losses, divides by the global number of units, clips and updates. Losses come as sums, so any cut into micro-batches
and any split over ranks gives the same gradient.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.checkpoint import (
    find_damage,
    newest_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
    set_aside_newer,
    write_model,
)
from alignment.config import TrainConfig
from alignment.distributed import MetricSums, all_max, all_sum, barrier, gather_objects, rank
from alignment.errors import EngineLost, UserError, shorten
from alignment.metrics import RunLog, replace_file
from alignment.models.load import copy_weights
from alignment.models.router import balances
from alignment.models.trunk import base_of, checkpoint_activations
from alignment.optim.adamw import make_optimizer
from alignment.packing import cut, empty_batch
from alignment.packing.sequence_parallel import ALONE, SequenceGroup
from alignment.schedule import learning_rate_at
from alignment.sharding import make_sharding, read_launch
from alignment.types import Algorithm, Batch, Episode, PackedBatch

EVALUATED = "evaluation.json"
"""In the run's folder: the step of the last evaluation, and the best value so far."""


@dataclass(frozen=True)
class Evaluation:
    """run() -> metrics, the same on every rank. `metric` (if any) picks the best checkpoint."""

    run: Callable[[], dict[str, float]]
    metric: str | None = None
    higher_is_better: bool = True


def zero_of(output: Any) -> torch.Tensor:
    """A zero that depends on every tensor in a model's output, so that all its parameters get a gradient."""
    if isinstance(output, torch.Tensor):
        return output.sum() * 0.0
    inner = [getattr(output, field.name) for field in fields(output)]
    return sum((zero_of(x) for x in inner if x is not None), torch.zeros(()))


class Trainer:
    """Runs `algorithm` on `policy` for `total_steps`; see TrainConfig for what it saves, evaluates and logs.

    policy: a module over packed rows (Policy, ScalarModel, ActorCritic) whose `parts` are the models that a checkpoint
    holds, by the name of their folder; "model" is the one that the run is about. group: the ranks that the algorithm
    gives the same rows, each of which then trains on its part of them."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        algorithm: Algorithm,
        config: TrainConfig,
        total_steps: int,
        evaluation: Evaluation | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        group: SequenceGroup = ALONE,
    ):
        self.accelerator, self.policy, self.tokenizer, self.group = accelerator, policy, tokenizer, group
        self.algorithm, self.config, self.total_steps = algorithm, config, total_steps
        self.evaluation = evaluation
        self.folder = Path(config.output_dir)
        self.step = 0
        self.best: float | None = None
        self.evaluated = 0  # the step of the last evaluation
        self.parts: Mapping[str, Any] = policy.parts  # type: ignore[assignment]
        if config.gradient_checkpointing or config.activation_offload:
            for part in self.parts.values():
                checkpoint_activations(base_of(part), config.activation_offload)
        self.balances = balances(policy)
        for balance in self.balances:
            if config.router_aux_loss_coef is not None:
                balance.coefficient = config.router_aux_loss_coef
        optimizer = optimizer or make_optimizer(policy, config)
        self.resumed = self._checkpoint_to_resume()
        if self.resumed is not None:  # before the weights are cut into shards, on any number of ranks
            for name, part in self.parts.items():
                copy_weights(part, self.resumed / name)
        self.launch = read_launch()
        self.sharding = make_sharding(self.launch, accelerator, policy, optimizer, config.bf16)
        self.model, self.optimizer = self.sharding.model, self.sharding.optimizer
        self.peaks = [group.get("peak", config.learning_rate) for group in self.optimizer.param_groups]

    # --- the loop ---------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Train to the end (or to a SIGTERM, which saves and stops). Returns the last evaluation's metrics, none when
        this call had nothing left to train."""
        resumed = self._resume(self.resumed)
        set_aside_newer(self.folder / "checkpoints", self.step)
        tracker = self.accelerator.log if self.config.report_to else None
        log = RunLog(self.folder, self.total_steps, rank() == 0, tracker, self.step if resumed else None)
        last: dict[str, float] = {}
        with log, _stop_signal() as stop:
            log.message(self._describe(resumed))
            if resumed and self.evaluated < self.step and self._evaluation_is_due():  # the run ended within it
                with self._saving_when_lost():
                    last = self._evaluate(log)
            while self.step < self.total_steps:
                with self._saving_when_lost():
                    metrics, tokens, samples = self._run_step(log)
                log.train(self.step, metrics, tokens)
                log.samples(self.step, samples[: self.config.samples_per_log])
                finished = self.step == self.total_steps
                if finished:  # whatever becomes of the last evaluation
                    self.save()
                if self._evaluation_is_due():
                    with self._saving_when_lost():
                        last = self._evaluate(log)
                stopping = bool(all_max([float(stop())], self.accelerator.device)[0])
                if not finished and (stopping or _due(self.step, self.config.save_every)):
                    self.save()
                if stopping and not finished:
                    log.message(f"stopped by a signal after step {self.step}; the same command goes on from there")
                    raise SystemExit(143)
            self.save_parts(self.folder)
        if self.config.report_to:
            self.accelerator.end_training()
        return last

    def _evaluation_is_due(self) -> bool:
        finished = self.step == self.total_steps
        return self.evaluation is not None and (finished or _due(self.step, self.config.eval_every))

    def _run_step(self, log: RunLog) -> tuple[dict[str, float], int, list[dict]]:
        started = time.perf_counter()
        learning_rate = self._set_learning_rate()
        episode = self._collect()
        collected = time.perf_counter()
        sums = MetricSums()
        sums.add(episode.stats)
        tokens = 0
        self.model.train()
        for batch in episode.batches:
            tokens += self._update(batch, sums)
        self.step += 1
        sums.add({"time/collect": (collected - started, 1), "time/train": (time.perf_counter() - collected, 1)})
        metrics = sums.reduce(self.accelerator.device)
        metrics["learning_rate"] = learning_rate
        tokens = int(all_sum([tokens], self.accelerator.device)[0])
        trained = time.perf_counter()
        try:
            self._after_update(metrics)
        except EngineLost:
            log.train(self.step, metrics, tokens)  # the step itself is sound
            raise
        metrics["time/update"] = time.perf_counter() - trained
        return metrics, tokens, episode.samples

    def _collect(self) -> Episode:
        """The episode; when the engine is lost on the way everything is as before, so that it can be saved."""
        before = pickle.dumps(self.algorithm.state_dict()), random_states()
        try:
            with self._readable(getattr(self.algorithm, "reads_policy", True)), self.accelerator.autocast():
                return self.algorithm.collect(self.step)
        except EngineLost:
            self.algorithm.load_state_dict(pickle.loads(before[0]))
            restore_random_states(before[1])
            raise

    @contextlib.contextmanager
    def _saving_when_lost(self):
        """The state behind the last optimizer step is sound when no more rollouts can be made."""
        try:
            yield
        except EngineLost as error:
            path = self.save()
            raise EngineLost(f"{error}. Everything up to step {self.step} is saved in {path}") from error

    def _update(self, batch: Batch, sums: MetricSums) -> int:
        """One optimizer step; returns the tokens this rank processed."""
        device = self.accelerator.device
        micros = [self.group.own_part(m) for m in cut(batch.trees, self.config.max_tokens_per_micro_batch)]
        (units,) = all_sum([batch.units], device)
        (rounds,) = all_max([len(micros)], device)
        if not units or not rounds:
            sums.add({"skipped_updates": (1, 1)})
            return 0
        micros += [empty_batch() for _ in range(int(rounds) - len(micros))]
        world = self.accelerator.num_processes
        total, balance_total = torch.zeros((), device=device), torch.zeros((), device=device)
        self._count_experts(micros)
        for i, micro in enumerate(micros):
            last = i == len(micros) - 1
            with self.sharding.accumulate(last):
                loss, stats = self._loss(micro.to(device))
                balance = self._balance_loss(device)
                self.sharding.backward(loss * (world / units) + world * balance, last)
            total += loss.detach()
            balance_total += balance.detach()
            sums.add(stats)
        norms = self.sharding.clip(self.config.max_grad_norm)
        self._check_finite(norms, micros)
        sums.add({"loss": (total, batch.units), "skipped_updates": (0, 1)})
        sums.add({("grad_norm" if n == "model" else f"grad_norm/{n}"): (norm, 1) for n, norm in norms.items()})
        if self.balances:
            sums.add({"router_aux_loss": (balance_total, 1 / world)})
        self.sharding.step()
        return sum(micro.tokens for micro in micros if not micro.empty)

    def _loss(self, micro: PackedBatch):
        if not micro.empty:
            return self.algorithm.loss(self.model, micro)
        # a rank without data takes part in the collectives with a loss of zero
        return zero_of(self.model(micro)), {}

    def _count_experts(self, micros: list[PackedBatch]) -> None:
        """The routers' balance is over all micro-batches and ranks: with more than one, count before training."""
        if not self.balances or len(micros) * self.accelerator.num_processes == 1:
            for balance in self.balances:
                balance.forget()
            return
        with contextlib.ExitStack() as stack, torch.no_grad():
            for balance in self.balances:
                stack.enter_context(balance.counting())
            for micro in micros:
                with self.accelerator.autocast():  # experts are chosen as in training
                    self.sharding.module(micro.to(self.accelerator.device))

    def _balance_loss(self, device: torch.device) -> torch.Tensor:
        """The routers' shares of this micro-batch."""
        shares = [share for balance in self.balances if (share := balance.take()) is not None]
        return torch.stack(shares).sum() if shares else torch.zeros((), device=device)

    def _check_finite(self, norms: Mapping[str, torch.Tensor], micros: list[PackedBatch]) -> None:
        if all(norm is None or torch.isfinite(norm) for norm in norms.values()):
            return
        path = self.folder / f"diverged-step-{self.step + 1}-rank-{rank()}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([replace(micro, shared_by=None) for micro in micros], path)
        raise UserError(
            f"step {self.step + 1}: the gradient is not finite, so training stops before the update. The offending "
            f"micro-batches are in {path} (torch.load with weights_only=False). Lower learning_rate, check the data, "
            "or train in float32; the same command goes on from the newest checkpoint."
        )

    def _set_learning_rate(self) -> float:
        c = self.config

        def at(peak: float, floor: float) -> float:
            shape = c.lr_schedule, c.warmup_steps, c.hold_steps
            return learning_rate_at(self.step, self.total_steps, peak, floor, *shape)

        value = at(c.learning_rate, c.min_learning_rate)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = value * peak / c.learning_rate if c.learning_rate else at(peak, 0.0)
        return value

    def _evaluate(self, log: RunLog) -> dict[str, float]:
        evaluation = self.evaluation
        assert evaluation is not None
        self.model.eval()
        with self._readable(), self.accelerator.autocast():
            metrics = evaluation.run()
        log.eval(self.step, metrics)
        if evaluation.metric is not None:
            value = metrics[evaluation.metric]
            better = self.best is None or (value > self.best if evaluation.higher_is_better else value < self.best)
            if better and not math.isnan(value):
                self.best = value
                with self.sharding.whole(for_saving=True):
                    self.save_model(self.folder / "best")
        self.evaluated = self.step
        if rank() == 0:  # a run that ends here has no later checkpoint to say so
            replace_file(self.folder / EVALUATED, json.dumps({"step": self.step, "best": self.best}))
        return metrics

    def _readable(self, needed: bool = True) -> contextlib.AbstractContextManager[Any]:
        """Within it the policy has all its weights, so that it can sample and score by itself on every rank."""
        return self.sharding.whole() if needed else contextlib.nullcontext()

    def _after_update(self, metrics: Mapping[str, float]) -> None:
        with self._readable(getattr(self.algorithm, "sends_weights", False)):
            self.algorithm.after_update(self.step, metrics)

    def _describe(self, resumed: bool) -> str:
        """What really runs: the processes counted, and what this rank holds in its memory."""
        shares = self.sharding.shares()
        where = f"{self.accelerator.num_processes} process(es) on {self.accelerator.device.type}"
        start = f"going on after step {self.step}" if resumed else "starting"
        spread = f" by {self.launch.name}, {shares}" if self.accelerator.num_processes > 1 else ""
        return f"{start}: {self.total_steps} steps, {shares.all_updated:,} trainable parameters, {where}{spread}"

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """A checkpoint from which the run goes on exactly."""
        return save_checkpoint(self.folder / "checkpoints", self.step, self._write, self.config.keep_checkpoints)

    def _write(self, path: Path) -> None:
        torch.save(
            {"algorithm": self.algorithm.state_dict(), "random": random_states()}, path / f"state-rank-{rank()}.pt"
        )
        self.sharding.save_optimizer(path)
        self.save_parts(path)
        if rank() == 0:
            progress = {"step": self.step, "best": self.best, "evaluated": self.evaluated}
            (path / "trainer.json").write_text(json.dumps(progress))

    def save_parts(self, folder: Path) -> None:
        """Every model of the run in a folder of its name. Called on all ranks."""
        with self.sharding.whole(for_saving=True):
            for name, part in self.parts.items():
                self.save_model(folder / name, part)

    def save_model(self, path: Path, model: Any = None) -> None:
        """As `write_model`, by rank 0; by default the part "model"."""
        if rank() == 0:
            write_model(path, model or self.parts["model"], self.tokenizer)

    def _resume(self, path: Path | None) -> bool:
        """Everything but the weights, which were read before they were sharded."""
        if path is None:
            if self.launch.kind != "plain":
                self._after_update({})
            return False
        progress = json.loads((path / "trainer.json").read_text())
        self.step, self.best, self.evaluated = (progress[name] for name in ("step", "best", "evaluated"))
        file = self.folder / EVALUATED
        (newer,) = gather_objects([json.loads(file.read_text()) if rank() == 0 and file.exists() else None])[:1]
        if newer and newer["step"] == self.step:
            self.best, self.evaluated = newer["best"], self.step
        if lost := self.sharding.load_optimizer(path):
            self.accelerator.print(f"checkpoint {path}: {lost}")
        own = path / f"state-rank-{rank()}.pt"
        source = own if own.exists() else path / "state-rank-0.pt"
        state = torch.load(source, map_location="cpu", weights_only=False)
        self.algorithm.load_state_dict(state["algorithm"])
        self._after_update({})
        if own.exists():
            restore_random_states(state["random"])
        barrier()
        return True

    def _checkpoint_to_resume(self) -> Path | None:
        say = self.accelerator.print
        if self.config.resume == "never":
            return None
        if self.config.resume != "auto":
            path = Path(self.config.resume)
            if not (path / "trainer.json").is_file():
                raise UserError(
                    f"resume: {shorten(path)} is not a checkpoint; give a folder …/checkpoints/step-XXXXXXXX"
                )
            if problem := find_damage(path):
                raise UserError(f"resume: the checkpoint {shorten(path)} is damaged ({problem}); give another one")
            return path
        return newest_checkpoint(self.folder / "checkpoints", say)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


@contextlib.contextmanager
def _stop_signal():
    """Yields a function that tells whether SIGTERM arrived; the previous handler is restored at the end."""
    arrived: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
    try:
        yield lambda: bool(arrived)
    finally:
        signal.signal(signal.SIGTERM, previous)

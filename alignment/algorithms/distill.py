"""Strong-to-weak distillation: the student learns a teacher's distribution over every next token.

Off-policy: rows with the teacher's responses; soft (its distribution at their tokens) and hard (the tokens themselves).
On-policy: the student samples, and the teacher says what it would have said at the student's tokens. Both may be mixed
in every step. arXiv 2306.13649 (generalised knowledge distillation), 2505.09388, section 4.5 (Qwen3: off-policy first,
then on-policy; direction, temperature and top-k are not published). The gradient does not go through the sampling.
Shapes: P prompts, G samples per prompt, N scored positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch

from alignment.algorithms.rollouts import (
    generate_together,
    prompts_fingerprint,
    refuse_other_prompts,
    rollout_stats,
    sample_records,
    score_groups,
)
from alignment.algorithms.teachers import Teachers, bare
from alignment.config import check_values
from alignment.data.curriculum import Curriculum
from alignment.data.epochs import Epochs
from alignment.distributed import rank, together, world_size
from alignment.errors import UserError
from alignment.losses.divergence import Divergence, forward_kl, generalised_jsd, reverse_kl
from alignment.models.soft_head import SoftRequest, SoftScores
from alignment.models.student import Student
from alignment.packing import group
from alignment.rollout.row import check_served
from alignment.types import Batch, Engine, Episode, PackedBatch, Prompt, Rollout, Sampling, Segment, Tree

SOFT, HARD, SAMPLED = "soft_weights", "hard_weights", "sampled"
"""Columns: weights of the divergence and of -log q, and 1 at tokens that the student sampled, else 0."""


@dataclass
class DistillConfig:
    """What one step compares, and how."""

    batch_size: int = field(default=64, metadata={"help": "Sequences per step, over all ranks."})
    on_policy_share: float = field(
        default=1.0,
        metadata={"help": "Of these, sampled by the student; the others are rows of the teacher's responses."},
    )
    group_size: int = field(default=1, metadata={"help": "Samples per prompt."})
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = field(
        default="reverse_kl", metadata={"help": "Of student and teacher, per token."}
    )
    jsd_beta: float = field(default=0.5, metadata={"help": "Of jsd: the weight of the teacher in the mixture."})
    divergence_temperature: float = field(
        default=1.0, metadata={"help": "Of both distributions; its square is not multiplied in."}
    )
    teacher_top_k: int = field(
        default=0,
        metadata={"help": "Compare the teacher's most probable tokens and the rest; 0 = the whole vocabulary."},
    )
    soft_coef: float = field(default=1.0, metadata={"help": "On rows, of the divergence; on samples it is 1."})
    hard_coef: float = field(default=0.0, metadata={"help": "On rows, of -log q of the response."})

    def __post_init__(self):
        check_values(self, "1 or more", "batch_size", "group_size")
        check_values(self, "0 or more", "soft_coef", "hard_coef", "teacher_top_k")
        check_values(self, "between 0 and 1", "on_policy_share")
        check_values(self, "above 0", "divergence_temperature")
        if self.divergence == "jsd" and not 0 < self.jsd_beta < 1:
            raise UserError(f"jsd_beta: {self.jsd_beta} is not valid, it has to be between 0 and 1")
        if self.samples_per_step % self.group_size:
            raise UserError(
                f"on_policy_share: {self.samples_per_step} of {self.batch_size} sequences are sampled, which is no "
                f"multiple of group_size {self.group_size}"
            )
        if self.rows_per_step and not self.soft_coef and not self.hard_coef:
            raise UserError("soft_coef and hard_coef are both 0: nothing would be learned from the rows")

    @property
    def samples_per_step(self) -> int:
        return round(self.on_policy_share * self.batch_size)

    @property
    def prompts_per_step(self) -> int:
        return self.samples_per_step // self.group_size

    @property
    def rows_per_step(self) -> int:
        return self.batch_size - self.samples_per_step

    @property
    def needs_teacher(self) -> bool:
        return self.samples_per_step > 0 or self.soft_coef > 0

    def make_divergence(self) -> Divergence:
        kinds = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
        return kinds[self.divergence] if self.divergence in kinds else generalised_jsd(self.jsd_beta)


class RowTargets(Protocol):
    """Teachers, or what they said in a file (StoredTargets)."""

    def add_targets(self, trees: Sequence[Tree], tasks: Sequence[object]) -> None: ...


@dataclass
class OffPolicy:
    """Rows with the teacher's responses as trees whose scored tokens are the response, each with its task. targets:
    None = asked of the teachers in every step."""

    trees: Sequence[Tree]
    tasks: Sequence[object]
    targets: RowTargets | None = None


@dataclass
class OnPolicy:
    """What the student samples from, and how. A prompt's task is the column `task` of its row. score: sets the rewards
    of samples and returns metrics, which are only reported."""

    prompts: Sequence[Prompt]
    engine: Engine
    sampling: Sampling
    score: Callable[[list[Rollout]], dict[str, float]] | None = None


class Distill:
    """Algorithm for the trainer, one update per step. It trains a `Student`. Prompts and rows come in seeded random
    order, each once an epoch. evaluated_by: the engine that held-out responses come from, also where nothing else is
    sampled; it gets the weights of every step. Raises UserError when something that the settings need is missing."""

    def __init__(
        self,
        student: Student,
        config: DistillConfig,
        teachers: Teachers | None,
        off_policy: OffPolicy | None = None,
        on_policy: OnPolicy | None = None,
        seed: int = 0,
        evaluated_by: Engine | None = None,
    ):
        self.student, self.config, self.teachers = student, config, teachers
        self.divergence = config.make_divergence()
        if config.needs_teacher and teachers is None:
            raise UserError("teacher is missing: only with on_policy_share 0 and soft_coef 0 none is needed")
        self.off_policy, self.rows = off_policy, None
        if config.rows_per_step:
            if off_policy is None:
                raise UserError(f"on_policy_share: {config.on_policy_share} leaves room for rows, and there are none")
            self.rows = Epochs(off_policy.trees, config.rows_per_step, seed)
            self.tasks = {id(tree): task for tree, task in zip(off_policy.trees, off_policy.tasks, strict=True)}
        self.on_policy, self.order = on_policy, None
        if config.prompts_per_step:
            if on_policy is None:
                raise UserError(f"on_policy_share: {config.on_policy_share} needs prompts, and there are none")
            if config.prompts_per_step > len(on_policy.prompts):
                raise UserError(
                    f"batch_size: a step needs {config.prompts_per_step} prompts, there are {len(on_policy.prompts)}"
                )
            check_served(on_policy.engine, on_policy.prompts, on_policy.sampling)
            self.fingerprint = prompts_fingerprint(on_policy.prompts)
            self.order = Curriculum([p.id for p in on_policy.prompts], "random", seed)
        self.reads_policy = self.order is not None
        self.engine = on_policy.engine if on_policy is not None else evaluated_by
        self.sends_weights = getattr(self.engine, "remote", False)

    @property
    def steps_per_epoch(self) -> float:
        """Over the prompts; over the rows when nothing is sampled."""
        if self.on_policy is not None and self.config.prompts_per_step:
            return len(self.on_policy.prompts) / self.config.prompts_per_step
        return self.rows.steps_per_epoch if self.rows is not None else 0

    # --- collecting -------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> Episode:
        stats: dict[str, Any] = {}
        rows, row_units = self._take_rows(step)
        samples, records = self._sample(step, stats)
        if self.rows is not None:
            stats["epoch"] = (step / self.rows.steps_per_epoch, 1)
        units = row_units + sum(tree.scored_tokens for tree in samples)
        return Episode([Batch([*rows, *samples], units)], stats, records)

    def _take_rows(self, step: int) -> tuple[list[Tree], float]:
        """This rank's rows with their columns, and the sum of the weights of their tokens."""
        if self.rows is None or self.off_policy is None:
            return [], 0.0
        c, own = self.config, self.rows.take(step)
        trees = [bare(tree) for tree in own]
        if c.soft_coef:
            tasks = [self.tasks[id(tree)] for tree in own]
            targets = self.off_policy.targets or self._teachers
            together(lambda: targets.add_targets(trees, tasks))
        elif self.teachers is not None:
            self.teachers.add_blanks(trees)
        units = 0.0
        for tree, source in zip(trees, own, strict=True):
            for segment, original in zip(tree.segments, source.segments, strict=True):
                weights = original.columns.get("weights", np.ones(len(segment.token_ids), np.float32))
                if segment.scored is not None and segment.scored.any():
                    segment.columns |= {SOFT: c.soft_coef * weights, HARD: c.hard_coef * weights,
                                        SAMPLED: np.zeros_like(weights)}  # fmt: skip
                    units += float(weights[segment.scored].sum())
        return trees, units

    def _sample(self, step: int, stats: dict[str, Any]) -> tuple[list[Tree], list[dict[str, Any]]]:
        """A tree per prompt of this rank: the prompt once, its samples behind it."""
        if self.order is None or self.on_policy is None:
            return [], []
        on, c = self.on_policy, self.config
        indices = self.order.take(c.prompts_per_step)[rank() :: world_size()]
        groups = generate_together(on.engine, [on.prompts[i] for i in indices], c.group_size, on.sampling, step)
        if on.score is not None:
            score_groups(on.score, groups, stats)
        without_reward = {"reward", "reward_std", "unscored"} if on.score is None else set()
        stats |= {name: value for name, value in rollout_stats(groups).items() if name not in without_reward}
        vocabulary = self._teachers.vocabulary
        stats["padding_sampled"] = (sum(max(r.token_ids) >= vocabulary for g in groups for r in g), None)
        grown = [_group_tree(g, vocabulary) for g in groups]
        tasks = [on.prompts[i].row.get("task") for i, tree in zip(indices, grown, strict=True) if tree is not None]
        trees = [tree for tree in grown if tree is not None]
        together(lambda: self._teachers.add_targets(trees, tasks))
        for tree in trees:
            for segment in tree.segments[1:]:
                ones = np.ones(len(segment.token_ids), np.float32)
                segment.columns |= {SOFT: ones, HARD: np.zeros_like(ones), SAMPLED: ones}
        return trees, sample_records(groups)

    @property
    def _teachers(self) -> Teachers:
        assert self.teachers is not None
        return self.teachers

    # --- the loss ---------------------------------------------------------------------------------------------------

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        if self.teachers is None:
            hard_N = micro.columns[HARD]
            scores = model(micro, loss=lambda logprobs_N, _: -(logprobs_N * hard_N).sum())
            return scores.total, {"nll": (-scores.logprobs_N.sum(), scores.logprobs_N.numel())}
        micro, targets = self.teachers.targets(micro)
        soft_N, hard_N = micro.columns[SOFT], micro.columns[HARD]
        request = SoftRequest(
            self.divergence,
            targets,
            self.teachers.vocabulary,
            micro.score_target_N,
            self.config.divergence_temperature,
            soft_N,
            hard_N if self.config.hard_coef and self.rows is not None else None,
        )
        soft: SoftScores = model(micro, request)
        return soft.total, _stats(soft, micro, mixed=self.rows is not None and self.order is not None)

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.engine is not None:
            self.engine.load_weights(self.student.policy, step)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"rows": None, "order": None}
        if self.rows is not None:
            state["rows"] = self.rows.state_dict()
        if self.order is not None:
            state |= {"order": self.order.state_dict(), "prompts": self.fingerprint}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        now = self.state_dict()
        if any((state[part] is None) != (now[part] is None) for part in ("rows", "order")):
            raise UserError(
                "on_policy_share: the checkpoint had only samples or only rows, this run has not: start a new run with "
                "another output_dir"
            )
        if self.rows is not None:
            self.rows.load_state_dict(state["rows"])
        if self.order is not None:
            refuse_other_prompts(state["prompts"], self.fingerprint)
            self.order.load_state_dict(state["order"])


def _group_tree(rollouts: Sequence[Rollout], vocabulary: int) -> Tree | None:
    """A sample ends before the first id that is no token: the student has rows that stand for nothing, the teacher may
    have none there. None when nothing is left of any sample."""
    children = []
    for rollout in rollouts:
        real = np.asarray(rollout.token_ids) < vocabulary
        end = len(real) if real.all() else int(real.argmin())
        if end:
            mask = np.ones(end, bool) if rollout.loss_mask is None else np.asarray(rollout.loss_mask[:end], dtype=bool)
            children.append(Segment(rollout.token_ids[:end], scored=mask))
    return group(rollouts[0].prompt.token_ids, children) if children else None


def _stats(scores: SoftScores, micro: PackedBatch, mixed: bool) -> dict[str, Any]:
    """Means over tokens: the divergence, with `mixed` also apart for samples and rows; the entropies of both models;
    and -log q of the responses in rows."""
    columns = micro.columns
    counts_N, sampled_N = columns[SOFT] > 0, columns[SAMPLED] > 0
    stats: dict[str, Any] = {}

    def mean(name: str, values_N: torch.Tensor, where_N: torch.Tensor) -> None:
        stats[name] = ((values_N * where_N).sum(), where_N.sum())

    mean("divergence", scores.divergence_N, counts_N)
    if mixed:
        mean("divergence/samples", scores.divergence_N, counts_N & sampled_N)
        mean("divergence/rows", scores.divergence_N, counts_N & ~sampled_N)
    mean("entropy", scores.entropy_N, torch.ones_like(counts_N))
    mean("teacher_entropy", scores.teacher_entropy_N, counts_N)
    mean("nll", -scores.logprobs_N, columns[HARD] > 0)
    return stats

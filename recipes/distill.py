"""Strong-to-weak distillation. `accelerate launch recipes/distill.py --config recipes/qwen3/distill_on_policy.yaml`

Config, model, teachers, rows, prompts, algorithm, trainer: read from top to bottom, this is the method. Off-policy rows
hold the teacher's responses, which recipes/generate.py makes and filters; on-policy the student samples by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.accelerator import make_accelerator
from alignment.algorithms.distill import Distill, DistillConfig, OffPolicy, OnPolicy
from alignment.algorithms.teachers import DEFAULT, StoredTargets, Teachers
from alignment.config import TrainConfig, check_values, parse
from alignment.data.load import load_rows
from alignment.data.sft_rows import encode_sft_rows
from alignment.errors import UserError, about
from alignment.fingerprint import fingerprint, weights_fingerprint
from alignment.models.load import load_policy
from alignment.models.student import Student
from alignment.models.teacher import Teacher, load_teacher, vocabulary_of
from alignment.models.teacher_server import load_server_teacher
from alignment.trainer import Trainer
from alignment.types import Engine, Prompt
from recipes import rollouts
from recipes.common import make_sampling, run, write_settings
from recipes.engines import EngineConfig
from recipes.rollouts import RolloutRecipe, make_engine, make_evaluation, make_score
from rewards.specs import RewardEntry

TASK = "task"


@dataclass
class DistillRecipe(RolloutRecipe):
    dataset: str = field(default="", metadata={"help": "Prompts that the student samples for."})
    rewards: list[RewardEntry] = field(default_factory=list, metadata={"help": "Of the samples; only reported."})
    off_policy_dataset: str = field(default="", metadata={"help": "Rows with the teacher's responses."})
    off_policy_split: str = ""
    max_length: int = field(default=4096, metadata={"help": "Tokens of such a row."})
    overflow: Literal["truncate", "drop", "error"] = "truncate"
    soft_targets: Literal["live", "stored"] = field(
        default="live", metadata={"help": "Ask about rows in every step, or once before training, into a file."}
    )
    soft_targets_file: str = field(default="", metadata={"help": "Default: soft_targets.bin in output_dir."})
    teachers: list[str] = field(
        default_factory=list,
        metadata={"help": "A hub name, a folder or a vLLM server's URL; TASK=... for the rows of one task only."},
    )
    teacher_dtype: str = field(default="auto", metadata={"help": "auto: that of the checkpoint."})
    teacher_device: str = field(default="", metadata={"help": "Empty: the student's; cpu, cuda:1, ..."})
    teacher_offload: bool = field(default=False, metadata={"help": "Its weights rest in the CPU's memory."})
    teacher_load_in_8bit: bool = False
    teacher_load_in_4bit: bool = False
    teacher_served_name: str = field(default="", metadata={"help": "Its name, where a server has several models."})
    teacher_tokenizer: str = field(default="", metadata={"help": "Of a server's model, when it is not found."})
    teacher_api_key_env: str = field(default="", metadata={"help": "Environment variable with the server's key."})
    teacher_timeout_s: float = field(default=600.0, metadata={"help": "Most time of one request to a server."})
    teacher_wait_s: float = field(default=600.0, metadata={"help": "Most time without any answer of a server."})
    teacher_connections: int = field(default=16, metadata={"help": "Requests to a server at a time."})

    def __post_init__(self):
        if not self.dataset and not self.off_policy_dataset:
            raise UserError("dataset (prompts) and off_policy_dataset (rows with responses) are both missing")
        if self.eval_dataset and not self.rewards and not self.eval_reward:
            raise UserError("eval_reward is missing: what held-out responses are judged by, for instance verifier:math")
        self.check()
        check_values(self, "2 or more", "max_length")
        check_values(self, "above 0", "teacher_timeout_s", "teacher_wait_s")
        check_values(self, "1 or more", "teacher_connections")
        self.teachers_by_task()
        self.specs()

    def teachers_by_task(self) -> dict[str, str]:
        """Raises UserError when a task has two."""
        out: dict[str, str] = {}
        for entry in self.teachers:
            task, equals, where = entry.rpartition("=")
            task = task if equals else DEFAULT
            if not where or task in out:
                raise UserError(f"teachers: {entry!r} {'is the second one for its task' if where else 'names none'}")
            out[task] = where
        return out


KINDS = (DistillRecipe, DistillConfig, TrainConfig, ModelConfig, EngineConfig)


def load_teachers(
    recipe: DistillRecipe, config: DistillConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device, budget: int
) -> Teachers | None:
    """Each teacher once, however many tasks it has; None when none is needed."""
    if not config.needs_teacher:
        return None
    loaded: dict[str, Teacher] = {}
    by_task = recipe.teachers_by_task()
    if not by_task:
        raise UserError("teachers is missing: name one, or set soft_coef: 0 and on_policy_share: 0")
    for where in by_task.values():
        if where not in loaded:
            loaded[where] = _load_one(recipe, where, tokenizer, device, budget)
    teachers = {task: loaded[where] for task, where in by_task.items()}
    return Teachers(teachers, vocabulary_of(tokenizer), config.teacher_top_k, config.divergence_temperature)


def _load_one(recipe: DistillRecipe, where: str, tokenizer, device: torch.device, budget: int) -> Teacher:
    if where.startswith(("http://", "https://")):
        return load_server_teacher(
            where,
            tokenizer,
            recipe.teacher_tokenizer,
            recipe.teacher_served_name,
            recipe.teacher_api_key_env,
            recipe.teacher_timeout_s,
            recipe.teacher_wait_s,
            recipe.teacher_connections,
        )
    config = ModelConfig(
        model_name_or_path=where,
        dtype=recipe.teacher_dtype,
        load_in_8bit=recipe.teacher_load_in_8bit,
        load_in_4bit=recipe.teacher_load_in_4bit,
    )
    teacher = load_teacher(config, tokenizer, device, recipe.teacher_device, recipe.teacher_offload, budget)
    teacher.identity = fingerprint(weights_fingerprint(teacher.policy), recipe.teacher_dtype)
    return teacher


def load_off_policy(
    recipe: DistillRecipe,
    config: DistillConfig,
    tokenizer: PreTrainedTokenizerBase,
    teachers: Teachers | None,
    stored_at: Path,
    say: Callable[[str], None],
) -> OffPolicy | None:
    """The rows with the teacher's responses; with `stored` also what it said about them."""
    if not config.rows_per_step:
        return None
    if not recipe.off_policy_dataset:
        raise UserError(f"off_policy_dataset is missing: on_policy_share {config.on_policy_share} leaves room for rows")
    rows = load_rows(recipe.off_policy_dataset, recipe.off_policy_split or None, recipe.max_rows or None)
    with about(recipe.off_policy_dataset):
        trees, report = encode_sft_rows(rows, tokenizer, recipe.max_length, recipe.overflow)
    say(report.summary())
    tasks = [rows[i].get(TASK) for i in report.kept_rows_K]
    if teachers is None or not config.soft_coef:
        return OffPolicy(trees, tasks)
    teachers.check([row.get(TASK) for row in rows], recipe.off_policy_dataset)
    if recipe.soft_targets == "live":
        return OffPolicy(trees, tasks)
    stored = StoredTargets(stored_at, teachers)
    stored.fill(trees, tasks, say)
    return OffPolicy(trees, tasks, stored)


def load_prompts(
    recipe: DistillRecipe, config: DistillConfig, tokenizer: PreTrainedTokenizerBase, teachers: Teachers | None
) -> list[Prompt]:
    """What the student samples for, with the tools and in the modes that are asked for."""
    if not config.prompts_per_step:
        return []
    if not recipe.dataset:
        raise UserError(f"dataset is missing: on_policy_share {config.on_policy_share} needs prompts")
    if teachers is not None:
        rows = load_rows(recipe.dataset, recipe.dataset_split or None, recipe.max_rows or None)
        teachers.check([row.get(TASK) for row in rows], recipe.dataset)
    return rollouts.load_prompts(recipe, tokenizer)


def make_on_policy(
    recipe: DistillRecipe, prompts: list[Prompt], engine: Engine, tokenizer: PreTrainedTokenizerBase, seed: int
) -> OnPolicy | None:
    if not prompts:
        return None
    score = make_score(recipe, prompts) if recipe.rewards else None
    return OnPolicy(prompts, engine, make_sampling(recipe, tokenizer, seed, recipe.thinking_budget), score)


def main(arguments: Sequence[str] | None = None) -> None:
    recipe, distill, train, model, sampler = parse(*KINDS, arguments=arguments)
    accelerator = make_accelerator(train)
    policy, tokenizer = load_policy(model)
    policy.to(accelerator.device)
    budget = train.max_tokens_per_micro_batch
    teachers = load_teachers(recipe, distill, tokenizer, accelerator.device, budget)

    stored_at = Path(recipe.soft_targets_file or Path(train.output_dir) / "soft_targets.bin")
    with accelerator.autocast():
        off_policy = load_off_policy(recipe, distill, tokenizer, teachers, stored_at, accelerator.print)
    prompts = load_prompts(recipe, distill, tokenizer, teachers)
    engine = make_engine(recipe, sampler, policy.model, tokenizer, train.output_dir)
    on_policy = make_on_policy(recipe, prompts, engine, tokenizer, train.seed)

    sampling = make_sampling(recipe, tokenizer, train.seed, recipe.thinking_budget)
    evaluation = make_evaluation(recipe, tokenizer, engine, sampling)
    evaluated_by = engine if evaluation is not None else None
    algorithm = Distill(Student(policy), distill, teachers, off_policy, on_policy, train.seed, evaluated_by)
    write_settings(train.output_dir, recipe, sampler, distill, train, model)
    steps = train.max_steps or max(1, round(recipe.epochs * algorithm.steps_per_epoch))
    Trainer(accelerator, algorithm.student, tokenizer, algorithm, train, steps, evaluation).train()


if __name__ == "__main__":
    run(main)

"""Online GRPO. `accelerate launch recipes/grpo.py --config recipes/qwen2.5/grpo.yaml`

Config, prompts, model, engine, rewards, curriculum, algorithm, trainer: read from top to bottom, this is the method.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.algorithms.grpo import Grpo, GrpoConfig
from alignment.config import TrainConfig, parse
from alignment.data.curriculum import Curriculum, PromptScore, ScoreFile, fingerprint
from alignment.data.load import load_rows
from alignment.data.prompts import build_prompts
from alignment.distributed import gather_objects, rank, world_size
from alignment.errors import UserError
from alignment.models import Policy
from alignment.models.load import load_policy, switch_dropout_off
from alignment.rollout import TransformersEngine
from alignment.trainer import Evaluation, Trainer, make_accelerator
from alignment.types import Prompt, Sampling
from recipes.common import make_sampling, run, sample_pass_rate, weights_fingerprint, write_settings
from rewards import RewardFn, RewardRunner, get_reward


@dataclass
class GrpoRecipe:
    dataset: str = field(default="", metadata={"help": "Rows with `prompt`, `question` or `messages`."})
    dataset_split: str = field(default="", metadata={"help": "Split of a hub data set or folder."})
    eval_dataset: str = field(default="", metadata={"help": "Held-out rows; empty = no evaluation."})
    eval_split: str = ""
    eval_samples: int = field(default=4, metadata={"help": "Samples per held-out prompt."})
    max_rows: int = field(default=0, metadata={"help": "Use the first rows only; 0 = all."})
    max_prompt_length: int = 1024
    rewards: list[str] = field(default_factory=lambda: ["verifier:math"])
    reward_weights: list[float] = field(default_factory=list, metadata={"help": "One per reward; empty = all 1."})
    eval_reward: str = field(default="", metadata={"help": "What held-out passes are judged by; default the first."})
    reward_timeout_s: float = 60.0
    epochs: float = 1.0
    curriculum: Literal["variance", "pass_rate_band", "random"] = "variance"
    curriculum_file: str = field(default="", metadata={"help": "Default: prompt_scores.jsonl in output_dir."})
    curriculum_samples: int = field(default=8, metadata={"help": "Responses per prompt when the scores are made."})
    pass_rate_band: list[float] = field(default_factory=lambda: [0.25, 0.625])
    max_tokens: int = field(default=1024, metadata={"help": "Longest completion."})
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: list[str] = field(default_factory=list)
    max_rows_in_flight: int = field(default=64, metadata={"help": "Completions decoded at a time."})

    def __post_init__(self):
        if not self.dataset:
            raise UserError("dataset is missing: a local file, a folder or a hub name")
        if not self.rewards:
            raise UserError("rewards is empty: name at least one, for instance `rewards: [verifier:math]`")
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise UserError(f"reward_weights has {len(self.reward_weights)} values for {len(self.rewards)} rewards")
        if len(self.pass_rate_band) != 2:
            raise UserError("pass_rate_band: give two numbers, the lowest and the highest pass rate")
        if len(set(self.rewards)) < len(self.rewards):
            raise UserError("rewards: one is named twice; give each one name and one weight")


def find_reward(name: str) -> RewardFn:
    try:
        return get_reward(name)
    except ValueError as error:
        raise UserError(f"rewards: {error}") from error


def score_prompts(
    recipe: GrpoRecipe, path: Path, policy: Policy, engine, prompts: list[Prompt], sampling: Sampling, score
) -> dict[str, PromptScore]:
    """Scores of the starting model's responses to every prompt; what the file already holds is not made again."""
    n = recipe.curriculum_samples
    prints = {
        "model": fingerprint(weights_fingerprint(policy)),
        "sampling": fingerprint(sampling, n),
        "reward": fingerprint(recipe.rewards, recipe.reward_weights),
    }
    file = ScoreFile(path, prints)
    known = file.read()
    todo = [p for p in prompts if p.id not in known]
    chunk = max(1, 4 * recipe.max_rows_in_flight // n) * world_size()  # what a kill can cost
    for start in range(0, len(todo), chunk):
        groups = engine.generate(todo[start : start + chunk][rank() :: world_size()], n, sampling)
        score([r for g in groups for r in g])
        new = dict(gather_objects([(g[0].prompt.id, PromptScore.of([r.reward for r in g])) for g in groups]))
        # a prompt nothing could be scored for is no reason to sample it again at every start
        new = {i: s or PromptScore(0.0, 0.0, 0.0, 0) for i, s in new.items()}
        known |= new
        if rank() == 0:
            file.append(new)
            print(f"scored {min(start + chunk, len(todo))}/{len(todo)} prompts for the curriculum", flush=True)
    return known


def main(arguments: Sequence[str] | None = None) -> None:
    recipe, grpo, train, model = parse(GrpoRecipe, GrpoConfig, TrainConfig, ModelConfig, arguments=arguments)
    accelerator = make_accelerator(train)
    policy, tokenizer = load_policy(model)
    switch_dropout_off(policy)  # a ratio has to compare the same function
    reference = None
    if grpo.beta and not model.use_peft:
        reference = copy.deepcopy(policy).requires_grad_(False).eval().to(accelerator.device)

    rows = load_rows(recipe.dataset, recipe.dataset_split or None, recipe.max_rows or None)
    prompts = build_prompts(rows, tokenizer, max_prompt_length=recipe.max_prompt_length, source=recipe.dataset)
    sampling = make_sampling(recipe, tokenizer, train.seed)
    policy.to(accelerator.device)
    engine = TransformersEngine(policy.model, tokenizer, max_rows=recipe.max_rows_in_flight)

    weights = recipe.reward_weights or [1.0] * len(recipe.rewards)
    named = [(name, find_reward(name), weight) for name, weight in zip(recipe.rewards, weights, strict=True)]
    score = RewardRunner(named, timeout_s=recipe.reward_timeout_s)

    scores: dict[str, PromptScore] = {}
    if recipe.curriculum != "random":
        path = Path(recipe.curriculum_file or Path(train.output_dir) / "prompt_scores.jsonl")
        with accelerator.autocast():
            scores = score_prompts(recipe, path, policy, engine, prompts, sampling, score)
    low, high = recipe.pass_rate_band
    curriculum = Curriculum([p.id for p in prompts], recipe.curriculum, train.seed, scores, (low, high))

    evaluation = None
    if recipe.eval_dataset:
        eval_rows = load_rows(recipe.eval_dataset, recipe.eval_split or None)
        heldout = build_prompts(
            eval_rows, tokenizer, max_prompt_length=recipe.max_prompt_length, source=recipe.eval_dataset
        )
        judge_name = recipe.eval_reward or recipe.rewards[0]
        judge = RewardRunner([(judge_name, find_reward(judge_name), 1.0)], timeout_s=recipe.reward_timeout_s)
        evaluation = Evaluation(
            lambda: sample_pass_rate(engine, heldout, recipe.eval_samples, sampling, judge), "pass_rate"
        )

    algorithm = Grpo(
        policy, engine, prompts, score, curriculum, grpo, sampling, reference, train.max_tokens_per_micro_batch
    )
    write_settings(train.output_dir, recipe, grpo, train, model)
    steps = train.max_steps or max(1, round(recipe.epochs * len(prompts) / grpo.prompts_per_step))
    Trainer(accelerator, policy, tokenizer, algorithm, train, steps, evaluation).train()


if __name__ == "__main__":
    run(main)

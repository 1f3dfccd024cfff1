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
from alignment.accelerator import make_accelerator
from alignment.algorithms.grpo import Grpo, GrpoConfig
from alignment.config import TrainConfig, check_values, parse
from alignment.data.curriculum import Curriculum, PromptScore, ScoreFile
from alignment.distributed import gather_objects, rank, world_size
from alignment.errors import UserError
from alignment.fingerprint import fingerprint, weights_fingerprint
from alignment.models import Policy
from alignment.models.load import load_policy, switch_dropout_off
from alignment.optim.online_merging import OnlineMergingConfig, make_merging_optimizer
from alignment.trainer import Trainer
from alignment.types import Prompt, Sampling
from recipes.common import make_sampling, run, write_settings
from recipes.engines import EngineConfig
from recipes.rollouts import RolloutRecipe, load_prompts, make_engine, make_evaluation, make_score


@dataclass
class GrpoRecipe(RolloutRecipe):
    curriculum: Literal["variance", "pass_rate_band", "random"] = "variance"
    curriculum_file: str = field(default="", metadata={"help": "Default: prompt_scores.jsonl in output_dir."})
    curriculum_samples: int = field(default=8, metadata={"help": "Responses per prompt when the scores are made."})
    pass_rate_band: list[float] = field(default_factory=lambda: [0.25, 0.625])

    def __post_init__(self):
        super().__post_init__()
        check_values(self, "1 or more", "curriculum_samples")
        if len(self.pass_rate_band) != 2 or not 0 <= self.pass_rate_band[0] <= self.pass_rate_band[1] <= 1:
            raise UserError(f"pass_rate_band: {self.pass_rate_band} is not valid, give the lowest and the highest rate")


KINDS = (GrpoRecipe, GrpoConfig, OnlineMergingConfig, TrainConfig, ModelConfig, EngineConfig)


def score_prompts(
    recipe: GrpoRecipe, path: Path, policy: Policy, engine, prompts: list[Prompt], sampling: Sampling, score
) -> dict[str, PromptScore]:
    """Scores of the starting model's responses to every prompt; what the file already holds is not made again."""
    n = recipe.curriculum_samples
    prints = {
        "model": fingerprint(weights_fingerprint(policy)),
        "sampling": fingerprint(sampling, n),
        "reward": fingerprint([spec.identity() for spec in recipe.specs()]),
    }
    file = ScoreFile(path, prints)
    known = file.read()
    todo = [p for p in prompts if p.id not in known]
    chunk = max(1, 4 * recipe.max_rows_in_flight // n) * world_size()  # what a kill can cost
    for start in range(0, len(todo), chunk):
        groups = engine.generate(todo[start : start + chunk][rank() :: world_size()], n, sampling)
        score([r for g in groups for r in g])
        new = dict(gather_objects([(g[0].prompt.id, PromptScore.of_rollouts(g)) for g in groups]))
        # a prompt nothing could be scored for is no reason to sample it again at every start
        new = {i: s or PromptScore(0.0, 0.0, 0.0, 0) for i, s in new.items()}
        known |= new
        if rank() == 0:
            file.append(new)
            print(f"scored {min(start + chunk, len(todo))}/{len(todo)} prompts for the curriculum", flush=True)
    return known


def main(arguments: Sequence[str] | None = None) -> None:
    recipe, grpo, merging, train, model, sampler = parse(*KINDS, arguments=arguments)
    accelerator = make_accelerator(train)
    policy, tokenizer = load_policy(model)
    switch_dropout_off(policy)  # a ratio has to compare the same function
    reference = None
    if grpo.beta and not model.use_peft:
        reference = copy.deepcopy(policy).requires_grad_(False).eval().to(accelerator.device)

    prompts = load_prompts(recipe, tokenizer)
    sampling = make_sampling(recipe, tokenizer, train.seed, recipe.thinking_budget)
    policy.to(accelerator.device)
    engine = make_engine(recipe, sampler, policy.model, tokenizer, train.output_dir)

    score = make_score(recipe, prompts)

    scores: dict[str, PromptScore] = {}
    if recipe.curriculum != "random":
        path = Path(recipe.curriculum_file or Path(train.output_dir) / "prompt_scores.jsonl")
        with accelerator.autocast():
            scores = score_prompts(recipe, path, policy, engine, prompts, sampling, score)
    low, high = recipe.pass_rate_band
    ids, least = [p.id for p in prompts], grpo.prompts_per_step
    curriculum = Curriculum(ids, recipe.curriculum, train.seed, scores, (low, high), least)

    evaluation = make_evaluation(recipe, tokenizer, engine, sampling)
    steps = train.max_steps or recipe.steps(curriculum, grpo.prompts_per_step)
    budget = train.max_tokens_per_micro_batch
    algorithm = Grpo(policy, engine, prompts, score, curriculum, grpo, sampling, reference, budget, steps)
    write_settings(train.output_dir, recipe, sampler, grpo, merging, train, model)
    optimizer = make_merging_optimizer(policy, train, merging)
    Trainer(accelerator, policy, tokenizer, algorithm, train, steps, evaluation, optimizer).train()


if __name__ == "__main__":
    run(main)

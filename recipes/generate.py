"""A model's responses, scored, as rows to train on. `python recipes/generate.py --config recipes/qwen2.5/generate.yaml`

Samples n responses per prompt, scores each with any reward (verifiers, a reward model, functions) and keeps all of them
in `responses`. From these it writes what is asked for: `pairs`, one response that passes and one that fails, for DPO;
`accepted`, responses that pass, for rejection sampling SFT. An interrupted run goes on where it stopped, and a finished
one makes other pairs from the same responses. Several processes (`accelerate launch`) share the prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.config import check_values, parse
from alignment.data.sampled import ByVerdict, Response, accepted_rows, pair_rows, sort_responses, whole_response
from alignment.distributed import LONGEST_WAIT, gather_objects, rank, world_size
from alignment.errors import UserError
from alignment.fingerprint import fingerprint, weights_fingerprint
from alignment.models.load import load_policy
from alignment.types import Engine, Prompt, Rollout, Sampling
from recipes.common import Score, check_sampling, make_sampling, run, save_rows
from recipes.engines import EngineConfig, make_plain_engine
from recipes.responses import Record, ResponseFile
from recipes.rollouts import Modes, RolloutRecipe, load_prompts, make_score
from rewards.specs import RewardEntry

CHUNK = 64  # prompts per process between two writes to disk: what a kill can cost


@dataclass
class GenerateRecipe:
    dataset: str = field(default="", metadata={"help": "Rows with `prompt`, `question` or `messages`."})
    dataset_split: str = field(default="", metadata={"help": "Split of a hub data set or folder."})
    max_rows: int = field(default=0, metadata={"help": "Use the first rows only; 0 = all."})
    max_prompt_length: int = 1024
    modes: Modes = field(default="row", metadata={"help": "In which it samples; row: as its chat_template_kwargs say."})
    samples: int = field(default=8, metadata={"help": "Responses per prompt."})
    rewards: list[RewardEntry] = field(
        default_factory=lambda: [RewardEntry("verifier:math")],
        metadata={"help": "Names, or mappings of a name, parameters and a weight."},
    )
    reward_timeout_s: float = 600.0
    responses: str = field(default="", metadata={"help": "JSONL file of all responses and scores, continued."})
    pairs: str = field(default="", metadata={"help": "JSONL file of pairs, pass against fail; empty = none."})
    accepted: str = field(default="", metadata={"help": "JSONL file of responses that pass; empty = none."})
    per_prompt: int = field(default=1, metadata={"help": "Pairs, and accepted responses, per prompt at most."})
    pass_score: float = field(default=1.0, metadata={"help": "A response passes from this score on."})
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: list[str] = field(default_factory=list)
    thinking_budget: int | None = field(default=None, metadata={"help": "Tokens after which thinking is ended."})
    seed: int = 0
    max_rows_in_flight: int = field(default=64, metadata={"help": "Completions decoded at a time."})
    debug: bool = False

    def __post_init__(self):
        if not self.responses:
            raise UserError("responses is missing: the JSONL file that the responses go to")
        check_sampling(self)
        check_values(self, "1 or more", "samples", "per_prompt")
        check_values(self, "above 0", "reward_timeout_s")
        check_values(self, "between 0 and 4294967295", "seed")
        check_values(self, "a finite number", "pass_score")
        self.rollouts()

    def rollouts(self) -> RolloutRecipe:
        """What is common to all recipes that sample. Raises UserError for malformed rewards."""
        return RolloutRecipe(
            dataset=self.dataset,
            dataset_split=self.dataset_split,
            max_rows=self.max_rows,
            max_prompt_length=self.max_prompt_length,
            modes=self.modes,
            rewards=self.rewards,
            reward_timeout_s=self.reward_timeout_s,
            thinking_budget=self.thinking_budget,
        )


KINDS = (GenerateRecipe, ModelConfig, EngineConfig)


def as_record(rollout: Rollout) -> Record:
    """The prompt's row and, in place of columns of the same names, the response with its score."""
    return {
        **rollout.prompt.row,
        "prompt_id": rollout.prompt.id,
        "sample": rollout.index,
        "response": rollout.text,
        "finish_reason": rollout.finish_reason,
        "score": rollout.reward,
        "reward_terms": rollout.reward_terms,
    }


def sample(
    recipe: GenerateRecipe,
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    score: Score,
    file: ResponseFile,
    say: Callable[[str], None],
) -> dict[str, list[Record]]:
    """The records of every prompt, by its id, on the main process; what the file already holds is not made again."""
    known = file.start(prompts) if rank() == 0 else {}
    if known:
        say(f"{file.path} holds {len(known)} of {len(prompts)} prompts, going on")
    done = set(gather_objects(list(known)))
    todo = [prompt for prompt in prompts if prompt.id not in done]
    for start in range(0, len(todo), CHUNK * world_size()):
        own = todo[start : start + CHUNK * world_size()][rank() :: world_size()]
        groups = engine.generate(own, recipe.samples, sampling)
        score([rollout for group in groups for rollout in group])
        for records in gather_objects([[as_record(rollout) for rollout in group] for group in groups]):
            if rank() == 0:
                known[records[0]["prompt_id"]] = records
                file.append(records)
        say(f"sampled {len(known)}/{len(prompts)} prompts")
    return known


def write_outputs(recipe: GenerateRecipe, prompts: Sequence[Prompt], known: dict[str, list[Record]]) -> dict[str, int]:
    """The files that are asked for; prints and returns the counts. Raises UserError when one would be empty."""
    counts: Counter[str] = Counter()
    sorted_out: list[ByVerdict] = []
    for prompt in prompts:
        responses = [Response(whole_response(r), r["score"], r["finish_reason"] == "stop") for r in known[prompt.id]]
        sorted_out.append(sort_responses(prompt, responses, recipe.pass_score, recipe.seed, counts))
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()), flush=True)
    for name, path, make in (("pairs", recipe.pairs, pair_rows), ("accepted", recipe.accepted, accepted_rows)):
        if path:
            rows = [row for one in sorted_out for row in make(one, recipe.per_prompt)]
            counts[name] = len(rows)
            _write_rows(path, name, rows)
    return dict(counts)


def _write_rows(path: str, name: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        raise UserError(
            f"{name}: {path} would be empty: no prompt has what it takes (see the counts above). Take other prompts, "
            "more samples or another pass_score"
        )
    save_rows(path, rows, name)


def main(arguments: Sequence[str] | None = None) -> dict[str, int]:
    """Runs the recipe and returns the counts."""
    recipe, model, sampler = parse(*KINDS, arguments=arguments)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    policy, tokenizer = load_policy(model)
    made_by = fingerprint(weights_fingerprint(policy), tokenizer.chat_template)
    policy.to(state.device)
    prompts = load_prompts(recipe.rollouts(), tokenizer)
    sampling = make_sampling(recipe, tokenizer, recipe.seed, recipe.thinking_budget)
    folder = str(Path(recipe.responses).parent)
    engine = make_plain_engine(sampler, policy.model, tokenizer, recipe.max_rows_in_flight, folder)
    settings = {
        "model": made_by,
        "rewards": [spec.identity() for spec in recipe.rollouts().specs()],
        "samples": recipe.samples,
        **json.loads(json.dumps(asdict(sampling))),
    }
    file = ResponseFile(Path(recipe.responses), settings)

    def say(text: str) -> None:
        if rank() == 0:
            print(text, flush=True)

    known = sample(recipe, engine, prompts, sampling, make_score(recipe.rollouts(), prompts), file, say)
    return write_outputs(recipe, prompts, known) if rank() == 0 else {}


if __name__ == "__main__":
    run(main)

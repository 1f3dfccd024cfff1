"""Pass rates of a model on a data set. `python recipes/verify.py --model_name_or_path M --dataset rows.jsonl`

Samples n responses per prompt, judges each with a verifier, and prints pass@1 and the unbiased pass@k with 95 %
intervals clustered by problem, in all and per domain. With `--responses FILE` the responses and verdicts go to a JSONL
file that `align verify` reads again; a run with the same settings goes on where an interrupted one stopped.
`--thinking_budgets 0,64,128` does so with each of these budgets and without one, and draws the pass rate against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.commands.verify.items import Item, Judged
from alignment.commands.verify.summary import ALL, print_table, summarise, summary_table
from alignment.config import check_values, parse
from alignment.data.load import load_rows
from alignment.data.prompts import build_prompts
from alignment.errors import UserError
from alignment.fingerprint import fingerprint, weights_fingerprint
from alignment.models.load import load_policy
from alignment.types import Engine, Prompt, Sampling
from recipes.budget_curve import check_matplotlib, lengths, read_budgets, responses_path, write_curve
from recipes.common import check_sampling, check_verifier, make_sampling, run
from recipes.engines import EngineConfig, make_plain_engine
from recipes.responses import Record, ResponseFile, as_record, settings_of
from verifiers import Verdict, verify_all

CHUNK = 64  # prompts generated at a time: what a kill can cost


@dataclass
class VerifyRecipe:
    dataset: str = field(default="", metadata={"help": "Rows with a prompt and what the verifier reads."})
    dataset_split: str = field(default="", metadata={"help": "Split of a hub data set or folder."})
    verifier: str = "math"
    samples: int = field(default=4, metadata={"help": "Responses per prompt."})
    k: list[int] = field(default_factory=list, metadata={"help": "pass@k for these; default: powers of 2 to samples."})
    max_rows: int = field(default=0, metadata={"help": "Use the first rows only; 0 = all."})
    max_prompt_length: int = 1024
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: list[str] = field(default_factory=list)
    thinking_budget: int | None = field(default=None, metadata={"help": "Tokens after which thinking is ended."})
    seed: int = 0
    max_rows_in_flight: int = 64
    responses: str = field(default="", metadata={"help": "JSONL file of responses and verdicts, continued."})
    thinking_budgets: list[str] = field(
        default_factory=list,
        metadata={"help": "Tokens after which thinking is ended, such as 0,64,128; with --responses a file for each."},
    )
    figure: str = field(default="thinking_budgets.png", metadata={"help": "Pass rate against thinking_budgets."})
    debug: bool = False

    def __post_init__(self):
        if not self.dataset:
            raise UserError("dataset is missing: a local file, a folder or a hub name")
        check_sampling(self)
        check_values(self, "1 or more", "samples")
        check_values(self, "between 0 and 4294967295", "seed")
        if bad := [k for k in self.k if not 1 <= k <= self.samples]:
            raise UserError(f"k: pass@{bad[0]} needs between 1 and `samples` ({self.samples}) responses per prompt")
        check_values(self, "0 or more", "thinking_budget")
        if read_budgets(self.thinking_budgets) and self.thinking_budget is not None:
            raise UserError("thinking_budget: leave it out beside thinking_budgets, which has a run for each")


def responses(
    recipe: VerifyRecipe, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, file: ResponseFile
) -> list[Record]:
    """A record per response, prompt by prompt; what the file already holds is not made again."""
    known = file.start(prompts)
    todo = [prompt for prompt in prompts if prompt.id not in known]
    if known:
        print(f"{file.path} holds {len(known)} of {len(prompts)} prompts, going on", flush=True)
    for start in range(0, len(todo), CHUNK):
        for rollouts in engine.generate(todo[start : start + CHUNK], recipe.samples, sampling):
            prompt = rollouts[0].prompt
            verdicts = verify_all(recipe.verifier, [r.text for r in rollouts], [prompt.row] * len(rollouts))
            known[prompt.id] = [as_record(r, verdict) for r, verdict in zip(rollouts, verdicts, strict=True)]
            file.append(known[prompt.id])
        print(f"verified {len(known)}/{len(prompts)} prompts", flush=True)
    return [record for prompt in prompts for record in known[prompt.id]]


def show(records: Sequence[Record], ks: Sequence[int], title: str) -> dict[str, Any]:
    """Print the table; returns the figures over all domains. Raises UserError when nothing could be scored."""
    judged = [
        Judged(
            Item(number, record["sample"], record, record["response"], record["prompt_id"]),
            Verdict(record["score"], record["status"], record["detail"]),
        )
        for number, record in enumerate(records, 1)
    ]
    lines = summarise(judged, ks)
    rate = lines[ALL].pass_rate
    if rate is None:
        raise UserError(f"no response could be scored: {records[0]['detail']}")
    print_table(Console(highlight=False, markup=False), summary_table(lines, title))
    return {
        "pass_rate": rate.value,
        "ci_low": rate.low,
        "ci_high": rate.high,
        "problems": rate.problems,
        "samples": rate.samples,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe and returns the figures over all domains."""
    recipe, sampler, model = parse(VerifyRecipe, EngineConfig, ModelConfig, arguments=arguments)
    if recipe.thinking_budgets:
        check_matplotlib()
    check_verifier(recipe.verifier)
    policy, tokenizer = load_policy(model)
    print_of_model = fingerprint(weights_fingerprint(policy), tokenizer.chat_template) if recipe.responses else ""
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = load_rows(recipe.dataset, recipe.dataset_split or None, recipe.max_rows or None)
    prompts = build_prompts(rows, tokenizer, max_prompt_length=recipe.max_prompt_length, source=recipe.dataset)
    sampling = make_sampling(recipe, tokenizer, recipe.seed, recipe.thinking_budget)
    folder = str(Path(recipe.responses).parent)
    engine = make_plain_engine(sampler, policy.model, tokenizer, recipe.max_rows_in_flight, folder)
    ks = recipe.k or [2**i for i in range(recipe.samples.bit_length()) if 2**i <= recipe.samples]
    title = f"{recipe.verifier} on {recipe.dataset}"

    def measure(prompts: Sequence[Prompt], sampling: Sampling, path: str, title: str) -> dict[str, Any]:
        settings = settings_of(print_of_model, recipe.verifier, recipe.samples, sampling)
        file = ResponseFile(Path(path) if path else None, settings)
        records = responses(recipe, engine, prompts, sampling, file)
        return {**show(records, ks, title), **lengths(records)}

    if not recipe.thinking_budgets:
        return measure(prompts, sampling, recipe.responses, title)
    points: dict[int | None, dict[str, Any]] = {}
    unlimited = [replace(prompt, thinking_budget=None) for prompt in prompts]  # rows can bring budgets of their own
    for budget in [*read_budgets(recipe.thinking_budgets), None]:
        limited, path = replace(sampling, thinking_budget=budget), responses_path(recipe.responses, budget)
        points[budget] = measure(unlimited, limited, path, f"{title}, thinking budget {budget}")
    return write_curve(Path(recipe.figure), points, title)


if __name__ == "__main__":
    run(main)

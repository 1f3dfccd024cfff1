"""Pass rates of a model on a data set. `python recipes/verify.py --model_name_or_path M --dataset rows.jsonl`

Samples n responses per prompt, judges each with a verifier, and prints pass@1 and the unbiased pass@k with 95 %
intervals clustered by problem, in all and per domain. With `--responses FILE` the responses and verdicts go to a JSONL
file that `align verify` reads again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.config import parse
from alignment.data.load import load_rows
from alignment.data.prompts import build_prompts
from alignment.errors import UserError
from alignment.evaluate import pass_at_k, pass_rate
from alignment.models.load import load_policy
from alignment.rollout import TransformersEngine
from alignment.types import Prompt, Rollout, Sampling
from recipes.common import make_sampling, run
from verifiers import Verdict, get_verifier, verify

CHUNK = 64  # prompts between two writes to disk


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
    seed: int = 0
    max_rows_in_flight: int = 64
    responses: str = field(default="", metadata={"help": "Write responses and verdicts to this JSONL file."})
    debug: bool = False

    def __post_init__(self):
        if not self.dataset:
            raise UserError("dataset is missing: a local file, a folder or a hub name")
        if self.samples < 1:
            raise UserError(f"samples: {self.samples} is not valid, it has to be 1 or more")
        if bad := [k for k in self.k if not 1 <= k <= self.samples]:
            raise UserError(f"k: pass@{bad[0]} needs between 1 and `samples` ({self.samples}) responses per prompt")


@dataclass
class Judged:
    """Verdicts of one prompt's responses."""

    prompt: Prompt
    rollouts: list[Rollout]
    verdicts: list[Verdict]


def judge(
    recipe: VerifyRecipe, engine: TransformersEngine, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[Judged]:
    """Sample and verify, a chunk of prompts at a time."""
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        for prompt, rollouts in zip(chunk, engine.generate(chunk, recipe.samples, sampling), strict=True):
            yield Judged(prompt, rollouts, [verify(recipe.verifier, r.text, prompt.row) for r in rollouts])


def as_lines(judged: Judged) -> str:
    lines = []
    for rollout, verdict in zip(judged.rollouts, judged.verdicts, strict=True):
        record = {
            **judged.prompt.row,
            "id": judged.prompt.id,
            "sample": rollout.index,
            "response": rollout.text,
            "finish_reason": rollout.finish_reason,
            "status": verdict.status,
            "score": verdict.score,
            "detail": verdict.detail,
        }
        lines.append(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    return "".join(lines)


def summarise(results: list[Judged], ks: Sequence[int]) -> dict[str, Any]:
    """Pass rate and pass@k with intervals, and the share of each other status. Unscored samples are in no rate."""
    scores = [[v.score for v in j.verdicts] for j in results]
    try:
        rate = pass_rate(scores)
        at_k = {k: pass_at_k([s for s in scores if sum(x is not None for x in s) >= k], k) for k in ks}
    except ValueError as error:
        raise UserError(f"no response could be scored: {error}") from error
    statuses = Counter(v.status for j in results for v in j.verdicts)
    total = sum(statuses.values())
    return {
        "pass_rate": rate.value,
        "ci_low": rate.low,
        "ci_high": rate.high,
        "problems": rate.problems,
        "samples": rate.samples,
        **{f"pass@{k}": (e.value, e.low, e.high) for k, e in at_k.items()},
        **{status: statuses[status] / total for status in ("unparsed", "timeout", "error")},
        "truncated": sum(r.finish_reason == "length" for j in results for r in j.rollouts) / total,
    }


def show(results: list[Judged], ks: Sequence[int]) -> dict[str, Any]:
    """Print the table, a line per domain if rows have that column; returns the line over all."""
    domains: dict[str, list[Judged]] = defaultdict(list)
    for j in results:
        domains[str(j.prompt.row.get("domain", ""))].append(j)
    lines = {"all": summarise(results, ks)}
    if len(domains) > 1:
        lines |= {name: summarise(part, ks) for name, part in sorted(domains.items())}
    table = Table(title="pass rates, 95 % intervals clustered by problem")
    shares = [s for s in ("unparsed", "timeout", "error", "truncated") if any(line[s] for line in lines.values())]
    for column in ("domain", *(f"pass@{k}" for k in ks), *shares, "problems"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for name, line in lines.items():
        rates = ["{:.1%} [{:.1%}, {:.1%}]".format(*line[f"pass@{k}"]) for k in ks]
        table.add_row(name, *rates, *(f"{line[share]:.1%}" for share in shares), str(line["problems"]))
    Console().print(table)
    return lines["all"]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe and returns the line over all domains."""
    recipe, model = parse(VerifyRecipe, ModelConfig, arguments=arguments)
    try:
        get_verifier(recipe.verifier)
    except ValueError as error:
        raise UserError(f"verifier: {error}") from error
    policy, tokenizer = load_policy(model)
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = load_rows(recipe.dataset, recipe.dataset_split or None, recipe.max_rows or None)
    prompts = build_prompts(rows, tokenizer, max_prompt_length=recipe.max_prompt_length, source=recipe.dataset)
    sampling = make_sampling(recipe, tokenizer, recipe.seed)
    engine = TransformersEngine(policy.model, tokenizer, max_rows=recipe.max_rows_in_flight)
    out = Path(recipe.responses) if recipe.responses else None
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("")
    results = []
    for judged in judge(recipe, engine, prompts, sampling):
        results.append(judged)
        if out:
            with out.open("a") as file:
                file.write(as_lines(judged))
        if len(results) % CHUNK == 0:
            print(f"verified {len(results)}/{len(prompts)} prompts", flush=True)
    ks = recipe.k or [2**i for i in range(recipe.samples.bit_length()) if 2**i <= recipe.samples]
    return show(results, ks)


if __name__ == "__main__":
    run(main)

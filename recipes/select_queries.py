"""Queries for reasoning RL: new, learnable, hard and broad, with a report.

python recipes/select_queries.py --config recipes/qwen3/2_reasoning_rl_queries.yaml

Qwen3's second stage (arXiv 2505.09388, section 4.2) takes query-verifier pairs that were not used in the cold start,
that the cold-start model can learn, that are as hard as possible, and that cover many domains. `responses` is the file
of recipes/generate.py with that model: its pass rates tell what it can learn and how hard it finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.config import check_values, parse
from alignment.data.funnel import Funnel, FunnelReport, by_domain, check_weights, share_out
from alignment.data.load import load_rows
from alignment.errors import UserError
from recipes import cold_start_filters as filters
from recipes.cold_start import domain, query_row, read_groups
from recipes.common import check_verifier, run, save_rows
from recipes.decontaminate import ValidationTexts, tokens_of
from recipes.fusion import question_of

Row = dict[str, Any]
COLUMNS = ("domain", "queries", "eligible", "chosen", "pass rate eligible", "pass rate chosen")
RATE = "pass_rate"


@dataclass
class SelectRecipe:
    responses: list[str] = field(default_factory=list, metadata={"help": "Responses files of recipes/generate.py."})
    used: list[str] = field(default_factory=list, metadata={"help": "Rows that earlier stages trained on."})
    validation: list[str] = field(default_factory=list, metadata={"help": "Rows that training must stay away from."})
    verifier: str = field(default="math", metadata={"help": "A verifier, or routing:FILE for one per task."})
    output: str = field(default="", metadata={"help": "JSONL file of the queries chosen."})
    report: str = field(default="", metadata={"help": "Path without ending; default: that of output with .report."})
    pass_score: float = field(default=1.0, metadata={"help": "A response passes from this score on."})
    pass_rate_band: list[float] = field(
        default_factory=lambda: [0.05, 0.9], metadata={"help": "Lowest and highest pass rate that can be learnt from."}
    )
    queries: int = field(default=0, metadata={"help": "Queries in all, spread over the domains; 0 = all eligible."})
    domain_weights: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "Of domains that get more, fewer or (0) no queries; 1 for the others."},
    )
    seed: int = 0
    debug: bool = False

    def __post_init__(self):
        for name in ("responses", "output"):
            if not getattr(self, name):
                raise UserError(f"{name} is missing")
        band = self.pass_rate_band
        if len(band) != 2 or not 0 <= band[0] <= band[1] <= 1:
            raise UserError(f"pass_rate_band: {band} is not valid, it has to be two numbers between 0 and 1 that rise")
        check_values(self, "0 or more", "queries", "seed")
        check_weights(self.domain_weights)


def with_rates(groups: Mapping[str, Sequence[Row]], pass_score: float) -> list[Row]:
    """A row for each query, with the pass rate over its scored responses (None without any)."""
    rows = []
    for group in groups.values():
        scores = [record["score"] for record in group if record.get("score") is not None]
        rate = sum(score >= pass_score for score in scores) / len(scores) if scores else None
        rows.append({**group[0], RATE: rate})
    return rows


def select(recipe: SelectRecipe, rows: Sequence[Row]) -> tuple[Funnel, list[Row]]:
    """What is verifiable, new and learnable."""
    used = [row for source in recipe.used for row in load_rows(source)]
    used_ids = {str(row["id"]) for row in used if row.get("id") is not None}
    used_texts = {_plain(row) for row in used}
    validation = ValidationTexts([question_of(row) for source in recipe.validation for row in load_rows(source)])
    seen: set[str] = set()
    low, high = recipe.pass_rate_band

    def used_before(row: Row) -> str:
        if str(row["prompt_id"]) in used_ids:
            return "its id was used before"
        return "its question was used before" if _plain(row) in used_texts else ""

    def repeated(row: Row) -> str:
        text = _plain(row)
        again = text in seen
        seen.add(text)
        return "the same question stands before it" if again else ""

    def not_learnable(row: Row) -> str:
        rate = row[RATE]
        if rate is None:
            return "none of its responses could be scored"
        side = "below" if rate < low else "above" if rate > high else ""
        return f"pass rate {rate:.2f} is {side} {low if rate < low else high:g}" if side else ""

    funnel = Funnel("queries", lambda row: (str(row["prompt_id"]), question_of(row)))
    kept = funnel.keep(rows, "not_verifiable", lambda row: filters.not_verifiable(row, recipe.verifier))
    kept = funnel.keep(kept, "used_before", used_before)
    kept = funnel.keep(kept, "repeated", repeated)
    kept = funnel.keep(kept, "near_validation", lambda row: filters.near_validation(question_of(row), "", validation))
    return funnel, funnel.keep(kept, "not_learnable", not_learnable)


def choose(recipe: SelectRecipe, eligible: Sequence[Row]) -> list[Row]:
    """The hardest of every domain, in all `queries`; equally hard ones in a random order."""
    rng = np.random.default_rng(recipe.seed)
    shuffled = [eligible[i] for i in rng.permutation(len(eligible))]
    groups = by_domain(sorted(shuffled, key=lambda row: row[RATE]), domain)
    sizes = {name: len(group) for name, group in groups.items()}
    wanted = share_out(sizes, recipe.queries or len(eligible), recipe.domain_weights)
    chosen = [row for name, group in groups.items() for row in group[: wanted[name]]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _plain(row: Mapping[str, Any]) -> str:
    return " ".join(tokens_of(question_of(dict(row))))


def _mean_rate(rows: Sequence[Row]) -> float | str:
    return sum(row[RATE] for row in rows) / len(rows) if rows else "–"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe and returns the report."""
    (recipe,) = parse(SelectRecipe, arguments=arguments)
    check_verifier(recipe.verifier)
    rows = with_rates(read_groups(recipe.responses), recipe.pass_score)
    funnel, eligible = select(recipe, rows)
    chosen = choose(recipe, eligible)
    every, left, taken = (by_domain(part, domain) for part in (rows, eligible, chosen))
    table = []
    for name, group in every.items():
        fit, best = left.get(name, []), taken.get(name, [])
        table.append((name, len(group), len(fit), len(best), _mean_rate(fit), _mean_rate(best)))
    report = FunnelReport("Queries for reasoning RL", [funnel], COLUMNS, table)
    report.show()
    report.write(recipe.report or f"{recipe.output}.report")
    if not chosen:
        raise UserError(f"no query is left for {recipe.output}: see the report")
    save_rows(recipe.output, [query_row(row) for row in chosen], "queries")
    return report.as_dict()


if __name__ == "__main__":
    run(main)

"""The rows of a long-CoT cold start: queries and candidate responses, filtered, balanced over domains, reported.

python recipes/cold_start.py --config recipes/qwen3/1_cold_start_rows.yaml

Candidates are the responses file of recipes/generate.py with a strong model; a second one, of answers without thinking,
tells which queries need no thinking. What stays goes to `output` for recipes/sft.py, the queries to `output_queries`
for the stages behind. `report`.json and `report`.html say which row fell to which filter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.chat.messages import check_messages
from alignment.config import check_values, parse
from alignment.data.funnel import Funnel, FunnelReport, by_domain, check_weights, share_out
from alignment.data.load import load_rows, require_columns
from alignment.data.sampled import KEPT_COLUMNS, check_response, whole_response
from alignment.errors import UserError, about
from recipes import cold_start_filters as filters
from recipes.common import check_verifier, run, save_rows
from recipes.decontaminate import ValidationTexts
from recipes.fusion import question_of
from recipes.responses import OWN_COLUMNS

Row = dict[str, Any]
COLUMNS = ("domain", "queries", "queries kept", "responses", "responses kept", "rows")


@dataclass
class ColdStartRecipe:
    candidates: list[str] = field(default_factory=list, metadata={"help": "Responses files of recipes/generate.py."})
    without_thinking: list[str] = field(
        default_factory=list,
        metadata={"help": "Responses files of a model that did not think; empty = no such filter."},
    )
    validation: list[str] = field(
        default_factory=list, metadata={"help": "Rows that training must stay away from, with `prompt` or `question`."}
    )
    verifier: str = field(default="math", metadata={"help": "A verifier, or routing:FILE for one per task."})
    output: str = field(default="", metadata={"help": "JSONL file of the rows to train on."})
    output_queries: str = field(default="", metadata={"help": "JSONL file of their queries; empty = none."})
    report: str = field(default="", metadata={"help": "Path without ending; default: that of output with .report."})
    max_solved_without_thinking: float = field(default=0.5, metadata={"help": "Most right answers without thinking."})
    repetition_ngram: int = 20
    max_repetition: float = field(default=0.2, metadata={"help": "Most passages that repeat an earlier one."})
    min_thinking_words: int = field(default=20, metadata={"help": "Fewer words of thinking are a guess."})
    per_query: int = field(default=1, metadata={"help": "Responses per query at most."})
    rows: int = field(default=0, metadata={"help": "Rows in all, spread over the domains; 0 = all that are left."})
    domain_weights: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "Of domains that get more, fewer or (0) no rows; 1 for the others."},
    )
    seed: int = 0
    debug: bool = False

    def __post_init__(self):
        for name in ("candidates", "output"):
            if not getattr(self, name):
                raise UserError(f"{name} is missing")
        for name in ("max_solved_without_thinking", "max_repetition"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} is not valid, it has to be between 0 and 1")
        check_values(self, "1 or more", "per_query", "repetition_ngram")
        check_values(self, "0 or more", "rows", "seed", "min_thinking_words")
        check_weights(self.domain_weights)


def read_groups(sources: Sequence[str]) -> dict[str, list[Row]]:
    """Records of responses by their prompt's id. A response that begins inside a thinking block that its prompt opened
    gets the opening tag, in place of the column `think_opened`."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for source in sources:
        records = load_rows(source)
        require_columns(records, ("prompt_id", "response"), source)
        with about(source):
            for number, record in enumerate(records, 1):
                check_response(record, number)
        for record in records:
            own = {name: cell for name, cell in record.items() if name != "think_opened"}
            groups[str(record["prompt_id"])].append({**own, "response": whole_response(record)})
    return groups


def filter_queries(recipe: ColdStartRecipe, queries: Sequence[Row]) -> tuple[Funnel, list[Row]]:
    """queries: the first record of each group."""
    plain = read_groups(recipe.without_thinking) if recipe.without_thinking else {}
    funnel = Funnel("queries", lambda row: (str(row["prompt_id"]), question_of(row)))
    kept = funnel.keep(queries, "not_verifiable", lambda row: filters.not_verifiable(row, recipe.verifier))
    kept = funnel.keep(kept, "several_questions", lambda row: filters.several_questions(question_of(row)))
    if plain:

        def solved(row: Row) -> str:
            scores = [record.get("score") for record in plain.get(str(row["prompt_id"]), [])]
            return filters.solved_without_thinking(scores, recipe.max_solved_without_thinking)

        kept = funnel.keep(kept, "solved_without_thinking", solved)
    return funnel, kept


def filter_responses(recipe: ColdStartRecipe, records: Sequence[Row]) -> tuple[Funnel, list[Row]]:
    validation = ValidationTexts([question_of(row) for source in recipe.validation for row in load_rows(source)])
    funnel = Funnel("responses", lambda r: (f"{r['prompt_id']}/{r.get('sample', 0)}", r["response"]))
    kept = funnel.keep(records, "unfinished", lambda r: filters.unfinished(r.get("finish_reason", "stop")))
    kept = funnel.keep(kept, "wrong_answer", lambda r: filters.wrong_answer(r["response"], r, recipe.verifier))
    kept = funnel.keep(
        kept,
        "heavy_repetition",
        lambda r: filters.heavy_repetition(r["response"], recipe.repetition_ngram, recipe.max_repetition),
    )
    kept = funnel.keep(
        kept,
        "guess_without_reasoning",
        lambda r: filters.guess_without_reasoning(r["response"], recipe.min_thinking_words),
    )
    kept = funnel.keep(
        kept, "thinking_disagrees", lambda r: filters.thinking_disagrees(r["response"], r, recipe.verifier)
    )
    kept = funnel.keep(kept, "mixes_languages", lambda r: filters.mixes_languages(r["response"], r, question_of(r)))
    kept = funnel.keep(
        kept, "near_validation", lambda r: filters.near_validation(question_of(r), r["response"], validation)
    )
    return funnel, kept


def choose(recipe: ColdStartRecipe, records: Sequence[Row]) -> list[Row]:
    """At most `per_query` responses of each query, in all `rows`, spread over the domains."""
    rng = np.random.default_rng(recipe.seed)
    shuffled = [records[i] for i in rng.permutation(len(records))]
    taken: dict[str, int] = defaultdict(int)
    few = []
    for record in shuffled:
        taken[record["prompt_id"]] += 1
        if taken[record["prompt_id"]] <= recipe.per_query:
            few.append(record)
    groups = by_domain(few, domain)
    wanted = share_out(
        {name: len(group) for name, group in groups.items()}, recipe.rows or len(few), recipe.domain_weights
    )
    chosen = [record for name, group in groups.items() for record in group[: wanted[name]]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def domain(record: Row) -> str:
    return filters.domain_of(record, question_of(record))


def training_row(record: Row) -> Row:
    content = next(record[name] for name in ("messages", "prompt", "question") if record.get(name) is not None)
    messages = check_messages([{"role": "user", "content": content}] if isinstance(content, str) else content)
    kept = {name: record[name] for name in KEPT_COLUMNS if record.get(name) is not None}
    answer = {"role": "assistant", "content": record["response"]}
    return {"id": str(record["prompt_id"]), "domain": domain(record), "messages": [*messages, answer], **kept}


def query_row(record: Row) -> Row:
    """The query as it was before it was answered."""
    kept = {name: cell for name, cell in record.items() if name not in OWN_COLUMNS}
    return {**kept, "id": str(record["prompt_id"]), "domain": domain(record)}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe and returns the report."""
    (recipe,) = parse(ColdStartRecipe, arguments=arguments)
    check_verifier(recipe.verifier)
    groups = read_groups(recipe.candidates)
    queries = [group[0] for group in groups.values()]
    of_queries, kept_queries = filter_queries(recipe, queries)
    candidates = [record for row in kept_queries for record in groups[str(row["prompt_id"])]]
    of_responses, kept = filter_responses(recipe, candidates)
    chosen = choose(recipe, kept)
    parts = [by_domain(part, domain) for part in (queries, kept_queries, candidates, kept, chosen)]
    rows = [(name, *(len(part.get(name, ())) for part in parts)) for name in parts[0]]
    report = FunnelReport("Cold start", [of_queries, of_responses], COLUMNS, rows)
    report.show()
    report.write(recipe.report or f"{recipe.output}.report")
    if not chosen:
        raise UserError(f"no row is left for {recipe.output}: see the report")
    save_rows(recipe.output, [training_row(record) for record in chosen], "conversations")
    if recipe.output_queries:
        different = {record["prompt_id"]: query_row(record) for record in chosen}
        save_rows(recipe.output_queries, list(different.values()), "queries")
    return report.as_dict()


if __name__ == "__main__":
    run(main)

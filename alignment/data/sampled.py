"""Training rows from sampled and scored responses: pairs of a response that passes and one that fails (Qwen2.5's
offline set, arXiv 2412.15115, section 4.2), and accepted responses for rejection sampling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.chat.thinking import OPEN
from alignment.errors import UserError, shorten
from alignment.rollout.sampling import random_stream
from alignment.types import Prompt

KEPT_COLUMNS = ("tools", "chat_template_kwargs", "task")
"""What the training rows made from a row keep of it: what the chat template is handed, and which task it belongs to."""


def check_response(record: Mapping[str, Any], number: int) -> None:
    """Raises UserError for a record, the one of that number, whose prompt_id, response or score is none."""
    prompt_id, response, score = (record.get(name) for name in ("prompt_id", "response", "score"))
    if not isinstance(prompt_id, str | int):
        raise UserError(f"row {number}: `prompt_id` has to be a text or a number, got {shorten(prompt_id)}")
    if not isinstance(response, str):
        raise UserError(f"row {number}: `response` has to be a text, got {shorten(response)}")
    if score is not None and not (isinstance(score, int | float) and abs(score) < math.inf):
        raise UserError(f"row {number}: `score` has to be a number or null, got {shorten(score)}")


def whole_response(record: Mapping[str, Any]) -> str:
    """The response of a record with the opening tag of a thinking block that its prompt opened (`think_opened`): as
    training has it, where a conversation ends with the whole turn."""
    return (f"{OPEN}\n" if record.get("think_opened") else "") + record["response"]


@dataclass(frozen=True, slots=True)
class Response:
    """score: None = unscored. finished: it ended by itself, not at the token limit."""

    text: str
    score: float | None
    finished: bool = True


@dataclass(frozen=True, slots=True)
class ByVerdict:
    """Different responses to one prompt by verdict, each list in a seeded random order."""

    prompt: Prompt
    passed: list[Response]
    failed: list[Response]


def sort_responses(
    prompt: Prompt, responses: Sequence[Response], pass_score: float, seed: int, counts: Counter[str]
) -> ByVerdict:
    """A response passes with a score of `pass_score` or more and fails below it. Unscored ones are neither; truncated
    ones are left out, since training would put an end behind what did not end; equal ones count once. `counts` takes
    how many were what."""
    counts["prompts"] += 1
    counts["responses"] += len(responses)
    counts["unscored"] += sum(r.score is None for r in responses)
    scored = [(r, r.score) for r in responses if r.score is not None]
    counts["passed"] += sum(score >= pass_score for _, score in scored)
    counts["failed"] += sum(score < pass_score for _, score in scored)
    finished = [(r, score) for r, score in scored if r.finished]
    counts["truncated"] += len(scored) - len(finished)
    different = {r.text: (r, score) for r, score in reversed(finished)}  # the first of equal ones stays
    counts["repeated"] += len(finished) - len(different)
    order = random_stream(seed, 0, prompt.id, 0).permutation(len(different))
    shuffled = [list(different.values())[i] for i in order]
    passed = [r for r, score in shuffled if score >= pass_score]
    failed = [r for r, score in shuffled if score < pass_score]
    counts["prompts_without_pass"] += not passed
    counts["prompts_without_fail"] += not failed
    return ByVerdict(prompt, passed, failed)


def pair_rows(responses: ByVerdict, per_prompt: int) -> list[dict[str, Any]]:
    """At most `per_prompt` rows with `prompt`, `chosen` and `rejected` (TRL's format), no two the same; the responses
    take turns, so that none is used once more than another before it has to be."""
    p, f = len(responses.passed), len(responses.failed)
    rows = []
    for i in range(min(per_prompt, p * f)):
        # both lists go round; after their common period the second one shifts by one
        chosen = responses.passed[i % p]
        rejected = responses.failed[(i + i // math.lcm(p, f)) % f]
        answers = {"chosen": chosen.text, "rejected": rejected.text}
        scores = {"chosen_score": chosen.score, "rejected_score": rejected.score}
        rows.append(_row(responses.prompt, answers) | scores)
    return rows


def accepted_rows(responses: ByVerdict, per_prompt: int) -> list[dict[str, Any]]:
    """At most `per_prompt` rows with `prompt` and `completion`, for supervised fine-tuning."""
    prompt = responses.prompt
    return [_row(prompt, {"completion": r.text}) | {"score": r.score} for r in responses.passed[:per_prompt]]


def _row(prompt: Prompt, answers: Mapping[str, str]) -> dict[str, Any]:
    """Conversations of a prompt with messages, texts of one without."""
    kept = {name: prompt.row[name] for name in KEPT_COLUMNS if prompt.row.get(name) is not None}
    if not prompt.messages:
        return {"prompt_id": prompt.id, "prompt": prompt.row["prompt"], **answers, **kept}
    turns = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    return {"prompt_id": prompt.id, "prompt": prompt.messages, **turns, **kept}

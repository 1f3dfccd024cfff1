"""Groups of scored responses to one prompt, for the listwise loss, from the records that recipes/generate.py keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.data.sampled import KEPT_COLUMNS, check_response, whole_response
from alignment.errors import UserError


@dataclass
class GroupCounts:
    """What became of the responses. truncated: left out, since training would put an end behind what did not end.
    flat: prompts left with fewer than two different scores, all right or all wrong for instance."""

    responses: int = 0
    groups: int = 0
    unscored: int = 0
    truncated: int = 0
    repeated: int = 0
    flat: int = 0

    def summary(self) -> str:
        return (
            f"{self.groups:,} groups from {self.responses:,} responses; {self.unscored:,} unscored, {self.truncated:,} "
            f"truncated and {self.repeated:,} repeated responses left out, {self.flat:,} prompts without a comparison"
        )


def is_response_record(row: Mapping[str, Any]) -> bool:
    return {"prompt_id", "response", "score"} <= row.keys()


def groups_from_responses(records: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], GroupCounts]:
    """Rows with `prompt`, `completions` and `labels` (the scores), one per prompt, in the order of their first record.

    Raises UserError for a record without a prompt, with its number (from 1).
    """
    counts = GroupCounts(responses=len(records))
    rows: dict[str, dict[str, Any]] = {}
    seen: dict[str, dict[str, float]] = {}
    for number, record in enumerate(records, 1):
        if not is_response_record(record):
            raise UserError(
                f"row {number}: needs `prompt_id`, `response` and `score`; its columns are {sorted(record)}"
            )
        check_response(record, number)
        prompt_id, text, score = record["prompt_id"], whole_response(record), record["score"]
        if prompt_id not in rows:
            kept = {name: record[name] for name in KEPT_COLUMNS if record.get(name) is not None}
            rows[prompt_id] = {"prompt": _prompt(record, number), **kept}
            seen[prompt_id] = {}
        if score is None:
            counts.unscored += 1
        elif record.get("finish_reason", "stop") != "stop":
            counts.truncated += 1
        elif text in seen[prompt_id]:
            counts.repeated += 1
        else:
            seen[prompt_id][text] = float(score)
    out = []
    for prompt_id, row in rows.items():
        scores = seen[prompt_id]
        if len(set(scores.values())) < 2:
            counts.flat += 1
        else:
            out.append({**row, "completions": list(scores), "labels": list(scores.values())})
    counts.groups = len(out)
    return out, counts


def _prompt(record: Mapping[str, Any], number: int) -> Any:
    """As alignment.data.prompts reads it: `messages`, `prompt` (messages or text) or `question`, a user's."""
    found = next((record[name] for name in ("messages", "prompt") if record.get(name) is not None), None)
    if found is None and isinstance(record.get("question"), str):
        return [{"role": "user", "content": record["question"]}]
    if not found:
        raise UserError(f"row {number}: needs `messages`, `prompt` or `question`; its columns are {sorted(record)}")
    return found

"""What `align verify` reads: one item per response, and with its verdict a judged one."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from alignment.errors import UserError

if TYPE_CHECKING:
    from verifiers import Verdict

RESPONSE_COLUMNS = ("response", "responses", "completion", "completions")
PROBLEM_COLUMNS = ("prompt_id", "problem_id", "task_id", "question", "prompt", "problem", "messages", "id")
QUESTION_COLUMNS = ("question", "prompt", "problem", "messages")
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Item:
    """One response: the number of its row (from 1), its place among the row's responses (from 0), the row, the text,
    and the key of the problem it answers."""

    row_number: int
    sample: int
    row: Mapping[str, Any]
    response: str
    problem: Hashable

    @property
    def domain(self) -> str:
        return str(self.row.get("domain") or "")


@dataclass(frozen=True, slots=True)
class Judged:
    """An item with its verdict; answer: its key in a majority vote, None for no vote."""

    item: Item
    verdict: Verdict
    answer: Hashable | None = None

    @property
    def score(self) -> float | None:
        """1 for a pass, None for an error, which says nothing about the response, and 0 for the rest."""
        return None if self.verdict.status == "error" else float(self.verdict.passed)


def read_items(
    rows: Sequence[Mapping[str, Any]], source: str, *, column: str | None, gold: str, problem: str | None
) -> list[Item]:
    """One item per response; a cell may hold a text, a list of messages, or a list of either.

    column: None means the first of RESPONSE_COLUMNS that row 1 has. gold: the verifier whose gold answers the column
    holds, empty for responses. problem: the column whose equal cells are one problem; None makes every row one. Raises
    UserError naming the row and the column.
    """
    from verifiers import gold_response

    column = column or next((name for name in RESPONSE_COLUMNS if name in rows[0]), None)
    if column is None:
        raise UserError(f"{source}, row 1: none of the columns {', '.join(RESPONSE_COLUMNS)}; name one with --response "
                        f"(its columns are {sorted(rows[0])})")  # fmt: skip
    items: list[Item] = []
    for number, row in enumerate(rows, 1):
        for name in [column, *([problem] if problem else [])]:
            if row.get(name) is None:
                raise UserError(f"{source}, row {number}: no column {name!r} (its columns are {sorted(row)})")
        key = json.dumps(row[problem], sort_keys=True, default=str) if problem else number
        # Two rows with one question may have two gold answers; under --gold each row stands for itself.
        key = number if gold else key
        where = f"{source}, row {number}, column {column!r}"
        if gold:  # an answer is a whole response: it does not begin inside a thinking block that the prompt opened
            row = {name: cell for name, cell in row.items() if name != "think_opened"}
        texts = [gold_response(gold, row[column], row)] if gold else _texts(row[column], where)
        items.extend(Item(number, sample, row, text, key) for sample, text in enumerate(texts))
    if not items:
        raise UserError(f"{source}: the lists in column {column!r} are empty, there is no response")
    return items


def problem_column(*files: Sequence[Mapping[str, Any]]) -> str | None:
    """The first of PROBLEM_COLUMNS that row 1 of every file has."""
    return next((name for name in PROBLEM_COLUMNS if all(rows[0].get(name) is not None for rows in files)), None)


def question_text(row: Mapping[str, Any]) -> str:
    """What was asked, for a person to read; messages as "role: content"."""
    cell = next((row[name] for name in QUESTION_COLUMNS if row.get(name) is not None), "")
    if isinstance(cell, list):
        return "\n".join(
            f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in cell
        )
    return str(cell)


def judge(verifier: str, items: Sequence[Item], source: str, voting: bool = False) -> list[Judged]:
    """The verdicts of all items, in order. voting: also their answers' keys.

    Raises UserError when keys are wanted and the verifier does not tell them.
    """
    from verifiers import verify_all

    judged: list[Judged] = []
    progress = Console(stderr=True)
    starts, name = range(0, len(items), CHUNK), Path(source).name
    for start in track(starts, f"verifying {name}", console=progress, transient=True, disable=not progress.is_terminal):
        chunk = items[start : start + CHUNK]
        # Before the verdicts, so that a verifier without answers is refused at once.
        answers = [_vote(verifier, item) if voting else None for item in chunk]
        verdicts = verify_all(verifier, [item.response for item in chunk], [item.row for item in chunk])
        for item, verdict, answer in zip(chunk, verdicts, answers):
            judged.append(Judged(item, verdict, None if verdict.status == "unparsed" else answer))
    return judged


def _vote(verifier: str, item: Item) -> Hashable | None:
    from verifiers import NoAnswerKeyError, answer_key

    try:
        return answer_key(verifier, item.response, item.row)
    except NoAnswerKeyError as error:
        raise UserError(f"--majority-at: {error}") from error


def _texts(cell: Any, where: str) -> list[str]:
    from rewards import completion_text

    is_one = isinstance(cell, str) or (isinstance(cell, list) and cell and isinstance(cell[0], dict))
    try:
        return [completion_text(part) for part in ([cell] if is_one else cell)]
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: expected a text, a list of messages, or a list of either ({error})") from error

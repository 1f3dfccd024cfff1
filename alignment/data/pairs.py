"""Comparisons from answers that people voted on, for preference-model pretraining.

As in Askell et al. (arXiv 2112.00861), which Qwen1's PMP builds on: an answer's score is
round(log2(1 + upvotes)), one more when the asker accepted it, and -1 for negative votes; answers of a question with
different scores make a pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.errors import UserError

TEXT, UPVOTES, ACCEPTED = ("text", "content"), ("upvotes",), ("accepted", "selected")
SCORE = ("pm_score",)  # of the public StackExchange preferences, made by the same rule


@dataclass
class PairCounts:
    """What became of the questions. pairs: made. ties: pairs of answers with equal scores. over_cap: pairs beyond the
    limit per question. without_pair: questions that gave none. repeated: answers that another one equals."""

    questions: int = 0
    answers: int = 0
    pairs: int = 0
    ties: int = 0
    over_cap: int = 0
    without_pair: int = 0
    repeated: int = 0

    def summary(self) -> str:
        return (
            f"{self.pairs:,} pairs from {self.questions:,} questions with {self.answers:,} answers; {self.ties:,} ties "
            f"dropped, {self.over_cap:,} pairs over the limit per question, {self.without_pair:,} questions without a "
            f"pair, {self.repeated:,} repeated answers"
        )


def vote_score(upvotes: int, accepted: bool) -> int:
    """round(log2(1 + upvotes)), -1 for negative votes; one more when accepted.

    >>> [vote_score(n, False) for n in (-3, 0, 1, 2, 3, 100)]
    [-1, 0, 1, 2, 2, 7]
    """
    return (-1 if upvotes < 0 else round(math.log2(1 + upvotes))) + bool(accepted)


def pairs_from_votes(
    rows: Sequence[Mapping[str, Any]], max_pairs: int, seed: int
) -> tuple[list[dict[str, Any]], PairCounts]:
    """Rows with `prompt`, `chosen` and `rejected` as messages; at most `max_pairs` per question, drawn at random.

    rows: `question` (text, or `prompt`: text or messages) and `answers`, each with `text` and either `upvotes` (and
    `accepted`) or `pm_score`, a score made by the same rule, which is taken as it is. A question's pairs depend on its
    place, the seed and nothing else. Raises UserError for malformed rows, with their number (from 1).
    """
    if max_pairs < 1:
        raise UserError(f"pairs_per_question: {max_pairs} is not valid, it has to be 1 or more")
    counts = PairCounts(questions=len(rows))
    out: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        try:
            prompt, answers = _question(row)
        except UserError as error:
            raise UserError(f"row {index + 1}: {error}") from error
        different = dict(reversed(answers))  # the first of equal ones stays
        counts.answers += len(answers)
        counts.repeated += len(answers) - len(different)
        made = _pairs(list(reversed(different.items())), counts)
        counts.without_pair += not made
        kept = np.arange(len(made))
        if len(made) > max_pairs:
            counts.over_cap += len(made) - max_pairs
            kept = np.sort(np.random.default_rng([seed, index]).permutation(len(made))[:max_pairs])
        for i in kept:
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in made[i])
            out.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    counts.pairs = len(out)
    return out, counts


def _pairs(scored: list[tuple[str, int]], counts: PairCounts) -> list[tuple[str, str]]:
    """All (better, worse) texts."""
    made = []
    for i, (first, a) in enumerate(scored):
        for second, b in scored[i + 1 :]:
            if a == b:
                counts.ties += 1
            else:
                made.append((first, second) if a > b else (second, first))
    return made


def _question(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[tuple[str, int]]]:
    """The prompt as messages and the answers with their scores."""
    question, answers = row.get("prompt") or row.get("question"), row.get("answers")
    if not question or not isinstance(answers, Sequence) or isinstance(answers, str):
        raise UserError(f"needs a `question` (or `prompt`) and a list `answers`; its columns are {sorted(row)}")
    prompt = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    return prompt, [_answer(number, answer) for number, answer in enumerate(answers, 1)]


def _answer(number: int, answer: Any) -> tuple[str, int]:
    if not isinstance(answer, Mapping) or not isinstance(_first(answer, TEXT), str):
        raise UserError(f"answer {number} must be an object with a `text`")
    score, upvotes = _first(answer, SCORE), _first(answer, UPVOTES)
    if score is None and upvotes is None:
        raise UserError(f"answer {number} has neither `upvotes` nor `pm_score`; it has {sorted(answer)}")
    value = upvotes if score is None else score
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise UserError(f"the votes of answer {number} must be a whole number, got {value!r}")
    text = _first(answer, TEXT)
    if score is not None:
        return text, int(value)
    return text, vote_score(int(value), bool(_first(answer, ACCEPTED)))


def _first(answer: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((answer[name] for name in names if answer.get(name) is not None), None)

"""The `text` verifier: an answer compared with accepted texts, or held to a pattern, required words and a length."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verifiers.registry import register_verifier
from verifiers.response import outside_thinking
from verifiers.verdict import Verdict
from verifiers.worker import Worker, WorkerTimeoutError

MAX_LENGTH = 20_000  # characters, for the measures whose cost grows with the square of the length
_regex_worker = Worker("verifiers.text:search_pattern", timeout_s=2.0)


def text_answer(response: str, row: Mapping[str, Any]) -> str | None:
    """The answer as `match` compares it: as it stands with "exact", otherwise normalised. None where there is none.

    >>> text_answer("<think>hm</think>The Eiffel Tower!", {})
    'eiffel tower'
    """
    answer = (outside_thinking(response) or "").strip()
    return (answer if row.get("match") == "exact" else normalise(answer) or answer) or None


@register_verifier(
    "text",
    optional=("answer", "match", "threshold", "contains", "pattern", "min_words", "max_words"),
    answer_of=text_answer,
)
def text(response: str, row: Mapping[str, Any]) -> Verdict:
    """The answer equals, resembles or contains what the row asks for.

    `answer` (a text or a list of accepted ones) with `match`: "exact", "normalised" (the default: case, punctuation,
    articles and white space do not count), "contains", "edit" (1 - insertions and deletions / characters of both),
    "bleu" or "chrf" (0 to 1, through sacrebleu); the last three pass from `threshold` (default 1) on and score their
    value. `contains`: texts that must stand in it. `pattern`: a regular expression that the whole answer must match.
    `min_words`, `max_words`: bounds.

    >>> text("The Eiffel Tower!", {"answer": ["Big Ben", "eiffel tower"]}).status
    'pass'
    >>> text("colour", {"answer": "color", "match": "edit", "threshold": 0.9}).status
    'pass'
    >>> text("2024-02-30", {"pattern": "[0-9]{4}-[0-9]{2}-[0-9]{2}", "max_words": 1}).status
    'pass'
    >>> text("one two three", {"max_words": 2}).detail
    '3 words, at most 2 are allowed'

    Raises ValueError for an unknown `match`, a broken pattern, or a row without any of these columns.
    """
    if not any(row.get(name) is not None for name in ("answer", "contains", "pattern", "min_words", "max_words")):
        raise ValueError("the row has none of the columns answer, contains, pattern, min_words, max_words")
    answer = outside_thinking(response)
    answer = answer.strip() if answer else ""
    if not answer:
        return Verdict(0.0, "unparsed", "no answer outside the thinking block")
    broken = _bounds(answer, row) or _missing(answer, row.get("contains"))
    if broken:
        return Verdict(0.0, "fail", broken)
    if row.get("pattern") is not None:
        try:
            if not _regex_worker.call([row["pattern"], answer]):
                return Verdict(0.0, "fail", "the pattern does not match the whole answer")
        except WorkerTimeoutError:
            return Verdict(0.0, "timeout", "matching the pattern took too long")
    return Verdict(1.0, "pass") if row.get("answer") is None else _compare(answer, row)


def search_pattern(request: list[str]) -> bool:
    """Runs in the worker, because a regular expression can take exponential time. [pattern, text]."""
    return re.fullmatch(request[0], request[1], re.DOTALL) is not None


def normalise(value: str) -> str:
    """Case folded, without punctuation, articles and repeated white space (the SQuAD normalisation, for any script).

    >>> normalise(" The “Eiffel”  Tower. ")
    'eiffel tower'
    """
    folded = unicodedata.normalize("NFKC", value).casefold()
    plain = "".join(" " if unicodedata.category(c)[0] in "PZ" or c.isspace() else c for c in folded)
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))


def _compare(answer: str, row: Mapping[str, Any]) -> Verdict:
    accepted = [row["answer"]] if isinstance(row["answer"], str) else list(row["answer"])
    kind, threshold = row.get("match") or "normalised", row.get("threshold")
    if kind not in _MEASURES or not accepted:
        raise ValueError(f"column 'match' must be one of {', '.join(_MEASURES)} and 'answer' must not be empty")
    if kind in ("edit", "bleu", "chrf") and len(answer) > MAX_LENGTH:
        return Verdict(0.0, "unparsed", f"the answer is longer than {MAX_LENGTH} characters")
    score = min(1.0, max(_MEASURES[kind](answer, other) for other in accepted))
    passed = score > 0 and score >= (1.0 if threshold is None else threshold)
    return Verdict(score, "pass" if passed else "fail", f"{kind} {score:.3f}")


def _bounds(answer: str, row: Mapping[str, Any]) -> str:
    words = len(answer.split())
    low, high = row.get("min_words"), row.get("max_words")
    if low is not None and words < low:
        return f"{words} words, at least {low} are needed"
    return f"{words} words, at most {high} are allowed" if high is not None and words > high else ""


def _missing(answer: str, required: Any) -> str:
    wanted = [required] if isinstance(required, str) else required or []
    missing = next((part for part in wanted if part not in answer), None)
    return f"{missing!r} does not stand in the answer" if missing is not None else ""


def _contains(answer: str, other: str) -> float:
    """Whole words only: "paris" does not stand in "comparison"."""
    wanted = normalise(other)
    return float(wanted != "" and f" {wanted} " in f" {normalise(answer)} ")


def _edit(left: str, right: str) -> float:
    """1 - (insertions + deletions) / (characters of both), from the longest common subsequence."""
    return 2 * lcs_length(left, right) / (len(left) + len(right)) if left or right else 1.0


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence of two texts or lists, a bit per item of `right` at a time, so that no
    pair takes long (Hyyrö, Bit-parallel LCS-length computation revisited, 2004).

    >>> lcs_length("abcde", "xaxcxe"), lcs_length("", "a")
    (3, 0)
    """
    places: dict[str, int] = {}
    for i, item in enumerate(right):
        places[item] = places.get(item, 0) | 1 << i
    whole = (1 << len(right)) - 1
    row = whole  # a zero bit stands for one more common item
    for item in left:
        matched = row & places.get(item, 0)
        row = (row + matched | row - matched) & whole
    return len(right) - row.bit_count()


def _bleu(left: str, right: str) -> float:
    import sacrebleu

    return sacrebleu.sentence_bleu(left, [right]).score / 100


def _chrf(left: str, right: str) -> float:
    import sacrebleu

    return sacrebleu.sentence_chrf(left, [right]).score / 100


_MEASURES: dict[str, Callable[[str, str], float]] = {
    "exact": lambda answer, other: float(answer == other.strip()),
    "normalised": lambda answer, other: float(answer == other or normalise(answer) == normalise(other) != ""),
    "contains": _contains,
    "edit": _edit,
    "bleu": _bleu,
    "chrf": _chrf,
}

"""Verifiers made of verifiers: `all_of`, `any_of`, `weighted`, and `by_task`.

As functions they make a verifier for code (`combine_all("math", "format")`); as registered names they read the row.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from verifiers.registry import Verifier, answer_key, get_verifier, gold_response, register_verifier, verify
from verifiers.verdict import Verdict


def combine_all(*names: str) -> Verifier:
    """Every verifier must pass; the score is the lowest. One that fails decides even when another one errs.

    >>> combine_all("math", "format")("<think>hm</think>4", {"answer": 4}).status
    'pass'
    >>> combine_all("math", "format")("4", {"answer": 4}).detail
    'format: the response has no <think>'
    """
    _check(names)

    def verifier(response: str, row: Mapping[str, Any]) -> Verdict:
        verdicts = {name: verify(name, response, row) for name in names}
        for wanted in ("fail", "unparsed", "timeout", "error"):
            for name, verdict in verdicts.items():
                if verdict.status == wanted:
                    return Verdict(_lowest(verdict, verdicts), verdict.status, f"{name}: {verdict.detail}")
        return Verdict(min(v.score or 0.0 for v in verdicts.values()), "pass")

    return verifier


def _lowest(deciding: Verdict, verdicts: Mapping[str, Verdict]) -> float | None:
    """The score that goes with the status of the deciding verdict."""
    if deciding.status in ("error", "unparsed"):
        return deciding.score
    return min(v.score for v in verdicts.values() if v.score is not None)


def combine_any(*names: str) -> Verifier:
    """One verifier that passes is enough; the score is the highest. Without one, an error leaves the row unscored.

    >>> combine_any("math", "choice")("B", {"answer": "B"}).status
    'pass'
    """
    _check(names)

    def verifier(response: str, row: Mapping[str, Any]) -> Verdict:
        verdicts = {name: verify(name, response, row) for name in names}
        best = max((v for v in verdicts.values() if v.passed), key=lambda v: v.score or 0.0, default=None)
        if best:
            return best
        for wanted in ("error", "timeout", "fail", "unparsed"):
            for name, verdict in verdicts.items():
                if verdict.status == wanted:
                    return Verdict(verdict.score, verdict.status, f"{name}: {verdict.detail}")
        raise AssertionError("unreachable: a verdict has one of the five statuses")

    return verifier


def combine_weighted(weights: Mapping[str, float]) -> Verifier:
    """The weighted mean of the scores; passes when all pass; any error leaves the row unscored.

    >>> combine_weighted({"math": 3, "format": 1})("4", {"answer": 4}).score
    0.75
    """
    _check(list(weights))
    total = sum(weights.values())
    if min(weights.values()) < 0 or not total > 0:
        raise ValueError(f"weights must be at least 0 with a sum above 0, got {dict(weights)}")

    def verifier(response: str, row: Mapping[str, Any]) -> Verdict:
        verdicts = {name: verify(name, response, row) for name in weights}
        for name, verdict in verdicts.items():
            if verdict.score is None:
                return Verdict(None, "error", f"{name}: {verdict.detail}")
        score = sum(weights[name] * (verdict.score or 0.0) for name, verdict in verdicts.items()) / total
        detail = "; ".join(f"{name} {verdict.score:g}" for name, verdict in verdicts.items())
        return Verdict(score, "pass" if all(v.passed for v in verdicts.values()) else "fail", detail)

    return verifier


def _gold_for_all(gold: Any, row: Mapping[str, Any]) -> str:
    """The gold answer in the form that each verifier in turn gives it."""
    for name in row["verifiers"]:
        gold = gold_response(name, gold, row)
    return gold


def _parts(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, row) for name in row["verifiers"]]


def _check(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("name at least one verifier")
    for name in names:
        get_verifier(name)


@register_verifier("all_of", columns=("verifiers",), gold_response=_gold_for_all, parts=_parts)
def all_of(response: str, row: Mapping[str, Any]) -> Verdict:
    """Every verifier that the row's `verifiers` column names must pass.

    >>> all_of("<think>hm</think>4", {"verifiers": ["math", "format"], "answer": 4}).status
    'pass'
    """
    return combine_all(*row["verifiers"])(response, row)


@register_verifier("any_of", columns=("verifiers",), parts=_parts)
def any_of(response: str, row: Mapping[str, Any]) -> Verdict:
    """One of the verifiers that the row's `verifiers` column names must pass.

    >>> any_of("4", {"verifiers": ["math", "format"], "answer": 4}).status
    'pass'
    """
    return combine_any(*row["verifiers"])(response, row)


@register_verifier("weighted", columns=("verifiers",), parts=_parts)
def weighted(response: str, row: Mapping[str, Any]) -> Verdict:
    """The weighted mean of the scores; the row's `verifiers` column maps names to weights.

    >>> weighted("4", {"verifiers": {"math": 1, "format": 1}, "answer": 4}).score
    0.5
    """
    return combine_weighted(row["verifiers"])(response, row)


def answer_by_task(response: str, row: Mapping[str, Any]) -> Hashable | None:
    """The voting key of the row's own verifier. Raises NoAnswerKeyError when that has none."""
    return answer_key(row["task"], response, row)


@register_verifier(
    "by_task",
    columns=("task",),
    answer_of=answer_by_task,
    gold_response=lambda gold, row: gold_response(row["task"], gold, row),
    parts=lambda row: [(row["task"], row)],
)
def by_task(response: str, row: Mapping[str, Any]) -> Verdict:
    """The verifier that the row's `task` column names.

    >>> by_task("4", {"task": "math", "answer": 4}).status
    'pass'

    Raises ValueError for an unknown name.
    """
    return verify(row["task"], response, row)

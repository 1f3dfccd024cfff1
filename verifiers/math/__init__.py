"""The `math` verifier: is the final answer of a response mathematically the accepted one?

Rows: `answer`, the accepted answer or a list of them: a number or text; LaTeX; a whole solution that ends in
`#### 72` or in a box. Extraction from the response is described in `verifiers.math.extract`.

Decisions are exact. Rational arithmetic is done with fractions, elementary expressions are compared by a normal form,
and everything else goes to computer algebra in a worker process that is killed after `CALL_TIMEOUT_S`, and is accepted
only when proven equal. What is read: integers, decimals, repeating decimals, fractions, mixed numbers, percent,
thousands separators in groups of three, units and currency, numerals in a base, roots, powers, logarithms,
trigonometry, factorials, binomials, ±, lists, sets, tuples, vectors, intervals, unions, matrices, equations with a
named variable, inequalities, ratios, values for all integers k, "no solution", and words.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from verifiers.math.answer import Answer, normalise_words, read_answer
from verifiers.math.compare import STRUCTURES, ask, same_answer
from verifiers.math.exact import TooLargeError, exact
from verifiers.math.extract import extract_answer
from verifiers.math.tokens import MAX_LENGTH, MathSyntaxError, strip_typography
from verifiers.math.vote import math_answer
from verifiers.registry import register_verifier
from verifiers.verdict import Verdict
from verifiers.worker import WorkerCrashError, WorkerTimeoutError

_SHOWN = 80


@register_verifier("math", columns=("answer",), answer_of=math_answer)
def math(response: str, row: Mapping[str, Any]) -> Verdict:
    r"""Exact or symbolic equality of the final answer with the row's accepted answer(s).

    >>> math(r"<think>40 + 32</think> So it is \boxed{72}.", {"answer": "… #### 72"}).status
    'pass'
    >>> math(r"\boxed{0.75}", {"answer": r"\frac{3}{4}"}).status
    'pass'
    >>> math("The answer is 7,3.", {"answer": 73}).status
    'fail'
    >>> math("<think>still thinking", {"answer": "72"}).status
    'unparsed'

    Raises ValueError when the row holds no usable accepted answer.
    """
    golds = accepted_answers(row["answer"])
    text = extract_answer(response)
    if text is None:
        return Verdict(0.0, "unparsed", "no final answer was found outside the thinking block")
    if len(text) > MAX_LENGTH:
        return Verdict(0.0, "unparsed", f"the answer is longer than {MAX_LENGTH} characters")
    verdict = Verdict(0.0, "unparsed", f"cannot read {text[:_SHOWN]!r} as an answer")
    for gold in golds:
        one = _judge(gold, text)
        if one.passed:
            return one
        if _RANK[one.status] >= _RANK[verdict.status]:
            verdict = one
    return verdict


# Of several accepted answers the most informative outcome counts; a comparison that broke leaves the row unscored.
_RANK = {"unparsed": 0, "fail": 1, "timeout": 2, "error": 3}


def accepted_answers(answer: Any) -> list[str]:
    """The accepted answers as texts. Raises ValueError for an empty or an unusable one."""
    values = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    texts = [_gold_text(value) for value in values]
    if not texts:
        raise ValueError("column 'answer' is an empty list; give at least one accepted answer")
    return texts


def _gold_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"column 'answer' must hold text or numbers, got {type(value).__name__}")
    if not isinstance(value, str):
        return f"{Decimal(repr(value)):f}"
    text = value
    if "####" in value or "\\boxed" in value or "\\fbox" in value:
        text = extract_answer(value) or ""
    if not text.strip():
        raise ValueError(f"column 'answer' holds no answer: {value[-_SHOWN:]!r}")
    return text


def _judge(gold: str, text: str) -> Verdict:
    """One accepted answer against the response's; every outcome is a verdict."""
    shown = f"{text[:_SHOWN]!r} against {gold[:_SHOWN]!r}"
    try:
        same = _same(gold, text)
    except (TooLargeError, ZeroDivisionError) as error:
        if _is_sound(gold):
            return Verdict(0.0, "unparsed", f"cannot evaluate {text[:_SHOWN]!r}: {error}")
        return Verdict(None, "error", f"cannot evaluate the accepted answer {gold[:_SHOWN]!r}: {error}")
    except WorkerTimeoutError:
        return Verdict(0.0, "timeout", f"the comparison took too long: {shown}")
    except WorkerCrashError as error:
        return Verdict(None, "error", str(error))
    except RuntimeError as error:
        return Verdict(None, "error", f"the comparison broke: {shown}: {error}"[:300])
    if same == "gold":
        return Verdict(None, "error", f"cannot read the accepted answer {gold[:_SHOWN]!r}")
    if same == "given":
        return Verdict(0.0, "unparsed", f"cannot read {text[:_SHOWN]!r} as an answer")
    return Verdict(1.0, "pass", shown) if same else Verdict(0.0, "fail", shown)


def _same(gold: str, text: str) -> bool | str:
    """Whether the two are equal, or which of them ("gold", "given") cannot be read."""
    expected, given = _read(gold), _read(text)
    if expected is not None and given is not None:
        return same_answer(expected, given)
    plain_gold, plain_text = strip_typography(gold), strip_typography(text)
    if plain_gold == plain_text:
        return True
    if expected is None and "\\" not in plain_gold:  # prose
        return normalise_words(plain_gold) == normalise_words(plain_text)
    if expected is not None and expected.value[0] == "text":
        return expected.value[1] == normalise_words(plain_text)
    if given is None and ("\\" not in text or (expected is not None and expected.value[0] in STRUCTURES)):
        return "given"
    left = ["latex", plain_gold] if expected is None else ["tree", expected.value]
    return ask("latex", left, ["latex", plain_text] if given is None else ["tree", given.value])


def _is_sound(gold: str) -> bool:
    """Whether the accepted answer itself can be evaluated, so that it is the response that cannot."""
    try:
        expected = _read(gold)
        if expected is not None:
            exact(expected.value)
    except (TooLargeError, ZeroDivisionError):
        return False
    return True


@lru_cache(maxsize=4096)
def _read(text: str) -> Answer | None:
    try:
        return read_answer(text)
    except (MathSyntaxError, RecursionError):
        return None

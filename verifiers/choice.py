"""The `choice` verifier: multiple-choice questions answered by an option's letter or text."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from verifiers.math.extract import extract_answer
from verifiers.registry import register_verifier
from verifiers.response import outside_thinking
from verifiers.verdict import Verdict

_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.:)]|\s*$)")
_STATED = re.compile(r"\b(?i:answer|choice|option)(?:\s+is)?\s*:?\s*\**\(?([A-Z])\)?\**(?![\w'])")

# A second option beside the first: an answer that names two chooses none.
_ANOTHER = re.compile(r"(?:or|and)\b|(?:.*\s)?\(?[a-j]\)|[a-j](?:[.:]|$)", re.DOTALL)
_AND_ANOTHER = re.compile(
    r"\s*(?:[,/&]|(?:or|and)\b)\s*(?:(?:also|maybe|perhaps|possibly|option)\s+)?\**\(?[A-HJ-Z]\)?(?![\w'])"
)


def chosen_letter(response: str, row: Mapping[str, Any]) -> str | None:
    """The letter of the option chosen, None where none was.

    >>> chosen_letter("It is Paris. The answer is Paris", {"choices": ["Rome", "Paris"]})
    'B'
    """
    text = outside_thinking(response)
    return _chosen(text, _options(row)) if text else None


@register_verifier(
    "choice",
    columns=("answer",),
    optional=("choices",),
    answer_of=chosen_letter,
    gold_response=lambda gold, row: _right_letter(gold, _options(row)),
)
def choice(response: str, row: Mapping[str, Any]) -> Verdict:
    r"""The option chosen, by letter or by the option's text.

    `answer`: the right letter, or with `choices` (a list of texts, A first) also the right text or its index from 0.

    >>> choice("The answer is (B).", {"answer": "B"}).status
    'pass'
    >>> choice(r"\boxed{\text{Paris}}", {"answer": 1, "choices": ["Rome", "Paris"]}).status
    'pass'
    >>> choice("The answer is A or B", {"answer": "A", "choices": ["Rome", "Paris"]}).status
    'unparsed'

    Raises ValueError when the row's answer is none of its options.
    """
    right = _right_letter(row["answer"], _options(row))
    chosen = chosen_letter(response, row)
    if chosen is None:
        return Verdict(0.0, "unparsed", "no option was chosen")
    shown = f"chose {chosen}, right is {right}"
    return Verdict(1.0, "pass", shown) if chosen == right else Verdict(0.0, "fail", shown)


def _options(row: Mapping[str, Any]) -> list[str]:
    return [_normalise(str(option)) for option in row.get("choices") or []]


def _right_letter(answer: Any, options: list[str]) -> str:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return string.ascii_uppercase[answer]
    if isinstance(answer, str):
        if _normalise(answer) in options:
            return string.ascii_uppercase[options.index(_normalise(answer))]
        letter = answer.strip().strip("().").upper()
        if len(letter) == 1 and letter in string.ascii_uppercase[: len(options) or 26]:
            return letter
    raise ValueError(f"column 'answer' is {answer!r}, which is none of the options")


def _chosen(text: str, options: list[str]) -> str | None:
    answer = extract_answer(text)
    letters = string.ascii_uppercase[: len(options) or 26]
    if answer is not None:
        plain = _normalise(answer)
        if plain in options:
            return letters[options.index(plain)]
        bare = re.sub(r"\\text\w*\{|[{}*$]", "", answer).strip()
        found = _LETTER.match(bare)
        rest = _normalise(bare[found.end() :]) if found else ""
        if found and found[1].upper() in letters:
            letter = found[1].upper()
            # "B) Paris" names its option twice; the two must agree.
            agrees = rest == options[letters.index(letter)] if options else not _ANOTHER.match(rest)
            return letter if not rest or agrees else None
    stated = next(reversed(list(_STATED.finditer(text))), None)
    if stated is None or _AND_ANOTHER.match(text, stated.end()):
        return None
    return stated[1] if stated[1] in letters else None


def _normalise(text: str) -> str:
    text = re.sub(r"\\text\w*\{|[{}*$`\"]", "", text).casefold()
    return " ".join(text.split()).rstrip(".")

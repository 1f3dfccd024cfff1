"""The filters of Qwen3's long-CoT cold start (arXiv 2505.09388, section 4.1), a function each.

Each returns why a query or a response falls, "" when it stays. The report has a strong model judge queries and people
judge responses; the rules here need neither, and their thresholds are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.chat.thinking import parse_response
from recipes.decontaminate import ValidationTexts, tokens_of
from rewards import get_reward
from verifiers import NoAnswerKeyError, answer_key, cannot_judge, gold_response, verify
from verifiers.language import language_mix, mixing
from verifiers.scripts import words

Row = Mapping[str, Any]

# --- queries ----------------------------------------------------------------------------------------------------------

_PARTS = re.compile(r"(?:^|[\s(])\(?([a-e]|[1-5]|i{1,3}|iv)[).](?=\s)", re.MULTILINE)
_QUESTION = re.compile(r"[?？](?=\s|$|[^?？\s])")


def not_verifiable(row: Row, verifier: str) -> str:
    """The row's own gold answer, column `answer`, does not pass. Without one: the verifier errs on the row, as `code`
    does not on one with tests."""
    # a gold answer is a whole response: it does not begin inside a thinking block that the prompt opened
    own = {name: cell for name, cell in row.items() if cell is not None and name != "think_opened"}
    if "answer" not in own:
        return cannot_judge(verifier, own)
    verdict = verify(verifier, gold_response(verifier, own["answer"], own), own)
    return "" if verdict.status == "pass" else f"its own answer: {verdict.status}, {verdict.detail}"


def several_questions(question: str) -> str:
    """More than one question mark, or parts (a), (b) or 1., 2.: one final answer could not tell which is right."""
    marks = len(_QUESTION.findall(question))
    parts = list(dict.fromkeys(found.lower() for found in _PARTS.findall(question)))
    if any(first in parts and second in parts for first, second in (("a", "b"), ("1", "2"), ("i", "ii"))):
        return f"parts {', '.join(parts)}"
    return f"{marks} questions" if marks > 1 else ""


def solved_without_thinking(scores: Sequence[float | None], most: float) -> str:
    """A model answers it without thinking more often than `most` (share of the scored responses)."""
    scored = [score for score in scores if score is not None]
    rate = sum(score >= 1.0 for score in scored) / len(scored) if scored else 0.0
    return f"{rate:.0%} of {len(scored)} answers without thinking are right" if rate > most else ""


_DOMAINS = (
    ("code", r"\b(?:function|program|python|javascript|algorithm|code|class|compile|stdin)\b|```"),
    ("science", r"\b(?:atom|molecul|force|velocity|energy|cell|protein|chemical|gene|planet|voltage)\w*"),
    ("logic", r"\b(?:knight|knave|puzzle|logic|truth|lies?|liar|deduce|sudoku)\w*\b"),
    ("math", r"[0-9]\s*[-+*/=^]|\b(?:how many|compute|calculate|solve|integral|prove|sum|product|equation)\b|[0-9]"),
)


def domain_of(row: Row, question: str) -> str:
    """The column `domain`, or what words of the question suggest: code, science, logic, math, else other."""
    if row.get("domain"):
        return str(row["domain"])
    return next((name for name, pattern in _DOMAINS if re.search(pattern, question, re.IGNORECASE)), "other")


# --- responses --------------------------------------------------------------------------------------------------------

_GUESS = re.compile(
    r"\b(?:(?:just|only|simply|will|'ll|must|to) guess|(?:my|a) guess|i guess|no idea|at random)\b", re.I
)
_STATES = re.compile(r"\\boxed|####|\b(?:answer|result)\s*(?:is|:)", re.IGNORECASE)
_EQUALS = re.compile(r"=[ \t]*([^=\s]{1,40}?)\.?\Z")
_LANGUAGE_OF_SCRIPT = {"Latin": "en", "Han": "zh", "Hiragana": "ja", "Katakana": "ja", "Cyrillic": "ru", "Arabic": "ar",
                       "Hangul": "ko", "Thai": "th", "Devanagari": "hi", "Greek": "el", "Hebrew": "he"}  # fmt: skip


def unfinished(finish_reason: str) -> str:
    """It was cut off, or its thinking was."""
    return "" if finish_reason == "stop" else f"it ended by {finish_reason!r}"


def wrong_answer(text: str, row: Row, verifier: str) -> str:
    """The verifier does not pass the final answer."""
    verdict = verify(verifier, text, row)
    return "" if verdict.status == "pass" else f"{verdict.status}: {verdict.detail}"


def heavy_repetition(text: str, ngram: int, most: float) -> str:
    """More than `most` of its passages of `ngram` words repeat an earlier one."""
    share = -get_reward("repetition", {"ngram": ngram, "unit": "words"})([""], [text])[0]
    return f"{share:.0%} of its {ngram}-word passages repeat an earlier one" if share > most else ""


def guess_without_reasoning(text: str, least_words: int) -> str:
    """Its thinking is shorter than `least_words` (words, numbers and signs), or says that it guesses."""
    thinking = parse_response(text).thinking
    size = len(tokens_of(thinking))
    if size < least_words:
        return f"its thinking has {size} words"
    guess = _GUESS.search(thinking)
    return f"its thinking says {guess[0]!r}" if guess else ""


def thinking_disagrees(text: str, row: Row, verifier: str) -> str:
    """Its thinking ends with another answer than it gives. Where the thinking states none, or the verifier cannot read
    answers out of texts, nothing is found."""
    parsed = parse_response(text)
    stated = _stated(parsed.thinking)
    if not stated or not parsed.answer:
        return ""
    try:
        thought, given = answer_key(verifier, stated, row), answer_key(verifier, parsed.answer, row)
    except NoAnswerKeyError:
        return ""
    differ = thought is not None and given is not None and thought != given
    return f"its thinking ends with {stated[-60:]!r}, its answer is {parsed.answer[-60:]!r}" if differ else ""


def _stated(thinking: str) -> str:
    """The thinking's own conclusion: what it calls its answer, or what its last line equals."""
    if _STATES.search(thinking):
        return thinking
    equal = _EQUALS.search(thinking.rstrip())
    return f"The answer is \\boxed{{{equal[1]}}}." if equal else ""


def mixes_languages(text: str, row: Row, question: str) -> str:
    """Thinking or answer has words in other scripts than its language: columns `thinking_language` and
    `answer_language`, else what the question is mostly written in."""
    parsed = parse_response(text)
    scripts = [word.script for word in words(question)]
    asked = _LANGUAGE_OF_SCRIPT.get(max(scripts, key=scripts.count), "") if scripts else ""
    for part, content in (("thinking", parsed.thinking), ("answer", parsed.answer or "")):
        language = row.get(f"{part}_language") or asked
        broken = mixing(language_mix(content, language, row), row.get("max_foreign_share")) if language else ""
        if broken:
            return f"{part}: {broken}"
    return ""


def near_validation(question: str, text: str, validation: ValidationTexts) -> str:
    """The question shares 13 tokens in order and 0.6 of the shorter text with a validation item, or the response
    repeats 13 tokens in a row of one."""
    near = validation.nearest(question)
    if near:
        return f"{near.shared} of {near.of} tokens of validation item {near.item + 1}"
    copied = validation.copied(text)
    return "" if copied is None else f"13 tokens in a row of validation item {copied + 1}"

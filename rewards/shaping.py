"""Shaping rewards: length, overlong completions, repetition, language.

Each is made from parameters: `{name: overlong, max_length: 4096, buffer: 512}` in YAML. None of them looks at whether
an answer is right, so give them small weights beside a reward that does. Tokens are those of the whole completion,
thinking included (`completion_ids`); characters and words are those of its text.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

from rewards.completions import Completion, completion_text
from rewards.from_verifier import RewardFn, rows_of_columns
from rewards.registry import register_reward_factory
from verifiers.language import language_mix
from verifiers.response import split_thinking

log = logging.getLogger("rewards")
# A letter of a script without spaces, a word, or a sign.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


@register_reward_factory("length")
def length(low: float = 0, high: float = math.inf, margin: float = 0, unit: str = "tokens") -> RewardFn:
    """1 for a completion between `low` and `high` units long, falling linearly to 0 at `margin` units outside.

    unit: "tokens" or "characters". With low = high that length is the target. With margin 0 the edge is sharp.

    >>> within = length(low=2, high=4, margin=2)
    >>> within([""] * 4, [""] * 4, completion_ids=[[1] * n for n in (1, 2, 5, 9)])
    [0.5, 1.0, 0.5, 0.0]

    Raises ValueError when neither bound is given or they contradict each other.
    """
    if unit not in ("tokens", "characters"):
        raise ValueError(f"unit has to be tokens or characters, got {unit!r}")
    for name, value in (("low", low), ("high", high), ("margin", margin)):
        _check_number(name, value, 0)
    if (low == 0 and high == math.inf) or low > high:
        raise ValueError(f"give low, high or both, low not above high; got low {low}, high {high}")

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        outside = [max(low - n, n - high, 0) for n in map(len, _units(unit, completions, completion_ids))]
        return [1.0 if d == 0 else max(0.0, 1.0 - d / margin) if margin else 0.0 for d in outside]

    return reward


@register_reward_factory("overlong")
def overlong(max_length: int, buffer: int) -> RewardFn:
    """0 up to `max_length - buffer` tokens, then linearly down to -1 at `max_length`, -1 beyond.

    Equation 13 of DAPO (arXiv 2503.14476). Set max_length to the recipe's `max_tokens`, so that a completion that is
    cut off there gets -1.

    >>> penalty = overlong(max_length=100, buffer=20)
    >>> penalty([""] * 4, [""] * 4, completion_ids=[[1] * n for n in (80, 90, 100, 101)])
    [0.0, -0.5, -1.0, -1.0]

    Raises ValueError unless 1 <= buffer <= max_length.
    """
    _check_number("max_length", max_length, 1)
    _check_number("buffer", buffer, 1)
    if buffer > max_length:
        raise ValueError(f"buffer ({buffer}) exceeds max_length ({max_length})")

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        beyond = [len(ids) - (max_length - buffer) for ids in _units("tokens", completions, completion_ids)]
        return [-min(n / buffer, 1.0) if n > 0 else 0.0 for n in beyond]

    return reward


@register_reward_factory("repetition")
def repetition(ngram: int = 20, unit: str = "tokens") -> RewardFn:
    """Minus the share of n-grams that repeat an earlier one: 0 without repetition, towards -1 in a loop.

    ngram: how many units long a passage has to be for its repetition to count. 20 tokens hardly ever recur in sound
    reasoning; terms and formulas do at 4. unit: "tokens" or "words" (a sign, or a letter of a script without spaces,
    counts as a word). Completions of fewer units score 0.

    >>> repetition(ngram=2, unit="words")([""] * 2, ["a b c d", "a b a b a b"])
    [0.0, -0.6]

    Raises ValueError for ngram below 1.
    """
    if unit not in ("tokens", "words"):
        raise ValueError(f"unit has to be tokens or words, got {unit!r}")
    _check_number("ngram", ngram, 1)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        return [_repetition(units, int(ngram)) for units in _units(unit, completions, completion_ids)]

    return reward


def _repetition(units: Sequence[Any], n: int) -> float:
    count = len(units) - n + 1
    if count < 1:
        return 0.0
    return len({tuple(units[i : i + n]) for i in range(count)}) / count - 1.0


@register_reward_factory("language_consistency", optional=("answer_language", "thinking_language", "think_opened"))
def language_consistency() -> RewardFn:
    """The share of words in the scripts of the row's language, 0 to 1 (DeepSeek-R1's consistency reward).

    Columns `answer_language` and `thinking_language`: codes such as en or zh for that part of the completion; a part
    without one does not count. A row with neither, or with a language that is not known, is unscored. `think_opened`:
    the prompt ends in `<think>`. See `verifiers.language` for what is left out (code, formulas, quotations of the row)
    and `verifiers.scripts` for what a word is. No words at all score 1, a missing answer 0.

    >>> reward = language_consistency()
    >>> reward([""] * 3, ["It is four.", "It is 四.", "x"], answer_language=["en", "en", None])
    [1.0, 0.6666666666666666, None]
    """
    unknown: set[str] = set()

    def reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        rows = rows_of_columns(columns, len(completions))
        return [_consistency(completion_text(c), row, unknown) for c, row in zip(completions, rows, strict=True)]

    return reward


def _consistency(text: str, row: dict[str, Any], unknown: set[str]) -> float | None:
    """unknown: the languages that were warned about."""
    thinking, answer = split_thinking(text, bool(row.get("think_opened")))
    wanted = [(row.get("thinking_language"), thinking), (row.get("answer_language"), answer)]
    if not any(language for language, _ in wanted):
        return None
    try:
        mixes = [language_mix(part or "", language, row) for language, part in wanted if language]
    except ValueError as error:
        if str(error) not in unknown:
            unknown.add(str(error))
            log.warning("reward 'language_consistency': %s; these completions are unscored", error)
        return None
    if row.get("answer_language") and not (answer or "").strip():
        return 0.0
    own = sum(mix.own for mix in mixes)
    total = own + sum(sum(mix.foreign.values()) for mix in mixes)
    return own / total if total else 1.0


def _units(unit: str, completions: Sequence[Completion], completion_ids: Any) -> list[Any]:
    if unit != "tokens":
        texts = [completion_text(completion) for completion in completions]
        return texts if unit == "characters" else [_WORD.findall(text) for text in texts]
    if completion_ids is None:
        raise ValueError("no completion_ids: lengths in tokens need them; for texts alone choose another unit")
    return [list(ids) for ids in completion_ids]


def _check_number(name: str, value: object, low: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= low:
        raise ValueError(f"{name} has to be a number of {low} or more, got {value!r}")

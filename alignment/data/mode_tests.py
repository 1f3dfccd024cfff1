"""A test set of mode following: prompts with flags in all the places they can stand, and the mode the answer must have.

Its rows have the column `mode`, which the `format` verifier reads, and `domain`, the case:
`python recipes/verify.py --verifier format --dataset mode_tests.jsonl` gives the rate of mode following in all and per
case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignment.chat.thinking import EMPTY_BLOCK, FLAGS, Mode
from alignment.errors import UserError

Messages = list[dict[str, Any]]
_OTHER: dict[Mode, Mode] = {"thinking": "no_think", "no_think": "thinking"}


def _user(question: str, *modes: Mode) -> dict[str, Any]:
    return {"role": "user", "content": " ".join([question, *(FLAGS[mode] for mode in modes)])}


def _system(mode: Mode) -> dict[str, Any]:
    return {"role": "system", "content": FLAGS[mode]}


def _asked_before(example: tuple[str, str], mode: Mode) -> Messages:
    """An earlier question with a flag and its answer, as a chat keeps it."""
    question, answer = example
    block = EMPTY_BLOCK if mode == "no_think" else "<think>\nI look at the question again.\n</think>\n\n"
    return [_user(question, mode), {"role": "assistant", "content": block + answer}]


# Each builds the messages for a question whose answer has to be in the given mode.
_CASES: dict[str, Callable[[str, Mode, tuple[str, str]], Messages]] = {
    "user": lambda q, mode, _: [_user(q, mode)],
    "system": lambda q, mode, _: [_system(mode), _user(q)],
    "two in one turn": lambda q, mode, _: [_user(q, _OTHER[mode], mode)],
    "user against system": lambda q, mode, _: [_system(_OTHER[mode]), _user(q, mode)],
    "turn against earlier turn": lambda q, mode, e: [*_asked_before(e, _OTHER[mode]), _user(q, mode)],
    "from an earlier turn": lambda q, mode, e: [*_asked_before(e, mode), _user(q)],
}


def mode_tests(questions: Sequence[str], examples: Sequence[tuple[str, str]], seed: int = 0) -> list[dict[str, Any]]:
    """One row per question, the cases and modes in turn: `id`, `prompt` (messages), `mode`, `domain` (the case).

    Besides the six places of flags in both modes there are "no flag" (thinking) and "template" (no_think), where the
    template's `enable_thinking=False` asks. examples: questions with their answers, without thinking, for the earlier
    turns of dialogues. Raises UserError without any of either.
    """
    if not questions or not examples:
        raise UserError("mode tests need questions, and examples (questions with answers) for dialogues")
    rng = np.random.default_rng(seed)
    kinds = [(name, mode) for name in _CASES for mode in FLAGS] + [("no flag", "thinking"), ("template", "no_think")]
    rows = []
    for number, place in enumerate(rng.permutation(len(questions))):
        name, mode = kinds[number % len(kinds)]
        question = questions[place]
        example = examples[int(rng.integers(len(examples)))]
        messages = _CASES[name](question, mode, example) if name in _CASES else [_user(question)]
        row: dict[str, Any] = {"id": f"mode-{number}", "prompt": messages, "mode": mode, "domain": f"{name}: {mode}"}
        if name == "template":
            row["chat_template_kwargs"] = {"enable_thinking": False}
        rows.append(row)
    return rows

"""`ifeval`: does a response follow the instructions of its row? The 25 published IFEval constraints, and yours.

Rows, as in Google's data set: `instruction_id_list`, the ids of the instructions (an id may stand there twice), and
`kwargs`, one object per instruction with its parameters; keys that an instruction does not use may be there with None.
Optional: `partial_credit` (true: the score is the share of instructions followed).

`ifeval` is strict. `ifeval_loose` accepts an instruction that is followed by the answer without its first line, its
last line or both, and by any of these without asterisks. Each constraint says in its docstring what it counts; where
that differs from the published code is listed in docs/verifiers.md.

`check_instructions` gives the outcome of each instruction, and `accuracies` the four published figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers.ifeval import layout, length, words  # noqa: F401  (they register their constraints)
from verifiers.ifeval.constraints import Instruction, list_constraints, read_instructions, register_constraint
from verifiers.registry import register_verifier
from verifiers.response import outside_thinking
from verifiers.verdict import Verdict

__all__ = [
    "InstructionOutcome",
    "accuracies",
    "check_instructions",
    "ifeval",
    "ifeval_loose",
    "list_constraints",
    "register_constraint",
]
_COLUMNS = ("instruction_id_list", "kwargs")
_NO_ANSWER = "no answer outside the thinking block"


@dataclass(frozen=True, slots=True)
class InstructionOutcome:
    """One instruction of a row: its id, whether the answer follows it, and what the answer as it stands breaks."""

    instruction_id: str
    strict: bool
    loose: bool
    broken: str


@register_verifier("ifeval", columns=_COLUMNS, optional=("partial_credit",))
def ifeval(response: str, row: Mapping[str, Any]) -> Verdict:
    """Every instruction of the row is followed by the answer as it stands.

    >>> row = {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    ...        "kwargs": [{"num_words": None}, {"relation": "at least", "num_words": 3}]}
    >>> ifeval("<think>Well, three.</think>One two three.", row).status
    'pass'
    >>> ifeval("One, two, three.", row).detail
    '1 of 2 instructions followed; 1 punctuation:no_comma (commas: 2)'
    >>> ifeval("One two.", {**row, "partial_credit": True}).score
    0.5
    >>> ifeval("<think>hm", row).status
    'unparsed'

    Raises ValueError for an unknown id and for a missing or wrong parameter, ModuleNotFoundError when a language has to
    be told and langdetect is not installed.
    """
    return _verdict(response, row, loose=False)


@register_verifier("ifeval_loose", columns=_COLUMNS, optional=("partial_credit",))
def ifeval_loose(response: str, row: Mapping[str, Any]) -> Verdict:
    """Like `ifeval`, for the best of eight forms of the answer: without the first or last line, without asterisks.

    >>> row = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    >>> ifeval('Sure, here it is:\\n"Quoted."', row).status
    'fail'
    >>> ifeval_loose('Sure, here it is:\\n"Quoted."', row).status
    'pass'
    """
    return _verdict(response, row, loose=True)


def check_instructions(response: str, row: Mapping[str, Any]) -> list[InstructionOutcome]:
    """The outcome of each instruction, in the row's order.

    >>> row = {"instruction_id_list": ["startend:quotation", "punctuation:no_comma"], "kwargs": [{}, None]}
    >>> [(o.strict, o.loose) for o in check_instructions('Here:\\n"Quoted."', row)]
    [(False, True), (True, True)]

    Raises what `ifeval` raises.
    """
    instructions = read_instructions(row)
    answer = (outside_thinking(response) or "").strip()
    outcomes = []
    for instruction in instructions:
        broken = instruction.broken_by(answer) if answer else _NO_ANSWER
        loose = not broken or _follows_loosely(instruction, answer)
        outcomes.append(InstructionOutcome(instruction.constraint.instruction_id, not broken, loose, broken))
    return outcomes


def accuracies(rows: Sequence[Sequence[InstructionOutcome]]) -> dict[str, float]:
    """Shares over many rows: of prompts with every instruction followed, and of instructions, strict and loose.

    >>> row = {"instruction_id_list": ["startend:quotation", "punctuation:no_comma"], "kwargs": [{}, {}]}
    >>> accuracies([check_instructions('Here:\\n"Quoted."', row)])
    {'prompt_strict': 0.0, 'instruction_strict': 0.5, 'prompt_loose': 1.0, 'instruction_loose': 1.0}

    Raises ValueError when there is nothing to count.
    """
    outcomes = [outcome for row in rows for outcome in row]
    if not outcomes:
        raise ValueError("accuracies need at least one row with an instruction")
    return {
        "prompt_strict": sum(all(o.strict for o in row) for row in rows) / len(rows),
        "instruction_strict": sum(o.strict for o in outcomes) / len(outcomes),
        "prompt_loose": sum(all(o.loose for o in row) for row in rows) / len(rows),
        "instruction_loose": sum(o.loose for o in outcomes) / len(outcomes),
    }


def _verdict(response: str, row: Mapping[str, Any], *, loose: bool) -> Verdict:
    instructions = read_instructions(row)
    answer = (outside_thinking(response) or "").strip()
    if not answer:
        return Verdict(0.0, "unparsed", _NO_ANSWER)
    broken = []
    for i, instruction in enumerate(instructions, 1):
        reason = instruction.broken_by(answer)
        if reason and not (loose and _follows_loosely(instruction, answer)):
            broken.append(f"{i} {instruction.constraint.instruction_id} ({reason})")
    followed = len(instructions) - len(broken)
    detail = "; ".join([f"{followed} of {len(instructions)} instructions followed", *broken])
    if not broken:
        return Verdict(1.0, "pass", detail)
    if row.get("partial_credit") and followed:
        return Verdict(followed / len(instructions), "pass", detail)
    return Verdict(0.0, "fail", detail)


def _follows_loosely(instruction: Instruction, answer: str) -> bool:
    """Whether one of the seven published variants of the answer follows the instruction."""
    return any(form.strip() and not instruction.broken_by(form) for form in _loose_forms(answer))


def _loose_forms(answer: str) -> list[str]:
    lines = answer.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [*cut, *(form.replace("*", "") for form in (answer, *cut))]

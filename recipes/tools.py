"""Tools that agent episodes call for real: a calculator, Python in the sandbox, a search over the row's passages.

`tools: [calculator, python, search]` in a recipe offers them to every row; a function of the user's is named as
`package.module:function`. Its type hints and its docstring (Google's style) become the JSON schema that the model sees.
Rows may bring their own column `tools` (schemas), and are then offered those alone. Where one of them is none of the
recipe's, as in function-calling data, the row is answered in one turn and nothing is called.
"""

from __future__ import annotations

import ast
import inspect
import logging
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.utils import get_json_schema

from alignment.chat.tool_calls import offered_tools
from alignment.errors import UserError, about
from alignment.rollout.tools import Tool
from alignment.types import Prompt
from verifiers.code import current_backend
from verifiers.registry import load_object
from verifiers.sandbox import Job, Limits

logger = logging.getLogger(__name__)
ToolFunction = Callable[..., str]

PYTHON_LIMITS = Limits(wall_s=8.0, cpu_s=8.0, memory_mb=512, output_mb=0.25)
SHOWN_PASSAGES = 3

# --- calculator -------------------------------------------------------------------------------------------------------

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name) for name in ("sqrt", "exp", "log", "log10", "sin", "cos", "tan", "floor", "ceil")
} | {"abs": abs, "round": round, "min": min, "max": max}
_CONSTANTS = {"pi": math.pi, "e": math.e}
_LARGEST_BITS = 4096  # of a power's result


def calculator(expression: str) -> str:
    """
    Calculates an arithmetic expression.

    Args:
        expression: Numbers, brackets, + - * / // % **, pi, e, and the functions sqrt, exp, log, log10, sin, cos, tan,
            floor, ceil, abs, round, min, max. For instance "2 * (3 + 4) ** 2".
    """
    value = _value(ast.parse(expression.strip().replace("^", "**"), mode="eval").body)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"
    return str(value)


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left), _value(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _FUNCTIONS[node.func.id](*map(_value, node.args))
    raise ValueError(f"{ast.unparse(node)!r} is nothing to calculate with")


def _power(base: int | float, exponent: int | float) -> int | float:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > _LARGEST_BITS:
        raise ValueError("the power is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("the result is no real number")
    return result


# --- Python -----------------------------------------------------------------------------------------------------------

_OWN_FRAMES = re.compile(r'  File "[^"\n]*/sandbox/\w+\.py".*\n')  # of the sandbox, in a program's traceback


def python(code: str) -> str:
    """
    Runs a Python program and returns what it prints. Each call starts anew, without network.

    Args:
        code: The program. Print the results.
    """
    outcome = current_backend().run(Job("program", {"source": code, "stdin": ""}, PYTHON_LIMITS))
    printed = outcome.stdout.decode(errors="replace")
    if outcome.ok:
        return printed or "(nothing was printed)"
    errors = _OWN_FRAMES.sub("", outcome.stderr.decode(errors="replace")).strip()[-2000:]
    raise RuntimeError("\n".join(part for part in (outcome.detail or outcome.status, printed[-2000:], errors) if part))


# --- search -----------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_K1, _B = 1.5, 0.75  # BM25's usual constants


def make_search(passages: Mapping[str, str]) -> ToolFunction:
    """The tool `search` over these passages (text by id), ranked by BM25 (Robertson and Zaragoza 2009, section 3)."""
    counts = {name: Counter(_words(text)) for name, text in passages.items()}
    lengths = {name: count.total() for name, count in counts.items()}
    mean = sum(lengths.values()) / max(1, len(lengths)) or 1.0
    holding = Counter(word for count in counts.values() for word in count)

    def score(name: str, words: Sequence[str]) -> float:
        norm = _K1 * (1 - _B + _B * lengths[name] / mean)
        found = ((word, counts[name][word]) for word in words if counts[name][word])
        return sum(
            math.log(1 + (len(counts) - holding[word] + 0.5) / (holding[word] + 0.5))
            * times
            * (_K1 + 1)
            / (times + norm)
            for word, times in found
        )

    def search(query: str) -> str:
        """
        Searches the given documents and returns the passages that fit best, each behind its id in square brackets.

        Args:
            query: A few words that the passage should contain.
        """
        words = _words(query)
        scores = {name: score(name, words) for name in passages}
        best = sorted((name for name in passages if scores[name] > 0), key=lambda name: -scores[name])
        return "\n\n".join(f"[{name}] {passages[name]}" for name in best[:SHOWN_PASSAGES]) or "(no passage fits)"

    return search


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _passages(row: Mapping[str, Any]) -> dict[str, str]:
    """The column `passages`, in the forms that the `citation` verifier reads."""
    value = row.get("passages") or {}
    if isinstance(value, Mapping):
        return {str(name): str(text) for name, text in value.items()}
    named = (p if isinstance(p, Mapping) else {"id": i, "text": p} for i, p in enumerate(value, 1))
    return {str(passage["id"]): str(passage["text"]) for passage in named}


# --- offering them ----------------------------------------------------------------------------------------------------

_FIXED: dict[str, ToolFunction] = {"calculator": calculator, "python": python}


class Tools:
    """The tools that a recipe names. Raises UserError for an unknown one and for a function without a schema."""

    def __init__(self, names: Sequence[str]):
        self.functions = {name.rpartition(":")[2]: _find(name) for name in names if name != "search"}
        self.searches = "search" in names

    def offer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows with a column `tools`; those that have one keep it. A row without passages is not offered a search.
        A logged warning counts the rows whose tools cannot all be executed.

        Raises UserError, with the row's number, when a row has nothing to search and no other tool is there, for tools
        that are no schemas, and for a text with tools, behind which nothing could show their outputs.
        """
        schemas = [_schema(function) for function in self.functions.values()]
        offered = []
        foreign: list[set[str]] = []
        for number, row in enumerate(rows, 1):
            search = [_schema(make_search({}))] if self.searches and row.get("passages") else []
            if row.get("tools") is None and not (schemas or search):
                raise UserError(f"row {number}: `search` is its only tool and it has no column `passages`")
            offered.append({**row, "tools": schemas + search if row.get("tools") is None else row["tools"]})
            with about(f"row {number}"):
                foreign.append(self._foreign(offered[-1]))
        if any(foreign):
            logger.warning(
                "%d of %d rows offer tools that are not executed here (%s): they are answered in one turn",
                sum(map(bool, foreign)), len(rows), ", ".join(sorted(set().union(*foreign))[:5]),
            )  # fmt: skip
        return offered

    def _foreign(self, row: Mapping[str, Any]) -> set[str]:
        """Tools that the row offers and that cannot be executed for it."""
        names = set(offered_tools(row))
        foreign = names - {*self.functions, *(["search"] if self.searches and row.get("passages") else [])}
        if names and not foreign and row.get("messages") is None and isinstance(row.get("prompt"), str):
            raise UserError("`prompt` is a text, and tools need messages; `tools: []` offers the row none")
        return foreign

    def of(self, prompt: Prompt) -> dict[str, Tool]:
        """Those of the tools that the prompt's row offers."""
        offered = offered_tools(prompt.row)
        functions = dict(self.functions)
        if self.searches and prompt.row.get("passages"):
            functions["search"] = make_search(_passages(prompt.row))
        return {name: _taking_a_mapping(function) for name, function in functions.items() if name in offered}


def _find(name: str) -> ToolFunction:
    if name in _FIXED:
        return _FIXED[name]
    if ":" not in name:
        known = ", ".join([*_FIXED, "search"])
        raise UserError(
            f"tools: there is no tool {name!r}; there are {known}, and functions as package.module:function"
        )
    try:
        function = load_object(name)
    except ValueError as error:
        raise UserError(f"tools: {error}") from error
    _schema(function)
    return function


def _schema(function: ToolFunction) -> dict[str, Any]:
    try:
        schema = get_json_schema(function)
    except Exception as error:  # transformers' own exceptions for hints and docstrings have no common base
        name = getattr(function, "__name__", function)
        remedy = "Give its arguments type hints, and describe them in its docstring under `Args:`"
        raise UserError(f"tools: {name} has no schema ({error}). {remedy}") from error
    del schema["function"]["return"]
    return schema


def _taking_a_mapping(function: ToolFunction) -> Tool:
    signature = inspect.signature(function)

    def tool(arguments: Mapping[str, Any]) -> str:
        signature.bind(**arguments)  # a call with wrong names says so, whatever the function does inside
        return function(**arguments)

    return tool

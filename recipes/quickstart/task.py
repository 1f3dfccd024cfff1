"""Multi-step arithmetic problems with worked solutions: the quickstart's task, made from a seed.

Six levels, from one addition to chains of products, brackets and remainders; about a third of the problems of levels
2-6 are short stories. A worked solution is a chain of lines `a+b=c`, one operation of two numbers each; a terse one is
the whole calculation and its value in a single line. Both are right, but a small model that has seen both can follow
the first kind and only guess at the second. So it starts with two things for reinforcement learning on the final answer
to repair: the choice between working a problem out and guessing, and slips in the chain.

Training and held-out problems cannot meet: a problem's canonical form is hashed into one of ten buckets, and bucket 0
is the held-out split. Two problems with the same canonical form (same calculation up to the order of sums and
products, told as a story or not) have the same id.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

Expr = int | tuple[str, "Expr", "Expr"]
Split = Literal["train", "heldout"]
Style = Literal["worked", "terse"]

LEVELS = (1, 2, 3, 4, 5, 6)
LARGEST = 99  # no number in a problem or its solution is larger
HELDOUT_BUCKETS, BUCKETS = 1, 10
STORY_SHARE = 1 / 3

_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "%": lambda a, b: a % b,
}
_BINDS = {"+": 1, "-": 1, "*": 2, "%": 2}
_NAMES = ("Ann", "Ben", "Mia", "Tom")
_THINGS = ("pens", "eggs", "cards", "coins")


class _Unsuitable(Exception):
    """A drawn calculation leaves the range of numbers the task uses; the caller draws again."""


# --- calculations -----------------------------------------------------------------------------------------------------


def solve(expr: Expr) -> tuple[int, list[str]]:
    """Value of `expr` and the lines that lead to it, each one operation on two numbers.

    A product of a two-digit and a one-digit number takes three lines (tens, ones, sum); a remainder takes two
    (the largest multiple, the difference).
    """
    if isinstance(expr, int):
        return expr, []
    op, left, right = expr
    (a, lines_a), (b, lines_b) = solve(left), solve(right)
    value = _APPLY[op](a, b)
    return value, [*lines_a, *lines_b, *_lines(op, a, b, value)]


def _lines(op: str, a: int, b: int, value: int) -> list[str]:
    if op == "%":
        multiple = a - value
        return [f"{multiple // b}*{b}={multiple}", f"{a}-{multiple}={value}"]
    if op == "*" and max(a, b) > 9:
        large, small = max(a, b), min(a, b)
        tens, ones = large - large % 10, large % 10
        if ones:
            return [f"{tens}*{small}={tens * small}", f"{ones}*{small}={ones * small}",
                    f"{tens * small}+{ones * small}={value}"]  # fmt: skip
    return [f"{a}{op}{b}={value}"]


def _check(expr: Expr) -> int:
    """Value of `expr` if every part of it stays within the task's range, else `_Unsuitable`."""
    if isinstance(expr, int):
        return expr
    op, left, right = expr
    a, b = _check(left), _check(right)
    if (op == "*" and min(a, b) > 9) or (op in "*%" and min(a, b) < 2) or (op == "%" and not b <= a < 10 * b):
        raise _Unsuitable
    value = _APPLY[op](a, b)
    if not 0 <= value <= LARGEST:
        raise _Unsuitable
    return value


def render(expr: Expr, remainder: str = "%") -> str:
    """`expr` in infix form with the brackets it needs; Python evaluates it unless `remainder` is changed."""
    if isinstance(expr, int):
        return str(expr)
    op, left, right = expr

    def side(part: Expr, is_right: bool) -> str:
        text = render(part, remainder)
        if isinstance(part, int):
            return text
        loose = _BINDS[part[0]] < _BINDS[op] or (is_right and _BINDS[part[0]] == _BINDS[op]) or "%" in (op, part[0])
        return f"({text})" if loose else text

    return f"{side(left, False)}{remainder if op == '%' else op}{side(right, True)}"


def canonical(expr: Expr) -> str:
    """A form equal for calculations that differ only in the order of the two sides of sums and products."""
    if isinstance(expr, int):
        return str(expr)
    op, left, right = expr
    sides = [canonical(left), canonical(right)]
    if op in "+*":
        sides.sort()
    return f"({sides[0]}{op}{sides[1]})"


def _digest(expr: Expr) -> str:
    return hashlib.sha256(canonical(expr).encode()).hexdigest()


def split_of(expr: Expr) -> Split:
    """The split a calculation belongs to, wherever and with whatever seed it is drawn."""
    return "heldout" if int(_digest(expr), 16) % BUCKETS < HELDOUT_BUCKETS else "train"


# --- levels -----------------------------------------------------------------------------------------------------------


# Letters stand for numbers: a, b, c large; s, t small; w the two-digit factor; k, m, n, p, q one digit.
_RANGES = {
    **dict.fromkeys("abc", (2, 99)),
    **dict.fromkeys("st", (2, 20)),
    "w": (11, 49),
    **dict.fromkeys("kmnpq", (2, 9)),
}
_EXPRESSIONS: dict[int, tuple[str, ...]] = {
    1: ("a+b", "a-b"),
    2: ("a+b+c", "a+b-c", "a-b+c", "a-b-c"),
    3: ("m*n+a", "m*n-a", "a+m*n", "a-m*n"),
    4: ("(s+t)*m+a", "(s+t)*m-a", "(s-t)*m+a", "(s-t)*m-a", "m*(s+t)-a", "m*(s-t)+a"),
    5: ("w*m+a-b", "w*m-a+b", "w*m-a-b", "w*m+n*k", "w*m-n*k"),
    6: ("a+((m*n+b)%k)*p", "((m*n+a)%k)*p+q", "((m*n-a)%k)*p-q", "m*((n*p+a)%k+q)", "m*((n*p-a)%k-q)"),
}
_STORIES: dict[int, tuple[tuple[str, str], ...]] = {
    2: (
        ("a+b-c", "{who} has {a} {what}, gets {b} and gives away {c}. How many {what} are left?"),
        ("a-b+c", "{who} has {a} {what}, gives away {b} and gets {c}. How many {what} are left?"),
    ),
    3: (
        ("m*n+a", "{who} buys {m} bags of {n} {what} and has {a} more. How many {what} in all?"),
        ("a-m*n", "{who} has {a} {what} and gives away {m} bags of {n}. How many {what} are left?"),
    ),
    4: (("(s+t)*m-a", "{m} bags hold {s} red and {t} blue {what} each. {a} are lost. How many {what} are left?"),),
    5: (("w*m+a-b", "{who} buys {m} bags of {w} {what}, gets {a} and gives away {b}. How many {what} are left?"),),
    6: (
        (
            "(m*n+a)%k",
            "{who} has {m} bags of {n} {what} and {a} more and fills boxes of {k}. How many {what} are left?",
        ),
    ),
}


_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Mod: "%"}


def _fill(form: ast.expr, numbers: Mapping[str, int]) -> Expr:
    if isinstance(form, ast.BinOp):
        return _OPERATORS[type(form.op)], _fill(form.left, numbers), _fill(form.right, numbers)
    return numbers[ast.unparse(form)]


def _draw(level: int, rng: random.Random) -> tuple[Expr, str, str]:
    """(calculation, question, domain), every number within the task's range."""
    domain = "story" if level in _STORIES and rng.random() < STORY_SHARE else "modular" if level == 6 else "expression"
    form, story = rng.choice(_STORIES[level]) if domain == "story" else (rng.choice(_EXPRESSIONS[level]), "")
    tree = ast.parse(form, mode="eval").body
    while True:
        numbers = {letter: rng.randint(*_RANGES[letter]) for letter in form if letter in _RANGES}
        expr = _fill(tree, numbers)
        try:
            _check(expr)
        except _Unsuitable:
            continue
        if not story:
            return expr, f"Compute {render(expr, ' mod ')}.", domain
        return expr, story.format(who=rng.choice(_NAMES), what=rng.choice(_THINGS), **numbers), domain


# --- rows -------------------------------------------------------------------------------------------------------------


def format_solution(lines: Sequence[str], answer: str) -> str:
    """The assistant turn: the lines in a thinking block, then the boxed answer."""
    return "<think>\n" + "\n".join(lines) + "\n</think>\n\nThe answer is \\boxed{" + answer + "}."


def make_problems(
    n: int,
    seed: int,
    levels: Sequence[int] = LEVELS,
    exclude: Collection[str] = (),
    split: Split = "train",
    terse_share: float = 0.0,
) -> list[dict[str, Any]]:
    """`n` different problems of `split`, as equally as possible from `levels`, in an order drawn from `seed`.

    exclude: ids that must not appear (those of rows used for another purpose).
    terse_share: the probability that a row's solution is the terse one; it does not change which problems are drawn.
    Returns rows with the columns id, question, answer, level, domain ("expression", "story" or "modular"), expression
    (Python syntax), style ("worked" or "terse") and messages (the user's question and the solution).
    Raises ValueError for an unknown level, and when a level does not hold as many different problems.
    """
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels: {list(levels)} must be a non-empty selection of {LEVELS}")
    rng, style_rng = random.Random(f"{seed}/{split}"), random.Random(f"{seed}/{split}/style")
    taken = set(exclude)
    rows = []
    for i in range(n):
        style: Style = "terse" if style_rng.random() < terse_share else "worked"
        row = _new_row(levels[i % len(levels)], rng, taken, split, style)
        taken.add(row["id"])
        rows.append(row)
    rng.shuffle(rows)
    return rows


def _new_row(level: int, rng: random.Random, taken: set[str], split: Split, style: Style) -> dict[str, Any]:
    for _ in range(5000):
        expr, question, domain = _draw(level, rng)
        row_id = "arith-" + _digest(expr)[:16]
        if split_of(expr) == split and row_id not in taken:
            return _row(row_id, expr, question, level, domain, style)
    raise ValueError(
        f"level {level} has no unused {split} problem left after {len(taken)}; ask for fewer, or more levels"
    )


def _row(row_id: str, expr: Expr, question: str, level: int, domain: str, style: Style) -> dict[str, Any]:
    value, lines = solve(expr)
    if style == "terse":
        lines = [f"{render(expr, ' mod ')}={value}"]
    return {
        "id": row_id,
        "question": question,
        "answer": str(value),
        "level": level,
        "domain": domain,
        "expression": render(expr),
        "style": style,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": format_solution(lines, str(value))},
        ],
    }


def prompt_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without their solutions, in TRL's prompt format: `prompt` replaces `messages`."""
    return [
        {**{k: v for k, v in r.items() if k not in ("messages", "style")}, "prompt": r["messages"][:-1]} for r in rows
    ]

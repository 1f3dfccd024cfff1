"""Sets of real numbers: membership decides as sympy's set algebra does."""

import random

import pytest

from verifiers.math.answer import read_answer
from verifiers.math.real_sets import same_real_set
from verifiers.math.symbolic import as_set, same_set


def random_set(rng: random.Random, depth: int):
    kind = rng.choice(["interval", "interval", "set"]) if depth == 0 else rng.choice(["union", "minus", "both", "set"])
    if kind == "set":
        return ("set", [("num", str(rng.randint(0, 4))) for _ in range(rng.randint(0, 2))])
    if kind == "interval":
        low = rng.randint(0, 3)
        ends = rng.choice([("neg", ("inf",)), ("num", str(low))]), rng.choice([("inf",), ("num", str(low + 1))])
        opening = "(" if ends[0][0] == "neg" else rng.choice("([")
        closing = ")" if ends[1][0] == "inf" else rng.choice(")]")
        return ("tuple", list(ends)) if opening + closing == "()" else ("interval", opening, *ends, closing)
    parts = [random_set(rng, depth - 1) for _ in range(2)]
    return ("minus", *parts) if kind == "minus" else (kind, parts)


def test_decisions_agree_with_set_algebra():
    rng, made = random.Random(1), {True: 0, False: 0}
    for _ in range(250):
        left, reals = random_set(rng, 1), ("numset", "R")
        right = random_set(rng, 1)
        if left[0] != "both" and rng.random() < 0.6:  # "both" is never a part of another set
            complement = ("minus", reals, left)
            right = rng.choice([("union", [left, left]), complement, ("minus", reals, complement)])
        same = same_real_set(left, right)
        assert same is same_set(as_set(left), as_set(right)), (left, right)
        made[same] += 1
    assert min(made.values()) > 40, made


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (r"[-2,2]\setminus\{0\}", r"[-2,0)\cup(0,2]", True),
        (r"[-2,2]", r"[-2,0)\cup(0,2]", False),
        (r"x<1 \text{ and } x<2", r"x<1, x<3", True),
        (r"(0,1)\cup(1,\infty)", r"x>0, x\ne1", True),
        (r"(0,\sqrt2)\cup(2,3)", r"(0,\sqrt2)\cup(2,3)", None),
        (r"(\infty,0)\cup(1,2)", r"(1,2)\cup(3,4)", None),
        (r"\mathbb{Z}", r"\mathbb{R}", None),
    ],
)
def test_examples(left, right, same):
    assert same_real_set(read_answer(left).value, read_answer(right).value) is same


def test_many_ends_are_left_to_computer_algebra():
    many = ("union", [("tuple", [("num", str(i)), ("num", str(i + 1))]) for i in range(100)])
    assert same_real_set(many, many) is None

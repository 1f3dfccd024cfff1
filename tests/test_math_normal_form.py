"""Normal forms of expressions: decisions agree with numerical values, and are made for what should be covered."""

import random
import threading

import pytest
import sympy

from verifiers.math.answer import read_answer
from verifiers.math.normal_form import same_expression, same_relation
from verifiers.math.symbolic import expression

DIGITS = 60


def random_tree(rng: random.Random, depth: int):
    if depth == 0 or rng.random() < 0.1:
        number = ("num", str(rng.choice([1, 2, 3, 4, 6, 8, 12])))
        return rng.choice([number, number, ("sym", rng.choice(["x", "y", "i", "pi", "e"]))])
    kind = rng.choice(["add", "add", "mul", "mul", "div", "neg", "square", "root", "trig", "log", "unit circle"])
    if kind in ("add", "mul"):
        return (kind, [random_tree(rng, depth - 1) for _ in range(rng.choice([2, 2, 3]))])
    child = random_tree(rng, depth - 1)
    if kind == "div":
        return ("div", child, random_tree(rng, depth - 1))
    if kind == "neg":
        return ("neg", child)
    if kind == "square":
        return ("pow", child, ("num", rng.choice(["2", "3"])))
    if kind == "root":
        return ("pow", child, ("div", ("num", rng.choice(["1", "2"])), ("num", rng.choice(["2", "3"]))))
    turn = ("div", ("mul", [("sym", "pi"), ("num", str(rng.randint(-30, 30)))]), ("num", rng.choice(["5", "6", "12"])))
    if kind == "log":
        return ("call", "log", [("num", str(rng.choice([2, 4, 6, 12]))), ("num", str(rng.choice([2, 3, 8])))])
    if kind == "trig":
        return ("call", rng.choice(["sin", "cos", "tan", "cot", "sec", "csc"]), [rng.choice([turn, child])])
    return ("pow", ("sym", "e"), ("mul", [("sym", "i"), turn]))


def value(tree):
    """Digits at a fixed point, or None where the value is not a finite number."""
    point = {sympy.Symbol("x", real=True): sympy.Rational(17, 13), sympy.Symbol("y", real=True): sympy.Rational(5, 7)}
    number = expression(tree).subs(point).evalf(DIGITS)
    return number if number.is_number and not number.has(sympy.nan, sympy.zoo, sympy.oo) else None


def rewritten(rng: random.Random, tree):
    """Another tree for the same value."""
    if tree[0] in ("add", "mul"):
        return (tree[0], [rewritten(rng, part) for part in rng.sample(tree[1], len(tree[1]))])
    if tree[0] == "div":
        return ("mul", [("pow", rewritten(rng, tree[2]), ("neg", ("num", "1"))), rewritten(rng, tree[1])])
    if tree[0] == "neg":
        return ("mul", [rewritten(rng, tree[1]), ("neg", ("num", "1"))])
    if tree[0] == "pow" and tree[2] == ("num", "2"):
        return ("mul", [rewritten(rng, tree[1]), tree[1]])
    return tree


def test_decisions_agree_with_values_of_random_expressions():
    rng, made = random.Random(0), {True: 0, False: 0, None: 0}
    for _ in range(400):
        left = random_tree(rng, rng.choice([2, 3]))
        right = rng.choice([rewritten(rng, left), random_tree(rng, 2)])
        values = value(left), value(right)
        if None in values:
            continue
        same = same_expression(left, right)
        made[same] += 1
        difference = abs(values[0] - values[1])
        if same is not None:
            assert same == (difference < sympy.Float(10) ** -40 * (1 + abs(values[0]))), (left, right, values)
    assert min(made[True], made[False]) > 50, made


EQUAL = r"""
\frac{1}{\sqrt{2}} = \frac{\sqrt2}{2}
\frac{2}{\sqrt{5}-\sqrt{3}} = \sqrt{5}+\sqrt{3}
\sqrt[3]{54} = 3\sqrt[3]{2}
\sqrt{3+2\sqrt{2}} = 1+\sqrt2
\sqrt{7-4\sqrt{3}} = 2-\sqrt3
\sqrt{-12} = 2i\sqrt3
\sqrt[3]{-8x^0} = -2
(1+i)^8 = 16
e^{i\pi/3} = \frac12+\frac{\sqrt3}{2}i
e^{i\theta} = \cos\theta+i\sin\theta
\tan 75^\circ = 2+\sqrt3
\cos\frac{7\pi}{12} = \frac{\sqrt2-\sqrt6}{4}
\sin^4 x - \cos^4 x = 2\sin^2 x - 1
\log_4 32 = \frac52
\frac{\ln 12}{\ln 6} = \frac{2\log_2 2+\log_2 3}{1+\log_2 3}
\binom{n}{3} = \frac{n(n-1)(n-2)}{6}
\frac{x^2-1}{x-1} = x+1
1-\frac1e = \frac{e-1}{e}
"""
DIFFERENT = r"""
\sqrt{3-2\sqrt{2}} = 1-\sqrt2
\sqrt{2}+\sqrt{3} = \sqrt5
\sqrt[3]{2} = \sqrt{2}
\sqrt{-4} = -2i
\frac{x^2-1}{x-1} = x-1
2y+1 = 2x+1
\tan 75^\circ = 2-\sqrt3
\pi^2 = 10
1-\frac1e = 1+\frac1e
x\sqrt2+\pi = x\sqrt2+3
"""


@pytest.mark.parametrize("line", EQUAL.strip().splitlines())
def test_equal_expressions_are_decided_here(line):
    left, right = (read_answer(side).value for side in line.split(" = "))
    assert same_expression(left, right) is True


@pytest.mark.parametrize("line", DIFFERENT.strip().splitlines())
def test_different_expressions_are_decided_here(line):
    left, right = (read_answer(side).value for side in line.split(" = "))
    assert same_expression(left, right) is False


@pytest.mark.parametrize(
    "text",
    ["x^x", r"\sqrt{x^2}", r"\frac{1}{x-x}", "0^{x-x}", r"(a+b+c+d+1)^{60}", r"\sqrt{1+\sqrt{2}}", r"\arctan 2", "2^n",
     r"\sqrt[4]{-4}", r"\sqrt{1000003000002}+\pi", r"\infty"],
)  # fmt: skip
def test_what_is_not_covered_is_left_open(text):
    assert same_expression(read_answer(text).value, read_answer("x+1").value) is None


def test_the_work_of_one_comparison_is_bounded_and_threads_do_not_share_the_count():
    large, small = read_answer("(a+b+c+d+1)^{60}").value, read_answer("(x+y)^2").value
    results = {}

    def compare(left):
        results[threading.current_thread().name] = same_expression(left, small)

    threads = [threading.Thread(target=compare, args=[left], name=str(i)) for i, left in enumerate([large, small] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"0": None, "1": True, "2": None, "3": True}


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("x+y=3", "2x=6-2y", True), ("x+y=3", "x-y=3", False), ("x+y=3", "x+y=4", False), ("x+y=3", "x+z=3", False),
        ("x+y<3", "-x-y>-3", True), ("x+y<3", "-x-y<-3", False), ("x^2+y^2=1", "x^2+y^2=\\pi", None),
        ("\\frac{x}{y}=1-y", "x=y-y^2", None),
    ],
)  # fmt: skip
def test_relations_are_compared_up_to_a_factor(left, right, same):
    assert same_relation(read_answer(left).value, read_answer(right).value) is same

r"""Notation of answers, read in both directions: pairs that are equal and pairs that are not."""

import pytest

from verifiers import verify

SAME = r"""
\sin 15^\circ ~ \frac{\sqrt{6}-\sqrt{2}}{4}
\cos 72^\circ ~ \frac{\sqrt5-1}{4}
\cot\frac{\pi}{8} ~ 1+\sqrt2
180^\circ - 2\alpha ~ 180-2\alpha
\frac{\pi}{6} ~ 30^\circ
2\sin x\cos x ~ \sin 2x
\tan^2 x + 1 ~ \sec^2 x
\frac{\sin x}{1+\cos x} ~ \tan\frac{x}{2}
\sin^{-1}\frac12 ~ \frac{\pi}{6}
\arctan\frac12 + \arctan\frac13 ~ \frac{\pi}{4}
\log 100 ~ 2
\log 2 ~ \ln 2
\sqrt[3]{7+5\sqrt2} ~ 1+\sqrt2
no real solutions ~ \emptyset
\text{There are no solutions.} ~ \text{no solution}
\text{all real numbers} ~ \mathbb{R}
x\ne 3 ~ \mathbb{R}\setminus\{3\}
x\ne 1, x\ne 2 ~ (-\infty,1)\cup(1,2)\cup(2,\infty)
x>1 \text{ and } x<3 ~ (1,3)
x<-1 \text{ and } x>1 ~ (-\infty,-1)\cup(1,\infty)
x=0 \text{ or } x>\sqrt2 ~ \{0\}\cup(\sqrt2,\infty)
x+y>3 ~ 3<x+y
7:30\text{ p.m.} ~ 7:30 \text{ PM}
12:5 ~ \frac{12}{5}
1:2:3 ~ 2:4:6
2\pi k, k\in\mathbb{Z} ~ 2n\pi, n \in \mathbb{Z}
50¢ ~ 50 cents
10\text{ km/h} ~ 10 \text{ kilometers per hour}
2.5\text{ million dollars} ~ \$2500000
\pm\sqrt{2},\pm 1 ~ 1,-1,\sqrt2,-\sqrt2
1\mp\sqrt2 ~ 1\pm\sqrt2
\langle 1,2,3\rangle ~ (1,2,3)
\vec{v} = (1,2) ~ (1,2)
f^{-1}(x)=\frac{x-1}{2} ~ \frac{x-1}{2}
\angle A = 30^\circ ~ 30
\overline{AB} = 5 ~ AB=5
23_{\text{five}} ~ 13
0.\dot{3} ~ \frac13
0.1\dot{4}2\dot{8} ~ \frac{1427}{9990}
0.1\bar{6} ~ \frac16
\text{(A) and (C)} ~ (C), (A)
\textbf{(B)}\ 12 ~ \text{(B)}
\operatorname{lcm}(4,6) ~ 12
\sqrt2\approx 1.414 ~ \sqrt2
5 \text{ feet } 7 \text{ inches} ~ 5 feet 7 inches
12 \text{ years old} ~ 12 \text{ years}
\binom{n}{2} ~ \frac{n(n-1)}{2}
\{x \mid x > 3\} ~ (3,\infty)
"""

DIFFERENT = r"""
35 ~ 5 \text{ feet } 7 \text{ inches}
\pm1\pm\sqrt2 ~ \pm1\mp\sqrt2
2.5 ~ 2.5 \text{ million}
10\text{ mph} ~ 10\text{ km/h}
5\text{ m/s} ~ 5\text{ s/m}
10\text{ cm}^2 ~ 10\text{ cm}^3
7:30 \text{ a.m.} ~ 7:30 \text{ p.m.}
6:30 ~ 1:5
3:4 ~ \frac43
x \neq 3 ~ x = 3
x \ge 2, x\ne 3 ~ [2,\infty)
x>1 \text{ and } x<3 ~ x>1 \text{ or } x<3
x=1 \text{ or } x>3 ~ [1,\infty)
x = 1, y = 2 ~ x = 1 \text{ or } y = 2
\mathbb{R} ~ \mathbb{Q}
(0,1)\cup(1,2) ~ (0,2)
[0,\sqrt2]\cup[2,3] ~ [0,3]
\text{no solution} ~ 0
\text{no solution} ~ \text{no}
\text{no solution} ~ \text{no integer solution}
\text{none of these} ~ \emptyset
\text{all real numbers} ~ \text{all integers}
\sin^{-1} x ~ \frac{1}{\sin x}
\sin 1 ~ \sin 1^\circ
30 ~ \frac{\pi}{6}
30^\circ ~ 30\text{ radians}
\log 100 ~ 100
\ln 100 ~ 2
2k\pi, k\in\mathbb{Z} ~ k\pi, k\in\mathbb{Z}
2k\pi, k\in\mathbb{Z} ~ 2k\pi, k\in\mathbb{N}
x^2+y^2 ~ x^2+y^2=\pi
\angle A = 30^\circ ~ \angle B = 30^\circ
\bar z ~ z
\langle 1,2\rangle ~ \langle 2,1\rangle
\langle 1,2\rangle ~ \{1,2\}
\textbf{(A)}\ 12 ~ \textbf{(B)}\ 12
\text{(B)}\ 12 ~ \text{(B)}\ 13
\text{(A) and (C)} ~ (A)
23_{\text{five}} ~ 23_{\text{six}}
0.\dot{1}2\dot{3} ~ 0.12\dot{3}
\sqrt2 ~ \approx \sqrt2
1.414 ~ \sqrt2 \approx 1.414
x+y<3 ~ x+y>3
\sqrt{3-2\sqrt2} ~ 1-\sqrt2
\arctan\frac12+\arctan\frac13 ~ \frac{5\pi}{4}
2,3 ~ 2
"""


def pairs(table):
    return [tuple(side.strip() for side in line.split(" ~ ")) for line in table.strip().splitlines()]


@pytest.mark.parametrize(("left", "right"), pairs(SAME))
def test_equal_answers_pass_in_both_directions(left, right):
    for gold, answer in ((left, right), (right, left)):
        verdict = verify("math", rf"So it is \boxed{{{answer}}}", {"answer": gold})
        assert verdict.status == "pass", verdict


@pytest.mark.parametrize(("left", "right"), pairs(DIFFERENT))
def test_different_answers_pass_in_neither_direction(left, right):
    for gold, answer in ((left, right), (right, left)):
        assert not verify("math", rf"So it is \boxed{{{answer}}}", {"answer": gold}).passed


def test_an_approximation_must_agree_with_the_exact_value_before_it():
    assert verify("math", r"\boxed{\sqrt{2}\approx 1.41}", {"answer": r"\sqrt2"}).passed
    assert not verify("math", r"\boxed{\sqrt{2}\approx 3}", {"answer": r"\sqrt2"}).passed


def test_several_ways_to_write_the_accepted_answer_pass_and_a_hedge_does_not():
    assert verify("math", r"\boxed{\frac12 \text{ or } 0.5}", {"answer": "1/2"}).passed
    assert not verify("math", r"\boxed{\frac12 \text{ or } 0.6}", {"answer": "1/2"}).passed


def test_an_answer_that_cannot_be_read_does_not_make_the_row_unscored():
    for gold in ("(1,2,3)", r"\{1,2\}", "[1,2]", r"\begin{pmatrix}1\\2\end{pmatrix}"):
        assert verify("math", r"\boxed{\oint_{\mathcal{C}} \wp}", {"answer": gold}).status == "unparsed"


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("The remainder is **997**.", "pass"), ("It is **997**", "pass"), ("so 2**997", "unparsed"),
        ("so **2**997**", "unparsed"), ("The total is **997** + 1", "unparsed"),
    ],
)  # fmt: skip
def test_a_bold_number_is_read_and_a_power_is_not(response, status):
    assert verify("math", response, {"answer": "997"}).status == status

r"""Pairs that must be accepted and that must be rejected: `accepted answer ~ answer of the response`, one a line."""

import pytest

from verifiers import verify

SAME = r"""
72 ~ 72
72 ~ 72.0
72 ~ +72
72 ~ $72$
72 ~ 72.
1000 ~ 1,000
1,000 ~ 1000
1234567 ~ 1,234,567
1234567 ~ 1{,}234{,}567
10000 ~ 10\,000
10000 ~ 10 000
3/4 ~ 0.75
\frac{3}{4} ~ 3/4
\dfrac34 ~ .75
\frac34 ~ \tfrac{3}{4}
\frac1{72} ~ 1/72
3/2 ~ 1\frac{1}{2}
3/2 ~ 1 1/2
-3/2 ~ -1\frac12
-1/2 ~ \frac{-1}{2}
-1/2 ~ -\frac12
50% ~ 50\%
50% ~ 50
50 ~ 50\%
0.5 ~ 50%
50% ~ 1/2
12.5% ~ \frac{25}{2}\%
$18.90 ~ 18.9
\$18.90 ~ 18.90 dollars
18.90 ~ \text{\$}18.90
5 ~ 5 cm
5 cm ~ 5\text{ cm}
5 ~ 5\,\mathrm{m/s}
5\text{ cm}^2 ~ 5
12 ~ 12 cm squared
12\text{ cm}^2 ~ 12\text{ cm squared}
12\text{ cm}^2 ~ 12 square cm
6\text{ m/s} ~ 6m/s
12 ~ 12 quarters
A ~ (A) red apples
B ~ \text{(B)}\ 12
A, B ~ (A) and (B)
(1,\infty) ~ \{x | x>1\}
\{1,|x|\} ~ \{|x|,1\}
5 centimeters ~ 5 cm
90 ~ 90^\circ
90° ~ 90^{\circ}
5000000 ~ 5 million
1500 ~ 1.5\times 10^3
6.02\cdot10^{23} ~ 6.02 \times 10^{23}
1024 ~ 2^10
1024 ~ 2^{10}
1024 ~ 2**10
4 ~ \sqrt{16}
2\sqrt{3} ~ \sqrt{12}
\sqrt2/2 ~ \frac{1}{\sqrt{2}}
2\sqrt3 ~ 2√3
\sqrt[3]{8} ~ 2
\frac{1+\sqrt5}{2} ~ \frac12+\frac{\sqrt{5}}{2}
\pi/2 ~ \frac{\pi}{2}
2π ~ 2\pi
\ln 8 ~ 3\ln 2
\log_2 8 ~ 3
\sin(30^\circ) ~ \sin 30^{\circ}
e^2 ~ e\cdot e
120 ~ 5!
10 ~ \binom{5}{2}
\frac{1}{2004!} ~ 1/2004!
1-1/e ~ \frac{e-1}{e}
x^2-1 ~ (x-1)(x+1)
2x+3 ~ 3 + 2x
\frac{x+1}{2} ~ 0.5x+0.5
(x+1)^2 ~ x^2+2x+1
3+4i ~ 4i+3
|{-5}| ~ 5
x=5 ~ 5
5 ~ x = 5
x=5 ~ x=5
y=2x+1 ~ 2x+1
y=2x+1 ~ 2x - y + 1 = 0
x^2+y^2=1 ~ 2x^2+2y^2=2
f(x)=x^2 ~ x^2
5 ~ x = 2+3 = 5
1,2 ~ 2,1
1,2 ~ x=1 or x=2
x=1,x=2 ~ 1, 2
\{1,2,3\} ~ \{3,2,1\}
\{1,2,3\} ~ 1,2,3
\pm 2 ~ 2, -2
x=\pm 2 ~ x=2 \text{ or } x=-2
1\pm\sqrt2 ~ 1-\sqrt2, 1+\sqrt2
x=1,y=2 ~ y=2, x=1
(1,2) ~ x=1, y=2
(1,2) ~ (x,y)=(1,2)
(1,2) ~ \left( 1, 2 \right)
(3, \frac{\pi}{2}) ~ (3,\pi/2)
[1,2) ~ [1, 2)
[0,1] ~ x \in [0,1]
(-\infty,3] ~ x \le 3
(1,2) ~ 1<x<2
x>3 ~ (3,\infty)
(-\infty,1)\cup(2,\infty) ~ (2,\infty)\cup(-\infty,1)
\mathbb{R}\setminus\{0\} ~ (-\infty,0)\cup(0,\infty)
[1,3] ~ [1,2]\cup[2,3]
\begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
\begin{pmatrix}1/2\\3\end{pmatrix} ~ \begin{pmatrix} 0.5 \\ 3 \end{pmatrix}
1010_2 ~ 1010_{2}
10 ~ 1010_2
2516_8 ~ 2516_{8}
1A_{16} ~ 26
\text{BEEF}_{16} ~ BEEF_{16}
\text{Monday} ~ Monday
Monday ~ \textbf{monday}.
A ~ \text{A}
(A) ~ A
A ~ \text{(A)}
yes ~ Yes.
\text{east} ~ \mathrm{East}
3:2 ~ 3 : 2
6:30 ~ 6:30
\infty ~ infinity
-\infty ~ -\infty
\emptyset ~ \{\}
\int_0^1 x\,dx ~ \frac12
\sum_{k=1}^{3} k ~ 6
1 ~ \sin^2 x+\cos^2 x
1500 ~ 1.5e3
(-\infty,-1)\cup(1,\infty) ~ x<-1 \text{ or } x>1
0.\overline{3} ~ \frac{1}{3}
0.1\overline{6} ~ 1/6
\{x \mid x > 3\} ~ (3,\infty)
6\text{ m/s} ~ 6 m/s
5\text{ m} ~ 5 m
5 ~ 5\text{ m}
5\text{ cm}^2 ~ 5 \text{ square centimeters}
\sqrt{2} + \sqrt{3} ~ \sqrt{5+2\sqrt{6}}
e^{i\pi} ~ -1
\sqrt[3]{2} ~ 2^{1/3}
x<5 ~ 5>x
\left\{\frac12,2\right\} ~ \{2,0.5\}
1500 ~ 1.5E+3
"""

DIFFERENT = r"""
72 ~ 73
72 ~ -72
72 ~ 7,2
12345 ~ 123,45
1234 ~ 12,34
12345 ~ 1,2345
1/3 ~ 0.333
1/3 ~ 0.3333333333333333
0.333 ~ 1/3
\pi ~ 3.14159265358979
\sqrt2 ~ 1.41421356237
\frac{1}{2004!} ~ \frac{1}{2006!}
1-1/e ~ 1+1/e
1-\frac1e ~ 1+\frac1e
4 ~ 4\sqrt2
4\sqrt2 ~ 4
4\sqrt{2} ~ 4\sqrt{3}
5 ~ 5 or 6
5 ~ 5, 6
5,6 ~ 5
5 ~ \{5,6\}
5 ~ not 5
5 ~ 5 is wrong
5 ~ 5+x
5 ~ x+2=5
5 ~ 2+2=5
x=5 ~ y=5
x=5 ~ 2x=5
5 ~ 5=x=6
x=5 ~ x=5=6
y=2x+1 ~ y=2x-1
x^2+y^2=1 ~ x^2+y^2=2
x=1,y=2 ~ x=2,y=1
(1,2) ~ (2,1)
(1,2,3) ~ (1,2)
[1,2) ~ [1,2]
[1,2) ~ (1,2]
(1,2) ~ [1,2]
(-\infty,3] ~ x<3
x>3 ~ x<3
(-\infty,1)\cup(2,\infty) ~ (-\infty,1)\cup(3,\infty)
\{1,2\} ~ \{1,2,3\}
\{1,2,3\} ~ \{1,2\}
1,2 ~ 1,1
1,1,2 ~ 1,2,2
\pm2 ~ 2
2 ~ \pm 2
\begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix}1&2\\4&3\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}1&2\end{pmatrix}
1010_2 ~ 1010
1010_2 ~ 1010_3
10 ~ 10_2
1012 ~ 1012_2
5 cm ~ 5 m
5 km ~ 5 miles
5 cm ~ 5%
50% ~ 50 cm
$5 ~ 5%
30^\circ ~ 30\%
5 cm ~ 5x
12\text{ apples} ~ 12x
12\text{ cm}^2 ~ 12\text{ cm cubed}
12 ~ 12 squared
12 ~ 12 halves
12 ~ 12\text{ hundredths}
12 ~ 12\text{ thirteenths}
12 ~ 12 dozens
12 ~ 12 factorial
12 ~ 12 degrees below zero
12 ~ 12\text{ (not sure)}
12 ~ 12 never
A ~ (A) or (B)
A ~ (A) and (B)
A ~ (A) (B)
A ~ (A) is wrong
A ~ \text{(A)} \text{(B)}
(1,\infty) ~ \{x | x<1\}
50% ~ 5%
50% ~ 0.50%
0.5 ~ 50
0.05 ~ 50%
Monday ~ Tuesday
Monday ~ not Monday
A ~ B
yes ~ no
no ~ on
3:2 ~ 2:3
3:2 ~ 3:20
72 ~ Seventy-three
x^2-1 ~ (x-1)^2
2x+3 ~ 2y+3
x ~ |x|
\sqrt{x^2} ~ x
\infty ~ -\infty
\frac{1}{2} ~ \frac{1}{2
120 ~ 5!!
3! ~ 3
1.5 ~ 1 1/3
1\frac12 ~ 1/2
2^{10} ~ 2^{11}
10^{100} ~ 10^{100}+1
0.1+0.2 ~ 0.30000000000000004
10000000000000000 ~ 10000000000000001
3+4i ~ 3-4i
\int_0^1 x\,dx ~ \frac13
72 ~ 7 2
72 ~ 72 73
72 ~ 72; 73
1 ~ e^{i\pi}
5 ~
5 ~ x
0 ~ 1/0
\frac{22}{7} ~ \pi
5 dollars ~ 5 cents
e^{\pi\sqrt{163}} ~ 262537412640768744
5 ~ 5 \text{ or } 6
5 ~ \text{either } 5
5 ~ 5?6
6:30 ~ 6:03
12 ~ 1 2
1 ~ \sin^2 x+\cos^2 y
1500 ~ 1.5e4
45^\circ ~ 45 radians
0.\overline{3} ~ 0.3
5\text{ m} ~ 5 s
5 ~ 5x
1-10^{-40} ~ 1
\sqrt{10^{60}+1} ~ 10^{30}
\sin(10^{-30}) ~ 10^{-30}
\frac{1}{3} ~ 33.3\%
5 ~ 5 \text{ or more}
5 ~ >5
x>5 ~ 5
5 ~ 5 dozen
100 ~ 1,00
\{1,2\} ~ (1,2)
0 ~ \emptyset
(2,3),(3,2) ~ (2,3)
"""


def pairs(table: str) -> list[tuple[str, ...]]:
    return [tuple(part.strip() for part in line.split(" ~")) for line in table.strip().splitlines()]


@pytest.mark.parametrize(("gold", "answer"), pairs(SAME))
def test_equal_answers_pass(gold: str, answer: str) -> None:
    verdict = verify("math", rf"So it is \boxed{{{answer}}}", {"answer": gold})
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_different_answers_do_not_pass(gold: str, answer: str) -> None:
    verdict = verify("math", rf"So it is \boxed{{{answer}}}", {"answer": gold})
    assert verdict.status in ("fail", "unparsed"), verdict
    assert verdict.score == 0

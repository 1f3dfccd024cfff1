"""Texts near to validation items, by the published rules."""

import random

import pytest

from recipes.decontaminate import ValidationTexts, tokens_of
from verifiers.text import lcs_length


def plain_lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_the_subsequence_is_as_long_as_by_the_textbook():
    rng = random.Random(0)
    for _ in range(100):
        a, b = (rng.choices("abcd", k=rng.randrange(0, 90)) for _ in range(2))
        assert lcs_length(a, b) == plain_lcs(a, b)


WORDS = [f"w{i}" for i in range(40)]


@pytest.mark.parametrize(
    ("kept", "length", "near"),
    [
        (12, 12, False),  # 12 tokens in common, however short the text is
        (13, 13, True),
        (13, 21, True),  # 13 / 21 = 0.62 of the shorter text
        (13, 22, False),  # 13 / 22 = 0.59
    ],
)
def test_the_rule_needs_13_tokens_and_six_tenths_of_the_shorter_text(kept, length, near):
    text = [*WORDS[:kept:1], *(f"x{i}" for i in range(length - kept))]
    random.Random(1).shuffle(tail := text[kept:])
    found = ValidationTexts(["something else entirely", " ".join(WORDS)]).nearest(" ".join(text[:kept] + tail))
    assert (found is not None) == near
    if found:
        assert (found.item, found.shared, found.of) == (1, kept, length)


def test_order_counts_and_case_does_not():
    validation = ValidationTexts([" ".join(WORDS[:20])])
    assert validation.nearest(" ".join(WORDS[:20]).upper()).shared == 20
    assert validation.nearest(" ".join(reversed(WORDS[:20]))) is None


def test_thirteen_tokens_in_a_row_are_copied():
    validation = ValidationTexts([" ".join(WORDS)])
    assert validation.copied("so " + " ".join(WORDS[5:18]) + " and on") == 0
    assert validation.copied(" ".join(WORDS[5:17])) is None
    assert validation.copied(" ".join([*WORDS[5:12], "x", *WORDS[12:19]])) is None


def test_tokens_of_unspaced_scripts_are_letters():
    assert tokens_of("北京 is 2.5") == ["北", "京", "is", "2", ".", "5"]

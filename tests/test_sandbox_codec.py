"""Values between jails: every plain type comes back as it went, and no text keeps its reader busy or makes it err."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest

from verifiers.code.check import _judge
from verifiers.sandbox import codec

MERSENNE = (1 << 61) - 1  # numbers that differ by this hash alike


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**200,
        1.5,
        math.inf,
        "a\ud800",
        b"\0\xff",
        bytearray(b"x"),
        1 + 2j,
        range(1, 9, 2),
        Decimal("1.50"),
        Fraction(1, 3),
        [1, (2, {3}), frozenset({4})],
        {(1, "a"): {"b": [None]}, True: 1.0},
    ],
)
def test_plain_values_come_back_with_their_types(value):
    back = codec.decode(codec.from_bytes(codec.to_bytes(codec.encode(value))))
    assert (type(back), repr(back)) == (type(value), repr(value))


def test_members_that_all_hash_alike_are_refused():
    numbers = [k * MERSENNE for k in range(codec.MAX_EQUAL_HASHES + 2)]
    pairs = [{"t": [-1 - (k >> bit & 1) for bit in range(8)]} for k in range(256)]  # -1 and -2 hash alike
    for members in (numbers, pairs):
        for tree in ({"s": members}, {"z": members}, {"d": [[member, 0] for member in members]}):
            with pytest.raises(codec.CodecError, match="hash alike"):
                codec.decode(tree)
    assert len(codec.decode({"s": numbers[:32]})) == 32


@pytest.mark.parametrize(
    "answer",
    [
        {"Q": [{"i": hex(1 << 100_000)}, {"i": hex(3 << 100_000)}]},
        {"Q": ["1e999999999", 1]},
        {"Q": ["1e999999999"]},
        {"Q": [1.5, 2]},
        {"Q": [1, 0]},
        {"r": [1.5]},
        {"r": ["1", 2]},
        {"c": [{"d": []}]},
        {"D": 5.5, "i": 1},
        {"i": 5},
        {"h": [0, "f"]},
        {"s": [[1]]},
        {"d": [[1]]},
        {"t": 5},
        {"?": 1},
        {},
    ],
)
def test_what_is_no_value_is_a_wrong_answer_and_no_error(answer):
    assert "malformed answer" in _judge(json.dumps({"ok": answer}).encode(), 1, 1e-6)


@pytest.mark.parametrize("text", [b"", b"[", b"5", b"NaN", b'{"ok": ' + b"[" * 10_000, b'"\xff"', b"1" * 5000, b"{}"])
def test_what_is_no_message_is_a_wrong_answer_and_no_error(text):
    assert "malformed answer" in _judge(text, 1, 1e-6)

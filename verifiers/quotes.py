"""Quotations in a text, and whether a quoted span stands in another text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from verifiers.scripts import UNSPACED, words

# Within one paragraph. Straight quotation marks must stand at the outside of words, which leaves inches (5") alone.
_INSIDE = r"((?:(?!\n[ \t]*\n)[^{}])+)"
_PAIRS = (("“", "”"), ("«", "»"), ("「", "」"), ("『", "』"), ("‹", "›"))
_QUOTED = re.compile(
    "|".join(
        [
            *(left + _INSIDE.replace("{}", left + right) + right for left, right in _PAIRS),
            "„" + _INSIDE.replace("{}", "„“”") + "[“”]",
            r'(?<![A-Za-z0-9])"(?=\S)' + _INSIDE.replace("{}", '"') + r'(?<=\S)"(?![A-Za-z0-9])',
        ]
    )
)
_BLOCK = re.compile(r"^[ ]{0,3}>.*(?:\n[ ]{0,3}>.*)*", re.MULTILINE)
_BLOCK_MARK = re.compile(r"^[ ]{0,3}>[> ]*", re.MULTILINE)
_MARKS = dict.fromkeys(map(ord, '"“”„‟«»‹›「」『』‘’‚‛`´＂＇'), "'")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


class Quotation(NamedTuple):
    """A quoted span: its place in the text, marks included, and what it quotes."""

    start: int
    end: int
    text: str


def quotations(text: str) -> Iterator[Quotation]:
    """Spans in double quotation marks, guillemets or corner brackets, and Markdown block quotes, in order.

    >>> [q.text for q in quotations('He said "no" to a 5" disk, «non» and “nein”.')]
    ['no', 'non', 'nein']

    Single quotation marks are not counted, because they are apostrophes too.
    """
    position = 0
    for block in _BLOCK.finditer(text):
        yield from _in_marks(text, position, block.start())
        yield Quotation(block.start(), block.end(), _BLOCK_MARK.sub("", block[0]).strip())
        position = block.end()
    yield from _in_marks(text, position, len(text))


def _in_marks(text: str, start: int, end: int) -> Iterator[Quotation]:
    for match in _QUOTED.finditer(text, start, end):
        yield Quotation(match.start(), match.end(), match[match.lastindex or 0].strip())


def normalise(text: str) -> str:
    """One form of all quotation marks, single spaces, composed letters, no invisible characters. Case, dashes and all
    else stay as they are.

    >>> normalise("a\\u00a0“b”\\n ‘c’")
    "a 'b' 'c'"
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).translate(_MARKS).split())


def occurs(span: str, text: str, start: int = 0) -> int:
    """Where `span` ends in `text`, both normalised, as whole words from `start` on; -1 when it does not stand there.

    >>> occurs("art", "a party"), occurs("art", "its art")
    (-1, 7)
    """
    if not span:
        return -1
    while (found := text.find(span, start)) >= 0:
        end = found + len(span)
        if not _inside_a_word(text, found) and not _inside_a_word(text, end):
            return end
        start = found + 1
    return -1


def _inside_a_word(text: str, place: int) -> bool:
    """Whether both neighbours of a place are letters or digits of scripts that put spaces between words."""
    around = text[max(0, place - 1) : place + 1]
    if len(around) < 2 or place == 0 or not (around[0].isalnum() and around[1].isalnum()):
        return False
    return not any(word.script in UNSPACED for word in words(around))

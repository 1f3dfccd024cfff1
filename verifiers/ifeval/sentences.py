"""Counting sentences by rules: no model, no data, time in proportion to the text.

A sentence ends at . ? ! … (or 。！？।) when white space or the end of the text follows, after closing quotes and
brackets. A period does not end one after a list marker ("1. Wash"), an initial ("J. Smith") or an abbreviation
("Dr. Smith", "Fig. 2", "the U.S. Army"); after one that can stand last ("etc.", "p.m.") it does when the next word is
one that begins sentences. What is left after the last end is a sentence too, and a piece without a letter or a digit
is none.
"""

from __future__ import annotations

import re

# Possessive and anchored to the start of a run, so that a long run of dots is read once.
_END = re.compile(
    r"(?<![.!?…])(?P<mark>[.!?…]++)(?:[\"'”’»)\]}>*_`]|\[\d+\])*+(?=\s|$)|(?P<wide>[。！？｡।॥۔؟]++[」』）”’\"]*+)"
)
_NEXT = re.compile(r"\s*+[\"'“‘«(\[{<*_`#]*+([^\s.,;:!?]*)")
_MARKER = re.compile(r"[ \t>#*_-]*+(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})")
_MARKER_LENGTH = 30
_DOTTED = re.compile(r"(?:[a-z]\.)+[a-z]")
_OPENING = "\"'“‘«([{<*_`#—–-"

# What follows these belongs to the same sentence.
_NAME = """
    mr mrs ms messrs mx dr prof rev fr hon pres gov sen rep gen col lt maj capt cpt sgt cmdr adm supt
    vs v viz cf eg ie e.g i.e approx ca"""
_NUMBER = "no nos fig figs eq eqs sec ch chap vol vols pp pg art nr op ver"
# These may also be a sentence's last word.
_LAST = """
    etc al inc ltd co corp llc bros jr sr esq dept univ assn est st ste mt ave blvd rd ph.d b.sc m.sc
    jan feb apr aug sept oct nov dec min max avg tel ext lb lbs oz hr hrs ft sq"""
_START = """
    a an the this that these those i you he she it we they my your his her its our their there here who what when
    where why how which if in on at by for from with to as after before during since while although though because
    but and or so yet nor then thus hence however therefore moreover furthermore meanwhile also another both each
    every some many most all no not now once one please is are was were do does did can could should would will let
    first second finally next overall today"""
_BEFORE_NAME, _BEFORE_NUMBER = frozenset(_NAME.split()), frozenset(_NUMBER.split())
_MAYBE_LAST, _STARTERS = frozenset(_LAST.split()), frozenset(_START.split())


def count_sentences(text: str) -> int:
    """The number of sentences.

    >>> count_sentences('Dr. J. Smith paid 3.50 to U.S. banks at 5 p.m. He left... "Why?" Nobody knows')
    4
    >>> count_sentences("Shopping:\\n1. Apples and pears.\\n2. Bread.")
    2
    """
    found, start = 0, 0
    for match in _END.finditer(text):
        if match["wide"] or _ends_sentence(text, match):
            found += _has_word(text, start, match.end())
            start = match.end()
    return found + _has_word(text, start, len(text))


def _has_word(text: str, start: int, end: int) -> bool:
    return any(text[i].isalnum() for i in range(start, end))


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark = match["mark"]
    if "?" in mark or "!" in mark:
        return True
    following = _NEXT.match(text, match.end())
    next_word = re.split("['’]", following[1])[0] if following else ""
    if not next_word:
        return True
    if mark != ".":  # an ellipsis
        return not next_word[0].islower()
    breaks_line = following is not None and "\n" in text[match.end() : following.start(1)]
    if not breaks_line and _is_marker(text, match.start()):
        return False
    return _is_end(_last_word(text, match.start()), next_word, breaks_line)


def _is_marker(text: str, end: int) -> bool:
    """Whether only a list marker stands between the beginning of the line and `end`."""
    earliest = max(0, end - _MARKER_LENGTH)
    line = text.rfind("\n", earliest, end) + 1
    return (line > 0 or earliest == 0) and _MARKER.fullmatch(text, line, end) is not None


def _last_word(text: str, end: int) -> str:
    start = end
    while start and not text[start - 1].isspace():
        start -= 1
    return text[start:end].lstrip(_OPENING)


def _is_end(word: str, next_word: str, breaks_line: bool) -> bool:
    """Whether the period between the two words ends a sentence."""
    lower = word.lower()
    if lower in _BEFORE_NAME:
        return False
    if lower in _BEFORE_NUMBER:
        return not next_word[0].isdigit()
    is_initial = len(word) == 1 and word.isalpha()
    if is_initial or lower in _MAYBE_LAST or _DOTTED.fullmatch(lower):
        return breaks_line or (not next_word[0].islower() and next_word.lower() in _STARTERS)
    return True

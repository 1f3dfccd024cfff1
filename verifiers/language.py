"""Language mixing: how much of a text is written in other scripts than its language's.

Left out of the count, because they are no prose of the writer's: code (fenced, inline, tool calls, identifiers),
formulas, URLs, tags, quotations of the row's own text, short names that stand in the row, and single letters such as x
or α. `verifiers.scripts` says what a word is.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.quotes import normalise, occurs, quotations
from verifiers.scripts import UNSPACED, Word, scripts_of, words

MAX_NAME = 30  # characters; a longer stretch of the row in a foreign script is copied, not named
MAX_NAMES = 5  # words; names may be more only where the text's own words are as many
LATIN_SHARE = 0.3  # of an answer in another script may be words in Latin letters: names, abbreviations, terms
_SHOWN = 40
_MAX_SYMBOL = {"Greek": 3}  # letters of a foreign word that is a symbol, such as x or αβγ

# Every pattern takes time linear in the text: a response may be 100,000 times the same character.
_BLOCKS = re.compile(
    r"^[ \t]*(?:```|~~~).*?(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)|<tool_call>.*?(?:</tool_call>|\Z)",
    re.MULTILINE | re.DOTALL,  # an open fence reaches to the end
)
_INLINE = re.compile(r"`[^`\n]+`|\$(?=\S)[^$\n]+(?<=\S)\$(?!\d)")
_FORMULAS = (("\\begin{", "\\end{"), ("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"))
_NO_PROSE = re.compile(
    r"\\[A-Za-z]+"
    r"|(?:https?://|www\.)[!-~]+"
    r"|</?[A-Za-z][^<>\n]*>"
    r"|(?<![A-Za-z0-9.:+-])[A-Za-z0-9.:+-]*[0-9_/\\@=#][!-~]*"  # identifiers, paths, names with numbers
)
_WITHIN_A_NAME = re.compile(r"[ \t]?[-.&]?[ \t]?")


@dataclass(frozen=True, slots=True)
class LanguageMix:
    """Words in the language's own scripts, words of foreign scripts by script, and the first foreign stretch."""

    own: int
    foreign: Mapping[str, int]
    example: str = ""

    @property
    def own_share(self) -> float:
        """1 when there are no words."""
        total = self.own + sum(self.foreign.values())
        return self.own / total if total else 1.0


def language_mix(text: str, language: str, row: Mapping[str, Any]) -> LanguageMix:
    """Counts the words of a text in a language (see `verifiers.scripts.scripts_of`); `row` is what it may quote.

    >>> language_mix("The answer is 四 because `北` is code and 2 + 2 = 4.", "en", {})
    LanguageMix(own=7, foreign={'Han': 1}, example='四')
    >>> language_mix("Beijing is written 北京.", "en", {"question": "How is Beijing written in Chinese? 北京 or 京北?"})
    LanguageMix(own=3, foreign={}, example='')

    Raises ValueError for an unknown language.
    """
    own_scripts = scripts_of(language)
    text = unicodedata.normalize("NFC", text)
    row_text = _RowText(row)
    prose = _NO_PROSE.sub(" ", blank_code(_without_quotations(text, row_text)))
    own, foreign, names, example = 0, Counter[str](), Counter[str](), ""
    for run in _runs(prose):
        script = run[0].script
        if script in own_scripts:
            own += len(run)
            continue
        symbol = 0 if script in UNSPACED else _MAX_SYMBOL.get(script, 1)
        size = sum(word.end - word.start > symbol for word in run)
        stretch = prose[run[0].start : run[-1].end]
        if size and len(stretch) <= MAX_NAME and row_text.holds(stretch):
            names[script] += size
        elif size:
            foreign[script] += size
            example = example or stretch[:_SHOWN]
    if names.total() > max(own, MAX_NAMES):
        foreign += names
        example = example or prose.strip()[:_SHOWN]
    return LanguageMix(own, dict(foreign), example)


def mixing(mix: LanguageMix, max_foreign_share: float | None) -> str:
    """What is wrong with a mix, "" if nothing.

    max_foreign_share: the largest share of foreign words. None: none at all, except words in Latin letters in a text of
    another script, which may be 30 %, because names and terms are commonly left in them.
    """
    total = mix.own + sum(mix.foreign.values())
    for script, count in mix.foreign.items():
        limit = max_foreign_share if max_foreign_share is not None else LATIN_SHARE if script == "Latin" else 0.0
        counted = count if max_foreign_share is None else sum(mix.foreign.values())
        if counted > limit * total:
            return f"{counted} of {total} words in another script ({script}), for instance {mix.example!r}"
    return ""


def blank_blocks(text: str) -> str:
    """Spaces for the characters of fenced code and tool calls; places and lines stay as they are."""
    return _BLOCKS.sub(lambda match: _blank(match[0]), text)


def blank_code(text: str) -> str:
    """Spaces for the characters of all code and formulas; places and lines stay as they are.

    >>> blank_code("so `a[1]` and $[0, 1]$.")
    'so        and         .'
    """
    text = blank_blocks(text)
    for left, right in _FORMULAS:
        parts, position = [], 0
        while (start := text.find(left, position)) >= 0 and (end := text.find(right, start + len(left))) >= 0:
            end += len(right)
            parts += [text[position:start], _blank(text[start:end])]
            position = end
        text = "".join([*parts, text[position:]])
    return _INLINE.sub(lambda match: _blank(match[0]), text)


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


class _RowText:
    """The row's texts, gathered when first needed."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._text: str | None = None

    def holds(self, span: str) -> bool:
        if self._text is None:
            self._text = normalise("\n".join(texts_of(self._row))).casefold()
        return occurs(normalise(span).casefold(), self._text) >= 0


def texts_of(value: Any) -> Iterator[str]:
    """All texts in nested lists and mappings, keys not included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from texts_of(part)


def _without_quotations(text: str, row_text: _RowText) -> str:
    parts, position = [], 0
    for quotation in quotations(text):
        if row_text.holds(quotation.text):
            parts.append(text[position : quotation.start])
            position = quotation.end
    return " ".join([*parts, text[position:]])


def _runs(text: str) -> Iterator[list[Word]]:
    """Neighbouring words of one script, with nothing but a space, hyphen or the like between them."""
    run: list[Word] = []
    for word in words(text):
        if run and (run[-1].script != word.script or not _WITHIN_A_NAME.fullmatch(text[run[-1].end : word.start])):
            yield run
            run = []
        run.append(word)
    if run:
        yield run

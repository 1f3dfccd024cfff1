"""The `citation` verifier: an answer that quotes and cites passages it was given.

A citation is a marker in square brackets with ids of passages: `[1]`, `[1, 3]`, `[2-4]`, `[1][3]`, `[doc-7]`, `【1】`.
A bracket is taken for one when its parts are numbers or look like the given ids (letters equal, digits free);
other brackets, code and formulas are left alone. A quotation is a span in double quotation marks, guillemets or corner
brackets, or a Markdown block quote. To it belong the citations inside it, else those right after it, else the nearest
before and after it on its line, of which one must hold it. A quotation of less than MIN_WORDS words is held to the
passages only with a citation inside or right after it; otherwise it is a term or a title.

Not covered: whether the passages support what stands outside quotation marks, quotations in single marks, and an answer
that copies whole passages (add a length, `{"verifiers": ["citation", "text"], "max_words": 200}` with `all_of`).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers.language import blank_blocks, blank_code, texts_of
from verifiers.quotes import Quotation, normalise, occurs, quotations
from verifiers.registry import register_verifier
from verifiers.response import outside_thinking
from verifiers.scripts import UNSPACED, words
from verifiers.text import normalise as loosely
from verifiers.verdict import Verdict

MIN_WORDS = 4  # from which an uncited quotation is checked; two letters of an unspaced script count as a word
MIN_PIECE = 3  # words between two omission marks
MAX_RANGE = 100
_SHOWN = 80
_BRACKET = re.compile(r"[\[【]\^?([^\[\]【】\n]{1,200})[\]】]")
_RANGE = re.compile(r"(\d{1,9})\s*[-–]\s*(\d{1,9})")
_OMISSION = re.compile(r"\[\s*(?:…|\.\.\.)\s*\]|…|\.\.\.")
_BETWEEN = " .,;:!?)。，；、"
_AT_THE_ENDS = ".,;:!?。，；：！？、 "


@dataclass(frozen=True, slots=True)
class Marker:
    """A citation: its place, the ids it names, and the bracket."""

    start: int
    end: int
    ids: tuple[str, ...]
    text: str


@register_verifier(
    "citation", columns=("passages",), optional=("required", "allowed", "min_citations", "min_quotes", "answer")
)
def citation(response: str, row: Mapping[str, Any]) -> Verdict:
    """Citations name given passages, and quotations stand word for word in what they cite.

    `passages`: a list of {"id", "text"}, a list of texts (ids 1, 2, …) or a mapping of ids to texts. `min_citations`
    (default 1): how many different passages must be cited; `required`: ids that must be; `allowed`: the only ids that
    may be, so that citing everything does not pay. `min_quotes` (default 0): how many different quotations of four
    words or more the passages must hold. `answer`: a text, or several of which one must stand in the answer as whole
    words (case, punctuation and articles do not count).

    A quotation equals its passage letter by letter but for white space, the kind of quotation marks and punctuation at
    its ends; … or [...] leaves words out between pieces of at least three words. Without a citation it may stem from
    any passage or from the row's question.

    >>> row = {"passages": ["The tower is 330 m tall.", "It was built in 1889."], "answer": "1889"}
    >>> citation("It dates from 1889: “It was built in 1889” [2].", row).status
    'pass'
    >>> citation("It dates from 1889: “It was built in 1889” [1].", row).detail
    "the quotation 'It was built in 1889' does not stand in passage 1"
    >>> citation("It dates from 1889 [3].", row).detail
    '[3] cites no given passage'
    >>> citation("It dates from 1889.", row).detail
    '0 passages cited, at least 1 are needed'

    Raises ValueError when the passages are in none of these forms or an id in `required` or `allowed` is not theirs.
    """
    passages = _read_passages(row["passages"])
    required, allowed = (_ids(row, name, passages) for name in ("required", "allowed"))
    answer = outside_thinking(response)
    answer = blank_blocks(answer) if answer else ""
    if not answer.strip():
        return Verdict(0.0, "unparsed", "no answer outside the thinking block")
    quoted = [quote for quote in quotations(answer) if quote.text]
    markers = _markers(answer, passages, quoted)
    cited = list(dict.fromkeys(name for marker in markers for name in marker.ids))
    needed = 1 if row.get("min_citations") is None else int(row["min_citations"])
    broken = (
        _citation_rule(markers, cited, passages, allowed)
        or (f"{len(cited)} passages cited, at least {needed} are needed" if len(cited) < needed else "")
        or next((f"passage {name} has to be cited" for name in required if name not in cited), "")
        or _quotation_rule(answer, quoted, markers, passages, row)
        or _answer_rule(answer, row.get("answer"))
    )
    return Verdict(0.0, "fail", broken) if broken else Verdict(1.0, "pass")


def _read_passages(value: Any) -> dict[str, str]:
    """Normalised texts by id."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = [(p.get("id"), p.get("text")) if isinstance(p, Mapping) else (i, p) for i, p in enumerate(value, 1)]
    else:
        pairs = []
    passages = {
        str(name).strip(): normalise(text) for name, text in pairs if name is not None and isinstance(text, str)
    }
    if not passages or len(passages) < len(pairs):
        raise ValueError("column 'passages' must be a list of {'id', 'text'} with different ids, a list of texts, or a "
                         f"mapping of ids to texts, got {value!r}"[:300])  # fmt: skip
    return passages


def _ids(row: Mapping[str, Any], column: str, passages: Mapping[str, str]) -> list[str]:
    value = row.get(column)
    ids = [str(name).strip() for name in (value if isinstance(value, (list, tuple)) else [value]) if name is not None]
    unknown = next((name for name in ids if name not in passages), None)
    if unknown is not None:
        raise ValueError(f"column {column!r} names {unknown!r}, which is no passage of the row")
    return ids


# --- reading the answer ---------------------------------------------------------------------------------------------


def _markers(answer: str, passages: Mapping[str, str], quoted: Sequence[Quotation]) -> list[Marker]:
    """The citations of the answer. Brackets that a quotation took over from its passage are none."""
    shapes = {_shape(name) for name in passages} | {"0"}
    copied = [q for q in quoted if "[" in q.text and any(_stands_in(q.text, text) for text in passages.values())]
    markers = []
    for match in _BRACKET.finditer(blank_code(answer)):
        names = [part.strip() for part in re.split("[,;，；、]", match[1])]
        ids = [one for name in names for one in ([name] if name in passages else _range(name))]
        inside = any(q.start < match.start() and match.end() < q.end for q in copied)
        if not inside and all(_shape(one) in shapes for one in ids):
            markers.append(Marker(match.start(), match.end(), tuple(ids), match[0]))
    return markers


def _shape(name: str) -> str:
    """Ids of one shape differ in their digits only."""
    return re.sub(r"\d+", "0", name)


def _range(name: str) -> list[str]:
    """`2-4` is 2, 3, 4; anything else is itself."""
    ends = _RANGE.fullmatch(name)
    if not ends or not 0 < int(ends[2]) - int(ends[1]) < MAX_RANGE:
        return [name]
    return [str(i) for i in range(int(ends[1]), int(ends[2]) + 1)]


def _within(markers: Sequence[Marker], start: int, end: int) -> Sequence[Marker]:
    """The markers, which are in order, that lie in a stretch of the answer."""
    first = bisect_left(markers, start, key=lambda m: m.start)
    return markers[first : bisect_right(markers, end, lo=first, key=lambda m: m.end)]


def _owners(answer: str, quoted: Sequence[Quotation], markers: Sequence[Marker]) -> list[tuple[list[str], bool]]:
    """Per quotation the ids of the citations that belong to it, and whether they stand inside or right after it."""
    untils = [*(quote.start for quote in quoted[1:]), len(answer)]
    chosen = [
        _within(markers, quote.start, quote.end)
        or _together(_within(markers, quote.end, until), answer, right_after=quote.end)
        for quote, until in zip(quoted, untils)
    ]
    direct = [bool(own) for own in chosen]
    claimed = {marker for own in chosen for marker in own}
    free = [marker for marker in markers if marker not in claimed]
    for index, (quote, until) in enumerate(zip(quoted, untils)):
        if not direct[index]:
            start, end = _line(answer, quote)
            before = _within(free, start, quote.start)[::-1]
            after = _within(free, quote.end, min(end, until))
            chosen[index] = [*_together(before, answer), *_together(after, answer)]
    ids = [list(dict.fromkeys(name for marker in own for name in marker.ids)) for own in chosen]
    return list(zip(ids, direct))


def _line(answer: str, quote: Quotation) -> tuple[int, int]:
    """Start and end of a quotation's line; a block quote may be introduced on the line before and cited on the next."""
    start, end = answer.rfind("\n", 0, quote.start) + 1, answer.find("\n", quote.end)
    if answer[quote.start :].lstrip().startswith(">"):
        start = answer.rfind("\n", 0, max(0, start - 1)) + 1
        end = answer.find("\n", end + 1) if end >= 0 else end
    return start, len(answer) if end < 0 else end


def _together(markers: Sequence[Marker], answer: str, right_after: int | None = None) -> Sequence[Marker]:
    """The first markers with nothing but punctuation between them, as in [1], [2], and between `right_after` and the
    first."""
    for count, marker in enumerate(markers):
        gap = answer[marker.start if right_after is None else right_after : marker.start]
        if count:
            beside = markers[count - 1]  # on either side
            gap = answer[min(beside.end, marker.end) : max(beside.start, marker.start)]
        if "\n" in gap or gap.strip(_BETWEEN):
            return markers[:count]
    return markers


# --- the rules: each returns what is broken, or "" ------------------------------------------------------------------


def _citation_rule(
    markers: Sequence[Marker], cited: Sequence[str], passages: Mapping[str, str], allowed: Sequence[str]
) -> str:
    for marker in markers:
        if any(name not in passages for name in marker.ids):
            return f"{marker.text} cites no given passage"
    outside = next((name for name in cited if allowed and name not in allowed), None)
    return f"passage {outside} may not be cited" if outside is not None else ""


def _quotation_rule(
    answer: str,
    quoted: Sequence[Quotation],
    markers: Sequence[Marker],
    passages: Mapping[str, str],
    row: Mapping[str, Any],
) -> str:
    question = normalise(" ".join(texts_of([row.get(name) for name in ("question", "prompt", "messages")])))
    held = set()
    for quote, (ids, direct) in zip(quoted, _owners(answer, quoted, markers)):
        text = _without_markers(quote, markers)
        size = _word_count(text)
        if size < MIN_WORDS and not direct:
            continue
        if any(_stands_in(text, passages[name]) for name in ids or passages):
            held |= {normalise(text).strip(_AT_THE_ENDS)} if size >= MIN_WORDS else set()
        elif ids or not _stands_in(text, question):
            where = f"passage {' or '.join(ids)}" if ids else "any passage"
            return f"the quotation {normalise(text)[:_SHOWN]!r} does not stand in {where}"
    least = row.get("min_quotes") or 0
    return f"{len(held)} quotations from the passages, at least {least} are needed" if len(held) < least else ""


def _without_markers(quote: Quotation, markers: Sequence[Marker]) -> str:
    text = quote.text
    for marker in _within(markers, quote.start, quote.end):
        text = text.replace(marker.text, "", 1)
    return text.strip()


def _stands_in(text: str, passage: str) -> bool:
    """Whether a quotation stands in a normalised passage, its pieces in order where words are left out."""
    if occurs(normalise(text).strip(_AT_THE_ENDS), passage) >= 0:
        return True
    pieces = [piece.strip(_AT_THE_ENDS) for piece in map(normalise, _OMISSION.split(text))]
    pieces = [piece for piece in pieces if piece]
    if not pieces or (len(pieces) > 1 and any(_word_count(piece) < MIN_PIECE for piece in pieces)):
        return False
    place = 0
    for piece in pieces:
        place = occurs(piece, passage, place)
        if place < 0:
            return False
    return True


def _word_count(text: str) -> float:
    numbers = len(re.findall(r"\d+", text))
    return numbers + sum(0.5 if word.script in UNSPACED else 1.0 for word in words(text))


def _answer_rule(answer: str, expected: Any) -> str:
    if expected is None:
        return ""
    accepted = [loosely(str(one)) for one in (expected if isinstance(expected, (list, tuple)) else [expected])]
    text = loosely(_BRACKET.sub(" ", answer))
    return (
        "" if any(occurs(one, text) >= 0 for one in accepted) else f"the answer does not say {str(expected)[:_SHOWN]!r}"
    )

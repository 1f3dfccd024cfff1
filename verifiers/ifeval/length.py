"""Constraints on how long a response is: sentences, words, paragraphs."""

from __future__ import annotations

import re

from verifiers.ifeval.constraints import compare, compare_exactly, count, position, register_constraint, relation, word
from verifiers.ifeval.sentences import count_sentences

_QUOTES = "'\"‘’“”«»"
_WORD_END = ".,?!:;…)"


@register_constraint("length_constraints:number_sentences", {"num_sentences": count, "relation": relation})
def number_sentences(text: str, num_sentences: int, relation: str) -> str:
    """How many sentences, by `count_sentences`."""
    return compare(count_sentences(text), relation, num_sentences, "sentences")


@register_constraint("length_constraints:number_words", {"num_words": count, "relation": relation})
def number_words(text: str, num_words: int, relation: str) -> str:
    """How many runs of letters, digits and underscores: "don't" and "well-known" have two each."""
    return compare(len(re.findall(r"\w+", text)), relation, num_words, "words")


@register_constraint("length_constraints:number_paragraphs", {"num_paragraphs": count})
def number_paragraphs(text: str, num_paragraphs: int) -> str:
    """How many parts the divider *** separates; a blank one is allowed at the ends only, and does not count."""
    parts = [part.strip() for part in text.split("***")]
    if not all(parts[1:-1]):
        return "a paragraph between two dividers is empty"
    return compare_exactly(sum(map(bool, parts)), num_paragraphs, "paragraphs")


@register_constraint(
    "length_constraints:nth_paragraph_first_word",
    {"num_paragraphs": position, "nth_paragraph": position, "first_word": word},
)
def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> str:
    """How many paragraphs two line breaks separate, and the word that one of them begins with, in any case.

    Raises ValueError when `nth_paragraph` is greater than `num_paragraphs`.
    """
    if nth_paragraph > num_paragraphs:
        raise ValueError(f"'nth_paragraph' is {nth_paragraph}, but 'num_paragraphs' asks for {num_paragraphs} only")
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    broken = compare_exactly(len(paragraphs), num_paragraphs, "paragraphs")
    if broken:
        return broken
    found = paragraphs[nth_paragraph - 1].split()[0].lower().lstrip(_QUOTES)
    # A quotation mark inside ends the word ('"Hello"she'), unless the word that is asked for has it (don't).
    whole = found.rstrip(_WORD_END + _QUOTES)
    stem = re.split(f"[{re.escape(_QUOTES + _WORD_END)}]", found)[0]
    if first_word.lower().rstrip(_WORD_END) in (whole, stem):
        return ""
    return f"paragraph {nth_paragraph} begins with {found[:40]!r} instead of {first_word!r}"

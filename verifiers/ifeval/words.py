"""Constraints on the words and letters of a response, its case, its first and last characters, and its language."""

from __future__ import annotations

import re
import unicodedata

from verifiers.ifeval.constraints import character, compare, count, register_constraint, relation, text_value, texts
from verifiers.ifeval.language import detect_language, known_language, same_language

# A word may hold hyphens, dots, slashes and ampersands (X-RAY, U.S., AND/OR, R&D); group 2 is what follows an
# apostrophe, which makes no word of its own.
_WORD = re.compile(r"(\w+(?:[-./&]\w+)*)((?:['’]\w+)*)")
_CLITICS = {"s", "m", "d", "t", "ll", "re", "ve"}


@register_constraint("keywords:existence", {"keywords": texts})
def keywords_exist(text: str, keywords: list[str]) -> str:
    """Every keyword stands somewhere, in any case, also inside a longer word."""
    missing = [keyword for keyword in keywords if not _occurrences(keyword, text)]
    return f"{', '.join(map(repr, missing))} missing" if missing else ""


@register_constraint("keywords:frequency", {"keyword": text_value, "frequency": count, "relation": relation})
def keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> str:
    """How often a keyword stands in the text, in any case, also inside longer words."""
    return compare(_occurrences(keyword, text), relation, frequency, f"occurrences of {keyword!r}")


@register_constraint("keywords:forbidden_words", {"forbidden_words": texts})
def forbidden_words(text: str, forbidden_words: list[str]) -> str:
    """None of the words stands in the text as a word of its own, in any case."""
    used = [
        word for word in forbidden_words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE)
    ]
    return f"{', '.join(map(repr, used))} used" if used else ""


@register_constraint(
    "keywords:letter_frequency", {"letter": character, "let_frequency": count, "let_relation": relation}
)
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> str:
    """How often a letter, or any other character, stands in the text, in any case."""
    return compare(text.lower().count(letter.lower()), let_relation, let_frequency, f"occurrences of {letter!r}")


@register_constraint("change_case:capital_word_frequency", {"capital_frequency": count, "capital_relation": relation})
def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> str:
    """How many words are in capitals; a hyphenated word and a contraction are one word."""
    found = sum(_is_capital(match[1], match[2]) for match in _WORD.finditer(text))
    return compare(found, capital_relation, capital_frequency, "words in capitals")


@register_constraint("change_case:english_capital")
def english_capital(text: str) -> str:
    """English, without a small letter."""
    return _language_broken(text, "en") if text.isupper() else "not all letters are capitals"


@register_constraint("change_case:english_lowercase")
def english_lowercase(text: str) -> str:
    """English, without a capital letter."""
    return _language_broken(text, "en") if text.islower() else "not all letters are small"


@register_constraint("language:response_language", {"language": known_language})
def response_language(text: str, language: str) -> str:
    """The language of the text as a whole, by its ISO 639-1 code."""
    return _language_broken(text, language)


@register_constraint("punctuation:no_comma")
def no_comma(text: str) -> str:
    """No comma, of any script."""
    found = sum(text.count(char) for char in set(text) if _is_comma(char))
    return f"commas: {found}" if found else ""


@register_constraint("startend:end_checker", {"end_phrase": text_value})
def end_checker(text: str, end_phrase: str) -> str:
    """The phrase ends the text, in any case; quotation marks around the whole text do not count."""
    whole, phrase = text.strip().lower(), end_phrase.lower()
    ends = whole.endswith(phrase) or whole.strip('"').rstrip().endswith(phrase)
    return "" if ends else f"it does not end with {end_phrase!r}"


@register_constraint("startend:quotation")
def quotation(text: str) -> str:
    """Double quotation marks stand around the whole text."""
    whole = text.strip()
    wrapped = whole.startswith('"') and whole.endswith('"') and whole.strip('"').strip() != ""
    return "" if wrapped else "it is not wrapped in double quotation marks"


def _occurrences(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword), text, flags=re.IGNORECASE))


def _is_capital(stem: str, suffix: str) -> bool:
    """Whether a word is in capitals; "NASA's" and "I'm" are, "O'Brien" is not."""
    rest = suffix.replace("’", "'").strip("'")
    return stem.isupper() and (not rest or rest.isupper() or rest in _CLITICS)


def _is_comma(char: str) -> bool:
    return char == "," or (
        char > "\x7f" and unicodedata.category(char)[0] == "P" and "COMMA" in unicodedata.name(char, "")
    )


def _language_broken(text: str, language: str) -> str:
    found = detect_language(text)
    if found is None:
        return "no language can be told from it"
    return "" if same_language(found, language) else f"the language is {found!r}, {language!r} asked for"

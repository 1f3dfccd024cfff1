"""The writing systems of a text: Unicode script ranges, the scripts of a language, and a text's words by script.

A word is a run of letters of one script. Scripts written without spaces (Han, kana, Thai, …) have no visible words, so
there each letter counts as one. Languages that share a script, such as English and French, or Chinese and Japanese
without kana, cannot be told apart this way. Scripts that are not in the table below are not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from verifiers.registry import did_you_mean

# First and last code points of letters and their marks (Unicode's Scripts.txt), without digits and punctuation.
_RANGES: dict[str, str] = {
    "Latin": "A-Za-zÀ-ÖØ-öø-ʯ\u1e00-\u1eff\u2c60-\u2c7f\ua722-\ua787\ua78b-\ua7ff\uab30-\uab64ﬀ-ﬆＡ-Ｚａ-ｚ",
    "Greek": "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u03ff\u1f00-\u1fbc\u1fc2-\u1fcc\u1fd0-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ffc",
    "Cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "Armenian": "\u0531-\u0556\u0560-\u0588\ufb13-\ufb17",
    "Hebrew": "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05d0-\u05f2\ufb1d-\ufb4f",
    "Arabic": "\u0620-\u065f\u066e-\u06d3\u06d5-\u06ef\u06fa-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufbb1\ufbd3-\ufd3d"
    "\ufd50-\ufdfb\ufe70-\ufefc",
    "Devanagari": "\u0900-\u0963\u0971-\u097f\ua8e0-\ua8ff",
    "Bengali": "\u0980-\u09e3\u09f0\u09f1",
    "Gurmukhi": "\u0a01-\u0a5e\u0a70-\u0a75",
    "Gujarati": "\u0a81-\u0ae3\u0af9-\u0aff",
    "Oriya": "\u0b01-\u0b63\u0b71",
    "Tamil": "\u0b82-\u0bd7",
    "Telugu": "\u0c00-\u0c63",
    "Kannada": "\u0c80-\u0ce3",
    "Malayalam": "\u0d00-\u0d63\u0d7a-\u0d7f",
    "Sinhala": "\u0d81-\u0ddf",
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e4e",
    "Lao": "\u0e81-\u0ece\u0edc-\u0edf",
    "Tibetan": "\u0f40-\u0fbc",
    "Myanmar": "\u1000-\u103f\u1050-\u108f\uaa60-\uaa7f",
    "Georgian": "\u10a0-\u10fa\u10fc-\u10ff\u1c90-\u1cbf\u2d00-\u2d2d",
    "Hangul": "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb",
    "Ethiopic": "\u1200-\u135f\u1380-\u138f\u2d80-\u2dde",
    "Khmer": "\u1780-\u17d3\u17dc\u17dd",
    "Mongolian": "\u1820-\u18aa",
    "Hiragana": "\u3041-\u3096\u309d-\u309f",
    "Katakana": "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "Han": "\u2e80-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U000323af",
}
UNSPACED = frozenset(["Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"])

# ISO 639 codes by what they are written in.
_WRITTEN_IN: dict[tuple[str, ...], str] = {
    ("Latin",): "af az bs ca cs cy da de en es et eu fi fil fr ga gl ha hr hu id is it lt lv ms mt nl no pl pt ro sk "
    "sl so sq sv sw tl tr uz vi xh yo zu",
    ("Cyrillic",): "be bg kk ky mk mn ru tg uk",
    ("Cyrillic", "Latin"): "sr",
    ("Arabic",): "ar fa ps ur",
    ("Devanagari",): "hi mr ne sa",
    ("Hebrew",): "he yi",
    ("Han",): "zh yue",
    ("Han", "Hiragana", "Katakana"): "ja",
    ("Hangul",): "ko",
    **{(script,): code for script, code in [
        ("Greek", "el"), ("Armenian", "hy"), ("Georgian", "ka"), ("Ethiopic", "am"), ("Thai", "th"), ("Lao", "lo"),
        ("Khmer", "km"), ("Myanmar", "my"), ("Tibetan", "bo"), ("Sinhala", "si"), ("Bengali", "bn"), ("Gurmukhi", "pa"),
        ("Gujarati", "gu"), ("Oriya", "or"), ("Tamil", "ta"), ("Telugu", "te"), ("Kannada", "kn"), ("Malayalam", "ml"),
    ]},
}  # fmt: skip
_LANGUAGES = {code: scripts for scripts, codes in _WRITTEN_IN.items() for code in codes.split()}
_WORD = re.compile(
    "|".join(
        f"(?P<{name}>[{letters}])" if name in UNSPACED else f"(?P<{name}>[{letters}]+(?:['’][{letters}]+)*)"
        for name, letters in _RANGES.items()
    )
)


class Word(NamedTuple):
    """A word's script and its place in the text; in an unspaced script one letter."""

    script: str
    start: int
    end: int


def words(text: str) -> Iterator[Word]:
    """The words of a text in order.

    >>> [(word.script, word.end - word.start) for word in words("Qwen 是模型, don't")]
    [('Latin', 4), ('Han', 1), ('Han', 1), ('Han', 1), ('Latin', 5)]
    """
    return (Word(match.lastgroup or "", match.start(), match.end()) for match in _WORD.finditer(text))


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts that a language is written in, by its ISO 639 code (a region may follow) or a script's own name.

    >>> scripts_of("ja"), scripts_of("zh-CN"), scripts_of("Cyrillic")
    (('Han', 'Hiragana', 'Katakana'), ('Han',), ('Cyrillic',))

    Raises ValueError for a language that is not known.
    """
    if language in _RANGES:
        return (language,)
    code = re.split("[-_]", str(language))[0].lower()
    if code not in _LANGUAGES:
        hint = did_you_mean(str(language), [*_LANGUAGES, *_RANGES])
        raise ValueError(f"unknown language {language!r}{hint} Give an ISO 639 code such as en or zh, or a script")
    return _LANGUAGES[code]

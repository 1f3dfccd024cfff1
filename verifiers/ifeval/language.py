"""The language of a text, by the langdetect package and the profiles it ships: offline, the same answer every time."""

from __future__ import annotations

import threading
from typing import Any

# ISO 639-1 codes, Chinese by script.
_CODES = """
    af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro
    ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw"""
LANGUAGES = frozenset(_CODES.split())
_ALSO = {"zh": {"zh-cn", "zh-tw"}, "nb": {"no"}}
_lock = threading.Lock()
_factory: Any = None


def known_language(value: Any) -> str:
    """A language code that detection knows. Raises ValueError for any other."""
    if not isinstance(value, str) or value.strip().lower() not in LANGUAGES | _ALSO.keys():
        raise ValueError(f"must be one of the languages {', '.join(sorted(LANGUAGES | _ALSO.keys()))}")
    return value.strip().lower()


def same_language(found: str, wanted: str) -> bool:
    """`zh` stands for Chinese in either script.

    >>> same_language("zh-tw", "zh")
    True
    """
    return found in _ALSO.get(wanted, {wanted})


def detect_language(text: str) -> str | None:
    """The code of the likeliest language, or None when nothing in the text tells one (digits, punctuation, links).

    The first 10,000 characters count. Raises ModuleNotFoundError when langdetect is not installed.
    """
    factory = _load()
    from langdetect.lang_detect_exception import LangDetectException

    detector = factory.create()
    # The detector skips words in capitals, and would judge a text of them by its first letters.
    detector.append(text.lower() if text.isupper() else text)
    try:
        found = detector.detect()
    except LangDetectException:
        return None
    return None if found == "unknown" else found


def _load() -> Any:
    """A factory of our own: the package's shared one has no seed, and other code may give it one."""
    global _factory
    with _lock:
        if _factory is None:
            try:
                from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
            except ModuleNotFoundError as error:
                message = "telling a language needs the langdetect package: pip install langdetect"
                raise ModuleNotFoundError(message, name="langdetect") from error
            factory = DetectorFactory()
            factory.set_seed(0)
            factory.load_profile(PROFILES_DIRECTORY)
            _factory = factory
    return _factory

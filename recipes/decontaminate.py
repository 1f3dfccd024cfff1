"""Which texts come too near to items of a validation or test set.

Two rules: a longest common subsequence of at least 13 tokens and 0.6 of the shorter text's tokens (Qwen2.5, arXiv
2412.15115), and 13 consecutive tokens in common (Qwen1, arXiv 2309.16609). Tokens are words in lower case,
numbers, signs, and single letters of scripts without spaces.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from verifiers.text import lcs_length

LEAST_TOKENS, LEAST_SHARE = 13, 0.6
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def tokens_of(text: str) -> list[str]:
    """
    >>> tokens_of("Is x+1 = 22? 四十")
    ['is', 'x', '+', '1', '=', '22', '?', '四', '十']
    """
    return _TOKEN.findall(text.casefold())


@dataclass(frozen=True, slots=True)
class Near:
    """item: which validation text. shared: tokens in common, in order. of: tokens of the shorter text."""

    item: int
    shared: int
    of: int


class ValidationTexts:
    """Looks texts up among those of a validation set."""

    def __init__(self, texts: Sequence[str]):
        self.items = [tokens_of(text) for text in texts]
        self._counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, tokens in enumerate(self.items):
            for token, times in Counter(tokens).items():
                self._counts[token].append((i, times))
        self._grams = {gram: i for i, tokens in enumerate(self.items) for gram in _grams(tokens)}

    def nearest(self, text: str) -> Near | None:
        """The item with the most tokens in common of those that the first rule calls too near, or None."""
        tokens = tokens_of(text)
        if len(tokens) < LEAST_TOKENS:
            return None
        best: Near | None = None
        for i in self._candidates(tokens):
            shorter = min(len(tokens), len(self.items[i]))
            shared = lcs_length(tokens, self.items[i])
            if shared >= LEAST_TOKENS and shared >= LEAST_SHARE * shorter and (not best or shared > best.shared):
                best = Near(i, shared, shorter)
        return best

    def copied(self, text: str) -> int | None:
        """An item of which the text repeats 13 tokens in a row, or None."""
        return next((self._grams[gram] for gram in _grams(tokens_of(text)) if gram in self._grams), None)

    def _candidates(self, tokens: Sequence[str]) -> Iterator[int]:
        """Items with enough tokens in common, whatever their order: no other can pass the rule."""
        common: Counter[int] = Counter()
        for token, times in Counter(tokens).items():
            for i, others in self._counts.get(token, ()):
                common[i] += min(times, others)
        for i, count in common.items():
            if count >= max(LEAST_TOKENS, LEAST_SHARE * min(len(tokens), len(self.items[i]))):
                yield i


def _grams(tokens: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(tokens[i : i + LEAST_TOKENS]) for i in range(len(tokens) - LEAST_TOKENS + 1))

"""Tokenising text that is cut at given places, so that no token reaches over a cut."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from alignment.errors import UserError

_PROBES = ("Sum", " up:", "\n", "x")


def tokenize_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[list[int]]:
    """Token ids of every piece; together they are the tokens of the joined text with a token border at every cut.

    Generation continues from the tokens of the prompt, whatever text follows; a piece is thus tokenised on its own.
    Tokenizers that mark the start of a text (SentencePiece's leading space) tokenise the joined text instead and the
    cuts are looked up in it. Raises UserError when a token of such a tokenizer reaches over a cut.
    """
    if not pieces:
        return []
    if _context_free(tokenizer):
        return _tokenize(tokenizer, pieces)
    prefixes = ["".join(pieces[: i + 1]) for i in range(len(pieces))]
    encoded = _tokenize(tokenizer, prefixes)
    full, start, out = encoded[-1], 0, []
    for i, ids in enumerate(encoded):
        if full[: len(ids)] != ids:
            raise UserError(
                f"the tokenizer joins {prefixes[i][-20:]!r} and {pieces[i + 1][:20]!r} into one token, so training "
                "would see other tokens than generation. Change the chat template so that it ends a turn's header with "
                "a special token or a new line"
            )
        out.append(full[start : len(ids)])
        start = len(ids)
    return out


def tokenize_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of one text without BOS or EOS."""
    return _tokenize(tokenizer, [text])[0]


@functools.lru_cache(maxsize=8)
def bos_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer by itself puts before a plain text: its BOS token or nothing."""
    ids = tokenizer("x").input_ids
    return (tokenizer.bos_token_id,) if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ()


@functools.lru_cache(maxsize=8)
def _context_free(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of pieces, put together, always spell the joined text."""
    ids = [i for piece in _tokenize(tokenizer, _PROBES) for i in piece]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "".join(_PROBES)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    ).input_ids

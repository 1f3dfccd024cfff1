"""Rows for supervised fine-tuning, in TRL's formats, as trees of token ids with the loss mask.

- `messages`: a conversation; loss on assistant turns (alignment.chat.masks).
- `prompt` and `completion`, both conversations: loss on the assistant turns of the completion.
- `prompt` and `completion`, both text: the texts as they are, loss on the completion and the EOS behind it.
- `text`: loss on every token but the first, and on the EOS behind it.

A row with `messages` is a conversation whatever other columns it has. The columns `tools` and `chat_template_kwargs`
go to the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.chat.masks import EmptyThinking, EncodedChat, Turn, encode_messages
from alignment.chat.messages import TrainOn, check_messages, template_arguments
from alignment.chat.tokens import bos_ids, tokenize_pieces
from alignment.errors import UserError
from alignment.types import Segment, Tree

Overflow = Literal["truncate", "drop", "error"]


@dataclass
class SftReport:
    """What became of the rows. `lengths_R` are the tokens of every row read, before anything is cut off;
    `kept_rows_K` the index of the row that each tree comes from."""

    rows: int
    max_length: int
    truncated: int = 0
    dropped: int = 0
    without_scored: int = 0  # left out: nothing in them would be trained
    without_end: int = 0  # kept, but some trained turn does not end with an end-of-turn token
    tokens: int = 0
    scored_tokens: int = 0
    lengths_R: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kept_rows_K: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def kept(self) -> int:
        return len(self.kept_rows_K)

    def summary(self) -> str:
        """One line with every count that is not zero."""
        counts = [
            (self.truncated, f"truncated to {self.max_length} tokens"),
            (self.dropped, f"dropped as longer than {self.max_length} tokens"),
            (self.without_scored, "left out as no token of them is trained"),
            (self.without_end, "with a trained turn that lacks its end token"),
        ]
        parts = [f"{count:,} {what}" for count, what in counts if count]
        return f"{self.kept:,} of {self.rows:,} rows, {self.tokens:,} tokens, {self.scored_tokens:,} scored" + "".join(
            f"; {part}" for part in parts
        )


def encode_sft_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    overflow: Overflow = "truncate",
    train_on: TrainOn = "all_assistant",
    empty_thinking: EmptyThinking = "flagged",
) -> tuple[list[Tree], SftReport]:
    """One tree with one segment per kept row. With weights other than 1 every segment has the column `weights`.

    overflow: rows longer than max_length are cut off at the end, left out, or refused; the report counts them.
    Raises UserError for a row that cannot be encoded, with its number (counted from 1), and when no row is left.
    """
    if overflow not in ("truncate", "drop", "error"):
        raise UserError(f"overflow must be truncate, drop or error, got {overflow!r}")
    if max_length < 2:
        raise UserError(f"max_length must be at least 2, got {max_length}")
    report = SftReport(len(rows), max_length, lengths_R=np.zeros(len(rows), np.int64))
    kept: list[tuple[int, EncodedChat]] = []
    for index, row in enumerate(rows):
        chat = _encode_numbered(row, index + 1, tokenizer, train_on, empty_thinking)
        report.lengths_R[index] = len(chat.token_ids)
        fitted = _fit(chat, index + 1, max_length, overflow, report)
        if fitted is not None:
            kept.append((index, fitted))
    if not kept:
        raise UserError(f"no row is left to train on: {report.summary()}")
    report.kept_rows_K = np.array([index for index, _ in kept])
    chats = [chat for _, chat in kept]
    report.tokens = sum(len(chat.token_ids) for chat in chats)
    report.scored_tokens = sum(int(chat.loss_mask.sum()) for chat in chats)
    weighted = any((chat.weights[chat.loss_mask] != 1).any() for chat in chats)
    return [_tree(chat, weighted) for chat in chats], report


def encode_row(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    train_on: TrainOn = "all_assistant",
    empty_thinking: EmptyThinking = "flagged",
) -> EncodedChat:
    """Encode one row of any of the formats. Raises UserError when it has none of them or is malformed."""
    if row.get("messages") is not None:
        messages = row["messages"]
    elif row.get("prompt") is not None and row.get("completion") is not None:
        if isinstance(row["prompt"], str) and isinstance(row["completion"], str):
            return _encode_completion(row["prompt"], row["completion"], tokenizer)
        messages = _join(row["prompt"], row["completion"])
    elif row.get("text") is not None:
        return _encode_text(row["text"], tokenizer)
    else:
        raise UserError(
            f"needs the column `messages`, or `prompt` and `completion`, or `text`; its columns are {sorted(row)}"
        )
    return encode_messages(
        tokenizer,
        messages,
        train_on=train_on,
        template_arguments=template_arguments(row),
        empty_thinking=empty_thinking,
    )


def _encode_numbered(row, number: int, tokenizer, train_on: TrainOn, empty_thinking: EmptyThinking) -> EncodedChat:
    try:
        return encode_row(row, tokenizer, train_on, empty_thinking)
    except UserError as error:
        raise UserError(f"row {number}: {error}") from error


def _join(prompt: Any, completion: Any) -> list[dict[str, Any]]:
    """One conversation; the assistant turns of the prompt are not trained."""
    if isinstance(prompt, str) or isinstance(completion, str):
        raise UserError("prompt and completion must both be text or both be lists of messages")
    context = [{**m, "train": False} if m["role"] == "assistant" else m for m in check_messages(prompt)]
    return [*context, *check_messages(completion)]


def _encode_completion(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> EncodedChat:
    prompt_ids, completion_ids = tokenize_pieces(tokenizer, [prompt, completion])
    context = [*bos_ids(tokenizer), *prompt_ids]
    return _plain(context, _with_eos(completion_ids, tokenizer))


def _encode_text(text: Any, tokenizer: PreTrainedTokenizerBase) -> EncodedChat:
    if not isinstance(text, str):
        raise UserError(f"the column `text` must hold text, got {type(text).__name__}")
    (ids,) = tokenize_pieces(tokenizer, [text])
    return _plain(list(bos_ids(tokenizer)), _with_eos(ids, tokenizer))


def _plain(context: list[int], trained: list[int]) -> EncodedChat:
    token_ids = context + trained
    start = max(len(context), 1)  # nothing predicts the first token of a row
    mask = np.arange(len(token_ids)) >= start
    return EncodedChat(token_ids, mask, mask.astype(np.float32), [Turn(-1, start, len(token_ids), True)])


def _with_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token to end the text with: set tokenizer.eos_token")
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def _fit(chat: EncodedChat, number: int, max_length: int, overflow: Overflow, report: SftReport) -> EncodedChat | None:
    """The row as it is trained, None when it is left out; the report counts what happened to it."""
    length = len(chat.token_ids)
    if length > max_length:
        if overflow == "error":
            raise UserError(
                f"row {number} has {length} tokens, more than max_length {max_length}: raise max_length, shorten the "
                "row, or set overflow to truncate or drop"
            )
        if overflow == "drop":
            report.dropped += 1
            return None
        report.truncated += 1
        cut = slice(0, max_length)
        chat = EncodedChat(chat.token_ids[cut], chat.loss_mask[cut], chat.weights[cut], chat.turns)
    if not chat.loss_mask.any():
        report.without_scored += 1
        return None
    report.without_end += any(t.start < len(chat.token_ids) and not _complete(t, chat) for t in chat.turns)
    return chat


def _complete(turn: Turn, chat: EncodedChat) -> bool:
    return turn.ended and turn.end <= len(chat.token_ids)


def _tree(chat: EncodedChat, weighted: bool) -> Tree:
    columns = {"weights": chat.weights.astype(np.float32)} if weighted else {}
    ids: Any = np.asarray(chat.token_ids, dtype=np.int32)
    return Tree([Segment(ids, scored=chat.loss_mask, columns=columns)])

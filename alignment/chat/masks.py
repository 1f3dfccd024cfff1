"""Encoding a conversation for training: token ids and the loss mask of its assistant turns."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase
from trl import get_training_chat_template

from alignment.chat.messages import TrainOn, check_messages, turn_weights, without_control_keys
from alignment.chat.render import (
    Piece,
    Renderer,
    TemplateProblem,
    assistant_header,
    cut_turns,
    split_behind,
    split_empty_thinking,
)
from alignment.chat.template import NO_TEMPLATE, end_token_ids
from alignment.chat.thinking import as_flags_ask
from alignment.chat.tokens import tokenize_pieces
from alignment.errors import UserError

EmptyThinking = Literal["flagged", "masked", "scored"]


@dataclass(slots=True)
class Turn:
    """A trained turn: tokens[start:end] carry loss; `ended` says whether the last of them is an end token."""

    message: int
    start: int
    end: int
    ended: bool


@dataclass(slots=True)
class EncodedChat:
    """T tokens. loss_mask_T (bool): the tokens that carry loss. weights_T (float32): their loss weight, else 0."""

    token_ids: list[int]
    loss_mask: np.ndarray
    weights: np.ndarray
    turns: list[Turn]


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    train_on: TrainOn = "all_assistant",
    template_arguments: Mapping[str, Any] | None = None,
    empty_thinking: EmptyThinking = "flagged",
) -> EncodedChat:
    """Encode a conversation; loss falls on what the model writes in its trained turns and nowhere else.

    A trained turn runs from behind the header that inference prompts with to its end-of-turn token. Its thinking is
    kept even where the template strips it from earlier turns; turns that are not trained look as the template shows
    them. What follows the last trained turn is left out, because nothing is learned from it.

    messages: role, content, and optionally tool_calls, reasoning_content, `weight` (a factor on the turn's loss; 0
    switches it off) and `train` (false switches it off).
    template_arguments: the template's variables, such as tools or enable_thinking.
    empty_thinking: which empty `<think></think>` blocks carry loss. "flagged": those of answers that `/no_think` asks
    for (see alignment.chat.thinking), so that the model learns to obey the flag and nothing else. "masked": none.
    "scored": all, which teaches the model to skip thinking by itself wherever the rows do.

    Raises UserError for malformed messages and for a template that cannot be trained exactly, with the remedy.
    """
    checked = check_messages(messages)
    weights = turn_weights(checked, train_on)
    plain = [without_control_keys(message) for message in checked]
    trained = [i for i, weight in enumerate(weights) if weight > 0]
    render = Renderer(tokenizer, template_arguments or {})
    if tokenizer.chat_template is None:
        raise UserError(NO_TEMPLATE)
    if not trained:
        ids = _tokenize_context(render, render(plain))
        return EncodedChat(ids, np.zeros(len(ids), bool), np.zeros(len(ids), np.float32), [])
    shown, flagged = as_flags_ask(plain, trained, render.arguments)
    masked = {"flagged": set(trained) - flagged, "masked": set(trained), "scored": set()}
    if empty_thinking not in masked:
        raise UserError(f"empty_thinking must be flagged, masked or scored, got {empty_thinking!r}")
    return _assemble(render, _cut(render, shown, trained, masked[empty_thinking]), weights)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens that generation starts from: the messages and the header of the next assistant turn."""
    plain = [without_control_keys(message) for message in check_messages(messages)]
    if tokenizer.chat_template is None:
        raise UserError(NO_TEMPLATE)
    render = Renderer(tokenizer, template_arguments or {})
    return _tokenize_context(render, render(plain, prompt=True))


def _cut(render: Renderer, messages: list[dict], trained: list[int], masked: set[int]) -> list[Piece]:
    """With the model's own template; where that cannot be trained, with TRL's training form of it if there is one."""
    try:
        return cut_turns(render, messages, trained, masked)
    except TemplateProblem as problem:
        own = render.tokenizer.get_chat_template(None, render.arguments.get("tools"))
        template = _training_template(render.tokenizer, own)
        if template is None:
            raise
        try:
            training = Renderer(render.tokenizer, render.arguments, template)
            pieces = cut_turns(training, messages, trained, masked)
            prompt = render(messages[: trained[0]], prompt=True)
        except TemplateProblem:
            raise problem from None
        if not pieces[0].text.startswith(prompt):
            raise
        return pieces


@functools.lru_cache(maxsize=8)
def _training_template(tokenizer: PreTrainedTokenizerBase, own: str) -> str | None:
    """TRL's training form of the tokenizer's template, None when it has none; `own` keys the cache."""
    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None


def _tokenize_context(render: Renderer, text: str) -> list[int]:
    pieces = split_behind(text, assistant_header(render))
    return [i for ids in tokenize_pieces(render.tokenizer, pieces) for i in ids]


def _assemble(render: Renderer, pieces: list[Piece], weights: list[float]) -> EncodedChat:
    tokenizer, header = render.tokenizer, assistant_header(render)
    ends = end_token_ids(tokenizer)
    # The model's own turns begin on a token border in a history as well, as they do when it generates; and an empty
    # block ends on one, so that it is the same tokens whether the model writes it or the prompt holds it.
    cut = [
        Piece(text, piece.message)
        for piece in pieces
        for text in (split_behind(piece.text, header) if piece.message < 0 else split_empty_thinking(piece.text))
    ]
    token_ids: list[int] = []
    turns: list[Turn] = []
    for piece, ids in zip(cut, tokenize_pieces(tokenizer, [p.text for p in cut]), strict=True):
        if piece.message >= 0:
            length, ended = _written_length(tokenizer, ids, ends)
            start = len(token_ids)
            if turns and turns[-1].message == piece.message:
                start = turns.pop().start
            turns.append(Turn(piece.message, start, len(token_ids) + length, ended))
        token_ids += ids
    token_ids = token_ids[: turns[-1].end]
    weight = np.zeros(len(token_ids), np.float32)
    for turn in turns:
        weight[turn.start : turn.end] = weights[turn.message]
    return EncodedChat(token_ids, weight > 0, weight, turns)


def _written_length(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: frozenset[int]) -> tuple[int, bool]:
    """How many tokens of a turn the model writes: up to its end token, without the white space templates put behind
    it. A turn without an end token is written to its end."""
    last = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in ends), None)
    if last is None or str(tokenizer.decode(ids[last + 1 :])).strip():
        return len(ids), False
    return last + 1, True

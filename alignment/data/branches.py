"""A prompt's alternative continuations as one tree: what their tokens have in common once, then a branch for each.

Each branch is encoded as the whole conversation or text it is, and the longest common run of tokens becomes the root.
So a branch is token for token what it would be alone, whatever the chat template or the tokenizer do at the border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.chat.messages import check_messages
from alignment.chat.render import PROBE, Renderer, TemplateProblem
from alignment.chat.thinking import CLOSE, EMPTY_BLOCK, OPEN, parse_response
from alignment.chat.tokens import bos_ids, tokenize_text
from alignment.data.sft_rows import encode_row
from alignment.errors import UserError
from alignment.packing import group
from alignment.types import Segment, Tree

Turns = str | Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Branch:
    """The tokens of a whole branch, prompt included, and which of them carry loss (bool, same length)."""

    token_ids: np.ndarray
    scored: np.ndarray


class BranchEncoder:
    """end_token: None scores what the model writes (the assistant turns of a continuation, or its text, with the end
    token). With a token, every branch is cut behind it and scored there only: where a reward is read. It has to be
    among the tokens with which the chat template closes a turn; behind plain text it takes the place of EOS. What is
    rewarded is the answer: such branches leave out the thinking of completions, and one that never ends its thinking
    is an empty answer.

    Raises UserError when the tokenizer does not know the token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token: str | None = None):
        self.tokenizer, self.end_token = tokenizer, end_token
        self.end_id: int | None = None
        if end_token is not None:
            ids = tokenize_text(tokenizer, end_token)
            if len(ids) != 1:
                raise UserError(f"end_token: {end_token!r} is {len(ids)} tokens of this tokenizer, it has to be one")
            self.end_id = ids[0]
        self._closing = self._closing_ids()

    def encode(self, prompt: Turns | None, completions: Sequence[Turns], row: Mapping[str, Any]) -> list[Branch]:
        """One branch per completion. Without a prompt, completions are whole conversations or texts that begin alike.

        row: its columns `tools` and `chat_template_kwargs` go to the template; `think_opened` says that completions
        begin inside a thinking block. A text that answers messages is one assistant message. Raises UserError when a
        branch cannot be encoded or has no end token.
        """
        if prompt is None and all(isinstance(c, str) for c in completions):
            return self._texts([c for c in completions if isinstance(c, str)])
        if prompt is None:
            prompt, completions = _common_messages([check_messages(c) for c in completions])
        variables = {name: row[name] for name in ("tools", "chat_template_kwargs") if row.get(name) is not None}
        if self.end_id is None:
            return [self._branch(prompt, completion, variables) for completion in completions]
        opened = bool(row.get("think_opened"))
        return [self._answer(prompt, completion, variables, opened) for completion in completions]

    def _answer(self, prompt: Turns | None, completion: Turns, variables: dict[str, Any], opened: bool) -> Branch:
        answer = _without_thinking(completion, opened)
        try:
            return self._branch(prompt, answer, variables)
        except TemplateProblem:
            if answer == completion:
                raise
            # a template whose prompt opens the block has no place for an answer without one
            return self._branch(prompt, _without_thinking(completion, opened, EMPTY_BLOCK), variables)

    def _branch(self, prompt: Turns | None, completion: Turns, variables: dict[str, Any]) -> Branch:
        if not isinstance(prompt, str) and isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        if prompt:
            chat = encode_row({"prompt": prompt, "completion": completion, **variables}, self.tokenizer)
        elif isinstance(completion, str):
            chat = encode_row({"text": completion}, self.tokenizer)
        else:
            chat = encode_row({"messages": completion, **variables}, self.tokenizer)
        if not chat.loss_mask.any():
            raise UserError("a completion has no assistant message")
        ids = np.asarray(chat.token_ids, dtype=np.int32)
        if self.end_id is None:
            return Branch(ids, chat.loss_mask)
        return self._ended_text(ids) if isinstance(completion, str) else self._ended_turn(ids)

    def _texts(self, texts: Sequence[str]) -> list[Branch]:
        """Whole texts: what they have in common is the prompt."""
        eos = self.tokenizer.eos_token_id
        branches = []
        for text in texts:
            ids = [*bos_ids(self.tokenizer), *tokenize_text(self.tokenizer, text)]
            branches.append(np.array(ids if ids and ids[-1] == eos else [*ids, eos], dtype=np.int32))
        if self.end_id is not None:
            return [self._ended_text(ids) for ids in branches]
        start = min(common_length(branches), *(len(ids) - 1 for ids in branches))
        return [Branch(ids, np.arange(len(ids)) >= start) for ids in branches]

    def _ended_text(self, ids: np.ndarray) -> Branch:
        """The end token in the place of the EOS that every text has been given."""
        assert self.end_id is not None
        body = ids[:-1]
        if len(body) and body[-1] == self.end_id:
            return _scored_at_end(body)
        return _scored_at_end(np.append(body, np.int32(self.end_id)))

    def _ended_turn(self, ids: np.ndarray) -> Branch:
        """With what the template writes behind the turn, up to the end token."""
        closing = self._closing
        behind = [i for i in range(len(closing)) if closing[i] == ids[-1]]
        whole = np.append(ids, np.asarray(closing[behind[-1] + 1 :] if behind else [], dtype=np.int32))
        window = max(0, len(whole) - max(1, len(closing)))
        places = np.flatnonzero(whole[window:] == self.end_id)
        if not len(places):
            raise UserError(
                f"the last turn does not end with {self.end_token!r}, where the reward is read: the chat template "
                f"closes it with {self.tokenizer.decode(closing)!r}. Set end_token to a token of that"
            )
        return _scored_at_end(whole[: window + places[-1] + 1])

    def _closing_ids(self) -> list[int]:
        """The tokens that the chat template writes behind the content of a last turn."""
        if self.end_id is None or self.tokenizer.chat_template is None:
            return []
        text = Renderer(self.tokenizer)([{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}])
        return tokenize_text(self.tokenizer, text.rpartition(PROBE)[2])


def _without_thinking(completion: Turns, opened: bool, block: str = "") -> Turns:
    """The completion with `block` in the place of its thinking, in each assistant turn that has any. opened: the last
    turn, or the text, begins inside a thinking block."""
    if isinstance(completion, str):
        return _answer_of(completion, opened, block)
    messages = check_messages(completion)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in turns:
        content = messages[i]["content"]
        if messages[i].pop("reasoning_content", ""):
            messages[i]["content"] = block + content
        else:
            messages[i]["content"] = _answer_of(content, opened and i == turns[-1], block)
    return messages


def _answer_of(text: str, opened: bool, block: str) -> str:
    if not (opened or OPEN in text or CLOSE in text):
        return text
    return block + (parse_response(text, opened).answer or "")


def common_length(sequences: Sequence[np.ndarray]) -> int:
    """How many leading tokens all sequences have in common."""
    shortest = min(len(ids) for ids in sequences)
    stacked = np.stack([ids[:shortest] for ids in sequences])
    differs = (stacked != stacked[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def shared_tree(branches: Sequence[Branch], columns: Sequence[Mapping[str, float]] | None = None) -> Tree:
    """An atomic tree: the common tokens, none of which carries loss, and a child per branch in their order.

    columns: one number per branch, given to all its tokens. Branches whose first tokens differ become roots of their
    own; raises UserError when such a token would carry loss, since nothing predicts it.
    """
    limits = [int(branch.scored.argmax()) for branch in branches]
    shared = min(common_length([branch.token_ids for branch in branches]), *limits)
    if shared == 0 and any(branch.scored[0] for branch in branches):
        raise UserError("the branches have no first token in common, so nothing predicts it: give the row a `prompt`")
    children = [Segment(b.token_ids[shared:], scored=b.scored[shared:]) for b in branches]  # type: ignore[arg-type]
    for child, values in zip(children, columns or [{}] * len(children), strict=True):
        child.columns = {name: np.full(len(child.token_ids), value, np.float32) for name, value in values.items()}
    if shared == 0:
        return Tree(children, atomic=True)
    return group(branches[0].token_ids[:shared], children, atomic=True)  # type: ignore[arg-type]


def _common_messages(conversations: Sequence[list[dict]]) -> tuple[list[dict] | None, list[list[dict]]]:
    """The messages that all conversations begin with, and what each goes on with (one message at least)."""
    shortest = min(len(messages) for messages in conversations)
    same = 0
    while same < shortest - 1 and all(messages[same] == conversations[0][same] for messages in conversations):
        same += 1
    return conversations[0][:same] or None, [messages[same:] for messages in conversations]


def _scored_at_end(ids: np.ndarray) -> Branch:
    return Branch(ids, np.arange(len(ids)) == len(ids) - 1)

"""The thinking budget: thinking that takes too long is ended by a sentence, and the answer is sampled behind it.

Qwen3 (arXiv 2505.09388, section 4.3): when the thinking reaches the budget the sentence below is inserted, and
generation goes on. Thinking is counted in tokens behind `<think>`, whether the prompt opened the block or the response
begins with one; a response that does not begin with `<think>` does not think. Inserted tokens are not the policy's.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from alignment.chat.thinking import CLOSE, OPEN, opens_thinking
from alignment.chat.tokens import tokenize_text
from alignment.errors import UserError
from alignment.types import Prompt, Sampling

STOP_THINKING = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    f"{CLOSE}\n\n"
)
_TAIL = len(CLOSE) + 4  # tokens that surely hold a closing tag which ends within the newest: each is a byte or more
_HEAD = 16  # a response that has not opened a block by then, with white space before it, does not think


class ThinkingTokens:
    """What a tokenizer makes of the tags and the sentence. Tags need not be single tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.stop_ids = tokenize_text(tokenizer, STOP_THINKING)
        close_ids = tokenize_text(tokenizer, CLOSE)
        self.close_id = close_ids[0] if len(close_ids) == 1 else None

    def opened(self, token_ids: Sequence[int]) -> bool | None:
        """Whether a response begins with `<think>`; None while it may still become one."""
        text = str(self.tokenizer.decode(list(token_ids))).lstrip()
        undecided = len(text) < len(OPEN) and OPEN.startswith(text) and len(token_ids) < _HEAD
        return None if undecided else text.startswith(OPEN)

    def closed(self, token_ids: Sequence[int]) -> bool:
        """Whether `</think>` ends within the newest token."""
        if self.close_id is not None:
            return token_ids[-1] == self.close_id
        return CLOSE in str(self.tokenizer.decode(list(token_ids[-_TAIL:])))


class ThinkingWatch:
    """Counts one sample's thinking."""

    def __init__(self, tokens: ThinkingTokens, budget: int, opened: bool):
        self.tokens, self.budget = tokens, budget
        self.count: int | None = 0 if opened else None  # None: the block is not open yet
        self.done = False

    def must_stop(self, token_ids: Sequence[int]) -> bool:
        """Whether the thinking has to be ended behind these completion tokens; to be asked after every one of them, and
        once before the first."""
        if self.done:
            return False
        if self.count is None:
            self._look_for_block(token_ids)
        elif token_ids:
            self.count += 1
            self.done = self.tokens.closed(token_ids)
        if self.done or self.count is None or self.count < self.budget:
            return False
        self.done = True
        return True

    def _look_for_block(self, token_ids: Sequence[int]) -> None:
        opened = self.tokens.opened(token_ids) if token_ids else None
        if opened:
            self.count = 0
        self.done = opened is False


def watches(tokens: ThinkingTokens, prompts: Sequence[Prompt], sampling: Sampling) -> dict[int, tuple[int, bool]]:
    """By the prompt's place: its budget, and whether it ends inside a thinking block. Prompts without a budget have no
    entry.

    Raises UserError for a negative budget, and for one that leaves no token of max_tokens for the answer.
    """
    found = {}
    for place, prompt in enumerate(prompts):
        budget = sampling.thinking_budget if prompt.thinking_budget is None else prompt.thinking_budget
        if budget is None:
            continue
        opened = opens_thinking(tokens.tokenizer, prompt.token_ids)
        least = budget + len(tokens.stop_ids) + (1 if opened else 2)
        if budget < 0:
            raise UserError(f"thinking_budget: {budget} is not valid, it has to be 0 or more")
        if least > sampling.max_tokens:
            raise UserError(
                f"thinking_budget: {budget} tokens and the {len(tokens.stop_ids)} that end the thinking leave no room "
                f"for an answer within max_tokens {sampling.max_tokens}: raise it to {least} or more, or lower the "
                "budget"
            )
        found[place] = budget, opened
    return found

"""A sample being decoded: what happens when a token is added to it, in every engine alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.errors import UserError
from alignment.rollout.sampling import truncates
from alignment.rollout.thinking import ThinkingTokens, ThinkingWatch, watches
from alignment.types import FinishReason, Prompt, Rollout, Sampling

NO_TOKENS = np.empty(0, dtype=np.int32)


@dataclass(slots=True)
class Row:
    """limit: most completion tokens. inserted: where tokens stand that were not drawn, as (start, end)."""

    group: int
    prompt: Prompt
    index: int
    stream: np.random.Generator
    limit: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    kept: list[np.ndarray] | None = None
    finish_reason: FinishReason | None = None
    watch: ThinkingWatch | None = None
    inserted: tuple[int, int] | None = None

    def append(
        self, token: int, logprob: float, kept: np.ndarray | None, sampling: Sampling, thinking: ThinkingTokens
    ) -> None:
        """Add a drawn token, and find out whether the sample ends or its thinking has to."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if kept is not None:
            self.kept = self.kept or []
            self.kept.append(kept)
        if token in sampling.stop_token_ids or ends_with_stop_string(thinking.tokenizer, self.token_ids, sampling.stop):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.limit:
            self.finish_reason = "length"
        elif self.watch is not None:
            self.stop_thinking(sampling, thinking)

    def stop_thinking(self, sampling: Sampling, thinking: ThinkingTokens) -> None:
        """Put the sentence into a row whose thinking has reached its budget. Where it leaves no room for an answer
        within the model's longest sequence the row goes on as it is, and is cut there."""
        assert self.watch is not None
        ids, start = thinking.stop_ids, len(self.token_ids)
        if not self.watch.must_stop(self.token_ids) or start + len(ids) >= self.limit:
            return
        self.inserted = (start, start + len(ids))
        self.token_ids += ids
        self.logprobs += [math.nan] * len(ids)
        if truncates(sampling):
            self.kept = (self.kept or []) + [NO_TOKENS] * len(ids)

    def rollout(self, sampling: Sampling, tokenizer: PreTrainedTokenizerBase, policy_step: int) -> Rollout:
        """The finished sample."""
        finish_reason, loss_mask = cast(FinishReason, self.finish_reason), None
        if self.inserted:
            start, end = self.inserted
            loss_mask = [not start <= i < end for i in range(len(self.token_ids))]
            finish_reason = "budget" if finish_reason == "stop" else finish_reason
        return Rollout(
            prompt=self.prompt,
            index=self.index,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            text=cast(str, tokenizer.decode(self.token_ids, skip_special_tokens=True)),
            finish_reason=finish_reason,
            policy_step=policy_step,
            temperature=sampling.temperature,
            loss_mask=loss_mask,
            kept=self.kept,
        )


def ends_with_stop_string(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the newest token completed a stop string; a token holds at least one byte, so few need decoding."""
    if not stop:
        return False
    tail = max(len(s.encode()) for s in stop) + 8
    text = cast(str, tokenizer.decode(list(token_ids[-tail:])))
    before = cast(str, tokenizer.decode(list(token_ids[-tail:-1])))
    return any(text.count(s) > before.count(s) for s in stop)


def completion_limit(prompt: Prompt, sampling: Sampling, longest: int) -> int:
    """Most completion tokens of a prompt; `longest`: tokens that the engine takes, prompt and completion together."""
    most = min(sampling.max_tokens, longest - len(prompt.token_ids))
    return most if prompt.max_tokens is None else min(most, prompt.max_tokens)


def check_length(prompt: Prompt, longest: int) -> None:
    """Raises UserError for an empty prompt and for one that leaves no room for an answer."""
    length = len(prompt.token_ids)
    if length == 0 or length >= longest:
        raise UserError(
            f"prompt {prompt.id} has {length} tokens; the model takes 1 to {longest - 1} and at least one "
            "token of answer. Set max_prompt_length."
        )


def check_served(engine: Any, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Raises, before a run, what an engine's `generate` would raise for one of the prompts within it."""
    inner = getattr(engine, "engine", engine)  # of episodes
    for prompt in prompts if hasattr(inner, "longest") else ():
        check_length(prompt, inner.longest)
    if hasattr(inner, "thinking"):
        watches(inner.thinking, prompts, sampling)

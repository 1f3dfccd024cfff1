"""What one sample asks of vLLM, and what becomes of the answers.

A sample without a thinking budget is one request. With one, its first request ends where the budget does at the latest;
then the sentence that ends the thinking is put behind it, if it is still open, and a second request goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.chat.thinking import OPEN
from alignment.chat.tokens import tokenize_text
from alignment.errors import UserError
from alignment.rollout.row import Row, check_length, completion_limit
from alignment.rollout.sampling import random_stream, truncates
from alignment.rollout.thinking import ThinkingTokens, ThinkingWatch, watches
from alignment.types import Prompt, Sampling

CUT = -9000.0
"""Log-probabilities below are those of tokens that were cut off: minus infinity, for which a server says -9999."""
LEAST_TEMPERATURE = 0.01  # vLLM samples at this one when a smaller is asked for
MOST_SEED = 2**62
SPARE = 8  # tokens that tie with the last of top_k are kept as well
FIRST_LOGPROBS = 64


@dataclass(frozen=True, slots=True)
class Request:
    """token_ids: the prompt and what has been sampled. params: vLLM's SamplingParams, by name."""

    token_ids: list[int]
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens with their log-probabilities under the distribution they were drawn from; per token the most probable ones
    as (id, log-probability); `kept`: what truncation left, where vLLM says so itself. stopped: by a stop token or
    string."""

    token_ids: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    kept: list[list[int]] | None
    stopped: bool


class Sample:
    """One sample being made. `next_request` until `row.finish_reason` is set; each answer goes to `take`."""

    def __init__(self, row: Row, sampling: Sampling, thinking: ThinkingTokens, vocabulary: int, most_logprobs: int):
        self.row, self.sampling, self.thinking = row, sampling, thinking
        self.vocabulary, self.most_logprobs = vocabulary, most_logprobs
        self.logprobs = 0
        if truncates(sampling):
            wanted = sampling.top_k + SPARE if sampling.top_k else FIRST_LOGPROBS
            self.logprobs = min(wanted, most_logprobs, vocabulary)
        if row.watch is not None:
            row.stop_thinking(sampling, thinking)  # a budget of 0
        self._new_seed()

    def _new_seed(self) -> None:
        self.seed = int(self.row.stream.integers(MOST_SEED))

    def next_request(self) -> Request:
        """The same one until an answer to it has been taken."""
        s, row = self.sampling, self.row
        params: dict[str, Any] = {
            "max_tokens": min(row.limit - len(row.token_ids), self._until_budget()),
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "min_p": s.min_p,
            "seed": self.seed,
            "stop_token_ids": list(s.stop_token_ids),
            "ignore_eos": True,  # the stop tokens say it all
            "logprobs": self.logprobs,
            "skip_special_tokens": False,
        }
        if s.stop:
            params |= {"stop": list(s.stop), "include_stop_str_in_output": True}
        return Request([*row.prompt.token_ids, *row.token_ids], params)

    def _until_budget(self) -> int:
        """Tokens that can be drawn before the thinking may have to be ended."""
        watch = self.row.watch
        if watch is None or watch.done:
            return self.row.limit
        if watch.count is not None:
            return max(1, watch.budget - watch.count)
        return max(1, watch.budget) + len(tokenize_text(self.thinking.tokenizer, OPEN))

    def take(self, answer: Answer) -> None:
        """Add the tokens of an answer. One that does not show all that truncation left is asked for again with more
        log-probabilities; with the same seed, so it is the same one.

        Raises UserError when vLLM would not give enough of them.
        """
        kept = self._kept(answer)
        if truncates(self.sampling) and kept is None:
            self._ask_for_more()
            return
        for i, token in enumerate(answer.token_ids):
            self.row.append(token, answer.logprobs[i], kept[i] if kept else None, self.sampling, self.thinking)
            if self.row.finish_reason or (self.row.inserted and len(self.row.token_ids) == self.row.inserted[1]):
                break  # what was drawn behind the end, or behind the budget, is dropped
        else:
            if answer.stopped:
                self.row.finish_reason = "stop"
        self._new_seed()

    def _kept(self, answer: Answer) -> list[np.ndarray] | None:
        """Per token the ids that truncation left; None when nothing is truncated or the answer does not show all."""
        if not truncates(self.sampling):
            return None
        if answer.kept is not None:
            return [np.array(ids, dtype=np.int32) for ids in answer.kept]
        sets = []
        for entries in answer.top:
            ids = [i for i, logprob in entries if logprob > CUT]
            if len(ids) == len(entries) < self.vocabulary:
                return None
            sets.append(np.array(ids, dtype=np.int32))
        return sets

    def _ask_for_more(self) -> None:
        if self.logprobs >= min(self.most_logprobs, self.vocabulary):
            raise UserError(
                f"top_p, min_p: they left more than the {self.logprobs} tokens that vLLM tells of, so training cannot "
                f"renormalise over them. Set top_k to {max(1, self.most_logprobs - SPARE)} or less beside them, or "
                "start the servers with a larger --max-logprobs (on CUDA with --return-sampling-mask)"
            )
        self.logprobs = min(4 * self.logprobs, self.most_logprobs, self.vocabulary)


def make_samples(
    prompts: Sequence[Prompt],
    n: int,
    sampling: Sampling,
    step: int,
    thinking: ThinkingTokens,
    longest: int,
    vocabulary: int,
    most_logprobs: int,
) -> list[list[Sample]]:
    """n samples of every prompt. longest: tokens that vLLM takes, prompt and completion together.

    Raises UserError for an empty prompt, one that leaves no room for an answer, a thinking budget that leaves none, and
    a temperature that vLLM does not sample at.
    """
    if 0 < sampling.temperature < LEAST_TEMPERATURE:
        raise UserError(
            f"temperature: {sampling.temperature} is below what vLLM samples at: 0 or {LEAST_TEMPERATURE} up"
        )
    budgets = watches(thinking, prompts, sampling)
    groups = []
    for group, prompt in enumerate(prompts):
        check_length(prompt, longest)
        samples = []
        for index in range(n):
            stream = random_stream(sampling.seed, step, prompt.id, index)
            row = Row(group, prompt, index, stream, completion_limit(prompt, sampling, longest))
            if group in budgets:
                row.watch = ThinkingWatch(thinking, *budgets[group])
            samples.append(Sample(row, sampling, thinking, vocabulary, most_logprobs))
        groups.append(samples)
    return groups

"""Multi-turn episodes with tools: an engine around an engine.

A turn that calls tools is answered with their outputs, and the next one is sampled behind that, until a turn calls
nothing or a limit is reached. The whole is one `Rollout`: the tokens of all turns exactly as they were sampled, and
between them those of the outputs, which the policy did not draw and which carry no loss. Every turn has a random stream
of its own, so an episode depends on nothing but its tools' outputs and its own streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from alignment.chat.thinking import opens_thinking
from alignment.chat.tokens import tokenize_text
from alignment.chat.tool_calls import ToolCall, ToolResponses, offered_tools, read_calls, turn_message
from alignment.errors import UserError
from alignment.rollout.sampling import truncates
from alignment.rollout.tools import Tool, Turn, run_turns
from alignment.types import Engine, FinishReason, Prompt, Rollout, Sampling

ToolsOf = Callable[[Prompt], Mapping[str, Tool]]


@dataclass(frozen=True)
class EpisodeLimits:
    """turns: of the assistant. call_seconds: of one call. tool_seconds: of all calls of an episode. output_tokens: of
    one output; the rest is cut off, which the model is told. parallel: episodes whose tools run at the same time."""

    turns: int = 8
    call_seconds: float = 10.0
    tool_seconds: float = 60.0
    output_tokens: int = 512
    parallel: int = 16

    def __post_init__(self):
        for name in ("turns", "output_tokens", "parallel"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not valid, it has to be 1 or more")
        for name in ("call_seconds", "tool_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: {getattr(self, name)} is not valid, it has to be above 0")


@dataclass(slots=True)
class _Episode:
    prompt: Prompt
    index: int
    tools: Mapping[str, Tool]
    responses: ToolResponses | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn: list[bool] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    turns: int = 0
    tool_seconds: float = 0.0
    thinking_stopped: bool = False
    text: str = ""
    policy_step: int = 0
    finish_reason: FinishReason | None = None


class EpisodeEngine:
    """Engine whose rollouts are whole episodes.

    tools_of: the tools of a prompt, by name; asked once per episode, so tools may keep state for it. A prompt without
    tools is answered in one turn, and so is one that offers the model a tool which is not among them: its calls are the
    answer, and none is executed. longest: tokens that the inner engine takes, prompt and completion together.
    `Sampling.max_tokens` limits the completion tokens of the whole episode, outputs of tools included; a thinking
    budget holds for each turn.

    Rollout.finish_reason: that of the last turn (`budget` when the thinking of any was stopped), or `turns` or `time`
    for an episode that would have gone on.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        tools_of: ToolsOf,
        longest: int,
        limits: EpisodeLimits | None = None,
    ):
        self.engine, self.tokenizer, self.tools_of, self.longest = engine, tokenizer, tools_of, longest
        self.limits = limits or EpisodeLimits()
        self.remote = getattr(engine, "remote", False)

    def load_weights(self, model: torch.nn.Module, step: int) -> None:
        self.engine.load_weights(model, step)

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """n episodes of every prompt, in the order of the prompts.

        Raises UserError as the inner engine does, and for prompts with tools that are plain text or not made by
        build_prompts.
        """
        groups = [self._start(prompt, n) for prompt in prompts]
        for episodes, rollouts in zip(groups, self.engine.generate(prompts, n, sampling, step), strict=True):
            for episode, rollout in zip(episodes, rollouts, strict=True):
                self._take(episode, rollout, sampling)
        everyone = [episode for episodes in groups for episode in episodes]
        while going := [episode for episode in everyone if episode.finish_reason is None]:
            self._use_tools(going, sampling)
            going = [episode for episode in going if episode.finish_reason is None]
            turns = self.engine.generate([self._next_prompt(e, sampling) for e in going], 1, sampling, step)
            for episode, (rollout,) in zip(going, turns, strict=True):
                self._take(episode, rollout, sampling)
        return [[_rollout(episode, sampling) for episode in episodes] for episodes in groups]

    def _start(self, prompt: Prompt, n: int) -> list[_Episode]:
        tools = [self.tools_of(prompt) for _ in range(n)]
        if n and any(name not in tools[0] for name in offered_tools(prompt.row)):
            tools = [{}] * n
        if n and tools[0] and not prompt.messages:
            raise UserError(f"prompt {prompt.id} is plain text; tools need messages")
        responses = ToolResponses(self.tokenizer, prompt) if n and tools[0] else None
        return [_Episode(prompt, i, tools[i], responses) for i in range(n)]

    def _take(self, episode: _Episode, rollout: Rollout, sampling: Sampling) -> None:
        """Add a sampled turn, and find out whether the episode goes on."""
        opened = opens_thinking(self.tokenizer, rollout.prompt.token_ids)
        ids = rollout.token_ids
        episode.turns += 1
        episode.policy_step = rollout.policy_step if episode.turns == 1 else episode.policy_step
        episode.token_ids += ids
        episode.logprobs += rollout.logprobs
        episode.drawn += rollout.loss_mask or [True] * len(ids)
        episode.kept += rollout.kept or []
        episode.thinking_stopped |= rollout.finish_reason == "budget"
        episode.text = rollout.text
        ends_turn = ids[-1] in sampling.stop_token_ids
        turn = str(self.tokenizer.decode(ids[:-1] if ends_turn else ids))
        asks = episode.responses is not None and rollout.finish_reason != "length"
        calls = read_calls(turn, opened) if asks else []
        episode.messages.append(turn_message(turn, calls))
        if not calls or not cast(ToolResponses, episode.responses).can_follow(ids[-1], ends_turn):
            episode.finish_reason = rollout.finish_reason
            if episode.thinking_stopped and rollout.finish_reason == "stop":
                episode.finish_reason = "budget"
        elif episode.turns == self.limits.turns:
            episode.finish_reason = "turns"
        episode.calls = calls

    def _use_tools(self, episodes: list[_Episode], sampling: Sampling) -> None:
        limits = self.limits
        todo = [Turn(e.calls, e.tools, limits.tool_seconds - e.tool_seconds) for e in episodes]
        results = run_turns(todo, limits.call_seconds, limits.parallel)
        for episode, (outputs, seconds) in zip(episodes, results, strict=True):
            episode.tool_seconds += seconds
            shown = [self._cut(output) for output in outputs]
            for call, output in zip(episode.calls, shown, strict=True):
                episode.messages.append({"role": "tool", "name": call.name, "content": output})
            if episode.tool_seconds >= limits.tool_seconds:
                episode.finish_reason = "time"
            else:
                self._answer(episode, shown, sampling)

    def _answer(self, episode: _Episode, outputs: list[str], sampling: Sampling) -> None:
        """Put the outputs behind the turn, unless they leave no room for another."""
        assert episode.responses is not None
        last = episode.token_ids[-1]
        ids = episode.responses.ids(last, last in sampling.stop_token_ids, outputs)
        used = len(episode.token_ids) + len(ids)
        if used >= sampling.max_tokens or len(episode.prompt.token_ids) + used >= self.longest:
            episode.finish_reason = "length"
            return
        episode.token_ids += ids
        episode.logprobs += [math.nan] * len(ids)
        episode.drawn += [False] * len(ids)
        if truncates(sampling):
            episode.kept += [np.empty(0, dtype=np.int32)] * len(ids)

    def _cut(self, output: str) -> str:
        """An output of at most `output_tokens` tokens and a remark."""
        most = self.limits.output_tokens
        ids = tokenize_text(self.tokenizer, output[: 64 * most])
        if len(ids) <= most and len(output) <= 64 * most:
            return output
        return f"{self.tokenizer.decode(ids[:most])}\n[cut off: the output is longer than {most} tokens]"

    def _next_prompt(self, episode: _Episode, sampling: Sampling) -> Prompt:
        """What the next turn is sampled from: the tokens so far, under an id of its own for the random stream."""
        prompt = episode.prompt
        return replace(
            prompt,
            id=f"{prompt.id}/{episode.index}/{episode.turns}",
            token_ids=[*prompt.token_ids, *episode.token_ids],
            max_tokens=sampling.max_tokens - len(episode.token_ids),
        )


def _rollout(episode: _Episode, sampling: Sampling) -> Rollout:
    assert episode.finish_reason is not None
    return Rollout(
        prompt=episode.prompt,
        index=episode.index,
        token_ids=episode.token_ids,
        logprobs=episode.logprobs,
        text=episode.text,
        finish_reason=episode.finish_reason,
        policy_step=episode.policy_step,
        temperature=sampling.temperature,
        loss_mask=None if all(episode.drawn) else episode.drawn,
        kept=episode.kept if truncates(sampling) else None,
        messages=episode.messages,
    )

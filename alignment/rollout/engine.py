"""The embedded engine: samples from a transformers model, usually the policy being trained itself.

A prompt is prefilled once, packed with others; its keys and values serve all its samples. Rows that finish leave the
batch at once and waiting prompts take their place. What a sample becomes depends on its own random stream only.
Thinking that reaches its budget is ended by tokens put into the row, which enter its cache together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import UserError
from alignment.packing import TreeLayout, use_tree_attention
from alignment.rollout.cache import DecodeCache
from alignment.rollout.extension import Extension
from alignment.rollout.products import LogitsHead, transposed_weights
from alignment.rollout.row import Row, check_length, completion_limit
from alignment.rollout.sampling import draw, random_stream
from alignment.rollout.thinking import ThinkingTokens, ThinkingWatch, watches
from alignment.types import Prompt, Rollout, Sampling

MAX_PREFILL_TOKENS = 8192
FEW_STEPS = 32
"""Completions at most this long do not repay a rearrangement of the weights."""


@dataclass(slots=True)
class Job:
    """Samples of one prompt that are decoded together."""

    group: int
    prompt: Prompt
    indices: list[int]


class TransformersEngine:
    """Engine on `model` (also a PeftModel, adapters active). max_rows: samples decoded at a time.

    Rollout.token_ids end with the stop token, if one was drawn; Rollout.text leaves special tokens out.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, max_rows: int = 64):
        if max_rows < 1:
            raise UserError(f"max_rows: {max_rows} is not valid, it has to be 1 or more")
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.base = cast(PreTrainedModel, base)
        use_tree_attention(self.base)
        self.policy_step = 0
        self.longest = longest_sequence(self.base.config)
        self.thinking = ThinkingTokens(tokenizer)

    def load_weights(self, model: torch.nn.Module, step: int) -> None:
        """Stamp the coming rollouts with `step`; take over the weights when `model` is not the one sampled from."""
        self.policy_step = step
        source = model if isinstance(model, (PreTrainedModel, PeftModel)) else getattr(model, "model", model)
        if source is not self.model:
            self.model.load_state_dict(source.state_dict())

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """n rollouts of every prompt, in the order of the prompts.

        Raises UserError for an empty prompt, for one that leaves no room within the model's longest sequence, and for a
        thinking budget that leaves none for an answer.
        """
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with transposed_weights(self.base) if sampling.max_tokens > FEW_STEPS else nullcontext():
                return self._generate(prompts, n, sampling, step)
        finally:
            for module, training in modes.items():
                module.training = training

    def _generate(self, prompts, n: int, sampling: Sampling, step: int) -> list[list[Rollout]]:
        done: list[list[Rollout | None]] = [[None] * n for _ in prompts]
        cache, head = DecodeCache(), LogitsHead(self.base.get_output_embeddings())
        rows: list[Row] = []
        waiting = deque(self._jobs(prompts, n))
        budgets = watches(self.thinking, prompts, sampling)
        while waiting or rows:
            admitted = self._admit(waiting, len(rows))
            if admitted:
                rows += self._prefill(admitted, cache, head, sampling, step, budgets)
            elif budgets and (behind := self._behind(rows, cache)):
                self._extend(behind, rows, cache, head, sampling)
            elif rows:
                self._decode(rows, cache, head, sampling)
            # from the back, so that the row that moves into a gap has been looked at
            for place in range(len(rows) - 1, -1, -1):
                row = rows[place]
                if row.finish_reason:
                    done[row.group][row.index] = row.rollout(sampling, self.tokenizer, self.policy_step)
                    cache.remove_row(place)
                    rows[place] = rows[-1]
                    rows.pop()
        return cast(list[list[Rollout]], done)

    # --- scheduling -------------------------------------------------------------------------------------------------

    def _jobs(self, prompts: Sequence[Prompt], n: int) -> list[Job]:
        """Whole groups, or parts of `max_rows` samples of larger ones; by prompt length, so that padding is small."""
        jobs = []
        for group, prompt in enumerate(prompts):
            check_length(prompt, self.longest)
            for start in range(0, n, self.max_rows):
                jobs.append(Job(group, prompt, list(range(start, min(n, start + self.max_rows)))))
        return sorted(jobs, key=lambda job: len(job.prompt.token_ids))

    def _admit(self, waiting: deque[Job], active: int) -> list[Job]:
        """The next jobs that fit into the free rows and one prefill."""
        admitted: list[Job] = []
        tokens = 0
        while waiting:
            job = waiting[0]
            length = len(job.prompt.token_ids)
            if active + len(job.indices) > self.max_rows or (admitted and tokens + length > MAX_PREFILL_TOKENS):
                break
            admitted.append(waiting.popleft())
            active, tokens = active + len(job.indices), tokens + length
        return admitted

    # --- the model --------------------------------------------------------------------------------------------------

    def _forward(self, ids: list[int], positions: list[int], one_row: bool, **attention) -> torch.Tensor:
        """Last hidden states of the tokens, [len(ids), H]."""
        device = self.base.device
        shape = (1, -1) if one_row else (-1, 1)
        output = self.base.base_model(
            input_ids=torch.tensor(ids, device=device).view(shape),
            position_ids=torch.tensor(positions, device=device).view(shape),
            attention_mask=torch.empty(1, 1, 1, 1, device=device),  # 4-dimensional: no mask is built
            use_cache=False,
            **attention,
        )
        return output.last_hidden_state.flatten(0, 1)

    def _prefill(
        self,
        jobs: list[Job],
        cache: DecodeCache,
        head: LogitsHead,
        sampling: Sampling,
        step: int,
        budgets: Mapping[int, tuple[int, bool]],
    ) -> list[Row]:
        """Prefill the prompts and draw the first token of each of their samples."""
        lengths = [len(job.prompt.token_ids) for job in jobs]
        ends = np.cumsum(lengths).tolist()
        segments = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        slots = cache.expect_prompts(segments)
        ids = [i for job in jobs for i in job.prompt.token_ids]
        positions = [i for length in lengths for i in range(length)]
        layout = TreeLayout([(start, end, -1) for start, end in segments])
        hidden = self._forward(ids, positions, True, tree=layout, decode=cache)
        last = hidden[torch.tensor(ends, device=hidden.device) - 1]
        logits = head(last)
        rows = []
        for job, slot in zip(jobs, slots, strict=True):
            for index in job.indices:
                cache.add_row(slot)
                stream = random_stream(sampling.seed, step, job.prompt.id, index)
                limit = completion_limit(job.prompt, sampling, self.longest)
                rows.append(Row(job.group, job.prompt, index, stream, limit))
                if job.group in budgets:
                    rows[-1].watch = ThinkingWatch(self.thinking, *budgets[job.group])
                    rows[-1].stop_thinking(sampling, self.thinking)  # a budget of 0
        repeats = torch.tensor([len(job.indices) for job in jobs], device=logits.device)
        logits = logits.repeat_interleave(repeats, dim=0)
        if any(row.inserted for row in rows):
            logits = logits[[not row.inserted for row in rows]]
        self._draw([row for row in rows if not row.inserted], logits, sampling)
        return rows

    def _decode(self, rows: list[Row], cache: DecodeCache, head: LogitsHead, sampling: Sampling) -> None:
        """One more token for every row."""
        cache.begin_step(self.base.device)
        hidden = self._forward([row.token_ids[-1] for row in rows], cache.positions(), False, decode=cache)
        cache.end_step()
        self._draw(rows, head(hidden), sampling)

    def _behind(self, rows: list[Row], cache: DecodeCache) -> list[int]:
        """The places of rows whose newest tokens are not in the cache, beyond the one that the next step feeds; as many
        as fit into one pass."""
        places: list[int] = []
        tokens = 0
        for place, row in enumerate(rows):
            if not row.inserted or row.inserted[1] < len(row.token_ids):
                continue
            tokens += len(row.token_ids) - cache.row_lengths[place]
            if places and tokens > MAX_PREFILL_TOKENS:
                break
            places.append(place)
        return places

    def _extend(
        self, places: list[int], rows: list[Row], cache: DecodeCache, head: LogitsHead, sampling: Sampling
    ) -> None:
        """Feed all tokens of these rows that are not in the cache, and draw the next one of each."""
        new = [rows[place].token_ids[cache.row_lengths[place] :] for place in places]
        extension = Extension(cache, places, [len(ids) for ids in new])
        positions = extension.positions()
        hidden = self._forward([i for ids in new for i in ids], positions, True, decode=extension)
        extension.end()
        ends = torch.tensor(np.cumsum([len(ids) for ids in new]), device=hidden.device)
        self._draw([rows[place] for place in places], head(hidden[ends - 1]), sampling)

    def _draw(self, rows: list[Row], logits: torch.Tensor, sampling: Sampling) -> None:
        if not rows:
            return
        uniforms = [row.stream.random() for row in rows]
        drawn = draw(logits, uniforms, sampling)
        for place, row in enumerate(rows):
            kept = None if drawn.kept is None else drawn.kept[place]
            row.append(drawn.tokens_R[place], drawn.logprobs_R[place], kept, sampling, self.thinking)


def longest_sequence(config) -> int:
    """Positions the model takes; with a sliding window, up to where the window changes nothing."""
    limits = [config.max_position_embeddings]
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        limits.append(config.sliding_window)
    return min(limits)

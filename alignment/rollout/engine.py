"""The embedded engine: samples from a transformers model, usually the policy being trained itself.

A prompt is prefilled once, packed with others; its keys and values serve all its samples. Rows that finish leave the
batch at once and waiting prompts take their place. What a sample becomes depends on its own random stream only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import UserError
from alignment.packing import TreeLayout, use_tree_attention
from alignment.rollout.cache import DecodeCache
from alignment.rollout.sampling import Drawn, draw, random_stream
from alignment.types import FinishReason, Prompt, Rollout, Sampling

MAX_PREFILL_TOKENS = 8192


@dataclass(slots=True)
class Job:
    """Samples of one prompt that are decoded together."""

    group: int
    prompt: Prompt
    indices: list[int]


@dataclass(slots=True)
class Row:
    """A sample being decoded."""

    group: int
    prompt: Prompt
    index: int
    stream: np.random.Generator
    limit: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    kept: list[np.ndarray] | None = None
    finish_reason: FinishReason | None = None


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
        self.longest = _longest_sequence(self.base.config)

    def load_weights(self, model: torch.nn.Module, step: int) -> None:
        """Stamp the coming rollouts with `step`; take over the weights when `model` is not the one sampled from."""
        self.policy_step = step
        source = getattr(model, "model", model)
        if source is not self.model:
            self.model.load_state_dict(source.state_dict())

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """n rollouts of every prompt, in the order of the prompts.

        Raises UserError for an empty prompt and for one that leaves no room within the model's longest sequence.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            return self._generate(prompts, n, sampling, step)
        finally:
            self.model.train(was_training)

    def _generate(self, prompts, n: int, sampling: Sampling, step: int) -> list[list[Rollout]]:
        done: list[list[Rollout | None]] = [[None] * n for _ in prompts]
        cache = DecodeCache()
        rows: list[Row] = []
        waiting = deque(self._jobs(prompts, n))
        while waiting or rows:
            admitted = self._admit(waiting, len(rows))
            if admitted:
                rows += self._prefill(admitted, cache, sampling, step)
            elif rows:
                self._decode(rows, cache, sampling)
            # from the back, so that the row that moves into a gap has been looked at
            for place in range(len(rows) - 1, -1, -1):
                row = rows[place]
                if row.finish_reason:
                    done[row.group][row.index] = self._rollout(row, sampling)
                    cache.remove_row(place)
                    rows[place] = rows[-1]
                    rows.pop()
        return cast(list[list[Rollout]], done)

    # --- scheduling -------------------------------------------------------------------------------------------------

    def _jobs(self, prompts: Sequence[Prompt], n: int) -> list[Job]:
        """Whole groups, or parts of `max_rows` samples of larger ones; by prompt length, so that padding is small."""
        jobs = []
        for group, prompt in enumerate(prompts):
            length = len(prompt.token_ids)
            if length == 0 or length >= self.longest:
                raise UserError(
                    f"prompt {prompt.id} has {length} tokens; the model takes 1 to {self.longest - 1} and at least one "
                    "token of answer. Set max_prompt_length."
                )
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

    def _prefill(self, jobs: list[Job], cache: DecodeCache, sampling: Sampling, step: int) -> list[Row]:
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
        logits = self.base.get_output_embeddings()(last)
        rows = []
        for job, slot in zip(jobs, slots, strict=True):
            for index in job.indices:
                cache.add_row(slot)
                stream = random_stream(sampling.seed, step, job.prompt.id, index)
                limit = min(sampling.max_tokens, self.longest - len(job.prompt.token_ids))
                rows.append(Row(job.group, job.prompt, index, stream, limit))
        repeats = torch.tensor([len(job.indices) for job in jobs], device=logits.device)
        self._draw(rows, logits.repeat_interleave(repeats, dim=0), sampling)
        return rows

    def _decode(self, rows: list[Row], cache: DecodeCache, sampling: Sampling) -> None:
        """One more token for every row."""
        cache.begin_step(self.base.device)
        hidden = self._forward([row.token_ids[-1] for row in rows], cache.positions(), False, decode=cache)
        cache.end_step()
        self._draw(rows, self.base.get_output_embeddings()(hidden), sampling)

    def _draw(self, rows: list[Row], logits: torch.Tensor, sampling: Sampling) -> None:
        uniforms = [row.stream.random() for row in rows]
        drawn = draw(logits, uniforms, sampling)
        for place, row in enumerate(rows):
            self._append(row, place, drawn, sampling)

    def _append(self, row: Row, place: int, drawn: Drawn, sampling: Sampling) -> None:
        token = drawn.tokens_R[place]
        row.token_ids.append(token)
        row.logprobs.append(drawn.logprobs_R[place])
        if drawn.kept is not None:
            row.kept = row.kept or []
            row.kept.append(drawn.kept[place])
        if token in sampling.stop_token_ids or (sampling.stop and self._ends_with_stop_string(row, sampling)):
            row.finish_reason = "stop"
        elif len(row.token_ids) >= row.limit:
            row.finish_reason = "length"

    def _ends_with_stop_string(self, row: Row, sampling: Sampling) -> bool:
        """Whether the newest token completed a stop string; a token holds at least one byte, so few need decoding."""
        tail = max(len(s.encode()) for s in sampling.stop) + 8
        text = cast(str, self.tokenizer.decode(row.token_ids[-tail:]))
        before = cast(str, self.tokenizer.decode(row.token_ids[-tail:-1]))
        return any(text.count(s) > before.count(s) for s in sampling.stop)

    def _rollout(self, row: Row, sampling: Sampling) -> Rollout:
        return Rollout(
            prompt=row.prompt,
            index=row.index,
            token_ids=row.token_ids,
            logprobs=row.logprobs,
            text=cast(str, self.tokenizer.decode(row.token_ids, skip_special_tokens=True)),
            finish_reason=cast(FinishReason, row.finish_reason),
            policy_step=self.policy_step,
            temperature=sampling.temperature,
            kept=row.kept,
        )


def _longest_sequence(config) -> int:
    """Positions the model takes; with a sliding window, up to where the window changes nothing."""
    limits = [config.max_position_embeddings]
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        limits.append(config.sliding_window)
    return min(limits)

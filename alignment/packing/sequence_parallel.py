"""Sequence parallelism: the ranks of a group share every packed row.

Each rank takes a run of consecutive tokens through the whole model. Only attention looks across tokens: before it the
ranks trade tokens for heads in one all-to-all, so that each attends over the whole row, along its tree, with its share
of the heads; another all-to-all brings the outputs back (DeepSpeed-Ulysses, arXiv 2309.14509). Since losses are sums
over scored tokens, what is left is data parallelism: every rank adds the gradient of its own tokens.

Shapes: P ranks of the group, T tokens of the row, t of them on this rank, Hq and Hk heads of queries and keys, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.distributed as dist

from alignment.distributed import rank, world_size
from alignment.errors import UserError
from alignment.packing.micro_batches import empty_batch
from alignment.types import PackedBatch


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """`size` consecutive ranks that share their rows; `place` is this rank's among them. One shares with nobody."""

    size: int = 1
    place: int = 0
    processes: dist.ProcessGroup | None = None

    @property
    def number(self) -> int:
        """Of this group among all."""
        return rank() // self.size

    @property
    def groups(self) -> int:
        return world_size() // self.size

    def borders(self, tokens: int) -> list[int]:
        """Where each rank's tokens of a row begin, and the end."""
        return [tokens * i // self.size for i in range(self.size + 1)]

    def own_part(self, batch: PackedBatch) -> PackedBatch:
        """This rank's tokens and scored positions of a row; the segments stay those of the whole row. A row with fewer
        tokens than ranks is one rank's alone."""
        if self.size == 1 or batch.empty:
            return batch
        if batch.tokens < self.size:
            return empty_batch() if self.place else batch
        start, end = self.borders(batch.tokens)[self.place : self.place + 2]
        own_N = (batch.score_index_N >= start) & (batch.score_index_N < end)
        return replace(
            batch,
            input_ids_T=batch.input_ids_T[start:end],
            position_ids_T=batch.position_ids_T[start:end],
            score_index_N=batch.score_index_N[own_N] - start,
            score_target_N=batch.score_target_N[own_N],
            score_token_N=batch.score_token_N[own_N],
            score_row_N=batch.score_row_N[own_N],
            columns={name: values[own_N] for name, values in batch.columns.items()},
            shared_by=self,
        )


ALONE = SequenceGroup()


def make_sequence_group(size: int, attention_heads: int) -> SequenceGroup:
    """Called on every rank. Raises UserError when the ranks or the heads cannot be divided among groups of `size`."""
    if size == 1:
        return ALONE
    for count, what in ((world_size(), "processes"), (attention_heads, "attention heads of the model")):
        if count % size:
            raise UserError(
                f"sequence_parallel_size: {size} does not divide the {count} {what}; choose a size that divides the "
                "processes and the heads, or 1"
            )
    processes, _ = dist.new_subgroups(size)
    return SequenceGroup(size, rank() % size, processes)


def to_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: SequenceGroup, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From all heads of this rank's tokens, [1, H, t, D], to this rank's heads of all tokens, [1, H / P, T, D]. Heads
    of keys and values that are too few to go round are repeated."""
    repeats = group.size // math.gcd(key.shape[1], group.size)
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    sent = torch.cat([x[0].unflatten(0, (group.size, -1)) for x in (query, key, value)], dim=1)  # [P, heads, t, D]
    _, heads, own, width = sent.shape
    lengths = _lengths(group, tokens)
    received = _Exchange.apply(sent, [heads * own * width] * group.size, [heads * n * width for n in lengths], group)
    parts = received.split([heads * n * width for n in lengths])
    whole = torch.cat([part.view(heads, n, width) for part, n in zip(parts, lengths, strict=True)], dim=1)
    shares = [x.shape[1] // group.size for x in (query, key, value)]
    q, k, v = whole[None].split(shares, dim=1)
    return q, k, v


def to_tokens(output: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    """Back, for what attention gave: [1, Hq / P, T, D] to [1, Hq, t, D]."""
    _, heads, tokens, width = output.shape
    lengths = _lengths(group, tokens)
    own = lengths[group.place]
    sent = torch.cat([part.reshape(-1) for part in output[0].split(lengths, dim=1)])
    received = _Exchange.apply(sent, [heads * n * width for n in lengths], [heads * own * width] * group.size, group)
    return received.view(1, group.size * heads, own, width)


def _lengths(group: SequenceGroup, tokens: int) -> list[int]:
    borders = group.borders(tokens)
    return [end - start for start, end in pairwise(borders)]


class _Exchange(torch.autograd.Function):
    """All-to-all of a flat tensor: pieces of sizes `sent` go out in the order of the ranks, of `received` come in."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: SequenceGroup):
        ctx.sent, ctx.received, ctx.group, ctx.shape = sent, received, group, values.shape
        return _all_to_all(values, sent, received, group)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor):
        return _all_to_all(gradients[0], ctx.received, ctx.sent, ctx.group).view(ctx.shape), None, None, None


def _all_to_all(values: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: SequenceGroup):
    output = values.new_empty(sum(received))
    dist.all_to_all_single(output, values.reshape(-1), list(received), list(sent), group.processes)
    return output

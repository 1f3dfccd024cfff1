"""Keys and values while decoding: each prompt's once, each row's own tokens beside them.

Shapes: R active rows (samples being decoded), P active prompts, M most rows of one prompt, Hk key heads, Q query heads
per key head, D head width, Lp longest prompt, Lo longest own part. Rows and prompts fill the first R and P slots; the
last one moves into the slot of one that leaves, so every product reads a plain slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

FIRST_CAPACITY = 64


class Slots:
    """Keys and values [slots, Hk, length, D] of every layer, growing by doubling."""

    def __init__(self):
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def reserve(self, layer: int, slots: int, length: int, like: torch.Tensor) -> None:
        """Room for `slots` x `length` in a layer, for tensors [*, Hk, *, D] like `like`."""
        if layer == len(self.keys):
            empty = like.new_empty(0, like.shape[1], 0, like.shape[3])
            self.keys.append(empty)
            self.values.append(empty)
        have_slots, heads, have_length, width = self.keys[layer].shape
        if slots <= have_slots and length <= have_length:
            return
        shape = (_grown(have_slots, slots, 1), heads, _grown(have_length, length, FIRST_CAPACITY), width)
        for store in (self.keys, self.values):
            larger = like.new_zeros(shape)
            larger[:have_slots, :, :have_length] = store[layer]
            store[layer] = larger

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another, in all layers. A slot without any need not exist
        yet: a sample can end with its first token, before anything of it is stored."""
        if not length:
            return
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]


def _grown(have: int, wanted: int, least: int) -> int:
    return have if wanted <= have else max(wanted, 2 * have, least)


class DecodeCache:
    """What the attention interface stores prompts in and decodes from; one for a whole `generate` call."""

    def __init__(self):
        self.prompts, self.rows = Slots(), Slots()
        self.prompt_lengths: list[int] = []  # per prompt slot
        self.row_prompt: list[int] = []  # per row: its prompt's slot
        self.row_lengths: list[int] = []  # per row: own tokens in the cache
        self._new: list[tuple[int, int, int]] = []
        self._stale = True

    # --- prompts and rows come and go -------------------------------------------------------------------------------

    def expect_prompts(self, segments: Sequence[tuple[int, int]]) -> list[int]:
        """Announce the prompts of the coming prefill, as (start, end) in its packed row; returns their slots."""
        first = len(self.prompt_lengths)
        self._new = [(first + i, start, end) for i, (start, end) in enumerate(segments)]
        self.prompt_lengths += [end - start for start, end in segments]
        return [slot for slot, _, _ in self._new]

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Called by the attention interface while prompts are prefilled; key, value: [1, Hk, T, D]."""
        self.prompts.reserve(layer, len(self.prompt_lengths), max(self.prompt_lengths), key)
        for slot, start, end in self._new:
            self.prompts.keys[layer][slot, :, : end - start] = key[0, :, start:end]
            self.prompts.values[layer][slot, :, : end - start] = value[0, :, start:end]

    def add_row(self, prompt_slot: int) -> None:
        self.row_prompt.append(prompt_slot)
        self.row_lengths.append(0)
        self._stale = True

    def remove_row(self, row: int) -> int | None:
        """Free a row's slot. The last row takes its place. Returns the prompt slot that became free, if any; the last
        prompt has then taken that one's place."""
        last = len(self.row_prompt) - 1
        slot = self.row_prompt[row]
        if row != last:
            self.rows.move(last, row, self.row_lengths[last])
            self.row_prompt[row], self.row_lengths[row] = self.row_prompt[last], self.row_lengths[last]
        self.row_prompt.pop()
        self.row_lengths.pop()
        self._stale = True
        if slot in self.row_prompt:
            return None
        last_prompt = len(self.prompt_lengths) - 1
        if slot != last_prompt:
            self.prompts.move(last_prompt, slot, self.prompt_lengths[last_prompt])
            self.prompt_lengths[slot] = self.prompt_lengths[last_prompt]
            self.row_prompt = [slot if p == last_prompt else p for p in self.row_prompt]
        self.prompt_lengths.pop()
        return slot

    # --- decoding ---------------------------------------------------------------------------------------------------

    def positions(self) -> list[int]:
        """Position of each row's next token."""
        return [self.prompt_lengths[p] + n for p, n in zip(self.row_prompt, self.row_lengths, strict=True)]

    def begin_step(self, device: torch.device) -> None:
        """Make the indices and masks that all layers of the coming step share."""
        if self._stale:
            self._index_groups(device)
            self._stale = False
        longest = max(self.row_lengths) + 1
        self.longest = longest
        lengths = torch.tensor(self.row_lengths, device=device)
        self.write_at = lengths
        self.own_hidden = None
        if min(self.row_lengths) + 1 < longest:
            self.own_hidden = (torch.arange(longest, device=device) > lengths[:, None])[:, None, None]

    def end_step(self) -> None:
        self.row_lengths = [n + 1 for n in self.row_lengths]

    def _index_groups(self, device: torch.device) -> None:
        """Where each row stands in the padded [P, M] arrangement of rows by prompt."""
        counts = [0] * len(self.prompt_lengths)
        places = []
        for p in self.row_prompt:
            places.append((p, counts[p]))
            counts[p] += 1
        self.most = max(counts)
        index = [p * self.most + g for p, g in places]
        self.regular = index == list(range(len(counts) * self.most))
        self.place = torch.tensor(index, device=device)
        self.row_range = torch.arange(len(index), device=device)
        lengths = torch.tensor(self.prompt_lengths, device=device)
        longest = max(self.prompt_lengths)
        self.prompt_hidden = None
        if min(self.prompt_lengths) < longest:
            self.prompt_hidden = (torch.arange(longest, device=device) >= lengths[:, None])[:, None, None]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attention of one new token per row; query [R, Hk*Q, 1, D], key and value [R, Hk, 1, D]; out [R, 1, Hk*Q, D].

        The softmax runs over two parts, the prompt's keys and the row's own, joined by their maxima and sums.
        """
        rows, heads, _, width = key.shape
        self.rows.reserve(layer, rows, self.longest, key)
        dtype, value = query.dtype, value.to(key.dtype)  # under autocast they can differ
        self.rows.keys[layer][self.row_range, :, self.write_at] = key[:, :, 0]
        self.rows.values[layer][self.row_range, :, self.write_at] = value[:, :, 0]
        query = (query[:, :, 0] * scaling).view(rows, heads, -1, width).to(key.dtype)
        shared = self._shared_part(layer, query)
        own = _part(
            query,
            self.rows.keys[layer][:rows, :, : self.longest],
            self.rows.values[layer][:rows, :, : self.longest],
            self.own_hidden,
        )
        top = torch.maximum(shared[0], own[0])
        weight_shared, weight_own = (shared[0] - top).exp_(), (own[0] - top).exp_()
        total = weight_shared * shared[1] + weight_own * own[1]
        out = (shared[2] * (weight_shared / total)).add_(own[2] * (weight_own / total))
        return out.reshape(rows, 1, -1, width).to(dtype)

    def _shared_part(self, layer: int, query_RHQD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All rows of a prompt against its keys in one product per head."""
        _, heads, per_head, width = query_RHQD.shape
        prompts, longest = len(self.prompt_lengths), max(self.prompt_lengths)
        if self.regular:
            padded = query_RHQD
        else:
            padded = query_RHQD.new_zeros(prompts * self.most, heads, per_head, width)
            padded[self.place] = query_RHQD
        grouped = padded.view(prompts, self.most, heads, per_head, width).transpose(1, 2)
        parts = _part(
            grouped.reshape(prompts, heads, self.most * per_head, width),
            self.prompts.keys[layer][:prompts, :, :longest],
            self.prompts.values[layer][:prompts, :, :longest],
            self.prompt_hidden,
        )

        def by_row(x: torch.Tensor) -> torch.Tensor:
            x = x.view(prompts, heads, self.most, per_head, -1).transpose(1, 2).flatten(0, 1)
            return x if self.regular else x[self.place]

        return by_row(parts[0]), by_row(parts[1]), by_row(parts[2])


def _part(query, keys, values, hidden) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maximum, sum of exponentials and weighted values of one part of a softmax; query [B, Hk, q, D], keys and values
    [B, Hk, L, D], hidden [B, 1, 1, L] marks what is not seen."""
    batch, heads, count, width = query.shape
    flat = query.reshape(batch * heads, count, width)
    scores = torch.bmm(flat, keys.flatten(0, 1).transpose(1, 2)).view(batch, heads, count, -1).float()
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp_()
    total = weights.sum(-1, keepdim=True)
    out = torch.bmm(weights.to(values.dtype).flatten(0, 1), values.flatten(0, 1))
    return top, total, out.view(batch, heads, count, width)

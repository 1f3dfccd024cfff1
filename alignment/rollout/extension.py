"""Several tokens at once for rows that are being decoded: tokens put into a row enter its cache in one forward pass.

Shapes: T new tokens of all rows in one packed row, Hq query heads, Hk key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from alignment.rollout.cache import DecodeCache


class Extension:
    """Stands in for the cache in one forward pass over the new tokens of some rows, one row's behind the other's.

    rows: places in the cache; lengths: how many new tokens each has. `end` counts them as cached.
    """

    def __init__(self, cache: DecodeCache, rows: Sequence[int], lengths: Sequence[int]):
        self.cache, self.rows, self.lengths = cache, list(rows), list(lengths)
        self.before = [cache.row_lengths[row] for row in rows]
        self._masks: dict[int, torch.Tensor] = {}

    def positions(self) -> list[int]:
        """The position of every new token."""
        starts = self.cache.positions()
        return [starts[row] + i for row, length in zip(self.rows, self.lengths, strict=True) for i in range(length)]

    def end(self) -> None:
        for row, length in zip(self.rows, self.lengths, strict=True):
            self.cache.row_lengths[row] += length

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Each new token sees its prompt, its row's cached tokens and the new ones up to itself; query [1, Hq, T, D],
        key and value [1, Hk, T, D]; out [1, T, Hq, D]."""
        cache, dtype = self.cache, query.dtype
        longest = max(n + length for n, length in zip(self.before, self.lengths, strict=True))
        cache.rows.reserve(layer, len(cache.row_lengths), max(longest, *cache.row_lengths), key)
        out, start = [], 0
        for place, (row, n, length) in enumerate(zip(self.rows, self.before, self.lengths, strict=True)):
            new = slice(start, start + length)
            cache.rows.keys[layer][row, :, n : n + length] = key[0, :, new]
            cache.rows.values[layer][row, :, n : n + length] = value[0, :, new]
            slot = cache.row_prompt[row]
            seen = cache.prompt_lengths[slot]
            keys, values = (
                torch.cat([prompts[layer][slot, :, :seen], own[layer][row, :, : n + length]], dim=1)[None]
                for prompts, own in (
                    (cache.prompts.keys, cache.rows.keys),
                    (cache.prompts.values, cache.rows.values),
                )
            )
            out.append(
                F.scaled_dot_product_attention(
                    query[:, :, new].to(keys.dtype),
                    keys,
                    values,
                    attn_mask=self._mask(place, seen + n, length, query.device),
                    scale=scaling,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
            start += length
        return torch.cat(out, dim=2).transpose(1, 2).to(dtype)

    def _mask(self, place: int, before: int, length: int, device: torch.device) -> torch.Tensor:
        """Boolean [length, before + length], True where a new token sees; the same for all layers."""
        if place not in self._masks:
            seen = torch.ones(length, before + length, dtype=torch.bool, device=device)
            self._masks[place] = seen.tril_(before)
        return self._masks[place]

"""The geometry of a packed row: who sees whom.

Segments stand in depth-first order, so all descendants of a segment follow it without a gap. Token k is therefore seen
by token q exactly when k <= q < subtree_end[k], where subtree_end is where the segment's last descendant ends. Every
attention path (per-segment, dense, FlexAttention) is that one rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignment.packing.sequence_parallel import SequenceGroup


class TreeLayout:
    """Geometry of one packed row of T tokens, shared by all layers of a forward pass.

    segments: (start, end, parent) triples, depth first, without gaps. Raises ValueError when they are not.
    shared_by: ranks that hold the row together; None: this one has all of it.
    """

    def __init__(self, segments: Sequence[tuple[int, int, int]], shared_by: SequenceGroup | None = None):
        self.segments, self.shared_by = list(segments), shared_by
        self.lengths = [end - start for start, end, _ in self.segments]
        self.tokens = self.segments[-1][1] if self.segments else 0
        self.has_shared_prefix = any(parent >= 0 for _, _, parent in self.segments)
        self.paths = self._paths()
        self.longest_path = max((sum(self.lengths[i] for i in path) for path in self.paths), default=0)
        self._masks: dict[tuple, torch.Tensor] = {}
        self._cache: dict[tuple, object] = {}

    def _paths(self) -> list[list[int]]:
        """For each segment the indices of its ancestors, root first, and itself."""
        paths: list[list[int]] = []
        expected_start = 0
        for i, (start, end, parent) in enumerate(self.segments):
            if start != expected_start or end <= start:
                raise ValueError(f"segment {i} spans {start}:{end}, expected a non-empty one from {expected_start}")
            # depth first: the parent lies on the path of the segment just before
            if parent >= 0 and (i == 0 or parent not in paths[-1]):
                raise ValueError(f"segment {i} has parent {parent}, which is not on the path of the segment before it")
            paths.append([*paths[parent], i] if parent >= 0 else [i])
            expected_start = end
        return paths

    def subtree_end_T(self, device: torch.device) -> torch.Tensor:
        """For each token the position behind the last descendant of its segment, int64."""
        key = ("subtree_end", device)
        if key not in self._cache:
            ends = [end for _, end, _ in self.segments]
            for i in range(len(self.segments) - 1, -1, -1):
                parent = self.segments[i][2]
                if parent >= 0:
                    ends[parent] = max(ends[parent], ends[i])
            lengths = torch.tensor(self.lengths, device=device)
            self._cache[key] = torch.repeat_interleave(torch.tensor(ends, device=device), lengths)
        return self._cache[key]  # type: ignore[return-value]

    def dense_mask_TT(self, device: torch.device) -> torch.Tensor:
        """Boolean [T, T], True where query (row) sees key (column)."""
        position = torch.arange(self.tokens, device=device)
        return (position[None, :] <= position[:, None]) & (position[:, None] < self.subtree_end_T(device)[None, :])

    def bias(self, prefix: int, length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Additive [length, prefix + length] mask: the whole prefix is visible, the own part causally."""
        key = (prefix, length, dtype, device)
        if key not in self._masks:
            mask = torch.full((length, prefix + length), float("-inf"), dtype=dtype, device=device)
            self._masks[key] = mask.triu_(prefix + 1)
        return self._masks[key]

    def block_mask(self, device: torch.device):
        """FlexAttention block mask of the row."""
        from torch.nn.attention.flex_attention import create_block_mask

        key = ("block_mask", device)
        if key not in self._cache:
            subtree_end_T = self.subtree_end_T(device)

            def visible(_batch, _head, query, key_position):
                return (key_position <= query) & (query < subtree_end_T[key_position])

            self._cache[key] = create_block_mask(visible, None, None, self.tokens, self.tokens, device=str(device))
        return self._cache[key]

    def cu_seqlens(self, device: torch.device) -> torch.Tensor:
        """Cumulative segment lengths, int32 [S + 1], for variable-length attention without shared prefixes."""
        key = ("cu_seqlens", device)
        if key not in self._cache:
            ends = [0, *(end for _, end, _ in self.segments)]
            self._cache[key] = torch.tensor(ends, dtype=torch.int32, device=device)
        return self._cache[key]  # type: ignore[return-value]

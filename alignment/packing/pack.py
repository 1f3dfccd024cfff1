"""From trees of segments to one packed row.

Shapes: T tokens, S segments, N scored positions, K kept tokens in all, L tokens of one segment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from alignment.types import PackedBatch, Segment, Tree

BFLOAT16 = np.dtype(np.uint16)
"""What a segment's column of bfloat16 numbers is made of, their bits: numpy does not have the type."""


def conversation(token_ids: Sequence[int], scored: Sequence[bool] | np.ndarray) -> Tree:
    """A tree of one segment: a dialogue, a text, a prompt with its one answer."""
    return Tree([Segment(token_ids, scored=np.asarray(scored, dtype=bool))])


def group(prompt_ids: Sequence[int], children: Sequence[Segment], atomic: bool = False) -> Tree:
    """A prompt and its children: a preference pair, a group of samples. The prompt carries no loss."""
    for child in children:
        child.parent = 0
        if child.scored is None:
            child.scored = np.ones(len(child.token_ids), dtype=bool)
    return Tree([Segment(prompt_ids), *children], atomic=atomic)


def pack(trees: Sequence[Tree]) -> PackedBatch:
    """Lay the trees out as one row.

    Raises ValueError for an empty segment, a scored root token without a predecessor, or columns that are present in
    some scored segments and missing in others.
    """
    layout: list[tuple[int, int, int]] = []
    depth: list[int] = []  # position id of each segment's first token
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    index: list[np.ndarray] = []
    target: list[np.ndarray] = []
    token: list[np.ndarray] = []
    row: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {}
    kept: list[np.ndarray] = []
    sources: list[Segment] = []
    any_kept = any(s.kept is not None for tree in trees for s in tree.segments)
    start, rows = 0, 0
    for tree in trees:
        first = len(layout)
        for segment in tree.segments:
            length = len(segment.token_ids)
            if length == 0:
                raise ValueError("a segment without tokens cannot be packed")
            parent = first + segment.parent if segment.parent >= 0 else -1
            offset = depth[parent] + layout[parent][1] - layout[parent][0] if parent >= 0 else 0
            layout.append((start, start + length, parent))
            depth.append(offset)
            ids.append(np.asarray(segment.token_ids, dtype=np.int64))
            positions.append(np.arange(offset, offset + length))
            scored = np.flatnonzero(segment.scored) if segment.scored is not None else _EMPTY
            if len(scored):
                previous = np.asarray(start - 1 + scored)
                if scored[0] == 0:
                    if parent < 0:
                        raise ValueError("the first token of a root segment has nothing to be predicted from")
                    previous[0] = layout[parent][1] - 1
                index.append(previous)
                target.append(ids[-1][scored])
                token.append(start + scored)
                row.append(np.full(len(scored), rows))
                _add_columns(columns, segment, scored, rows)
                if any_kept:
                    kept += [segment.kept[j] for j in scored] if segment.kept else [_EMPTY] * len(scored)
                sources.append(segment)
                rows += 1
            start += length
    return PackedBatch(
        input_ids_T=_int64(ids),
        position_ids_T=_int64(positions),
        segments=layout,
        score_index_N=_int64(index),
        score_target_N=_int64(target),
        score_token_N=_int64(token),
        score_row_N=_int64(row),
        rows=rows,
        columns={name: _column(parts) for name, parts in columns.items()},
        kept_offsets_N1=_int64([np.cumsum([0, *(len(k) for k in kept)])]) if any_kept else None,
        kept_ids_K=_int64(kept) if any_kept else None,
        sources=sources,
    )


_EMPTY = np.empty(0, dtype=np.int32)


def _add_columns(columns: dict[str, list[np.ndarray]], segment: Segment, scored: np.ndarray, rows: int) -> None:
    if rows and columns.keys() != segment.columns.keys():
        raise ValueError(f"columns differ between segments: {sorted(columns)} and {sorted(segment.columns)}")
    for name, values in segment.columns.items():
        columns.setdefault(name, []).append(np.asarray(values)[scored])


def _column(parts: list[np.ndarray]) -> torch.Tensor:
    """float32, or bfloat16 where all parts are."""
    if {part.dtype for part in parts} == {BFLOAT16}:
        return torch.from_numpy(np.concatenate(parts)).view(torch.bfloat16)
    return torch.from_numpy(np.concatenate(parts).astype(np.float32, copy=False))


def _int64(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.empty(0, dtype=torch.int64)

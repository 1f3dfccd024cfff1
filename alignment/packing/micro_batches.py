"""Cutting a step's trees into micro-batches by a token budget.

A branch is never cut. A tree that exceeds the budget is split between branches and the prefix they share is repeated;
a segment that is scored in one piece is not scored again in the next, so every scored position counts exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from alignment.packing.pack import pack
from alignment.types import PackedBatch, Segment, Tree


def cut(trees: Sequence[Tree], max_tokens: int) -> list[PackedBatch]:
    """Pack the trees into as few rows of at most `max_tokens` as first-fit-decreasing finds.

    A single branch, or an atomic tree, longer than the budget makes a row of its own.
    """
    pieces = [piece for tree in trees for piece in split_tree(tree, max_tokens)]
    bins: list[tuple[int, list[Tree]]] = []
    for piece in sorted(pieces, key=lambda tree: -tree.tokens):
        for i, (used, members) in enumerate(bins):
            if used + piece.tokens <= max_tokens:
                members.append(piece)
                bins[i] = (used + piece.tokens, members)
                break
        else:
            bins.append((piece.tokens, [piece]))
    return [pack(members) for _, members in bins]


def split_tree(tree: Tree, max_tokens: int) -> list[Tree]:
    """Split between branches until each piece fits, repeating the shared prefix."""
    if tree.atomic or tree.tokens <= max_tokens:
        return [tree]
    parents = {segment.parent for segment in tree.segments}
    pieces: list[set[int]] = []
    used = 0
    for leaf in (i for i in range(len(tree.segments)) if i not in parents):
        path = _path(tree, leaf)
        extra = sum(len(tree.segments[i].token_ids) for i in path if not pieces or i not in pieces[-1])
        if not pieces or used + extra > max_tokens:
            pieces.append(set())
            used = sum(len(tree.segments[i].token_ids) for i in path)
        else:
            used += extra
        pieces[-1].update(path)
    scored_before: set[int] = set()
    out = []
    for piece in pieces:
        out.append(_subtree(tree, sorted(piece), scored_before))
        scored_before |= piece
    return out


def _path(tree: Tree, leaf: int) -> list[int]:
    path = []
    while leaf >= 0:
        path.append(leaf)
        leaf = tree.segments[leaf].parent
    return path


def _subtree(tree: Tree, members: list[int], already_scored: set[int]) -> Tree:
    new_index = {old: new for new, old in enumerate(members)}
    segments: list[Segment] = []
    for old in members:
        segment = replace(tree.segments[old], parent=new_index.get(tree.segments[old].parent, -1))
        if old in already_scored:
            segment = replace(segment, scored=None, columns={}, kept=None)
        segments.append(segment)
    return Tree(segments, tree.atomic)


def empty_batch() -> PackedBatch:
    """A stand-in for ranks that have fewer micro-batches than others: one position whose loss counts zero."""
    zero = torch.zeros(1, dtype=torch.int64)
    return PackedBatch(zero, zero, [(0, 1, -1)], zero, zero, zero, zero, 1, empty=True)

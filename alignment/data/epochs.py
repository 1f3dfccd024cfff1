"""Epochs over a fixed set of rows: the order in which steps take them, and what refuses to go on with other rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment.errors import UserError
from alignment.packing.sequence_parallel import ALONE, SequenceGroup
from alignment.types import Tree

FROM_ROWS = ("weights", "labels", "margins")
"""The columns that rows bring; others are added by models."""


class Epochs:
    """`trees` in seeded random order, anew in each epoch, `batch_size` of them per step over all ranks.

    The rows of a step are dealt to the ranks by length, so that each gets about as many tokens; the ranks of `group`
    get the same ones. What an epoch leaves over when it is divided into steps is not taken. Raises UserError when there
    is no tree.
    """

    def __init__(self, trees: Sequence[Tree], batch_size: int, seed: int, group: SequenceGroup = ALONE):
        if not trees:
            raise UserError("there is no row to train on: the data set is empty or every row was dropped")
        self.trees, self.batch_size, self.seed, self.group = list(trees), batch_size, seed, group
        self.steps_per_epoch = max(1, len(self.trees) // batch_size)
        self.fingerprint = trees_fingerprint(self.trees, FROM_ROWS)

    def take(self, step: int) -> list[Tree]:
        """This rank's rows of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.trees))
        rows = [self.trees[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]
        return deal(rows, self.group.groups)[self.group.number]

    def state_dict(self) -> dict[str, Any]:
        return {"data_fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError when the rows are not those of the checkpoint."""
        refuse_other_rows(state["data_fingerprint"], self.fingerprint)


def refuse_other_rows(saved: str, now: str, what: str = "training data") -> None:
    """Raises UserError when a checkpoint was made with other rows; both are fingerprints."""
    if saved != now:
        raise UserError(
            f"the {what} changed since the checkpoint (fingerprint {saved} then, {now} now): restore the data file, or "
            "start a new run with another output_dir"
        )


def trees_fingerprint(trees: Sequence[Tree], columns: Sequence[str] = ()) -> str:
    """Of tokens and masks, and of the columns."""
    digest = hashlib.sha256()
    for tree in trees:
        for segment in tree.segments:
            digest.update(np.asarray(segment.token_ids, np.int32).tobytes())
            digest.update(b"" if segment.scored is None else np.packbits(segment.scored).tobytes())
            for name in columns:
                digest.update(np.asarray(segment.columns.get(name, ()), np.float32).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def deal(trees: Sequence[Tree], ranks: int) -> list[list[Tree]]:
    """Longest first, each to the rank with the fewest tokens so far."""
    hands: list[list[Tree]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for tree in sorted(trees, key=lambda t: -t.tokens):
        r = tokens.index(min(tokens))
        hands[r].append(tree)
        tokens[r] += tree.tokens
    return hands

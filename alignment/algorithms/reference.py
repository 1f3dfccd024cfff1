"""The reference of preference pairs: the log-probability of each branch under the model that training starts from.

Made for every step anew, or once for all pairs and kept in a file. Shapes: N scored tokens, R rows (branches).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from peft import PeftModel

from alignment.data.artifact import Artifact
from alignment.data.epochs import trees_fingerprint
from alignment.distributed import gather_objects, rank, world_size
from alignment.losses.policy_gradient import row_sum
from alignment.models import Policy
from alignment.packing import cut
from alignment.types import PackedBatch, Segment, Tree

REFERENCE = "ref_logprob"
"""Column of a branch: the sum of its log-probabilities under the reference, the same number at every token."""
CHUNK = 256
"""Pairs per rank between two writes to disk: what a kill can cost."""


def branches_of(tree: Tree) -> list[Segment]:
    """The chosen and the rejected branch of a pair."""
    return tree.segments[-2:]


def branch_sums(logprobs_N: torch.Tensor, micro: PackedBatch) -> torch.Tensor:
    """Sum of the log-probabilities of each branch, [R], float32. A margin is a small difference of large sums, so they
    are made in float64."""
    return row_sum(logprobs_N.double(), micro.score_row_N, micro.rows).float()


class Reference:
    """Called with pairs, it writes the column `ref_logprob` of their branches, by `other` or, when there is none, by
    the base of `policy` with its adapters (LoRA) off."""

    def __init__(self, policy: Policy, other: Policy | None, max_tokens: int):
        self.policy, self.other, self.max_tokens = policy, other, max_tokens
        self.reads_policy = other is None or other is policy

    @torch.no_grad()
    def __call__(self, trees: Sequence[Tree]) -> None:
        model = self.other or self.policy
        for tree in trees:
            for branch in branches_of(tree):
                branch.columns.pop(REFERENCE, None)  # some may have been scored in an earlier epoch, others not
        adapters_off = contextlib.nullcontext() if self.other else cast(PeftModel, self.policy.model).disable_adapter()
        with adapters_off:
            # the trainer cuts the same pairs in the same way: before the first update both see the same numbers
            for micro in (micro.to(model.device) for micro in cut(trees, self.max_tokens)):
                for branch, value in zip(micro.sources, branch_sums(model(micro).logprobs_N, micro).tolist()):
                    _set(branch, value)


def precompute(
    trees: Sequence[Tree],
    reference: Reference,
    path: Path,
    model_fingerprint: str,
    say: Callable[[str], None] = print,
) -> None:
    """Write the column `ref_logprob` of all pairs, from the file at `path` where it has them; what it lacks is scored
    and added to it.

    A pair is found by the fingerprint of its tokens and masks, so a change of the rows, the template or the tokenizer
    makes it a new one. Raises UserError when the file was made with another model.
    """
    remedy = "delete it to score the pairs again, or name another reference_file"
    file = Artifact(path, {"reference": model_fingerprint}, remedy)
    known = {r["pair"]: (r["chosen"], r["rejected"]) for r in file.read()}
    keyed = [(trees_fingerprint([tree]), tree) for tree in trees]
    todo = list({key: tree for key, tree in keyed if key not in known}.items())
    for start in range(0, len(todo), CHUNK * world_size()):
        own = todo[start : start + CHUNK * world_size()][rank() :: world_size()]
        reference([tree for _, tree in own])
        new = gather_objects([(key, *map(_get, branches_of(tree))) for key, tree in own])
        known |= {key: (chosen, rejected) for key, chosen, rejected in new}
        if rank() == 0:
            file.append({"pair": key, "chosen": chosen, "rejected": rejected} for key, chosen, rejected in new)
            say(f"reference log-probabilities: {min(start + len(new), len(todo))}/{len(todo)} pairs")
    for key, tree in keyed:
        for branch, value in zip(branches_of(tree), known[key], strict=True):
            _set(branch, value)


def _set(branch: Segment, value: float) -> None:
    branch.columns[REFERENCE] = np.broadcast_to(np.float32(value), len(branch.token_ids))


def _get(branch: Segment) -> float:
    return float(branch.columns[REFERENCE][0])

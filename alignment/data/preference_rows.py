"""Preference rows, in TRL's formats, as packed trees: the prompt once, its branches as children, best first.

- `prompt`, `chosen`, `rejected`: all texts, or all lists of messages; a text may also answer messages.
- `chosen`, `rejected` alone: whole texts or conversations; what they begin with alike is the prompt. So it is when
  `prompt` is a text and both are conversations from the first turn on, which repeat it.
- `prompt` with `completions` (or `responses`) and `labels` (or `scores`): a group of two or more. Labels are true and
  false, or numbers of which larger is better.

A pair may have a `margin` by which its chosen branch is known to be better. `tools` and `chat_template_kwargs` go to
the chat template.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.data.branches import Branch, BranchEncoder, Turns, shared_tree
from alignment.errors import UserError
from alignment.types import Tree

Overflow = Literal["truncate", "drop", "error"]


@dataclass
class PreferenceReport:
    """What became of the rows. lengths_R: the tokens of every row's longest branch, before anything is cut off.
    kept_rows_K: the index of the row that each tree comes from. separate_tokens: what the branches would be without
    sharing, against `tokens` with it."""

    rows: int
    max_length: int
    truncated: int = 0
    dropped: int = 0
    identical: int = 0  # branches that do not differ, at least not within max_length
    ties: int = 0  # groups whose labels are all equal
    branches: int = 0
    tokens: int = 0
    separate_tokens: int = 0
    lengths_R: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kept_rows_K: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def kept(self) -> int:
        return len(self.kept_rows_K)

    def summary(self) -> str:
        """One line with every count that is not zero."""
        counts = [
            (self.truncated, f"truncated to {self.max_length} tokens"),
            (self.dropped, f"dropped as longer than {self.max_length} tokens"),
            (self.identical, "dropped as their branches are the same"),
            (self.ties, "dropped as their labels are all equal"),
        ]
        parts = "".join(f"; {count:,} {what}" for count, what in counts if count)
        shared = f"{self.tokens:,} tokens ({self.separate_tokens:,} without sharing)"
        return f"{self.kept:,} of {self.rows:,} rows, {self.branches:,} branches, {shared}{parts}"


def encode_preference_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    overflow: Overflow = "drop",
    end_token: str | None = None,
) -> tuple[list[Tree], PreferenceReport]:
    """One atomic tree per kept row, the chosen branch first; a group's branches stand in the order of their labels.

    end_token: None scores what the model writes in each branch (for DPO). With a token (for reward models) every branch
    is scored at that token alone, with the columns `labels`, `margins` (0 but on a pair's chosen branch) and
    `branches` (how many the tree has); see BranchEncoder.
    overflow: what happens to rows whose longest branch has more than max_length tokens. `truncate` cuts branches off
    at their end, which leaves no end token to score.
    Raises UserError for a row that cannot be encoded, with its number (counted from 1), and when no row is left.
    """
    if overflow not in ("truncate", "drop", "error"):
        raise UserError(f"overflow must be truncate, drop or error, got {overflow!r}")
    if overflow == "truncate" and end_token is not None:
        raise UserError("overflow: truncate would cut off the end token at which the reward is read; use drop or error")
    if max_length < 2:
        raise UserError(f"max_length must be at least 2, got {max_length}")
    encoder = BranchEncoder(tokenizer, end_token)
    report = PreferenceReport(len(rows), max_length, lengths_R=np.zeros(len(rows), np.int64))
    trees: list[Tree] = []
    kept: list[int] = []
    for index, row in enumerate(rows):
        try:
            tree = _tree(row, encoder, max_length, overflow, report, index)
        except UserError as error:
            raise UserError(f"row {index + 1}: {error}") from error
        if tree is not None:
            trees.append(tree)
            kept.append(index)
    if not trees:
        raise UserError(f"no row is left to train on: {report.summary()}")
    report.kept_rows_K = np.array(kept)
    return trees, report


@dataclass(slots=True)
class Candidates:
    """The branches of a row, best first. prompt: None when the completions begin with it themselves."""

    prompt: Turns | None
    completions: list[Turns]
    labels: list[float]
    margin: float = 0.0


def read_candidates(row: Mapping[str, Any]) -> Candidates:
    """A row of any of the formats. Raises UserError when it has none of them or is malformed."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is not None and rejected is not None:
        prompt = _prompt(row)
        repeated = isinstance(prompt, str) and _is_whole(chosen) and _is_whole(rejected)
        return Candidates(None if repeated else prompt, [chosen, rejected], [1.0, 0.0], _margin(row))
    completions = next((row[name] for name in ("completions", "responses") if row.get(name) is not None), None)
    labels = next((row[name] for name in ("labels", "scores") if row.get(name) is not None), None)
    prompt = _prompt(row)
    if prompt is None or completions is None or labels is None:
        raise UserError(
            "needs the columns `chosen` and `rejected`, with or without `prompt`, or `prompt`, `completions` and "
            f"`labels`; its columns are {sorted(row)}"
        )
    if not isinstance(completions, Sequence) or isinstance(completions, str) or len(completions) < 2:
        raise UserError("`completions` must be a list of two or more")
    if not isinstance(labels, Sequence) or isinstance(labels, str) or len(labels) != len(completions):
        raise UserError(f"`labels` must be a list with a label for each of the {len(completions)} completions")
    values = [_number(label, "a label") for label in labels]
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return Candidates(prompt, [completions[i] for i in order], [values[i] for i in order])


def _prompt(row: Mapping[str, Any]) -> Turns | None:
    prompt = row.get("prompt")
    if prompt is not None and (not isinstance(prompt, Sequence) or not prompt):
        raise UserError("`prompt` must be a text or a list of messages, and not empty")
    return prompt


def _is_whole(turns: Any) -> bool:
    """Whether it is a conversation from its first turn on, no answer alone."""
    if not isinstance(turns, Sequence) or not turns or not isinstance(turns[0], Mapping):
        return False
    return turns[0].get("role") in ("system", "user")


def _margin(row: Mapping[str, Any]) -> float:
    return 0.0 if row.get("margin") is None else _number(row["margin"], "`margin`")


def _number(value: Any, what: str) -> float:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise UserError(f"{what} must be a number, got {value!r}")
    return float(value)


def _tree(
    row: Mapping[str, Any],
    encoder: BranchEncoder,
    max_length: int,
    overflow: Overflow,
    report: PreferenceReport,
    index: int,
) -> Tree | None:
    """The row as it is trained, None when it is left out; the report counts what happened to it."""
    candidates = read_candidates(row)
    if len(set(candidates.labels)) == 1:
        report.ties += 1
        return None
    branches = encoder.encode(candidates.prompt, candidates.completions, row)
    longest = max(len(branch.token_ids) for branch in branches)
    report.lengths_R[index] = longest
    if longest > max_length:
        if overflow == "error":
            raise UserError(
                f"a branch has {longest} tokens, more than max_length {max_length}: raise max_length, shorten the row, "
                "or set overflow to truncate or drop"
            )
        branches = [Branch(b.token_ids[:max_length], b.scored[:max_length]) for b in branches]
        if overflow == "drop" or not all(branch.scored.any() for branch in branches):
            report.dropped += 1
            return None
        report.truncated += 1
    if all(np.array_equal(branch.token_ids, branches[0].token_ids) for branch in branches):
        report.identical += 1
        return None
    tree = shared_tree(branches, None if encoder.end_id is None else _columns(candidates))
    report.branches += len(branches)
    report.tokens += tree.tokens
    report.separate_tokens += sum(len(branch.token_ids) for branch in branches)
    return tree


def _columns(candidates: Candidates) -> list[dict[str, float]]:
    n = len(candidates.labels)
    margins = [candidates.margin, *[0.0] * (n - 1)]
    return [
        {"labels": label, "margins": margin, "branches": float(n)}
        for label, margin in zip(candidates.labels, margins, strict=True)
    ]

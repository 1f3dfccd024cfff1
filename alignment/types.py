"""Core types that every other module speaks: prompts, rollouts, segments, packed rows, and the two protocols.

Shapes: P prompts, G samples per prompt, T tokens of a packed row, S segments, N scored positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from alignment.packing.sequence_parallel import SequenceGroup

FinishReason = Literal["stop", "length", "budget", "turns", "time"]
"""stop: a stop token or string. length: cut at max_tokens or at the model's longest sequence. budget: as stop, but the
thinking was ended at its budget. turns, time: an episode with tools reached its limit (alignment.rollout.episodes)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question. `row` is the whole data row, handed to rewards as columns. `thinking_budget` takes the place of the
    sampling's for this prompt's samples; `max_tokens` is a limit beside the sampling's."""

    id: str
    messages: list[dict]
    token_ids: list[int]
    row: Mapping[str, Any] = field(default_factory=dict)
    thinking_budget: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `temperature=0` is greedy. `top_k=0`, `top_p=1`, `min_p=0` switch a filter off.

    thinking_budget: thinking that has reached so many tokens without `</think>` is ended by a fixed sentence, and the
    answer is sampled behind it (alignment.rollout.thinking); None = never.

    A sample depends only on (seed, step, prompt id, sample index) and the weights, never on its neighbours.
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int = 0
    thinking_budget: int | None = None


@dataclass(slots=True)
class Rollout:
    """One sampled completion.

    `logprobs` are those of the distribution really sampled from: after temperature and, with top-k, top-p or min-p,
    renormalised over the kept tokens. `kept` holds those token ids (int32, one array per completion token), so that
    training can renormalise the new policy over the same set; it is None when nothing was cut off.

    `loss_mask` is False at tokens that the policy did not draw: the sentence that ended its thinking, what tools gave.
    They have no log-probability (NaN) and an empty kept set. None: it drew all of them.
    `messages`: of an episode with tools its assistant and tool messages, and `text` is then the last answer's.
    """

    prompt: Prompt
    index: int
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason
    policy_step: int
    temperature: float = 1.0
    loss_mask: list[bool] | None = None
    kept: list[np.ndarray] | None = None
    reward: float | None = None
    reward_terms: dict[str, float | None] = field(default_factory=dict)
    messages: list[dict] | None = None


@dataclass(slots=True)
class Segment:
    """A run of tokens that sees its own past and all tokens of its ancestors.

    token_ids_L: the tokens. parent: index of the parent segment within the tree, -1 for the root.
    scored_L: which tokens are targets, i.e. carry loss; None = none. A root's first token cannot be one.
    columns: per-token values (length L each; only the entries at scored tokens are read), see packing.BFLOAT16.
    kept: with truncated sampling, the token ids kept for each token (length L), else None.
    """

    token_ids: Sequence[int]
    parent: int = -1
    scored: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    kept: list[np.ndarray] | None = None


@dataclass(slots=True)
class Tree:
    """Segments in depth-first order, parents first. A tree with `atomic=True` is never split over micro-batches;
    otherwise its branches may be, and the prefix they share is repeated."""

    segments: list[Segment]
    atomic: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.segments)

    @property
    def scored_tokens(self) -> int:
        return sum(int(s.scored.sum()) for s in self.segments if s.scored is not None)

    def branch_token_ids(self, leaf: int) -> list[int]:
        """The tokens of the whole path from the root to segment `leaf`."""
        path: list[int] = []
        while leaf >= 0:
            path = [*self.segments[leaf].token_ids, *path]
            leaf = self.segments[leaf].parent
        return path


@dataclass(slots=True)
class PackedBatch:
    """One row of T tokens made of S segments, and the N positions at which the head runs.

    input_ids_T, position_ids_T: int64.
    segments: (start, end, parent) per segment, parent = index of a segment or -1, depth first.
    score_index_N: which hidden state predicts the token; score_target_N: the token; score_token_N: where in the row
    the token itself stands; score_row_N: the branch (numbered 0 … rows-1) the token belongs to.
    columns: per-scored-position values, float32 or bfloat16, shape N.
    kept_offsets_N1, kept_ids_K: the ragged sets of kept tokens of truncated sampling (an empty set = all tokens).
    sources: the segment each branch came from, row by row.
    empty: a stand-in on a rank that ran out of data; its loss counts zero.
    shared_by: the ranks that share the row; tokens and scored positions are then this rank's part of it, and all else
    is of the whole row (alignment.packing.sequence_parallel).
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    segments: list[tuple[int, int, int]]
    score_index_N: torch.Tensor
    score_target_N: torch.Tensor
    score_token_N: torch.Tensor
    score_row_N: torch.Tensor
    rows: int
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    kept_offsets_N1: torch.Tensor | None = None
    kept_ids_K: torch.Tensor | None = None
    sources: list[Segment] = field(default_factory=list)
    empty: bool = False
    shared_by: SequenceGroup | None = None

    @property
    def tokens(self) -> int:
        return self.input_ids_T.numel()

    def to(self, device: torch.device | str) -> PackedBatch:
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), torch.Tensor)}
        moved: dict[str, Any] = {name: x.to(device, non_blocking=True) for name, x in tensors.items()}
        columns = {name: x.to(device, non_blocking=True) for name, x in self.columns.items()}
        return replace(self, **moved, columns=columns)


class Engine(Protocol):
    """Makes rollouts for every method. `step` enters the random streams and stamps the rollouts.

    An attribute `remote` (default False) says that it samples from weights of its own, as given to `load_weights`.
    """

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, step: int = 0) -> list[list[Rollout]]: ...

    def load_weights(self, model: torch.nn.Module, step: int) -> None: ...


@dataclass(slots=True)
class Batch:
    """What one optimizer step trains on, on this rank.

    units: what the sum of the losses is divided by, summed over ranks (tokens, completions, pairs). Trees whose
    gradient is known to be zero may be left out of `trees` while they count in `units`.
    """

    trees: list[Tree]
    units: float


@dataclass(slots=True)
class Episode:
    """What one step trains on, on this rank.

    batches: each one optimizer step; a generator may end early, on all ranks alike.
    stats: (sum, count) for a mean, (sum, None) for a total, a number for a maximum.
    samples: records for samples.jsonl.
    """

    batches: Iterable[Batch]
    stats: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


class Algorithm(Protocol):
    """What the trainer needs of a method.

    loss(model, micro): the *sum* over the micro-batch and its stats (see Episode); `model` may be wrapped.
    after_update: called once per step, after its last optimizer step, with the step's metrics over all ranks; and
    once with none after a resume.
    An attribute `reads_policy` (default True) says whether `collect` reads the weights of the policy itself, and
    `sends_weights` (default False) whether `after_update` does: sharded ones are gathered for it.
    state_dict: everything that a resumed run needs and that does not follow from the settings.
    """

    def collect(self, step: int) -> Episode: ...

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]: ...

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

"""Online DPO: the current policy's best and worst of several samples per prompt are the pair it is trained on.

Qwen2 (arXiv 2407.10671, section 4.3): a reward model picks the most and the least preferred response, in every episode
anew. The reference is fixed: the model that training starts from.
Shapes: P prompts, G samples per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from alignment.algorithms.dpo import DpoConfig, pair_loss
from alignment.algorithms.reference import Reference
from alignment.algorithms.rollouts import (
    check_prompts,
    generate_together,
    loss_mask,
    prompts_fingerprint,
    refuse_other_prompts,
    rollout_stats,
    sample_records,
    score_groups,
)
from alignment.config import check_values
from alignment.data.curriculum import Curriculum
from alignment.distributed import rank, world_size
from alignment.errors import UserError
from alignment.losses.advantages import TINY
from alignment.models import Policy
from alignment.packing import group
from alignment.types import Batch, Engine, Episode, PackedBatch, Prompt, Rollout, Sampling, Segment, Tree


@dataclass
class OnlineDpoConfig:
    """What one step samples."""

    prompts_per_step: int = field(default=64, metadata={"help": "Prompts of one step, over all ranks."})
    group_size: int = field(
        default=8, metadata={"help": "Samples per prompt, of which the best and the worst make a pair."}
    )

    def __post_init__(self):
        check_values(self, "1 or more", "prompts_per_step")
        if self.group_size < 2:
            raise UserError(f"group_size: {self.group_size} is not valid, a pair needs 2 samples or more")


class OnlineDpo:
    """Algorithm for the trainer, one update per step. `score(rollouts)` sets the rewards and returns metrics. Prompts
    come in seeded random order, each once an epoch."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        prompts: Sequence[Prompt],
        score: Callable[[list[Rollout]], dict[str, float]],
        config: OnlineDpoConfig,
        dpo: DpoConfig,
        sampling: Sampling,
        reference: Reference,
        seed: int,
    ):
        check_prompts(prompts, config.prompts_per_step, sampling, engine)
        self.policy, self.engine, self.prompts, self.score = policy, engine, list(prompts), score
        self.fingerprint = prompts_fingerprint(prompts)
        self.config, self.dpo, self.sampling, self.reference = config, dpo, sampling, reference
        self.sends_weights = getattr(engine, "remote", False)
        self.reads_policy = not self.sends_weights or reference.reads_policy
        self.order = Curriculum([p.id for p in prompts], "random", seed)

    def collect(self, step: int) -> Episode:
        indices = self.order.take(self.config.prompts_per_step)[rank() :: world_size()]
        prompts = [self.prompts[i] for i in indices]
        groups = generate_together(self.engine, prompts, self.config.group_size, self.sampling, step)
        stats: dict[str, Any] = {}
        score_groups(self.score, groups, stats)
        found = [best_and_worst(g) for g in groups]
        pairs = [pair for pair in found if isinstance(pair, tuple)]
        trees = [pair_tree(*pair) for pair in pairs]
        self.reference(trees)
        stats |= {**rollout_stats(groups), **_pair_stats(pairs), "pairs": (len(pairs), None)}
        for reason in ("ties", "unscored"):
            stats[f"skipped/{reason}"] = (found.count(reason), None)
        return Episode([Batch(trees, len(trees))], stats, sample_records(groups))

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        return pair_loss(model, micro, self.dpo)

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.engine.load_weights(self.policy, step)

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order.state_dict(), "prompts": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        refuse_other_prompts(state["prompts"], self.fingerprint)
        self.order.load_state_dict(state["order"])


def best_and_worst(rollouts: Sequence[Rollout]) -> tuple[Rollout, Rollout] | str:
    """The scored samples of highest and of lowest reward, the first of equal ones; or why there is no pair:
    "unscored" (fewer than two have a reward and tokens that carry loss) or "ties" (all rewards are equal, but for
    rounding, or both samples have the same tokens)."""
    scored = [(r.reward, r) for r in rollouts if r.reward is not None and loss_mask(r).any()]
    if len(scored) < 2:
        return "unscored"
    best, worst = max(scored, key=lambda x: x[0]), min(scored, key=lambda x: x[0])
    if best[0] - worst[0] <= TINY * max(abs(best[0]), abs(worst[0])) or best[1].token_ids == worst[1].token_ids:
        return "ties"
    return best[1], worst[1]


def pair_tree(chosen: Rollout, rejected: Rollout) -> Tree:
    """The two samples behind their prompt. One that was cut off at max_tokens stays as it is: no end token is added."""
    branches = [Segment(r.token_ids, scored=loss_mask(r)) for r in (chosen, rejected)]
    return group(chosen.prompt.token_ids, branches, atomic=True)


def _pair_stats(pairs: Sequence[tuple[Rollout, Rollout]]) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    for i, name in enumerate(("best", "worst")):
        chosen = [pair[i] for pair in pairs]
        stats[f"reward/{name}"] = (sum(r.reward or 0.0 for r in chosen), len(chosen))
        stats[f"completion_length/{name}"] = (sum(len(r.token_ids) for r in chosen), len(chosen))
    return stats

"""PPO with a learned value function: rollouts, per-token rewards, GAE, clipped policy and value losses.

arXiv 1707.06347 (PPO), 1506.02438 (GAE), 2203.02155 (KL in the reward, the pretraining term), 2309.16609 section 3.2.2
(Qwen1: value warm-up, value clip 0.15, KL coefficient 0.04, two responses per query, running-mean rewards).
Shapes: P prompts, G samples per prompt, N scored tokens, R rows (completions).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from alignment.algorithms.ppo_parts import AdaptiveKl, Pretraining, RunningMoments, explained_variance, whiten
from alignment.algorithms.rollouts import (
    add_ref_logprobs,
    check_prompts,
    generate_together,
    loss_mask,
    prompts_fingerprint,
    refuse_other_prompts,
    rollout_stats,
    sample_records,
    sampler_stats,
    score_groups,
    split_over_ranks,
    surrogate_stats,
)
from alignment.config import check_values
from alignment.data.epochs import refuse_other_rows
from alignment.distributed import all_sum, rank, world_size
from alignment.errors import UserError
from alignment.losses.advantages import gae
from alignment.losses.policy_gradient import Surrogate, token_loss
from alignment.losses.value import clipped_value_loss
from alignment.models import Policy
from alignment.models.actor_critic import ActorCritic
from alignment.models.score import add_logprobs, add_values
from alignment.packing import group
from alignment.types import Batch, Engine, Episode, PackedBatch, Prompt, Rollout, Sampling, Segment, Tree

TARGETS = ("values", "advantages", "returns")
"""Columns that the value model makes."""


@dataclass
class PpoConfig:
    """What PPO does with an episode of prompts_per_step x group_size completions."""

    prompts_per_step: int = field(default=64, metadata={"help": "Prompts of one episode, over all ranks."})
    group_size: int = field(default=2, metadata={"help": "Completions per prompt."})
    mini_batches: int = field(default=1, metadata={"help": "Optimizer steps per pass over an episode."})
    episode_epochs: int = field(default=1, metadata={"help": "Passes over an episode."})
    value_learning_rate: float = field(default=5e-6, metadata={"help": "Peak of the value model."})
    value_warmup_steps: int = field(default=50, metadata={"help": "Steps in which only the value learns."})
    value_warmup_prompts: int = field(
        default=0, metadata={"help": "Prompts that the warm-up goes round; their samples are drawn once. 0 = all."}
    )
    old_logprobs: Literal["sampler", "recompute"] = field(
        default="sampler", metadata={"help": "recompute: for a sampler that is not the policy itself."}
    )
    importance_cap: float = field(default=2.0, metadata={"help": "Of the weights trainer / sampler."})
    clip_eps: float = field(default=0.2, metadata={"help": "The ratio is clipped at 1 plus and minus this."})
    value_clip: float = field(default=0.15, metadata={"help": "Of the value loss; 0 = none."})
    value_coef: float = field(default=1.0, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Mean 0 and deviation 1 over all ranks."})
    kl_coef: float = field(default=0.04, metadata={"help": "Of k1 in the reward."})
    kl_target: float = field(
        default=0.0, metadata={"help": "Nats per completion that kl_coef is steered to; 0 = fixed."}
    )
    kl_horizon: int = field(default=10_000, metadata={"help": "Completions over which it is steered."})
    kl_stop: float = field(
        default=0.0,
        metadata={"help": "The rest of an episode is left out once its mean k1 to the old policy is above; 0 = never."},
    )
    reward_mean: bool = field(default=True, metadata={"help": "Subtract the running mean of the rewards."})
    reward_std: bool = field(default=False, metadata={"help": "Divide by their running deviation."})
    missing_eos_penalty: float = field(
        default=0.0, metadata={"help": "Taken off the reward of completions cut at max_tokens."}
    )
    ptx_coef: float = field(default=0.0, metadata={"help": "Weight of the language-model loss on pretraining text."})
    ptx_ratio: float = field(default=1.0, metadata={"help": "Its tokens per completion token."})

    def __post_init__(self):
        check_values(
            self, "1 or more", "prompts_per_step", "group_size", "mini_batches", "episode_epochs", "kl_horizon"
        )
        check_values(self, "0 or more", "value_learning_rate", "value_warmup_steps", "value_warmup_prompts", "clip_eps")
        check_values(self, "0 or more", "value_clip", "value_coef", "kl_coef", "kl_target", "kl_stop", "ptx_coef")
        check_values(self, "0 or more", "missing_eos_penalty", "ptx_ratio")
        check_values(self, "between 0 and 1", "gamma", "lam")
        if self.mini_batches > self.prompts_per_step:
            raise UserError(f"mini_batches: {self.mini_batches} exceeds prompts_per_step ({self.prompts_per_step})")
        if self.importance_cap <= 0:
            raise UserError(f"importance_cap: {self.importance_cap} is not valid, it has to be above 0")
        if self.kl_target and not self.kl_coef:
            raise UserError("kl_target: steering needs a kl_coef above 0 to start from")


class Ppo:
    """Algorithm for the trainer, over an ActorCritic. `score(rollouts)` sets reward and reward_terms and returns
    metrics. reference: None with PEFT (the base with the adapters off) or without KL. pretraining: trees for ptx."""

    def __init__(
        self,
        model: ActorCritic,
        engine: Engine,
        prompts: Sequence[Prompt],
        score: Callable[[list[Rollout]], dict[str, float]],
        config: PpoConfig,
        sampling: Sampling,
        reference: Policy | None = None,
        pretraining: Sequence[Tree] = (),
        max_tokens: int = 16384,
    ):
        check_prompts(prompts, config.prompts_per_step, sampling, engine)
        if config.ptx_coef and not pretraining:
            raise UserError("ptx_coef is set but there is no pretraining text: name one with ptx_dataset")
        head_bias = getattr(model.policy.base.get_output_embeddings(), "bias", None)
        if config.ptx_coef and sampling.temperature != 1 and head_bias is not None:
            raise UserError("temperature: with ptx_coef and a model whose output layer has a bias it has to be 1.0")
        self.model, self.engine, self.prompts, self.score = model, engine, list(prompts), score
        self.fingerprint = prompts_fingerprint(prompts)
        self.sends_weights = getattr(engine, "remote", False)
        self.config, self.sampling, self.reference, self.max_tokens = config, sampling, reference, max_tokens
        self.pretraining = Pretraining(pretraining, config.ptx_ratio, sampling.seed)
        self.kl = AdaptiveKl(config.kl_coef, config.kl_target, config.kl_horizon)
        self.moments = RunningMoments()
        self.warm_up: dict[str, tuple[list[Rollout], Tree]] = {}
        self.on_policy = config.mini_batches * config.episode_epochs == 1
        # whose log-probabilities stand for the policy that sampled, in the ratio and in the KL of the reward
        self.old = "old_logprobs" if config.old_logprobs == "recompute" else "sampler_logprobs"
        self.columns = [
            *{"sampler_logprobs": 0, self.old: 0},
            *TARGETS,
            *(["ref_logprobs"] * bool(config.kl_coef)),
        ]
        self.value_only = False
        self.measuring = True  # the first update of an episode, before which the policy is the one that sampled
        self._kl_sum, self._kl_count = 0.0, 0

    # --- collecting -------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> Episode:
        self.value_only = self.model.rest.policy = step < self.config.value_warmup_steps
        groups, trees, stats = self._sample(step)
        for segment in (s for tree in trees for s in tree.segments[1:]):
            for name in TARGETS:  # of an earlier step of the warm-up, by another value model
                segment.columns.pop(name, None)
        rescored = self.old if self.old == "old_logprobs" and not self.value_only else None
        add_values(self.model, trees, "values", self.max_tokens, rescored, self.sampling.temperature)
        self.moments.update([r.reward for g in groups for r in g if r.reward is not None], self.model.device)
        rows = [segment for tree in trees for segment in tree.segments[1:]]
        stats |= self._add_targets(rows, [r for g in groups for r in g])
        stats |= rollout_stats(groups)
        stats |= {"reward_running_mean": self.moments.mean, "reward_running_std": self.moments.std}
        return Episode(self._batches(trees, step), stats, sample_records(groups))

    def _sample(self, step: int) -> tuple[list[list[Rollout]], list[Tree], dict[str, Any]]:
        """This rank's groups with rewards and their trees with reference log-probabilities. While the policy rests, a
        prompt that comes again keeps those it had: another draw from the same policy would tell no more."""
        prompts = self._own_prompts(step)
        known = self.warm_up if self.value_only else {}
        todo = [p for p in prompts if p.id not in known]
        groups = generate_together(self.engine, todo, self.config.group_size, self.sampling, step)
        stats: dict[str, Any] = {"prompts_sampled": (len(todo), None)}
        score_groups(self.score, groups, stats)
        trees = [self._tree(g) for g in groups]
        if self.value_only and self.old == "old_logprobs":  # kept with the samples; later they come with the values
            add_logprobs(self.model.policy, trees, self.old, self.max_tokens, self.sampling.temperature)
        if self.config.kl_coef:
            add_ref_logprobs(self.model.policy, self.reference, trees, self.max_tokens, self.sampling.temperature)
        known = known | {p.id: pair for p, pair in zip(todo, zip(groups, trees, strict=True), strict=True)}
        again = self._last_warm_up_step if self.value_only else {}
        self.warm_up = {name: pair for name, pair in known.items() if again.get(name, -1) > step}
        pairs = [known[p.id] for p in prompts]
        return [g for g, _ in pairs], [t for _, t in pairs], stats

    def _own_places(self, step: int) -> list[int]:
        """Of this rank, among the step's prompts. In the warm-up a prompt stays with the rank that has its samples."""
        rests = step < self.config.value_warmup_steps
        dealt = [i if rests else place for place, i in enumerate(self._take(step))]
        return [place for place, number in enumerate(dealt) if number % world_size() == rank()]

    def _own_prompts(self, step: int) -> list[Prompt]:
        taken = self._take(step)
        return [self.prompts[taken[place]] for place in self._own_places(step)]

    @functools.cached_property
    def _last_warm_up_step(self) -> dict[str, int]:
        """Of each of this rank's prompts."""
        return {p.id: step for step in range(self.config.value_warmup_steps) for p in self._own_prompts(step)}

    def _take(self, step: int) -> list[int]:
        """The step's prompts: epochs in seeded random order; in the warm-up round and round value_warmup_prompts."""
        size, pool = self.config.prompts_per_step, len(self.prompts)
        if step < self.config.value_warmup_steps and self.config.value_warmup_prompts:
            pool = min(pool, max(size, self.config.value_warmup_prompts))
        epoch, place = divmod(step, pool // size)
        first = np.random.default_rng([self.sampling.seed, 0]).permutation(len(self.prompts))[:pool]
        order = first if epoch == 0 else np.random.default_rng([self.sampling.seed, epoch]).permutation(first)
        return order[place * size : (place + 1) * size].tolist()

    def _tree(self, rollouts: list[Rollout]) -> Tree:
        children = []
        for rollout in rollouts:
            logprobs = np.asarray(rollout.logprobs, dtype=np.float32)
            columns = {"sampler_logprobs": logprobs, "ptx_weight": np.zeros_like(logprobs)}
            children.append(Segment(rollout.token_ids, scored=loss_mask(rollout), columns=columns, kept=rollout.kept))
        return group(rollouts[0].prompt.token_ids, children)

    def _final_reward(self, rollout: Rollout) -> float:
        """The normalised score of a completion, without the KL part."""
        assert rollout.reward is not None
        value = rollout.reward - (self.moments.mean if self.config.reward_mean else 0.0)
        if self.config.reward_std:
            value /= max(self.moments.std, 1e-8)
        return value - self.config.missing_eos_penalty * (rollout.finish_reason == "length")

    def _add_targets(self, rows: list[Segment], rollouts: list[Rollout]) -> dict[str, Any]:
        """Columns `advantages` and `returns` from values, scores and KL, over the scored tokens of each row."""
        c = self.config
        scored = [(s, r) for s, r in zip(rows, rollouts, strict=True) if s.scored.any()]  # type: ignore[union-attr]
        rewards, values, kl_sum, tokens = [], [], 0.0, 0
        for segment, rollout in scored:
            k1 = np.zeros(len(segment.token_ids))
            if c.kl_coef:
                k1 = segment.columns[self.old] - segment.columns["ref_logprobs"]
            reward = -self.kl.coefficient * k1[segment.scored]
            kl_sum, tokens = kl_sum + float(k1[segment.scored].sum()), tokens + len(reward)
            reward[-1] += self._final_reward(rollout)
            rewards.append(reward)
            values.append(segment.columns["values"][segment.scored].astype(np.float64))
        advantages, returns = gae(rewards, values, c.gamma, c.lam)
        if c.whiten_advantages:
            advantages = whiten(advantages, self.model.device)
        for segment in rows:  # rows without a reward have the columns too, unread
            segment.columns |= {name: np.zeros(len(segment.token_ids)) for name in ("advantages", "returns")}
        for (segment, _), advantage, row_returns in zip(scored, advantages, returns, strict=True):
            segment.columns["advantages"][segment.scored] = advantage
            segment.columns["returns"][segment.scored] = row_returns
        variance = explained_variance(values, returns, self.model.device)
        stats = {"explained_variance": variance, "values": (sum(float(v.sum()) for v in values), tokens)}
        if c.kl_coef:
            stats |= {"kl": (kl_sum, tokens), "kl/completion": (kl_sum, len(scored))}
            stats["kl_coef"] = self.kl.coefficient
        return stats

    def _batches(self, trees: list[Tree], step: int) -> Iterator[Batch]:
        """Mini-batches of whole groups, shuffled anew in each epoch, with pretraining text; ends early on KL."""
        c = self.config
        self._kl_sum, self._kl_count = 0.0, 0  # what the last update of the episode before saw is no reason to stop
        places = self._own_places(step)
        for epoch in range(c.episode_epochs):
            shuffle = [self.sampling.seed, step, epoch] if c.mini_batches * c.episode_epochs > 1 else None
            for number, part in enumerate(split_over_ranks(places, c.mini_batches, shuffle)):
                if self._drifted():
                    return
                members = [trees[i] for i in part if trees[i].scored_tokens]
                units = float(sum(tree.scored_tokens for tree in members))
                if c.ptx_coef and not self.value_only:
                    (all_units,) = all_sum([units], self.model.device)
                    place = (step * c.episode_epochs + epoch) * c.mini_batches + number
                    members += self.pretraining.take(place, all_units, c.ptx_coef, self.columns, self.model.device)
                self.measuring = epoch == number == 0
                yield Batch(members, units)

    def _drifted(self) -> bool:
        """Whether the last update saw the policy further from the one that sampled than kl_stop, over all ranks."""
        if not self.config.kl_stop:
            return False
        total, count = all_sum([self._kl_sum, self._kl_count], self.model.device)
        self._kl_sum, self._kl_count = 0.0, 0
        return count > 0 and total / count > self.config.kl_stop

    # --- the loss ---------------------------------------------------------------------------------------------------

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        c, columns = self.config, micro.columns
        if self.value_only:
            values_N = model(micro).values_N
            return self._value_loss(values_N, columns, torch.ones_like(values_N))
        ptx_N = columns["ptx_weight"]
        own_N = (ptx_N == 0).float()
        temperature: float | torch.Tensor = self.sampling.temperature
        if self.config.ptx_coef and temperature != 1:
            temperature = torch.where(ptx_N == 0, temperature, 1.0)
        sampler_N = columns["sampler_logprobs"]

        def old(logprobs_N: torch.Tensor) -> torch.Tensor:
            return logprobs_N.detach() if self.on_policy else columns[self.old]

        def surrogate(logprobs_N: torch.Tensor) -> Surrogate:
            advantages_N = columns["advantages"] * own_N
            rows = micro.score_row_N, micro.rows
            return token_loss(logprobs_N, old(logprobs_N), advantages_N, *rows, c.clip_eps, c.clip_eps)

        def policy_loss(logprobs_N: torch.Tensor, _) -> torch.Tensor:
            weight_N = (old(logprobs_N) - sampler_N).exp()  # 1 where the sampler is the old policy
            loss = (surrogate(logprobs_N).loss_N * weight_N.clamp(max=c.importance_cap) * own_N).sum()
            return loss - (logprobs_N * ptx_N).sum() if c.ptx_coef else loss

        out = model(micro, temperature=temperature, entropy=True, loss=policy_loss)
        logprobs_N = out.scores.logprobs_N
        loss, stats = self._value_loss(out.values_N, columns, own_N)
        if c.ptx_coef:
            stats["ptx_loss"] = (-(logprobs_N * (1 - own_N)).sum(), (1 - own_N).sum())
        stats |= self._policy_stats(surrogate(logprobs_N), out.scores, old(logprobs_N), sampler_N, own_N.bool())
        return loss + out.scores.total, stats

    def _value_loss(self, values_N, columns: Mapping[str, torch.Tensor], own_N) -> tuple[torch.Tensor, dict[str, Any]]:
        loss_N, clipped_N = clipped_value_loss(
            values_N, columns["values"], columns["returns"].to(values_N.dtype), self.config.value_clip
        )
        n, loss = own_N.sum(), (loss_N * own_N).sum()
        stats = {"value_loss": (loss.detach(), n), "value_clip_fraction": ((clipped_N * own_N).sum(), n)}
        return self.config.value_coef * loss, stats

    def _policy_stats(self, surrogate, scores, old_N, sampler_N, own: torch.Tensor) -> dict[str, Any]:
        """Ratios and entropy; how far the sampler was from the policy it stood for, and the policy has moved since."""
        now_N, old_N, sampler_N = (values_N[own] for values_N in (scores.logprobs_N.detach(), old_N, sampler_N))
        n = now_N.numel()
        if self.config.kl_stop:
            self._kl_sum, self._kl_count = self._kl_sum + float((old_N - now_N).sum()), self._kl_count + n
        stats = surrogate_stats(surrogate.where(own), n)
        if self.measuring:
            stats |= sampler_stats((now_N - sampler_N).exp(), n)
        return {
            **stats,
            "kl_to_sampler": ((sampler_N - now_N).sum(), n),
            "entropy": (scores.entropy_N.detach()[own].sum(), n),
        }

    # --- between steps ----------------------------------------------------------------------------------------------

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        if "kl/completion" in metrics and step > self.config.value_warmup_steps:
            self.kl.update(metrics["kl/completion"], self.config.prompts_per_step * self.config.group_size)
        if step > self.config.value_warmup_steps or not metrics:
            self.engine.load_weights(self.model.policy, step)

    def state_dict(self) -> dict[str, Any]:
        state = {"moments": self.moments.state_dict(), "kl_coef": self.kl.coefficient, "warm_up": self.warm_up}
        return {"prompts": self.fingerprint, "pretraining": self.pretraining.fingerprint, **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        refuse_other_prompts(state["prompts"], self.fingerprint)
        refuse_other_rows(state["pretraining"], self.pretraining.fingerprint, "pretraining text")
        self.moments.load_state_dict(state["moments"])
        self.kl.coefficient, self.warm_up = state["kl_coef"], state["warm_up"]

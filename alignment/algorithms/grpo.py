"""GRPO: groups of samples per prompt, advantages against the group, clipped policy gradient.

arXiv 2402.03300 (GRPO), 2503.14476 (clip-higher, token normalisation, dynamic sampling, overlong masking),
2503.20783 (no division by the deviation, constant normalisation), 2507.18071 (sequence ratios), 2412.15115 (prompts
in the order of their score variance). Shapes: P prompts, G samples per prompt, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from alignment.algorithms.entropy import EntropyControl
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
from alignment.data.curriculum import Curriculum, PromptScore
from alignment.distributed import gather_objects, rank, world_size
from alignment.errors import UserError
from alignment.losses.advantages import group_advantages
from alignment.losses.policy_gradient import (
    SurrogateLoss,
    gspo_loss,
    k3,
    sequence_mean_loss,
    token_loss,
)
from alignment.models import Policy
from alignment.models.score import add_logprobs
from alignment.packing import group
from alignment.rollout.ahead import Ahead, check_ahead
from alignment.types import Batch, Engine, Episode, PackedBatch, Prompt, Rollout, Sampling, Segment, Tree

LOSSES: dict[str, SurrogateLoss] = {
    "token": token_loss,
    "constant": token_loss,
    "sequence_mean": sequence_mean_loss,
    "gspo": gspo_loss,
}


class _Batches(list[Batch]):
    """Tells the algorithm when the first batch is over: from then on the policy is no more the one that sampled."""

    def __init__(self, algorithm: Grpo, batches: Sequence[Batch]):
        super().__init__(batches)
        self.algorithm = algorithm

    def __iter__(self) -> Iterator[Batch]:
        for i, batch in enumerate(super().__iter__()):
            self.algorithm.measuring = i == 0
            yield batch


@dataclass
class GrpoConfig:
    """What GRPO does with an episode of prompts_per_step x group_size completions."""

    prompts_per_step: int = field(default=256, metadata={"help": "Prompts of one episode, over all ranks."})
    group_size: int = field(default=8, metadata={"help": "Completions per prompt."})
    mini_batches: int = field(default=1, metadata={"help": "Optimizer steps per pass over an episode."})
    episode_epochs: int = field(default=1, metadata={"help": "Passes over an episode."})
    loss: Literal["token", "sequence_mean", "gspo", "constant"] = field(
        default="token", metadata={"help": "What the clipped loss is averaged over: docs/grpo.md."}
    )
    divide_by_std: bool = field(default=True, metadata={"help": "Divide by the deviation of a group's rewards."})
    clip_eps: float = field(default=0.2, metadata={"help": "The ratio is clipped at 1 minus this."})
    clip_eps_high: float = field(default=0.2, metadata={"help": "The ratio is clipped at 1 plus this."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the KL to the starting model; 0 = no reference."})
    kl: Literal["loss", "reward"] = field(default="loss", metadata={"help": "k3 in the loss, or k1 in the reward."})
    importance_cap: float = field(default=2.0, metadata={"help": "Of the weights trainer / sampler."})
    old_logprobs: Literal["sampler", "recompute"] = field(
        default="sampler",
        metadata={"help": "What the ratio is taken to; recompute: the policy scores the samples itself."},
    )
    async_rollouts: int = field(
        default=0, metadata={"help": "1: the next episode is sampled while this one trains (engine: vllm)."}
    )
    mask_truncated: bool = field(default=False, metadata={"help": "Completions cut at max_tokens carry no loss."})
    resample_prompts: int = field(
        default=0, metadata={"help": "Per step, extra prompts that replace groups without signal."}
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Weight of the entropy bonus; with a band, what it starts from."}
    )
    entropy_band: list[float] = field(
        default_factory=list,
        metadata={"help": "Lowest and highest mean entropy per token, in nats; empty = no control."},
    )
    entropy_coef_step: float = field(
        default=0.0, metadata={"help": "By which the coefficient moves after a step outside the band."}
    )

    def __post_init__(self):
        check_values(self, "1 or more", "prompts_per_step", "mini_batches", "episode_epochs")
        non_negative = ("clip_eps", "clip_eps_high", "beta", "resample_prompts", "entropy_coef", "entropy_coef_step")
        check_values(self, "0 or more", *non_negative)
        check_values(self, "above 0", "importance_cap")
        if self.async_rollouts not in (0, 1):
            raise UserError(f"async_rollouts: {self.async_rollouts} is not valid, it is 0 or 1 step ahead")
        if self.group_size < 2:
            raise UserError(f"group_size: {self.group_size} is not valid, a group needs 2 samples or more")
        if self.mini_batches > self.prompts_per_step:
            raise UserError(f"mini_batches: {self.mini_batches} exceeds prompts_per_step ({self.prompts_per_step})")
        self.entropy_control()

    def entropy_control(self) -> EntropyControl:
        """Raises UserError when its settings contradict each other."""
        return EntropyControl(self.entropy_coef, self.entropy_band, self.entropy_coef_step)


class Grpo:
    """Algorithm for the trainer. `score(rollouts)` sets reward and reward_terms and returns metrics; `reference` is
    needed only with beta > 0 (None with PEFT: the base model with the adapters off). `steps`: of the whole run, behind
    which no rollouts are begun; 0 = not known."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        prompts: Sequence[Prompt],
        score: Callable[[list[Rollout]], dict[str, float]],
        curriculum: Curriculum,
        config: GrpoConfig,
        sampling: Sampling,
        reference: Policy | None = None,
        max_tokens: int = 16384,
        steps: int = 0,
    ):
        check_prompts(prompts, config.prompts_per_step, sampling, engine)
        self.policy, self.engine, self.prompts, self.score = policy, engine, list(prompts), score
        self.fingerprint = prompts_fingerprint(prompts)
        self.curriculum, self.config, self.sampling, self.reference = curriculum, config, sampling, reference
        self.max_tokens = max_tokens
        self.sends_weights = getattr(engine, "remote", False)
        self.on_policy = config.mini_batches * config.episode_epochs == 1
        self.scores_again = config.old_logprobs == "recompute" and not self.on_policy
        self.reads_policy = not self.sends_weights or self.scores_again or bool(config.beta and reference is None)
        self.entropy = config.entropy_control()
        self.measuring = True  # the first optimizer step of an episode, before which the policy is the one to compare
        self.steps = steps
        self.ahead: Ahead | None = None
        if config.async_rollouts:
            check_ahead(engine)
            self.ahead = Ahead(engine, self.prompts, config.group_size, sampling)

    # --- collecting -------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> Episode:
        groups, places, stats = self._sample(step)
        rewards_PG = np.array([[np.nan if r.reward is None else r.reward for r in g] for g in groups], dtype=float)
        rewards_PG = rewards_PG.reshape(-1, self.config.group_size)
        advantages_PG, flat_P = group_advantages(rewards_PG, self.config.divide_by_std)
        trees = [self._tree(g, a) for g, a in zip(groups, advantages_PG, strict=True)]
        in_reward = bool(self.config.beta) and self.config.kl == "reward"
        if not in_reward:
            self._mask_truncated(trees, groups)
        if self.scores_again:
            add_logprobs(self.policy, trees, "old_logprobs", self.max_tokens, self.sampling.temperature)
        if self.config.beta:
            add_ref_logprobs(self.policy, self.reference, trees, self.max_tokens, self.sampling.temperature)
        if in_reward:  # truncated completions too are charged, as they are in their group's baseline
            advantages_PG, flat_P = self._penalise(trees, rewards_PG)
            self._mask_truncated(trees, groups)
        stats |= {**rollout_stats(groups), "flat_groups": (int(flat_P.sum()), len(flat_P))}
        if self.ahead:
            lags = [step - r.policy_step for g in groups for r in g]
            stats["policy_lag"] = (sum(lags), len(lags))
        if self.entropy.controlled:
            stats["entropy_coef"] = self.entropy.coef
        batches = _Batches(self, self._batches(trees, places, flat_P, step))
        return Episode(batches, stats, sample_records(groups))

    def _sample(self, step: int) -> tuple[list[list[Rollout]], list[int], dict[str, Any]]:
        """Groups of this rank, scored, and their places among those of all ranks. Groups without signal are replaced
        while the budget of extra prompts lasts."""
        c = self.config
        kept: list[tuple[int, list[Rollout]]] = []
        spare: list[tuple[int, list[Rollout]]] = []
        stats: dict[str, Any] = {}
        used: list[int] = []
        missing, extra = c.prompts_per_step, c.resample_prompts
        while missing:
            indices, groups = self._generate(step, missing, used)
            if not indices:  # the step has had every prompt
                break
            places = range(len(used), len(used) + len(indices))[rank() :: world_size()]
            used += indices
            score_groups(self.score, groups, stats)
            signal = [self._has_signal(g) for g in groups]
            for prompt_id, score in gather_objects([(g[0].prompt.id, PromptScore.of_rollouts(g)) for g in groups]):
                self.curriculum.observe(prompt_id, score)
            for place, g, has_signal in zip(places, groups, signal, strict=True):
                (kept if has_signal else spare).append((place, g))
            missing = min(sum(not s for s in gather_objects(signal)), extra)
            extra -= missing
        if c.resample_prompts:
            self._begin_next(step)
        stats["groups_resampled"] = (len(used) - c.prompts_per_step, 1)
        # groups without signal fill up what could not be replaced, the same ones on any number of ranks
        room = max(0, c.prompts_per_step - len(gather_objects([1] * len(kept))))
        chosen = set(sorted(gather_objects([place for place, _ in spare]))[:room])
        kept += [(place, g) for place, g in spare if place in chosen]
        return [g for _, g in kept], [place for place, _ in kept], stats

    def _generate(self, step: int, count: int, used: list[int]) -> tuple[list[int], list[list[Rollout]]]:
        """The next prompts that the step has not had, of all ranks, and this rank's groups of them; none when there are
        fewer prompts than ranks. With rollouts ahead those of the first round are there already."""
        found = self.ahead.take(step) if self.ahead and not used else None
        if found is None:
            indices = self.curriculum.take(count, used)
            prompts = [self.prompts[i] for i in indices[rank() :: world_size()]]
            found = indices, generate_together(self.engine, prompts, self.config.group_size, self.sampling, step)
        if not self.config.resample_prompts:
            self._begin_next(step)
        return found

    def _begin_next(self, step: int) -> None:
        """Sampling the next step's prompts, as soon as this one has no more to sample."""
        if self.ahead and step + 1 != self.steps:
            self.ahead.start(step + 1, self.curriculum.take(self.config.prompts_per_step))

    def _has_signal(self, group: list[Rollout]) -> bool:
        rewards = np.array([[np.nan if r.reward is None else r.reward for r in group]], dtype=float)
        return not group_advantages(rewards)[1][0]

    def _tree(self, rollouts: list[Rollout], advantages_G: np.ndarray) -> Tree:
        children = []
        for rollout, advantage in zip(rollouts, advantages_G, strict=True):
            length = len(rollout.token_ids)
            logprobs = np.asarray(rollout.logprobs, dtype=np.float32)
            columns = {"advantages": np.full(length, advantage), "sampler_logprobs": logprobs}
            if not self.on_policy:
                columns["old_logprobs"] = logprobs
            children.append(Segment(rollout.token_ids, scored=loss_mask(rollout), columns=columns, kept=rollout.kept))
        return group(rollouts[0].prompt.token_ids, children)

    def _mask_truncated(self, trees: list[Tree], groups: list[list[Rollout]]) -> None:
        for tree, rollouts in zip(trees, groups, strict=True):
            for segment, rollout in zip(tree.segments[1:], rollouts, strict=True):
                if self.config.mask_truncated and rollout.finish_reason == "length":
                    segment.scored = np.zeros(len(segment.token_ids), dtype=bool)

    def _penalise(self, trees: list[Tree], rewards_PG: np.ndarray):
        """k1 in the reward: r - beta * sum(log pi - log ref), then the advantages anew."""
        penalised, old = rewards_PG.copy(), "old_logprobs" if self.scores_again else "sampler_logprobs"
        for p, tree in enumerate(trees):
            for g, segment in enumerate(tree.segments[1:]):
                k1 = (segment.columns[old] - segment.columns.get("ref_logprobs", 0.0))[segment.scored]
                penalised[p, g] -= self.config.beta * float(k1.sum())
        advantages_PG, flat_P = group_advantages(penalised, self.config.divide_by_std)
        for p, tree in enumerate(trees):
            for g, segment in enumerate(tree.segments[1:]):
                segment.columns["advantages"][:] = advantages_PG[p, g]
        return advantages_PG, flat_P

    def _batches(self, trees: list[Tree], places: list[int], flat_P: np.ndarray, step: int) -> list[Batch]:
        """The episode in mini-batches of whole groups, shuffled anew in each epoch."""
        c = self.config
        # without KL or entropy term a group without signal has no gradient: it counts, but is not computed; what steers
        # the entropy has to see all of it
        computed = self.entropy.coef or self.entropy.controlled or (c.beta and c.kl == "loss")
        silent = np.zeros_like(flat_P) if computed else flat_P
        batches = []
        for epoch in range(c.episode_epochs):
            shuffle = None if self.on_policy else [self.sampling.seed, step, epoch]
            for part in split_over_ranks(places, c.mini_batches, shuffle):
                units = sum(self._units(trees[i]) for i in part)
                batches.append(Batch([trees[i] for i in part if not silent[i] and trees[i].scored_tokens], units))
        return batches

    def _units(self, tree: Tree) -> float:
        if self.config.loss == "token":
            return tree.scored_tokens
        rows = sum(bool(s.scored.any()) for s in tree.segments if s.scored is not None)
        return rows * (self.sampling.max_tokens if self.config.loss == "constant" else 1)

    # --- the loss ---------------------------------------------------------------------------------------------------

    def loss(self, model: torch.nn.Module, micro: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        temperature = self.sampling.temperature
        if self.config.loss == "gspo":  # a token's ratio is its completion's, which no chunk of the head holds
            scores = model(micro, temperature=temperature, entropy=True)
            return self._loss(micro, scores.logprobs_N, scores.entropy_N)
        scores = model(micro, temperature=temperature, entropy=True, loss=lambda *at: self._loss(micro, *at)[0])
        return scores.total, self._loss(micro, scores.logprobs_N, scores.entropy_N)[1]

    def _loss(
        self, micro: PackedBatch, logprobs_N: torch.Tensor, entropy_N: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        c = self.config
        old_N = logprobs_N.detach() if self.on_policy else micro.columns["old_logprobs"]
        advantages_N = micro.columns["advantages"]
        surrogate = LOSSES[c.loss](
            logprobs_N, old_N, advantages_N, micro.score_row_N, micro.rows, c.clip_eps, c.clip_eps_high
        )
        sampler_ratio_N = (old_N - micro.columns["sampler_logprobs"]).exp()
        loss_N = surrogate.loss_N * sampler_ratio_N.clamp(max=c.importance_cap)  # truncated importance weights
        n = logprobs_N.numel()
        stats = surrogate_stats(surrogate, n)
        if self.measuring:
            stats |= sampler_stats((logprobs_N.detach() - micro.columns["sampler_logprobs"]).exp(), n)
        if "ref_logprobs" in micro.columns:
            kl_N = k3(logprobs_N, micro.columns["ref_logprobs"])
            stats["kl"] = (kl_N.detach().sum(), n)
            if c.kl == "loss":
                loss_N = loss_N + c.beta * kl_N
        stats["entropy"] = (entropy_N.detach().sum(), n)
        if self.entropy.coef:
            loss_N = loss_N - self.entropy.coef * entropy_N
        return (loss_N * surrogate.norm_N).sum(), stats

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.entropy.observe(metrics)
        if self.ahead:
            self.ahead.wait()  # what is being sampled keeps its weights to the end
        self.engine.load_weights(self.policy, step)

    def state_dict(self) -> dict[str, Any]:
        state = {"prompts": self.fingerprint, "entropy_coef": self.entropy.coef}
        if self.ahead:
            state["ahead"] = self.ahead.state_dict()
        return {**state, "curriculum": self.curriculum.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        refuse_other_prompts(state["prompts"], self.fingerprint)
        self.curriculum.load_state_dict(state["curriculum"])
        self.entropy.coef = state["entropy_coef"]
        if self.ahead:
            self.ahead.load_state_dict(state.get("ahead"))

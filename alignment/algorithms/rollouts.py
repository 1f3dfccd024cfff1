"""What the methods that sample have in common: trees from rollouts, reference log-probabilities, statistics.

Shapes: P prompts, G samples per prompt, N scored tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel

from alignment.distributed import gather_objects, together
from alignment.errors import UserError
from alignment.fingerprint import fingerprint
from alignment.losses.policy_gradient import Surrogate
from alignment.models import Policy
from alignment.models.score import add_logprobs
from alignment.rollout.row import check_served
from alignment.rollout.tools import ERROR
from alignment.types import Engine, Prompt, Rollout, Sampling, Tree


def check_prompts(prompts: Sequence[Prompt], prompts_per_step: int, sampling: Sampling, engine: Engine) -> None:
    """Raises UserError for fewer prompts than a step takes, for greedy sampling, and for prompts that the engine would
    refuse."""
    check_served(engine, prompts, sampling)
    if sampling.temperature <= 0:
        raise UserError("temperature: greedy samples of a prompt are all equal; training needs a value above 0")
    if prompts_per_step > len(prompts):
        raise UserError(
            f"prompts_per_step: {prompts_per_step} exceeds the {len(prompts)} prompts: lower it or add rows"
        )


def prompts_fingerprint(prompts: Sequence[Prompt]) -> str:
    """Of their tokens and of whole rows: rewards read other columns than the prompt."""
    return fingerprint([(p.id, list(map(int, p.token_ids)), dict(p.row)) for p in prompts])


def refuse_other_prompts(saved: str, now: str) -> None:
    """Raises UserError when a checkpoint was made with other prompts; both are fingerprints."""
    if saved != now:
        raise UserError(
            f"the rows of the prompts changed since the checkpoint (fingerprint {saved} then, {now} now): restore the "
            "data file, or start a new run with another output_dir"
        )


def generate_together(
    engine: Engine, prompts: Sequence[Prompt], n: int, sampling: Sampling, step: int
) -> list[list[Rollout]]:
    """Rollouts of this rank's prompts. An engine lost on one rank is lost on all, so that they can save and stop."""
    groups: list[list[Rollout]] = []
    together(lambda: groups.extend(engine.generate(prompts, n, sampling, step)))
    return groups


def loss_mask(rollout: Rollout) -> np.ndarray:
    """Which completion tokens carry loss; none of a sample without a reward."""
    if rollout.reward is None:
        return np.zeros(len(rollout.token_ids), dtype=bool)
    if rollout.loss_mask is None:
        return np.ones(len(rollout.token_ids), dtype=bool)
    return np.asarray(rollout.loss_mask, dtype=bool)


def add_ref_logprobs(
    policy: Policy, reference: Policy | None, trees: Sequence[Tree], max_tokens: int, temperature: float
) -> None:
    """Column `ref_logprobs`, by the reference or, when there is none, by the policy with its adapters off."""
    if reference is not None:
        add_logprobs(reference, trees, "ref_logprobs", max_tokens, temperature)
        return
    with cast(PeftModel, policy.model).disable_adapter():
        add_logprobs(policy, trees, "ref_logprobs", max_tokens, temperature)


def split_over_ranks(places: Sequence[int], mini_batches: int, shuffle: Sequence[int] | None) -> list[list[int]]:
    """The indices of this rank's groups in each mini-batch. places: where each group stands among those of all ranks;
    the split is made over all of them, so that it is the same on any number of ranks. shuffle: a seed, or None."""
    everywhere = sorted(gather_objects(list(places)))
    order = np.arange(len(everywhere))
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(order)
    own = {place: i for i, place in enumerate(places)}
    parts = [[everywhere[i] for i in part] for part in np.array_split(order, mini_batches)]
    return [[own[place] for place in part if place in own] for part in parts]


def score_groups(
    score: Callable[[list[Rollout]], Mapping[str, float]], groups: Sequence[Sequence[Rollout]], stats: dict[str, Any]
) -> None:
    """Set the rewards and add the metrics to `stats`: over rounds and ranks, counts of unscored terms add up, the mean
    of a reward is over its terms, and whatever else rewards report is a mean over rollouts."""
    rollouts = [r for g in groups for r in g]
    for name, value in (score(rollouts) if rollouts else {}).items():
        if name.startswith("unscored/"):
            stats[name] = (stats.get(name, (0.0, None))[0] + value, None)
        else:
            weight = len(rollouts)
            if name.startswith("rewards/"):
                weight = sum(r.reward_terms.get(name.removeprefix("rewards/")) is not None for r in rollouts)
            total, count = stats.get(name, (0.0, 0))
            stats[name] = (total + value * weight, count + weight)


def rollout_stats(groups: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    """Rewards, lengths and truncation of an episode."""
    rollouts = [r for g in groups for r in g]
    lengths = [len(r.token_ids) for r in rollouts]
    rewards = [[r.reward for r in g if r.reward is not None] for g in groups]
    scored = [reward for row in rewards for reward in row]
    spread = [float(np.std(row)) for row in rewards if row]
    episodes = [r.messages for r in rollouts if r.messages]
    return episode_stats(episodes) | {
        "reward": (float(sum(scored)), len(scored)),
        "reward_std": (sum(spread), len(spread)),
        "unscored": (len(rollouts) - len(scored), len(rollouts)),
        "completion_length/mean": (sum(lengths), len(lengths)),
        "completion_length/max": max(lengths, default=0),
        "truncated": (sum(r.finish_reason == "length" for r in rollouts), len(rollouts)),
    }


def episode_stats(episodes: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Turns of the assistant and calls of tools per episode, and the share of calls that failed; nothing without
    episodes."""
    if not episodes:
        return {}
    outputs = [m["content"] for messages in episodes for m in messages if m["role"] == "tool"]
    turns = sum(m["role"] == "assistant" for messages in episodes for m in messages)
    return {
        "episode/turns": (turns, len(episodes)),
        "episode/tool_calls": (len(outputs), len(episodes)),
        "episode/tool_errors": (sum(output.startswith(ERROR) for output in outputs), len(outputs)),
    }


def surrogate_stats(surrogate: Surrogate, n: int) -> dict[str, Any]:
    """Importance ratios of the update, and the shares that the clip cuts off."""
    return {
        "ratio/mean": (surrogate.ratio_N.sum(), n),
        "ratio/max": surrogate.ratio_N.max() if n else float("-inf"),
        "clip_fraction/low": (surrogate.clipped_low_N.sum(), n),
        "clip_fraction/high": (surrogate.clipped_high_N.sum(), n),
    }


def sampler_stats(ratio_N: torch.Tensor, n: int) -> dict[str, Any]:
    """How far the sampler is from the policy it stands for: mean ratio, and the share outside [0.9, 1.1]."""
    outside = ((ratio_N < 0.9) | (ratio_N > 1.1)).sum()
    return {"sampler_ratio/mean": (ratio_N.sum(), n), "sampler_ratio/outside": (outside, n)}


def sample_records(groups: Sequence[Sequence[Rollout]]) -> list[dict[str, Any]]:
    """For samples.jsonl, one of each group first."""
    return [_record(r) for column in zip(*groups, strict=True) for r in column]


def _shown(messages: Sequence[Mapping[str, Any]]) -> str:
    """An episode as text, with its calls."""
    parts = []
    for message in messages:
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
        parts += ["\n".join([f"{message['role']}: {message['content']}", *calls])]
    return "\n\n".join(parts)


def _record(rollout: Rollout) -> dict[str, Any]:
    return {
        "prompt": rollout.prompt.messages[-1]["content"] if rollout.prompt.messages else rollout.prompt.id,
        "completion": _shown(rollout.messages) if rollout.messages else rollout.text,
        "reward": rollout.reward,
        "reward_terms": rollout.reward_terms,
        "finish_reason": rollout.finish_reason,
        "prompt_id": rollout.prompt.id,
        "tokens": len(rollout.token_ids),
    }

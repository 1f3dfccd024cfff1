"""Rewards made of rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.calls import AsyncLoop, Outcome, call_together
from rewards.completions import Completion
from rewards.from_verifier import RewardFn
from rewards.registry import register_reward_factory
from rewards.specs import RewardSpec, read_spec


@register_reward_factory("qwen_math")
def qwen_math(model_reward: object, verifier_reward: object) -> RewardFn:
    """Qwen2.5-Math: sigmoid(0.5 · model reward) + (verifier - 1); a right answer is always above a wrong one.

    Source: arXiv 2409.12122. Right answers lie in (0, 1), wrong ones in (-1, 0), and the model orders
    each. model_reward, verifier_reward: entries as in a recipe's `rewards`, such as `reward_model` or `{name: judge,
    …}` and `verifier:math`; both are called at the same time with the same columns. A completion that either of them
    leaves unscored is unscored.

    >>> from rewards import register_reward
    >>> scale = register_reward("scale")(lambda prompts, completions, **columns: [0.0, 2.0, None])
    >>> reward = qwen_math(model_reward="scale", verifier_reward="verifier:math")
    >>> [r if r is None else round(r, 3) for r in reward([""] * 3, ["4", "5", "4"], answer=["4", "4", "4"])]
    [0.5, -0.269, None]

    Raises ValueError when a reward cannot be made or has a weight. The reward raises RuntimeError when one of the two
    fails, and ValueError when the verifier says anything but 0 or 1.
    """
    specs = [_unweighted(read_spec(entry)) for entry in (model_reward, verifier_reward)]
    fns = [spec.build() for spec in specs]
    loop = AsyncLoop()

    def reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        arguments = {"prompts": prompts, "completions": completions, **columns}
        outcomes = call_together([(fn, dict(arguments)) for fn in fns], loop)
        model_terms, verdicts = (_values(spec, outcome, len(completions)) for spec, outcome in zip(specs, outcomes))
        return [_combine(r_m, r_v, specs[1].name) for r_m, r_v in zip(model_terms, verdicts)]

    return reward


def _combine(r_m: float | None, r_v: float | None, verifier: str) -> float | None:
    """r = sigmoid(0.5 r_m) + (r_v - 1)."""
    if r_m is None or r_v is None:
        return None
    if r_v not in (0.0, 1.0):
        raise ValueError(f"{verifier!r} gave {r_v:g}; a verifier that says 0 or 1 is needed (no partial credit)")
    # tanh does not overflow; not-a-number stays so, for the runner to report
    return (0.5 * (1.0 + math.tanh(0.25 * r_m)) if math.isfinite(r_m) else math.nan) + (float(r_v) - 1.0)


def _unweighted(spec: RewardSpec) -> RewardSpec:
    if spec.weight != 1.0:
        raise ValueError(f"{spec.name!r} has a weight, which the formula leaves no place for")
    return spec


def _values(spec: RewardSpec, outcome: Outcome, size: int) -> list[float | None]:
    if outcome.problem:
        raise RuntimeError(f"{spec.name!r} {outcome.problem.replace('_', ' ')}: {outcome.detail}")
    values = outcome.values.tolist() if hasattr(outcome.values, "tolist") else list(outcome.values)
    if len(values) != size:
        raise RuntimeError(f"{spec.name!r} returned {len(values)} values for {size} completions")
    return values

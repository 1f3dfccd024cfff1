"""Rewards: functions with TRL's signature, found by name, run so that a broken one cannot break a run.

>>> from rewards import get_reward
>>> get_reward("verifier:math")(["1 + 1?"], ["It is 2."], answer=["2"])
[1.0]
"""

from rewards.completions import completion_text
from rewards.from_verifier import RewardFn, from_verifier
from rewards.registry import (
    RewardInfo,
    get_reward,
    list_rewards,
    register_reward,
    register_reward_factory,
    reward_info,
)
from rewards.runner import RewardRunner

__all__ = [
    "RewardFn",
    "RewardInfo",
    "RewardRunner",
    "completion_text",
    "from_verifier",
    "get_reward",
    "list_rewards",
    "register_reward",
    "register_reward_factory",
    "reward_info",
]

"""Reward functions by name.

A reward has TRL's signature: `f(prompts, completions, **columns) -> list[float | None]`, synchronous or async, with
completions either plain strings or lists of messages. None leaves a completion unscored by this reward.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewards.from_verifier import RewardFn, from_verifier
from verifiers.registry import did_you_mean, first_docstring_line, list_verifiers, load_object, verifier_info

VERIFIER_PREFIX = "verifier:"
# Arguments that every reward receives; the others are columns of the rows.
COMMON_ARGUMENTS = frozenset(
    ["prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"]
)

# Built-in rewards and the module that registers each; a module is imported when its name is first asked for.
_BUILTIN_MODULES: dict[str, str] = {}
_registered: dict[str, RewardFn] = {}


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """A reward: its name, the row columns its signature names, and its docstring's first line."""

    name: str
    fn: RewardFn
    columns: tuple[str, ...]
    summary: str


def register_reward(name: str) -> Callable[[RewardFn], RewardFn]:
    """Register a reward under `name`. Raises ValueError when another function has it, or when it holds a colon."""
    if ":" in name:
        raise ValueError(f"a reward's name has no colon, got {name!r}: colons mark verifiers and import paths")

    def register(fn: RewardFn) -> RewardFn:
        known = _registered.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (fn.__module__, fn.__qualname__):
            raise ValueError(f"a reward named {name!r} is already registered; choose another name")
        _registered[name] = fn
        return fn

    return register


def get_reward(spec: str) -> RewardFn:
    """A registered reward, `verifier:NAME`, or the function at `package.module:function`.

    Raises ValueError with the nearest known name for anything else.
    """
    if spec.startswith(VERIFIER_PREFIX):
        return from_verifier(spec.removeprefix(VERIFIER_PREFIX))
    if spec not in _registered and spec in _BUILTIN_MODULES:
        importlib.import_module(_BUILTIN_MODULES[spec])
    if spec in _registered:
        return _registered[spec]
    if ":" in spec:
        fn = load_object(spec)
        if not callable(fn):
            raise ValueError(f"{spec!r} is not callable, so it cannot be a reward")
        return fn
    names = list_rewards()
    hint = f"; did you mean '{VERIFIER_PREFIX}{spec}'?" if spec in list_verifiers() else did_you_mean(spec, names)
    raise ValueError(f"unknown reward {spec!r}{hint} Known rewards: {', '.join(names)}, or package.module:function")


def list_rewards() -> list[str]:
    """Sorted names that `get_reward` knows, the verifiers included; loads none of them."""
    return sorted({*_BUILTIN_MODULES, *_registered} | {f"{VERIFIER_PREFIX}{name}" for name in list_verifiers()})


def reward_info(spec: str) -> RewardInfo:
    """Raises ValueError as `get_reward` does."""
    fn = get_reward(spec)
    if spec.startswith(VERIFIER_PREFIX):
        info = verifier_info(spec.removeprefix(VERIFIER_PREFIX))
        return RewardInfo(spec, fn, info.columns, info.summary)
    return RewardInfo(spec, fn, _columns(fn), first_docstring_line(fn))


def _columns(fn: Callable[..., Any]) -> tuple[str, ...]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(fn).parameters.values()
    return tuple(p.name for p in parameters if p.kind in named and p.name not in COMMON_ARGUMENTS)

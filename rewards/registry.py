"""Reward functions by name.

A reward has TRL's signature: `f(prompts, completions, **columns) -> list[float | None]`, synchronous or async, with
completions either plain strings or lists of messages. None leaves a completion unscored by this reward.

A reward with parameters is registered as a factory: a function of the parameters that returns the reward.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rewards.from_verifier import RewardFn, from_verifier
from verifiers.registry import did_you_mean, first_docstring_line, list_verifiers, load_object, verifier_info

VERIFIER_PREFIX = "verifier:"
ROUTING_PREFIX = "routing:"
JUDGE_PREFIX = "judge:"
REWARD_MODEL_PREFIX = "reward_model:"
# Arguments that every reward receives; the others are columns of the rows.
COMMON_ARGUMENTS = frozenset(
    ["prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"]
)

# Built-in rewards and the module that registers each; a module is imported when its name is first asked for.
_BUILTIN_MODULES: dict[str, str] = {
    "judge": "rewards.judge",
    "language_consistency": "rewards.shaping",
    "length": "rewards.shaping",
    "overlong": "rewards.shaping",
    "qwen_math": "rewards.compose",
    "repetition": "rewards.shaping",
    "reward_model": "rewards.reward_model",
    "routing": "rewards.routing",
}
_registered: dict[str, RewardFn] = {}
_factories: dict[str, _Factory] = {}


@dataclass(frozen=True, slots=True)
class _Factory:
    make: Callable[..., RewardFn]
    columns: tuple[str, ...]
    optional: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """A reward: its name, the row columns it needs, those it reads when present, its parameters and its docstring's
    first line. `fn` is the reward, or with a factory the function that makes it."""

    name: str
    fn: Callable[..., Any]
    columns: tuple[str, ...]
    summary: str
    optional: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def register_reward(name: str) -> Callable[[RewardFn], RewardFn]:
    """Register a reward under `name`. Raises ValueError when another function has it, or when it holds a colon."""
    _check_name(name)

    def register(fn: RewardFn) -> RewardFn:
        _check_free(name, fn)
        _registered[name] = fn
        return fn

    return register


def register_reward_factory(
    name: str, columns: Iterable[str] = (), optional: Iterable[str] = ()
) -> Callable[[Callable[..., RewardFn]], Callable[..., RewardFn]]:
    """Register a function that makes a reward from parameters: `{name: NAME, parameter: value}` in YAML.

    The function's signature names the parameters and its docstring's first line says what the reward scores; it raises
    ValueError for bad values. columns, optional: the row columns that the reward needs and those it reads if present.
    Raises ValueError as `register_reward` does, and when a parameter is called `name` or `weight`.
    """
    _check_name(name)

    def register(make: Callable[..., RewardFn]) -> Callable[..., RewardFn]:
        _check_free(name, make)
        reserved = {"name", "weight"} & inspect.signature(make).parameters.keys()
        if reserved:
            raise ValueError(f"a reward's parameter cannot be called {min(reserved)!r}, YAML entries use that key")
        _factories[name] = _Factory(make, tuple(columns), tuple(optional))
        return make

    return register


def _check_name(name: str) -> None:
    if ":" in name:
        raise ValueError(f"a reward's name has no colon, got {name!r}: colons mark verifiers and import paths")


def _check_free(name: str, fn: Callable[..., Any]) -> None:
    known = _factories[name].make if name in _factories else _registered.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (fn.__module__, fn.__qualname__):
        raise ValueError(f"a reward named {name!r} is already registered; choose another name")


def get_reward(spec: str, parameters: Mapping[str, Any] | None = None) -> RewardFn:
    """A registered reward, `verifier:NAME`, `routing:FILE`, `judge:FILE`, `reward_model:PATH`, or the function at
    `package.module:function`.

    parameters: of a registered factory (or one at `package.module:function`); with `judge:FILE` they come before those
    in the file, with `verifier:NAME` they are values for columns that a row does not have. Raises ValueError with the
    nearest known name for anything else, and for unknown, missing or bad parameters.
    """
    given = dict(parameters or {})
    if spec.startswith(VERIFIER_PREFIX):
        return from_verifier(spec.removeprefix(VERIFIER_PREFIX), given)
    if spec.startswith(ROUTING_PREFIX):
        return get_reward("routing", {"path": spec.removeprefix(ROUTING_PREFIX), **given})
    if spec.startswith(REWARD_MODEL_PREFIX):
        return get_reward("reward_model", {"path": spec.removeprefix(REWARD_MODEL_PREFIX), **given})
    if spec.startswith(JUDGE_PREFIX):
        return _judge(spec, given)
    found = _find(spec)
    if isinstance(found, _Factory):
        return _make(spec, found, given)
    if given:
        raise ValueError(f"the reward {spec!r} has no parameters, got {', '.join(map(str, given))}")
    return found


def _judge(spec: str, given: dict[str, Any]) -> RewardFn:
    from rewards.judge.settings import read_settings

    path = spec.removeprefix(JUDGE_PREFIX)
    fn = get_reward("judge", {**read_settings(path), **given})
    fn.__name__ = fn.__qualname__ = PurePath(path).stem  # several judges are told apart by their files
    return fn


def _find(spec: str) -> RewardFn | _Factory:
    if spec not in {*_registered, *_factories} and spec in _BUILTIN_MODULES:
        importlib.import_module(_BUILTIN_MODULES[spec])
    if spec in _factories:
        return _factories[spec]
    if spec in _registered:
        return _registered[spec]
    if ":" in spec:
        fn = load_object(spec)
        if not callable(fn):
            raise ValueError(f"{spec!r} is not callable, so it cannot be a reward")
        return next((factory for factory in _factories.values() if factory.make is fn), fn)
    names = list_rewards()
    hint = f"; did you mean '{VERIFIER_PREFIX}{spec}'?" if spec in list_verifiers() else did_you_mean(spec, names)
    raise ValueError(f"unknown reward {spec!r}{hint} Known rewards: {', '.join(names)}, or package.module:function")


def check_reward(spec: str, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError as `get_reward` does for unknown names, and for unknown or missing parameters. Makes no reward,
    because that may mean to load a model."""
    if spec.startswith(VERIFIER_PREFIX):
        from_verifier(spec.removeprefix(VERIFIER_PREFIX), parameters)
        return
    if spec.startswith(REWARD_MODEL_PREFIX):
        spec, parameters = "reward_model", {"path": spec.removeprefix(REWARD_MODEL_PREFIX), **parameters}
    found = _find("judge" if spec.startswith(JUDGE_PREFIX) else spec)
    if isinstance(found, _Factory) and not spec.startswith(JUDGE_PREFIX):
        _check_parameters(spec, found, parameters)


def _check_parameters(spec: str, factory: _Factory, given: Mapping[str, Any]) -> None:
    known = inspect.signature(factory.make).parameters
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        names = ", ".join(known) or "none"
        raise ValueError(f"reward {spec!r} has no parameter {unknown!r}{did_you_mean(str(unknown), known)} "
                         f"Its parameters: {names}")  # fmt: skip
    missing = [name for name, p in known.items() if p.default is p.empty and name not in given]
    if missing:
        raise ValueError(f"reward {spec!r} needs {missing[0]!r}: {{name: {spec}, {missing[0]}: …}}")


def _make(spec: str, factory: _Factory, given: dict[str, Any]) -> RewardFn:
    _check_parameters(spec, factory, given)
    try:
        fn = factory.make(**given)
    except ValueError as error:
        raise ValueError(f"reward {spec!r}: {error}") from error
    if inspect.isfunction(fn):
        fn.__name__ = fn.__qualname__ = spec.rpartition(":")[2]  # what TRL calls the reward in its logs
    return fn


def list_rewards() -> list[str]:
    """Sorted names that `get_reward` knows, the verifiers included; loads none of them."""
    names = {*_BUILTIN_MODULES, *_registered, *_factories}
    return sorted(names | {f"{VERIFIER_PREFIX}{name}" for name in list_verifiers()})


def reward_info(spec: str) -> RewardInfo:
    """Raises ValueError as `get_reward` does; a factory is not called."""
    if spec.startswith(VERIFIER_PREFIX):
        info = verifier_info(spec.removeprefix(VERIFIER_PREFIX))
        return RewardInfo(spec, get_reward(spec), info.columns, info.summary, info.optional)
    with_file = spec.startswith((ROUTING_PREFIX, JUDGE_PREFIX, REWARD_MODEL_PREFIX))
    found = _find(spec.partition(":")[0] if with_file else spec)
    if isinstance(found, _Factory):
        summary, parameters = first_docstring_line(found.make), tuple(inspect.signature(found.make).parameters)
        return RewardInfo(spec, found.make, found.columns, summary, found.optional, parameters)
    columns, optional = _columns(found)
    return RewardInfo(spec, found, columns, first_docstring_line(found), optional)


def _columns(fn: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns that the signature names, those without and those with a default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(fn).parameters.values() if p.kind in named]
    columns = [p for p in parameters if p.name not in COMMON_ARGUMENTS]
    needed = tuple(p.name for p in columns if p.default is p.empty)
    return needed, tuple(p.name for p in columns if p.default is not p.empty)

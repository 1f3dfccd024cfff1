"""`RewardRunner`: several rewards on a batch of rollouts; none of them can stop a run or turn into a silent zero."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, Protocol

from rewards.calls import AsyncLoop, Outcome, is_async, read_terms, start_async, start_in_thread, wait
from rewards.from_verifier import RewardFn

log = logging.getLogger("rewards")
_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_RESERVED = {"prompt", "completion", *_ARGUMENTS}


class ScoredPrompt(Protocol):
    @property
    def messages(self) -> list[dict]: ...
    @property
    def row(self) -> Mapping[str, Any]: ...


class ScoredRollout(Protocol):
    """What is read of a rollout, and the two fields that are set."""

    @property
    def prompt(self) -> ScoredPrompt: ...

    text: str
    token_ids: list[int]
    reward: float | None
    reward_terms: dict[str, float | None]


class RewardRunner:
    """Calls each reward once per batch with TRL's arguments and adds the weighted terms up.

    rewards: (name, function, weight). timeout_s: wall time of one call of one reward; a call that exceeds it leaves the
    whole batch without that term. Async rewards run concurrently.
    """

    def __init__(self, rewards: Sequence[tuple[str, RewardFn, float]], timeout_s: float) -> None:
        names = [name for name, _, _ in rewards]
        repeated = [name for name, times in Counter(names).items() if times > 1]
        if repeated:
            raise ValueError(f"the reward {repeated[0]!r} is named twice; give each one name and one weight")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s}")
        self.rewards = list(rewards)
        self.timeout_s = timeout_s
        self._loop = AsyncLoop()
        self._warned: set[tuple[str, str]] = set()

    def __call__(self, rollouts: Sequence[ScoredRollout]) -> dict[str, float]:
        """Set `reward` and `reward_terms` of every rollout and return metrics.

        `reward` is the sum of weight x term over the terms that are numbers, as in TRL, and None when none is.
        Metrics, per reward: `rewards/NAME` (mean of its terms), `unscored/NAME` (how many terms are missing) and, where
        it happened, `unscored/NAME/raised | timed_out | none | not_finite | invalid`; and what rewards report through
        `log_metric`.
        """
        if not rollouts:
            return {}
        logged: dict[str, list[float]] = defaultdict(list)
        arguments = _arguments(rollouts, lambda name, value: logged[name].append(float(value)))
        metrics: dict[str, float] = {}
        terms: dict[str, list[float | None]] = {}
        for name, outcome in self._call_all(arguments).items():
            values, problems = self._terms(name, outcome, len(rollouts))
            terms[name] = values
            scored = [value for value in values if value is not None]
            if scored:
                metrics[f"rewards/{name}"] = sum(scored) / len(scored)
            metrics[f"unscored/{name}"] = float(len(values) - len(scored))
            metrics |= {f"unscored/{name}/{kind}": float(times) for kind, times in problems.items()}
        weights = {name: weight for name, _, weight in self.rewards}
        for i, rollout in enumerate(rollouts):
            rollout.reward_terms = {name: values[i] for name, values in terms.items()}
            weighted = [weights[name] * term for name, term in rollout.reward_terms.items() if term is not None]
            rollout.reward = sum(weighted) if weighted else None
        return metrics | {name: sum(values) / len(values) for name, values in list(logged.items())}

    def _call_all(self, arguments: dict[str, Any]) -> dict[str, Outcome]:
        pending: dict[str, Future[Any]] = {}
        outcomes: dict[str, Outcome] = {}
        for name, fn, _ in self.rewards:
            if is_async(fn):
                pending[name] = self._loop.start(start_async(fn, _own(arguments)))
        for name, fn, _ in self.rewards:
            if name not in pending:
                outcomes[name] = wait(start_in_thread(fn, _own(arguments)), self.timeout_s)
        for name, future in pending.items():
            outcomes[name] = wait(future, self.timeout_s)
        if any(outcomes[name].problem == "timed_out" for name in pending):
            self._loop.abandon_if_blocked()
        return {name: outcomes[name] for name, _, _ in self.rewards}

    def _terms(self, name: str, outcome: Outcome, size: int) -> tuple[list[float | None], Counter[str]]:
        """One term per rollout, None where unscored, and how often each problem occurred."""
        terms = read_terms(outcome, size)
        for problem, detail in terms.details.items():
            self._warn(name, problem, detail)
        return terms.values, terms.problems

    def _warn(self, name: str, problem: str, detail: str) -> None:
        """Once per reward and kind of problem; the counts are in the metrics of every batch."""
        if (name, problem) not in self._warned:
            self._warned.add((name, problem))
            log.warning("reward %r: %s; these completions are unscored. %s", name, problem.replace("_", " "), detail)


def _arguments(rollouts: Sequence[ScoredRollout], log_metric: Any) -> dict[str, Any]:
    """TRL's keyword arguments. A column that some rows lack holds None there."""
    rows = [rollout.prompt.row for rollout in rollouts]
    names = dict.fromkeys(key for row in rows for key in row if key not in _RESERVED)
    chat = all(rollout.prompt.messages for rollout in rollouts)
    return {
        "prompts": [r.prompt.messages if chat else r.prompt.row.get("prompt", "") for r in rollouts],
        "completions": [_messages(r) if chat else r.text for r in rollouts],
        "completion_ids": [list(r.token_ids) for r in rollouts],
        **{name: [row.get(name) for row in rows] for name in names},
        "trainer_state": SimpleNamespace(global_step=max(getattr(r, "policy_step", 0) for r in rollouts)),
        "log_extra": lambda column, values: None,
        "log_metric": log_metric,
    }


def _messages(rollout: ScoredRollout) -> list[dict]:
    """The answer as a message; of an episode with tools all its messages."""
    return getattr(rollout, "messages", None) or [{"role": "assistant", "content": rollout.text}]


def _own(arguments: dict[str, Any]) -> dict[str, Any]:
    """Lists of its own for each reward, so that one cannot change what the next one sees."""
    return {key: list(value) if isinstance(value, list) else value for key, value in arguments.items()}

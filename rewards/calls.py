"""Calling one reward so that it can neither stop nor stall the caller."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any

_PROBE_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave: `values`, or `problem` ("raised" or "timed_out") with the text of it."""

    values: Any = None
    problem: str = ""
    detail: str = ""


def is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def start_in_thread(fn: Callable[..., Any], arguments: dict[str, Any]) -> Future[Any]:
    """Run in a daemon thread; one that never comes back is abandoned and does not keep the process alive."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # so that nobody's cancel() can make a late result an error

    def work() -> None:
        try:
            future.set_result(fn(**arguments))
        except BaseException as error:  # a reward may call sys.exit
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name=f"reward {getattr(fn, '__name__', '')}").start()
    return future


def wait(future: Future[Any], timeout_s: float | None) -> Outcome:
    try:
        return Outcome(future.result(timeout_s))
    except (FutureTimeoutError, asyncio.CancelledError) as error:
        if future.done() and not future.cancelled() and future.exception() is error:
            return Outcome(None, "raised", _text(error))
        future.cancel()
        return Outcome(None, "timed_out", f"no answer within {timeout_s or 0:.3g} s")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not future.done():
            raise
        return Outcome(None, "raised", _text(error))


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).strip()


class AsyncLoop:
    """One event loop in a daemon thread, kept over calls because clients hold on to their loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="async rewards").start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def abandon_if_blocked(self) -> None:
        """After a timeout: a coroutine that blocks the loop would block the next call too."""
        try:
            self.start(asyncio.sleep(0)).result(_PROBE_S)
        except FutureTimeoutError:
            self._loop = None


async def start_async(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Inside a coroutine also a call with wrong arguments raises where it is caught."""
    return await fn(**arguments)


def call_together(
    calls: Sequence[tuple[Callable[..., Any], dict[str, Any]]], loop: AsyncLoop, timeout_s: float | None = None
) -> list[Outcome]:
    """Call rewards at the same time, each with its own arguments; `timeout_s` counts for all of them together."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    asynchronous = [is_async(fn) for fn, _ in calls]
    futures = [
        loop.start(start_async(fn, arguments)) if on_loop else start_in_thread(fn, arguments)
        for (fn, arguments), on_loop in zip(calls, asynchronous)
    ]
    outcomes = [wait(future, None if end is None else max(0.0, end - time.monotonic())) for future in futures]
    late = [outcome.problem == "timed_out" for outcome in outcomes]
    if any(is_late and on_loop for is_late, on_loop in zip(late, asynchronous)):
        loop.abandon_if_blocked()
    text = "" if timeout_s is None else f"no answer within {timeout_s:g} s"
    return [Outcome(None, "timed_out", text) if is_late else outcome for outcome, is_late in zip(outcomes, late)]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a reward gave for each completion (None where unscored), how often each problem occurred ("none",
    "not_finite", "invalid", "raised", "timed_out"), and the text of the first of each kind but "none"."""

    values: list[float | None]
    problems: Counter[str]
    details: dict[str, str] = field(default_factory=dict)


def read_terms(outcome: Outcome, size: int) -> Terms:
    """An outcome as `size` terms; one that is no list of `size` values leaves all unscored."""
    if outcome.problem:
        return Terms([None] * size, Counter({outcome.problem: size}), {outcome.problem: outcome.detail})
    values = outcome.values.tolist() if hasattr(outcome.values, "tolist") else outcome.values
    if not isinstance(values, (list, tuple)) or len(values) != size:
        got = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        detail = f"it returned {got}; a reward returns a list of one number or None per completion"
        return Terms([None] * size, Counter({"invalid": size}), {"invalid": detail})
    terms = Terms([], Counter())
    for value in values:
        term, problem = read_number(value)
        terms.values.append(term)
        if problem:
            terms.problems[problem] += 1
            if problem != "none":
                terms.details.setdefault(problem, f"it returned {value!r} for a completion")
    return terms


def read_number(value: Any) -> tuple[float | None, str]:
    """The term and the problem with it, "" if none. numpy and torch scalars are numbers."""
    if value is None:
        return None, "none"
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            return None, "invalid"
    if not isinstance(value, (int, float)):
        return None, "invalid"
    return (float(value), "") if math.isfinite(value) else (None, "not_finite")

"""Calling one reward so that it can neither stop nor stall the caller."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
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


def wait(future: Future[Any], timeout_s: float) -> Outcome:
    try:
        return Outcome(future.result(timeout_s))
    except (FutureTimeoutError, asyncio.CancelledError) as error:
        if future.done() and not future.cancelled() and future.exception() is error:
            return Outcome(None, "raised", _text(error))
        future.cancel()
        return Outcome(None, "timed_out", f"no answer within {timeout_s:g} s")
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

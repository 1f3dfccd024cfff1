"""Calling tools so that none can stop or stall the caller: what fails or hangs becomes an error the model reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from alignment.chat.tool_calls import ToolCall

Tool = Callable[[Mapping[str, Any]], str]
"""A function of the call's arguments that returns text. It raises for arguments it cannot work with."""

ERROR = "error: "
"""How the output of a failed call begins."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The calls of one turn of one episode, the tools it has, and the seconds that are left for them."""

    calls: Sequence[ToolCall]
    tools: Mapping[str, Tool]
    seconds: float


def run_turns(turns: Sequence[Turn], call_seconds: float, parallel: int) -> list[tuple[list[str], float]]:
    """For each turn the outputs of its calls and the seconds they took. Its calls run one after another, those of up to
    `parallel` turns at the same time, each for `call_seconds` at most and as long as its turn has seconds left.

    A call that takes longer is abandoned in its thread, which ends with the process: tools that can hang had better
    limit themselves, as the sandbox does.
    """
    if not turns:
        return []
    with ThreadPoolExecutor(min(parallel, len(turns))) as pool:
        return list(pool.map(lambda turn: _run_turn(turn, call_seconds), turns))


def _run_turn(turn: Turn, call_seconds: float) -> tuple[list[str], float]:
    outputs, used = [], 0.0
    for call in turn.calls:
        started = time.monotonic()
        outputs.append(_run_call(call, turn.tools, min(call_seconds, turn.seconds - used)))
        used += time.monotonic() - started
    return outputs, used


def _run_call(call: ToolCall, tools: Mapping[str, Tool], seconds: float) -> str:
    if call.error:
        return ERROR + call.error
    if call.name not in tools:
        return f"{ERROR}there is no tool {call.name!r}; the tools are {', '.join(tools)}"
    if seconds <= 0:
        return f"{ERROR}the time for tools is used up"
    results: SimpleQueue[str] = SimpleQueue()

    def work() -> None:
        try:
            output = tools[call.name](call.arguments)
            results.put(output if isinstance(output, str) else f"{ERROR}the tool gave {type(output).__name__}, no text")
        except BaseException as error:  # a tool may call sys.exit
            results.put(f"{ERROR}{type(error).__name__}: {error}")

    threading.Thread(target=work, daemon=True, name=f"tool {call.name}").start()
    try:
        return results.get(timeout=seconds)
    except Empty:
        return f"{ERROR}no answer within {seconds:.3g} s"

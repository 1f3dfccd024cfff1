"""Verifying many responses, on all cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from verifiers.registry import Verifier, verify
from verifiers.verdict import Verdict


def verify_all(verifier: str | Verifier, responses: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """`verify` for each pair, in order, from one thread per core, because verifiers wait for sandboxes and workers.

    The threads are daemons, so a verifier that hangs cannot keep the process from ending. Raises ValueError for an
    unknown name or unequal lengths.
    """
    if len(responses) != len(rows):
        raise ValueError(f"{len(responses)} responses for {len(rows)} rows")
    verdicts: list[Verdict | None] = [None] * len(rows)
    failures: list[BaseException] = []
    turn = count()

    def work() -> None:
        try:
            while not failures and (i := next(turn)) < len(rows):
                verdicts[i] = verify(verifier, responses[i], rows[i])
        except BaseException as error:  # raised again in the calling thread
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(len(os.sched_getaffinity(0)), len(rows)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return verdicts  # type: ignore[return-value]

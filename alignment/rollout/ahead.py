"""One step off-policy: the next episode's rollouts are made while the current one trains.

They come from the policy of the step before, so they are one update old when they are trained on; their stamps and
log-probabilities say so. New weights wait until they are finished, and a checkpoint holds them, so a run that goes on
from it is the same as one that was never interrupted; on another number of ranks they are made anew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.distributed import rank, together, world_size
from alignment.errors import UserError
from alignment.types import Engine, Prompt, Rollout, Sampling


@dataclass
class _Flight:
    """everywhere: indices of the prompts of all ranks."""

    step: int
    everywhere: list[int]
    thread: threading.Thread | None = None
    groups: list[list[Rollout]] | None = None
    problem: Exception | None = None


class Ahead:
    """Rollouts of one step ahead, of this rank's prompts, made in a thread."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], n: int, sampling: Sampling):
        self.engine, self.prompts, self.n, self.sampling = engine, prompts, n, sampling
        self.flight: _Flight | None = None

    def start(self, step: int, everywhere: list[int]) -> None:
        """Begin with this rank's rollouts of `step`, by the weights that the engine has now. everywhere: the prompts of
        all ranks."""
        flight = _Flight(step, everywhere)
        flight.thread = threading.Thread(target=self._make, args=(flight,), name="rollouts", daemon=True)
        self.flight = flight
        flight.thread.start()

    def wait(self) -> None:
        """Until what was begun is finished, on every rank. Raises what making it raised; it is then made by `take`."""

        def join() -> None:
            flight = self.flight
            if flight is None or flight.thread is None:
                return
            flight.thread.join()
            flight.thread = None
            if flight.problem is not None:
                raise flight.problem

        together(join)

    def take(self, step: int) -> tuple[list[int], list[list[Rollout]]] | None:
        """The prompts of `step`, of all ranks, and this rank's rollouts, made now where they were not; None when it was
        not begun."""
        self.wait()
        flight, self.flight = self.flight, None
        if flight is None:
            return None
        assert flight.step == step

        def complete() -> None:
            if flight.groups is None:
                self._make(flight)
            if flight.problem is not None:
                raise flight.problem

        together(complete)
        assert flight.groups is not None
        return flight.everywhere, flight.groups

    def _make(self, flight: _Flight) -> None:
        flight.problem = None
        try:
            prompts = [self.prompts[i] for i in flight.everywhere[rank() :: world_size()]]
            flight.groups = self.engine.generate(prompts, self.n, self.sampling, flight.step)
        except Exception as error:
            flight.problem = error

    def state_dict(self) -> dict[str, Any] | None:
        """What is under way, finished; or only its prompts where it failed."""
        flight = self.flight
        if flight is None:
            return None
        if flight.thread is not None:
            flight.thread.join()
        return {"step": flight.step, "everywhere": flight.everywhere, "ranks": world_size(), "groups": flight.groups}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self.flight = None
        if state is not None:
            groups = state["groups"] if state["ranks"] == world_size() else None
            self.flight = _Flight(state["step"], state["everywhere"], groups=groups)


def check_ahead(engine: Engine) -> None:
    """Raises UserError for an engine that samples from the policy which is being trained."""
    if not getattr(engine, "remote", False):
        raise UserError("async_rollouts: the embedded engine samples from the model in training; set engine: vllm")

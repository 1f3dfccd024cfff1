"""`Verdict`: what a verifier says about one response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["pass", "fail", "unparsed", "timeout", "error"]
STATUSES: tuple[str, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of checking one response against its task row.

    score: in [0, 1]; None means *unscored* and goes with `error` alone.
    status: `pass` (score > 0), `fail`, `unparsed` (no answer could be read from the response; score 0), `timeout`
        (the response ran, or made its check run, out of time) or `error` (the check itself broke, which says nothing
        about the response).
    detail: one line for a person.
    seconds: wall time of the check.

    Raises ValueError when the fields contradict each other.
    """

    score: float | None
    status: Status
    detail: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"Verdict.status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        if self.status == "error":
            if self.score is not None:
                raise ValueError(f"a Verdict with status 'error' is unscored: score must be None, got {self.score!r}")
            return
        is_number = isinstance(self.score, (int, float)) and not isinstance(self.score, bool)
        if self.score is None or not is_number or not 0.0 <= self.score <= 1.0:
            raise ValueError(f"Verdict.score must be in [0, 1] with status {self.status!r}, got {self.score!r}")
        if self.status == "pass" and self.score == 0:
            raise ValueError("a Verdict with status 'pass' needs a score above 0")
        if self.status == "unparsed" and self.score != 0:
            raise ValueError(f"a Verdict with status 'unparsed' has score 0, got {self.score!r}")

    @property
    def passed(self) -> bool:
        return self.status == "pass"

"""A verifier as a reward function with TRL's signature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.completions import Completion, completion_text
from verifiers import Status, verifier_info, verify_all

RewardFn = Callable[..., Any]
_REPORTED: tuple[Status, ...] = ("unparsed", "timeout", "error")


def from_verifier(name: str) -> RewardFn:
    """The reward that gives each completion its verdict's score, and None (unscored) for status `error`.

    name: a registered verifier or `package.module:function`. The row that the verifier sees is made of the columns.
    Through the `log_metric` argument it reports the rates of unparsed, timeout and error verdicts.
    Raises ValueError for an unknown name.
    """
    info = verifier_info(name)
    short = name.rpartition(":")[2]

    def reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        rows = rows_of_columns(columns, len(completions))
        verdicts = verify_all(name, [completion_text(c) for c in completions], rows)
        log_metric = columns.get("log_metric")
        if log_metric is not None and verdicts:
            statuses = Counter(verdict.status for verdict in verdicts)
            for status in _REPORTED:
                log_metric(f"verdicts/{short}/{status}", statuses[status] / len(verdicts))
        return [verdict.score for verdict in verdicts]

    reward.__name__ = reward.__qualname__ = short
    reward.__doc__ = f"Score of the verifier {name!r}: {info.summary}"
    return reward


def rows_of_columns(columns: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """Columns of `size` values as rows; other arguments and values of None are left out."""
    kept = {k: v for k, v in columns.items() if isinstance(v, (list, tuple)) and len(v) == size}
    return [{key: values[i] for key, values in kept.items() if values[i] is not None} for i in range(size)]

"""A verifier as a reward function with TRL's signature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.completions import Completion, completion_text, prompt_text
from verifiers import Status, VerifierInfo, verifier_info, verify_all
from verifiers.registry import did_you_mean

RewardFn = Callable[..., Any]
_REPORTED: tuple[Status, ...] = ("unparsed", "timeout", "error")


def from_verifier(name: str, defaults: Mapping[str, Any] | None = None) -> RewardFn:
    """The reward that gives each completion its verdict's score, and None (unscored) for status `error`.

    name: a registered verifier or `package.module:function`. The row that the verifier sees is made of the columns, of
    the prompt (column `prompt`: its text, in a conversation the last user message's), and of `defaults` (column ->
    value) where a row has nothing.
    Through the `log_metric` argument it reports the rates of unparsed, timeout and error verdicts.
    Raises ValueError for an unknown name and for defaults that the verifier does not read.
    """
    info = verifier_info(name)
    fixed = dict(defaults or {})
    check_columns(info, fixed)
    short = name.rpartition(":")[2]

    def reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        asked = [{"prompt": text} if (text := prompt_text(prompt)) else {} for prompt in prompts]
        rows = [{**fixed, **own, **row} for own, row in zip(asked, rows_of_columns(columns, len(completions)))]
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


def check_columns(info: VerifierInfo, given: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the nearest column, when the verifier does not read one of the given columns. One that
    is not registered names no columns and may read any."""
    parts = [verifier_info(part) for part in given.get("verifiers", ()) if "verifiers" in info.columns]
    known = [column for one in (info, *parts) for column in (*one.columns, *one.optional)]
    unknown = next((column for column in given if column not in known), None) if known else None
    if unknown is not None:
        raise ValueError(f"verifier {info.name!r} reads no column {unknown!r}{did_you_mean(str(unknown), known)} "
                         f"It reads {', '.join(known)}")  # fmt: skip


def rows_of_columns(columns: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """Columns of `size` values as rows; other arguments and values of None are left out."""
    kept = {k: v for k, v in columns.items() if isinstance(v, (list, tuple)) and len(v) == size}
    return [{key: values[i] for key, values in kept.items() if values[i] is not None} for i in range(size)]

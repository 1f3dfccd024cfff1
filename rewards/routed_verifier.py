"""The verifiers behind a routing file as one verifier, for pass rates: `align verify --verifier routing:FILE`.

A task passes when every verifier among its rewards passes, those inside others included (the `verifier_reward` of
`qwen_math`); parameters of an entry fill columns that the row does not have. A task without a verifier (a judge, a
reward model) has no pass rate: its rows get status `error`, which is left out and counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rewards.registry import ROUTING_PREFIX
from rewards.routing import TASK, read_tasks, unknown_task
from rewards.specs import RewardSpec, nested_specs
from verifiers import Verdict, Verifier, get_verifier, verify
from verifiers.registry import (
    NoAnswerKeyError,
    answer_key,
    gold_response,
    register_verifier,
    verifier_info,
)


def find_verifier(name: str) -> Verifier:
    """What `verifiers.get_verifier` finds, or for `routing:FILE` the file's verifiers as one, registered by that name.

    Raises ValueError as `get_verifier` does; for a file that cannot be read, or with verifiers that do not exist, it
    names the file and the task.
    """
    if name.startswith(ROUTING_PREFIX):
        _register(name, name.removeprefix(ROUTING_PREFIX))
    return get_verifier(name)


def _register(name: str, path: str) -> None:
    parts = {task: _verifiers(specs) for task, specs in read_tasks(path).items()}
    for task, verifiers in parts.items():
        for spec in verifiers:
            try:
                verifier_info(spec.verifier)
            except ValueError as error:
                raise ValueError(f"{path}, task {task!r}: {error}") from error

    def of_row(row: Mapping[str, Any]) -> Sequence[RewardSpec]:
        task = str(row[TASK])
        if task not in parts:
            raise ValueError(unknown_task(task, parts))
        if not parts[task]:
            raise ValueError(f"task {task!r} has no verifier among its rewards, so it has no pass rate")
        return parts[task]

    def routed(response: str, row: Mapping[str, Any]) -> Verdict:
        """All verifiers of the row's task in a routing file."""
        verdicts = [(spec, verify(spec.verifier, response, _row(spec, row))) for spec in of_row(row)]
        for status in ("fail", "unparsed", "timeout", "error"):
            for spec, verdict in verdicts:
                if verdict.status == status:
                    return Verdict(verdict.score, verdict.status, f"{spec.verifier}: {verdict.detail}")
        return Verdict(min(verdict.score or 0.0 for _, verdict in verdicts), "pass")

    def answer_of(response: str, row: Mapping[str, Any]) -> Hashable | None:
        for spec in of_row(row):
            if verifier_info(spec.verifier).answer_of:
                return answer_key(spec.verifier, response, _row(spec, row))
        raise NoAnswerKeyError(f"no verifier of task {row[TASK]!r} tells a response's answer")

    def gold_of(gold: Any, row: Mapping[str, Any]) -> str:
        spec = of_row(row)[0]
        return gold_response(spec.verifier, gold, _row(spec, row))

    def parts_of(row: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        return [(spec.verifier, _row(spec, row)) for spec in of_row(row)]

    register_verifier(name, columns=(TASK,), answer_of=answer_of, gold_response=gold_of, parts=parts_of)(routed)


def _verifiers(specs: Sequence[RewardSpec]) -> list[RewardSpec]:
    return [part for spec in specs for part in nested_specs(spec) if part.verifier]


def _row(spec: RewardSpec, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec.parameters, **{name: value for name, value in row.items() if value is not None}}

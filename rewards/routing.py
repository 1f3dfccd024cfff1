"""Routing: each task has a reward of its own, all in one YAML file; a row's `task` column picks.

    tasks:
      arithmetic: verifier:math
      retrieval:                                # several entries: their weighted sum
        - {name: verifier:citation, min_citations: 2}
        - {name: judge, weight: 0.5, url: http://localhost:8000/v1, model: judge}
        - {name: overlong, weight: 0.2, max_length: 4096, buffer: 512}

In a recipe: `rewards: [routing:recipes/qwen3/rewards.yaml]`. Entries are those of `rewards.specs`. A reward is made
when a row first needs it, so one that is not available stops only its own tasks; and it is called once per batch with
the rows of all tasks that share it. Whatever goes wrong in one task leaves that task's rows unscored, never others.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rewards.calls import AsyncLoop, call_together, read_terms
from rewards.completions import Completion
from rewards.from_verifier import RewardFn
from rewards.registry import register_reward_factory
from rewards.specs import RewardSpec, nested_specs, read_specs
from verifiers.registry import did_you_mean, list_verifiers, verifier_info

log = logging.getLogger("rewards")
TASK = "task"
Tasks = Mapping[str, Sequence[RewardSpec]]


class _UniqueKeys(yaml.SafeLoader):
    """A task that stands in the file twice would silently lose its first reward."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_tasks(path: str | Path) -> dict[str, list[RewardSpec]]:
    """The tasks of a file with the entries of each. Raises ValueError naming the file and the task."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    try:
        content = yaml.load(Path(path).read_text(), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, dict) or not tasks or set(content) != {"tasks"}:
        raise ValueError(f"{path}: expected one key `tasks` that holds `TASK: reward` lines")
    specs = {}
    for task, entries in tasks.items():
        if not isinstance(task, str):
            raise ValueError(f"{path}: the task {task!r} is no text; put it in quotation marks")
        try:
            specs[task] = read_specs(entries if isinstance(entries, list) else [entries])
        except ValueError as error:
            raise ValueError(f"{path}, task {task!r}: {error}") from error
        if not specs[task]:
            raise ValueError(f"{path}, task {task!r}: no reward")
    return specs


def unknown_task(task: str, known: Iterable[str]) -> str:
    return f"unknown task {task!r}{did_you_mean(task, known) or '.'} The file has {', '.join(known)}"


def check_tasks(specs: Sequence[RewardSpec], rows: Iterable[Mapping[str, Any]], source: str) -> None:
    """Refuses a data set that the routing files among the entries could not score: a row without a task, with one that
    the file does not have, or without a column that one of its verifiers needs.

    Makes no reward. Raises ValueError naming the source, the row (from 1), the task and the routing file.
    """
    for path in [spec.parameters.get("path", "") for spec in specs if spec.name == "routing"]:
        needed = {task: _needed(entries) for task, entries in read_tasks(path).items()}
        for number, row in enumerate(rows, 1):
            place, task = f"{source}, row {number}", str(row.get(TASK))
            if row.get(TASK) is None:
                raise ValueError(f"{place}: no column {TASK!r}, by which {path} routes")
            if task not in needed:
                raise ValueError(f"{place}: {path}: {unknown_task(task, needed)}")
            for name, column in needed[task]:
                if row.get(column) is None:
                    raise ValueError(f"{place}: no column {column!r}, which {name} of task {task!r} needs ({path})")


def _needed(entries: Sequence[RewardSpec]) -> list[tuple[str, str]]:
    """(entry, column) for every column that a task's verifiers cannot do without."""
    found = []
    for spec in (part for entry in entries for part in nested_specs(entry)):
        if spec.verifier in list_verifiers():
            columns = verifier_info(spec.verifier).columns
            found += [(spec.name, column) for column in columns if column not in spec.parameters]
    return found


class Router:
    """The reward of a routing file: for each completion the weighted sum of its task's rewards.

    A sum of which one term is missing is missing: with a part left out it could not be compared with its group's
    others. Rewards run at the same time; those that take longer than `timeout_s` (wall time of one batch) leave their
    tasks unscored. Through `log_metric` it reports per task `tasks/TASK/reward` (mean), with several rewards each
    one's mean as `tasks/TASK/NAME`, and `unscored/tasks/TASK` (count).
    """

    __name__ = "routing"  # what TRL calls the reward in its logs

    def __init__(self, path: str | Path, timeout_s: float) -> None:
        self.path, self.timeout_s = str(path), timeout_s
        self.tasks: Tasks = read_tasks(path)
        self._made: dict[str, RewardFn] = {}
        self._loop = AsyncLoop()
        self._warned: set[str] = set()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Raises ValueError when the rows have no column `task`."""
        tasks = columns.get(TASK)
        if tasks is None:
            raise ValueError(f"the rows have no column {TASK!r}, by which {self.path} routes")
        tasks = [str(task) for task in tasks]
        specs_of_row = [self._specs(task) for task in tasks]
        extras: dict[str, list[Any]] = {}
        terms = self._terms(specs_of_row, {"prompts": prompts, "completions": completions, **columns}, extras)
        rewards = [_weighted_sum([(s.weight, terms[s.key][i]) for s in row]) for i, row in enumerate(specs_of_row)]
        for column, values in list(extras.items()):
            columns["log_extra"](column, values)
        if columns.get("log_metric"):
            self._report(columns["log_metric"], tasks, rewards, terms)
        return rewards

    def prepare(self, tasks: Iterable[str]) -> None:
        """Make the rewards of these tasks now. Raises ValueError, naming file and task, when one cannot be made."""
        for task in sorted(set(tasks) & self.tasks.keys()):
            for spec in self.tasks[task]:
                self._make(spec, f"{self.path}, task {task!r}")

    def _specs(self, task: str) -> Sequence[RewardSpec]:
        if task not in self.tasks:
            text = f"{unknown_task(task, self.tasks)}; these completions are unscored"
            self._warn(f"unknown {task}", text)
            return ()
        return self.tasks[task]

    def _make(self, spec: RewardSpec, place: str) -> RewardFn:
        if spec.key not in self._made:
            try:
                self._made[spec.key] = spec.build()
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            except Exception as error:  # a library or a model that is not there
                raise ValueError(f"{place}: reward {spec.name!r}: {type(error).__name__}: {error}") from error
        return self._made[spec.key]

    def _terms(
        self, specs_of_row: Sequence[Sequence[RewardSpec]], arguments: dict[str, Any], extras: dict[str, list[Any]]
    ) -> dict[str, list[float | None]]:
        """Per reward its terms for all rows of the batch, None for rows that are not its own."""
        size = len(specs_of_row)
        rows_of: dict[str, list[int]] = defaultdict(list)
        specs: dict[str, RewardSpec] = {}
        for i, row in enumerate(specs_of_row):
            for spec in row:
                specs[spec.key] = spec
                rows_of[spec.key].append(i)
        keys, calls = [], []
        for key, spec in specs.items():
            try:
                fn = self._make(spec, self.path)
            except ValueError as error:
                users = ", ".join(task for task, own in self.tasks.items() if key in {s.key for s in own})
                self._warn(key, f"{error} (completions of {users} are unscored)")
                continue
            keys.append(key)
            calls.append((fn, _part(arguments, rows_of[key], size, extras)))
        terms: dict[str, list[float | None]] = {key: [None] * size for key in specs}
        for key, outcome in zip(keys, call_together(calls, self._loop, self.timeout_s)):
            read = read_terms(outcome, len(rows_of[key]))
            for problem, detail in read.details.items():
                self._warn(f"{key} {problem}", f"reward {specs[key].name!r} {problem.replace('_', ' ')}: {detail}")
            for i, value in zip(rows_of[key], read.values):
                terms[key][i] = value
        return terms

    def _report(
        self,
        log_metric: Callable[[str, float], None],
        tasks: Sequence[Any],
        rewards: Sequence[float | None],
        terms: Any,
    ) -> None:
        for task in dict.fromkeys(tasks):
            rows = [i for i, other in enumerate(tasks) if other == task]
            name = task if task in self.tasks else "unknown"
            log_metric(f"unscored/tasks/{name}", float(sum(rewards[i] is None for i in rows)))
            specs = self.tasks.get(task, ())
            parts = {"reward": rewards} | ({s.name: terms[s.key] for s in specs} if len(specs) > 1 else {})
            for part, values in parts.items():
                scored = [values[i] for i in rows if values[i] is not None]
                if scored:
                    log_metric(f"tasks/{name}/{part}", sum(scored) / len(scored))

    def _warn(self, what: str, text: str) -> None:
        """Once each; the counts are in the metrics of every batch."""
        if what not in self._warned:
            self._warned.add(what)
            log.warning("routing by %s: %s", self.path, text)


def _weighted_sum(terms: Sequence[tuple[float, float | None]]) -> float | None:
    if not terms or any(value is None for _, value in terms):
        return None
    return sum(weight * value for weight, value in terms if value is not None)


def _part(arguments: Mapping[str, Any], rows: Sequence[int], size: int, extras: dict[str, list[Any]]) -> dict[str, Any]:
    """The arguments of a call for some rows of a batch. What it logs per row goes to its rows' places in `extras`."""
    part = {
        name: [value[i] for i in rows] if isinstance(value, (list, tuple)) and len(value) == size else value
        for name, value in arguments.items()
    }

    def log_extra(column: str, values: Sequence[Any]) -> None:
        whole = extras.setdefault(column, [None] * size)
        for i, value in zip(rows, values, strict=True):
            whole[i] = value

    return part | ({"log_extra": log_extra} if "log_extra" in arguments else {})


@register_reward_factory("routing", columns=(TASK,))
def routing(path: str, timeout_s: float = 55.0) -> RewardFn:
    """Each task's own reward, by the row's `task` column and a YAML file; `routing:FILE` for short.

    timeout_s: see `Router`; it has to be below the recipe's `reward_timeout_s`, which would leave all tasks unscored.
    Raises ValueError, naming file and task, for a file that cannot be read.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not timeout_s > 0:
        raise ValueError(f"timeout_s has to be above 0, got {timeout_s!r}")
    return Router(path, timeout_s)

"""Running a pipeline: one stage after another, each in a process of its own, none twice without a reason.

What a stage was run with (settings, command, fingerprints of its inputs) is written down before it starts and when it
has finished. A finished stage is run again only when one of these has changed; what it had written is then moved aside,
because a trainer would go on from the old checkpoints. An interrupted stage is started with the same command in its own
folder, where it goes on from its checkpoint. The code is not among what is compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from alignment.errors import UserError
from alignment.fingerprint import content_fingerprint
from alignment.metrics import replace_file
from alignment.pipeline import Pipeline, Stage
from alignment.pipeline_process import Interrupted, group_is_alive, run_process, services_running

SHOWN_LINES = 15

Action = Literal["finished", "run", "resume", "anew", "waits"]


@dataclass(frozen=True)
class Plan:
    """What is to be done about a stage, and why. finished: nothing. run: for the first time. resume: in its folder as
    it is. anew: what is in its folder is moved aside. waits: it reads what a stage before it has yet to write."""

    action: Action
    reason: str


# --- what a stage is run with -----------------------------------------------------------------------------------------


def command_of(pipeline: Pipeline, stage: Stage) -> list[str]:
    start = [sys.executable, "-m"]
    if stage.launch:
        start += ["accelerate.commands.launch", "--config_file", stage.launch, "--module"]
    config = [] if stage.settings is None else ["--config", str(_config_path(pipeline, stage))]
    return [*start, stage.recipe, *config, *stage.arguments]


def _config_path(pipeline: Pipeline, stage: Stage) -> Path:
    return pipeline.state / f"{stage.name}.yaml"


def _record_path(pipeline: Pipeline, stage: Stage) -> Path:
    return pipeline.state / f"{stage.name}.json"


def log_path(pipeline: Pipeline, stage: Stage) -> Path:
    return pipeline.state / f"{stage.name}.log"


def _settings(stage: Stage) -> dict[str, Any]:
    services = {service.name: service.command for service in stage.services}
    found = {
        "recipe": stage.recipe,
        "arguments": stage.arguments,
        "launch": stage.launch,
        "services": services,
        "outputs": stage.outputs,
        **{f"config.{key}": value for key, value in (stage.settings or {}).items()},
    }
    return json.loads(json.dumps(found, default=str))


def _read_record(pipeline: Pipeline, stage: Stage) -> dict[str, Any] | None:
    try:
        return json.loads(_record_path(pipeline, stage).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> str:
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return f"{what} changed: {', '.join(changed)}" if changed else ""


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(pipeline: Pipeline, stage: Stage, to_run: Sequence[str] = (), forced: bool = False) -> Plan:
    """to_run: names of stages before it that are still to be run. forced: it is run anew in any case.

    Raises UserError when an input is not there and no stage is going to write it.
    """
    missing = [path for path in stage.inputs if not Path(path).exists()]
    unmade = [path for path in missing if pipeline.makers.get(path) not in to_run]
    if unmade:
        maker = pipeline.makers.get(unmade[0])
        where = (
            f"stage {maker!r} should have written it; run it again with --from {maker}"
            if maker
            else "put it there, or name another in the pipeline or with --set"
        )
        raise UserError(f"stage {stage.name!r}: the input {unmade[0]} is missing; {where}")
    upstream = next((pipeline.makers[path] for path in stage.inputs if pipeline.makers.get(path) in to_run), None)
    record = _read_record(pipeline, stage)
    if forced:
        return Plan("anew", "asked for by --from")
    if missing or (upstream and record is None):
        return Plan("waits", f"reads what {upstream} writes")
    if record is None:
        return (
            Plan("anew", "its folder is not this pipeline's") if stage.folder.exists() else Plan("run", "not run yet")
        )
    if upstream:
        return Plan("waits", f"kept if {upstream} writes the same as before")
    settings, inputs = _settings(stage), {path: content_fingerprint(Path(path), times=True) for path in stage.inputs}
    changes = [_difference(record.get("settings", {}), settings, "settings"),
               _difference(record.get("inputs", {}), inputs, "inputs")]  # fmt: skip
    if any(changes):
        return Plan("anew", "; ".join(filter(None, changes)))
    if record["status"] != "finished":
        return Plan("resume", "it was interrupted")
    lost = [path for path in stage.outputs.values() if not Path(path).exists()]
    return Plan("resume", f"{lost[0]} is missing") if lost else Plan("finished", f"{record['seconds']:.0f} s")


def plan_all(pipeline: Pipeline, start: str = "") -> list[tuple[Stage, Plan]]:
    """What `run_pipeline` would do as far as it can be told beforehand. Raises UserError as `plan` does."""
    todo: list[str] = []
    plans = []
    for stage in _from(pipeline, start):
        found = plan(pipeline, stage, todo, forced=stage.name == start)
        if found.action != "finished":
            todo.append(stage.name)
        plans.append((stage, found))
    return plans


def _from(pipeline: Pipeline, start: str) -> list[Stage]:
    names = [stage.name for stage in pipeline.stages]
    if start and start not in names:
        raise UserError(f"--from {start}: there is no such stage; the stages are {', '.join(names)}")
    return pipeline.stages[names.index(start) if start else 0 :]


# --- running ----------------------------------------------------------------------------------------------------------


def run_pipeline(pipeline: Pipeline, start: str = "", say: Callable[[str], None] = print) -> None:
    """Run what is not finished. start: the stage to begin with, which is run anew; those before it stay as they are.

    Raises UserError when an input is missing, when another pipeline runs in the folder, and when a stage fails, with
    its name and log; Interrupted when the process was asked to stop.
    """
    plan_all(pipeline, start)  # a missing input is told before the first stage runs
    pipeline.state.mkdir(parents=True, exist_ok=True)
    with _alone(pipeline):
        stages = _from(pipeline, start)
        for number, stage in enumerate(stages, 1):
            found = plan(pipeline, stage, forced=stage.name == start)
            say(f"[{number}/{len(stages)}] {stage.name}: {found.action} ({found.reason})")
            if found.action != "finished":
                _run_stage(pipeline, stage, found, say)


def _run_stage(pipeline: Pipeline, stage: Stage, found: Plan, say: Callable[[str], None]) -> None:
    if found.action == "anew" and stage.folder.exists():
        aside = pipeline.folder / "superseded" / f"{stage.name}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        stage.folder.rename(aside)
        say(f"what was in {stage.folder} is now in {aside}")
    stage.folder.mkdir(parents=True, exist_ok=True)
    if stage.settings is not None:
        text = yaml.safe_dump(stage.settings, sort_keys=False, allow_unicode=True)
        replace_file(_config_path(pipeline, stage), text)
    command, log = command_of(pipeline, stage), log_path(pipeline, stage)
    record = {
        "status": "started",
        "settings": _settings(stage),
        "inputs": {path: content_fingerprint(Path(path), times=True) for path in stage.inputs},
        "command": command,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    started = time.monotonic()

    def write(**more: Any) -> None:
        record.update(more)
        replace_file(_record_path(pipeline, stage), json.dumps(record, indent=2) + "\n")

    with services_running(stage.services, pipeline.state):
        try:
            code = run_process(command, log, lambda group: write(group=group))
        except Interrupted as stopped:
            raise Interrupted(f"stopped in stage {stage.name!r}; the same command goes on there") from stopped
    if code:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        raise UserError(f"stage {stage.name!r} failed with exit code {code}. The end of its log {log}:\n{end}")
    lost = [path for path in stage.outputs.values() if not Path(path).exists()]
    if lost:
        raise UserError(f"stage {stage.name!r} ended well but did not write {lost[0]}; its log is {log}")
    write(status="finished", seconds=round(time.monotonic() - started, 1))


@contextlib.contextmanager
def _alone(pipeline: Pipeline) -> Iterator[None]:
    """Refuses to run beside another pipeline of the folder, or a stage that outlived one."""
    with (pipeline.state / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another `align pipeline` runs in {pipeline.folder}: wait for it, or end it") from None
        for stage in pipeline.stages:
            group = (_read_record(pipeline, stage) or {}).get("group")
            if group and group_is_alive(group, _record_path(pipeline, stage).stat().st_mtime):
                raise UserError(
                    f"stage {stage.name!r} of an earlier run is still working (process group {group}): wait until it "
                    f"ends, or end it with `kill -- -{group}`"
                )
        yield

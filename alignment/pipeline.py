"""Pipelines: recipes one after another from one YAML file, each with what it reads and what it writes.

    folder: runs/qwen3                     # every stage writes into FOLDER/STAGE
    variables: {queries: data/queries.jsonl, launch: accelerate_configs/ddp.yaml}
    services:                              # programs that run beside the stages which name them
      judge: {command: [vllm, serve, JUDGE, --port, "8000"], ready: "127.0.0.1:8000", ready_s: 600}
    stages:
      - name: cold_start
        recipe: recipes.sft                # a module; it is called with --config and, behind it, `arguments`
        config: 1_cold_start.yaml          # beside the pipeline's file
        overrides: {dataset: "{rows.kept}", output_dir: "{here}"}
        launch: "{launch}"                 # run by `accelerate launch` with this file; none: one process
        inputs: [data/heldout.jsonl]       # files read that no reference names
        outputs: {model: "{here}/model"}
        services: [judge]

`{folder}`, `{variable}`, `{here}` (the stage's folder), `{beside}` (this file's) and `{stage.output}` are replaced.
Config and overrides make one file, which the stage is run with. Here a pipeline is read and checked;
`alignment.pipeline_run` runs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from alignment.errors import UserError
from alignment.yaml_files import did_you_mean, read_yaml

STATE = "pipeline"
"""The folder below the pipeline's own that records, logs and the stages' settings are kept in."""
_REFERENCE = re.compile(r"\{([A-Za-z0-9_.\-]+)\}")
_NAME = re.compile(r"[A-Za-z0-9_\-]+")


@dataclass(frozen=True)
class Service:
    """command: the program; `python` is the one that runs the pipeline. ready: HOST:PORT that takes connections once it
    is ready, within `ready_s` seconds."""

    name: str
    command: list[str]
    ready: str
    ready_s: float = 60.0


@dataclass(frozen=True)
class Stage:
    """A stage with all references resolved. folder: its own. settings: config and overrides, None when it takes no
    config. inputs: every path it reads that can be known: those listed and the outputs of others that it names."""

    name: str
    recipe: str
    folder: Path
    settings: dict[str, Any] | None
    arguments: list[str]
    launch: str
    inputs: list[str]
    outputs: dict[str, str]
    services: list[Service]


@dataclass(frozen=True)
class Pipeline:
    folder: Path
    stages: list[Stage]
    makers: dict[str, str] = field(default_factory=dict)
    """Which stage writes an output, by its path."""

    @property
    def state(self) -> Path:
        return self.folder / STATE


_STAGE_KEYS = ("name", "recipe", "config", "overrides", "arguments", "launch", "inputs", "outputs", "services")
_KEYS = ("folder", "variables", "services", "stages")


def read_pipeline(path: str | Path, given: Mapping[str, str] | None = None) -> Pipeline:
    """The pipeline of a file. given: values, as YAML writes them, that take the place of its variables and of `folder`.

    Raises UserError, naming the file, the stage and the key, for unknown keys and references, names that occur twice,
    configs that are not there, and an output that is named before its stage.
    """
    path = Path(path)
    content = read_yaml(path, "pipeline")
    _known(content, _KEYS, f"{path}")
    variables = {str(k): v for k, v in _mapping(content, "variables", f"{path}").items()}
    variables |= {"folder": content.get("folder"), "beside": str(path.parent)}
    for name, value in (given or {}).items():
        if name not in variables:
            raise UserError(f"--set {name}: {path} has no such variable{did_you_mean(name, variables)}")
        variables[name] = yaml.safe_load(value)
    if not isinstance(variables["folder"], str) or not variables["folder"]:
        raise UserError(f"{path}: `folder` is missing: where the stages write")
    stages = content.get("stages")
    if not isinstance(stages, list) or not stages:
        raise UserError(f"{path}: `stages` is missing: a list of stages")
    names: dict[str, Any] = {name: _resolve(value, variables, f"{path}, variable {name!r}")[0]
                             for name, value in variables.items()}  # fmt: skip
    services = _mapping(content, "services", str(path))
    made = Pipeline(Path(names["folder"]), [])
    for number, stage in enumerate(stages, 1):
        made.stages.append(_stage(stage, number, path, names, services, made))
    return made


def _stage(
    content: Any, number: int, path: Path, names: dict[str, Any], services: Mapping[str, Any], made: Pipeline
) -> Stage:
    if not isinstance(content, dict):
        raise UserError(f"{path}, stage {number}: expected `key: value` lines, found {type(content).__name__}")
    name = content.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == STATE:
        raise UserError(f"{path}, stage {number}: `name` has to be letters, digits, _ and -, got {name!r}")
    place = f"{path}, stage {name!r}"
    if any(stage.name == name for stage in made.stages):
        raise UserError(f"{place}: there are two stages of this name")
    _known(content, _STAGE_KEYS, place)
    if not isinstance(content.get("recipe"), str):
        raise UserError(f"{place}: `recipe` is missing: a module, such as recipes.sft")
    folder = made.folder / name
    own = {**names, "here": str(folder)}
    settings, read = _settings(content, path, own, place)
    arguments, more = _resolve(_list(content, "arguments", place), own, place)
    listed, listed_references = _resolve(_list(content, "inputs", place), own, place)
    launch, launched = _resolve(content.get("launch") or "", own, place)
    outputs, _ = _resolve(_mapping(content, "outputs", place), own, place)
    used = []
    for service in _list(content, "services", place):
        if service not in services:
            raise UserError(f"{place}: there is no service {service!r}{did_you_mean(str(service), services)}")
        program, asked = _service(service, services[service], own, path)
        used.append(program)
        more += asked
    inputs = dict.fromkeys([*map(str, listed), *([launch] if launch else [])])
    inputs |= {names[key]: None for key in [*read, *more, *listed_references, *launched] if "." in key}
    for output, value in outputs.items():
        names[f"{name}.{output}"] = str(value)
        made.makers[str(value)] = name
    return Stage(
        name,
        content["recipe"],
        folder,
        settings,
        [_text(argument) for argument in arguments],
        launch,
        list(inputs),
        {key: str(value) for key, value in outputs.items()},
        used,
    )


def _settings(content: Mapping[str, Any], path: Path, own: Mapping[str, Any], place: str):
    """Config and overrides as one mapping, or None without either; and the references in them."""
    overrides = _mapping(content, "overrides", place)
    settings: dict[str, Any] = {}
    if content.get("config"):
        settings = read_yaml(path.parent / str(content["config"]), f"{place}: config")
    elif not overrides:
        return None, []
    resolved, read = _resolve({**settings, **overrides}, own, place)
    return resolved, read


def _service(name: str, content: Any, names: Mapping[str, Any], path: Path) -> tuple[Service, list[str]]:
    """The service, and the references in it."""
    place = f"{path}, service {name!r}"
    if not isinstance(content, dict) or not isinstance(content.get("command"), list) or not content.get("ready"):
        raise UserError(f"{place}: needs `command` (a list) and `ready` (HOST:PORT)")
    _known(content, [f.name for f in fields(Service)][1:], place)
    command, asked = _resolve(content["command"], names, place)
    ready = str(_resolve(content["ready"], names, place)[0])
    if not re.fullmatch(r"[^:\s]+:\d+", ready):
        raise UserError(f"{place}: `ready` has to look like 127.0.0.1:8000, got {ready!r}")
    return Service(name, [_text(part) for part in command], ready, float(content.get("ready_s", 60.0))), asked


def _resolve(value: Any, names: Mapping[str, Any], place: str) -> tuple[Any, list[str]]:
    """The value with its references replaced, in lists and mappings too; and the references. A text that is nothing but
    a reference takes the type of what it names."""
    found: list[str] = []

    def look_up(name: str) -> Any:
        if name not in names:
            what = "no stage before it writes this" if "." in name else "there is no such variable"
            raise UserError(f"{place}: {{{name}}}: {what}{did_you_mean(name, names)}")
        found.append(name)
        return names[name]

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(part) for key, part in value.items()}
        if isinstance(value, list):
            return [replaced(part) for part in value]
        if not isinstance(value, str):
            return value
        if whole := _REFERENCE.fullmatch(value):
            return look_up(whole[1])
        return _REFERENCE.sub(lambda match: _text(look_up(match[1])), value)

    return replaced(value), found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _known(content: Mapping[Any, Any], keys: Sequence[str], place: str) -> None:
    for key in content:
        if key not in keys:
            raise UserError(f"{place}: unknown key `{key}`{did_you_mean(str(key), keys)}")


def _mapping(content: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{place}: `{key}` has to hold `key: value` lines, got {value!r}")
    return value


def _list(content: Mapping[str, Any], key: str, place: str) -> list[Any]:
    value = content.get(key) or []
    if not isinstance(value, list):
        raise UserError(f"{place}: `{key}` has to be a list, got {value!r}")
    return value

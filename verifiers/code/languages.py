"""How programs of each language are built and run by tools of the machine."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from verifiers.sandbox import Backend, Job, Limits, Outcome

_COMPILE_LIMITS = Limits(wall_s=30, cpu_s=30, memory_mb=1024, file_mb=64, disk_mb=128, output_mb=64)
# What the runtimes need before the program's first allocation, and their threads and descriptors.
_NODE_EXTRA_MB, _JVM_EXTRA_MB = 128, 512


class MissingTool(RuntimeError):
    """A compiler or interpreter that is not on the machine, or cannot work in the tier it offers."""


@dataclass(frozen=True, slots=True)
class Program:
    """Ready to run: `stdin` and limits are added per run. `error`: why it did not compile."""

    argv: tuple[str, ...]
    files: dict[str, str]
    processes: bool = False
    extra_memory_mb: int = 0
    error: str = ""


def _file(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _need(backend: Backend, tool: str, *, processes: bool) -> str:
    path = backend.find(tool)
    if path is None:
        raise MissingTool(f"{tool!r} is not installed where the sandbox runs; install it to check such programs")
    if processes and backend.tier == "flat":
        raise MissingTool(f"{tool!r} starts processes, which the 'flat' tier of the sandbox does not allow")
    return path


def _compiled(tool: str, source_name: str, *flags: str) -> Callable[[Backend, str, Limits], Program]:
    def build(backend: Backend, source: str, limits: Limits) -> Program:
        argv = [_need(backend, tool, processes=True), "-O2", "-o", "program", source_name, *flags]
        payload = {"argv": argv, "stdin": "", "files": {source_name: _file(source)}, "keep": "program"}
        outcome = backend.run(Job("command", payload, _COMPILE_LIMITS, processes=True))
        if outcome.status == "setup":
            raise MissingTool(outcome.detail)
        if not outcome.ok:
            message = outcome.stderr.decode(errors="replace").strip().split("\n")[0][:300]
            return Program((), {}, error=f"does not compile: {message or outcome.detail}")
        binary = base64.b64encode(outcome.stdout).decode()
        return Program(("./program",), {"program": binary}, processes=True)

    return build


def _bash(backend: Backend, source: str, limits: Limits) -> Program:
    shell = _need(backend, "bash", processes=True)
    return Program((shell, "--noprofile", "--norc", "program.sh"), {"program.sh": _file(source)}, processes=True)


def _javascript(backend: Backend, source: str, limits: Limits) -> Program:
    heap = f"--max-old-space-size={limits.memory_mb}"
    argv = (_need(backend, "node", processes=False), heap, "program.js")
    return Program(argv, {"program.js": _file(source)}, extra_memory_mb=_NODE_EXTRA_MB)


def _java(backend: Backend, source: str, limits: Limits) -> Program:
    """The launcher compiles the single file in memory."""
    public = re.search(r"^\s*public\s+(?:final\s+|abstract\s+)*class\s+(\w+)", source, re.MULTILINE)
    name = f"{public[1] if public else 'Main'}.java"
    flags = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", f"-Xmx{limits.memory_mb}m")
    argv = (_need(backend, "java", processes=False), *flags, name)
    return Program(argv, {name: _file(source)}, extra_memory_mb=_JVM_EXTRA_MB)


_BUILDERS: dict[str, Callable[[Backend, str, Limits], Program]] = {
    "javascript": _javascript,
    "c": _compiled("gcc", "program.c", "-std=gnu17", "-lm"),
    "c++": _compiled("g++", "program.cpp", "-std=gnu++20"),
    "java": _java,
    "bash": _bash,
}


def build(backend: Backend, language: str, source: str, limits: Limits) -> Program:
    """Compile where that is needed. Raises MissingTool."""
    return _BUILDERS[language](backend, source, limits)


def run(backend: Backend, program: Program, stdin: str, limits: Limits) -> Outcome:
    """One run of a built program in a jail of its own."""
    roomy = replace(limits, memory_mb=limits.memory_mb + program.extra_memory_mb, open_files=256)
    payload = {"argv": list(program.argv), "stdin": stdin, "files": program.files, "keep": ""}
    return backend.run(Job("command", payload, roomy, processes=program.processes))

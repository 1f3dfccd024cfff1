"""Which tier a machine gets: under a container's seccomp profile, without Landlock, with extra modules."""

from __future__ import annotations

import errno
import os
import struct
import sys

import pytest

from verifiers.sandbox import Job, Sandbox, SandboxError, kernel, probe, root, seccomp, wire
from verifiers.sandbox.jail import SWITCHES
from verifiers.sandbox.syscall_numbers import AUDIT_ARCH, NUMBERS

HELLO = Job("program", {"source": "print('hello')", "stdin": ""})
# What Docker's default profile refuses a container without added capabilities.
DOCKER_REFUSES = ("unshare", "setns", "mount", "umount2", "pivot_root", "bpf", "perf_event_open", "keyctl", "ptrace")
LANDLOCK = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")


def in_container(refused: tuple[str, ...], action) -> str:
    """What `action` returns in a child under a filter like a container's: `refused` calls answer EPERM, clone with a
    new namespace too, clone3 answers ENOSYS."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            allow = [(0x06, 0, 0, 0x7FFF0000)]
            decided = {NUMBERS[name]: [(0x06, 0, 0, 0x50000 | errno.EPERM)] for name in refused}
            decided[NUMBERS["clone3"]] = [(0x06, 0, 0, 0x50000 | errno.ENOSYS)]
            decided[NUMBERS["clone"]] = [
                (0x20, 0, 0, 16),
                (0x45, 0, 1, kernel.CLONE_NEW_ANY),
                (0x06, 0, 0, 0x50000 | errno.EPERM),
                *allow,
            ]
            code = [(0x20, 0, 0, 4), (0x15, 1, 0, AUDIT_ARCH), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]
            for number, rule in decided.items():
                code += [(0x15, 0, len(rule), number), *rule, (0x20, 0, 0, 0)]
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.Filter(b"".join(struct.pack("=HBBI", *instruction) for instruction in code + allow)).install()
            os.write(write, action().encode())
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def best_tier() -> str:
    with Sandbox(workers=1) as sandbox:
        outcome = sandbox.run(HELLO)
        return f"{sandbox.tier} {outcome.status} {outcome.stdout.decode().strip()}"


def test_container_profile_gets_the_flat_tier():
    assert in_container(DOCKER_REFUSES, best_tier) == "flat ok hello"


def test_without_landlock_nothing_runs():
    answer = in_container((*DOCKER_REFUSES, *LANDLOCK), best_tier)
    assert answer.startswith("SandboxError") and "no code is run" in answer and "Landlock" in answer


def test_without_seccomp_nothing_runs():
    answer = in_container((*DOCKER_REFUSES, "seccomp"), best_tier)
    assert answer.startswith("SandboxError") and "no code is run" in answer and "seccomp" in answer


def test_probe_gives_a_reason_for_each_tier_that_does_not_work():
    assert in_container(DOCKER_REFUSES, lambda: repr(probe()["flat"])) == "''"
    reason = in_container(DOCKER_REFUSES, lambda: probe()["namespaces"])
    assert "unshare: Operation not permitted" in reason


def test_other_machines_are_refused(monkeypatch):
    monkeypatch.setattr("verifiers.sandbox.local.ARCH", "")
    with pytest.raises(SandboxError, match="needs Linux on x86-64 or arm64"):
        Sandbox()


def test_chosen_modules_are_there(tmp_path):
    (tmp_path / "own_library.py").write_text("LOADED = 1\n")
    (tmp_path / "own_other.py").write_text("LATE = 2\n")
    tmp_path.chmod(0o755)
    for tier in (tier for tier, reason in probe().items() if not reason):
        with Sandbox(tier, workers=1, modules=["own_library"], paths=[str(tmp_path)]) as sandbox:
            source = (
                "import sys; print('own_library' in sys.modules)\nimport own_library, own_other; print(own_other.LATE)"
            )
            outcome = sandbox.run(Job("program", {"source": source, "stdin": ""}))
            assert outcome.stdout == b"True\n2\n", outcome


def test_missing_module_is_a_refusal_that_names_it():
    with pytest.raises(SandboxError, match="no_such_module"):
        Sandbox(modules=["no_such_module"])


def test_jails_see_the_system_and_the_interpreter_only():
    visible = root.visible_paths([])
    assert "/" not in visible and "/etc" not in visible and "/home" not in visible
    assert any(os.path.realpath(sys.base_prefix).startswith(path) for path in visible)


@pytest.mark.parametrize("profile", ["threads", "exec_once", "processes"])
@pytest.mark.parametrize("own_files_only", [True, False])
def test_filter_decides_as_its_rules(profile, own_files_only):
    """Interpret the compiled program for every call number and compare with the rules it was compiled from."""
    rules = seccomp.rules(profile, 7, own_files_only=own_files_only)
    program = seccomp.compile_filter(profile, 7, own_files_only=own_files_only)
    code = list(struct.iter_unpack("=HBBI", program))
    for number in range(600):
        for first, second in ((0, 0), (7, 0), (1, 0x541B), (0x10F00, 8), (0x10000000, 0)):
            got = interpret(code, number, first, second)
            rule = [(0x20, 0, 0, 0), *rules[number]] if number in rules else None
            assert got == (interpret(rule, number, first, second) if rule else 0x50000 | errno.ENOSYS)


def interpret(code, number: int, first: int, second: int, convention: int = AUDIT_ARCH) -> int:
    data = {0: number, 4: convention, 16: first, 24: second}
    position, value = 0, 0
    while True:
        kind, then, otherwise, k = code[position]
        position += 1
        if kind == 0x06:
            return k
        if kind == 0x20:
            value = data[k]
        elif kind == 0x05:
            position += k
        else:
            holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[kind]
            position += then if holds else otherwise


def test_switches_are_for_tests_only():
    assert {"seccomp", "landlock"} <= SWITCHES
    assert wire.MAX_MESSAGE > 0

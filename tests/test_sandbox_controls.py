"""Negative controls: with one protection switched off, its attack succeeds, so the attack tests can fail. And what the
host promises: refusal, leftovers, threads, forks, a template that never sees a payload."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.sandbox_modes import ATTEMPT, MODES, RAW, open_mode, printed, run, secret
from verifiers.sandbox import Job, Limits, Sandbox, SandboxError, jail, local, template, watch
from verifiers.sandbox.syscall_numbers import NUMBERS

__all__ = ["secret"]  # a fixture


def open_tier(tier: str, *off: str) -> Sandbox:
    try:
        return Sandbox(tier, workers=1, _off=off)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=local.TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    open_tier(request.param).close()
    return request.param


def test_control_without_seccomp_a_socket_can_be_made(tier):
    with open_tier(tier, "seccomp") as sandbox:
        assert "REACHED" in printed(run(sandbox, ATTEMPT + "import socket; attempt(socket.socket)"))


def test_control_without_seccomp_fork_succeeds(tier):
    with open_tier(tier, "seccomp") as sandbox:
        source = "import os, sys\nif os.fork() == 0: os._exit(0)\nos.wait(); print('REACHED')"
        assert printed(run(sandbox, source)) == "REACHED\n"


def test_control_without_seccomp_a_user_namespace_can_be_made():
    with open_tier("namespaces", "seccomp") as sandbox:
        assert printed(run(sandbox, RAW + f"print(raw({NUMBERS['unshare']}, 0x10000000))")) == "0\n"


def test_control_without_landlock_a_host_file_can_be_read_in_flat(secret):
    with open_tier("flat", "landlock") as sandbox:
        assert "TOP SECRET" in printed(run(sandbox, ATTEMPT + f"attempt(lambda: open({secret!r}).read())"))


def test_control_namespaces_hide_files_by_two_walls(secret):
    attack = ATTEMPT + f"attempt(lambda: open({secret!r}).read())"
    with open_tier("namespaces", "landlock") as sandbox:
        assert "No such file" in printed(run(sandbox, attack))
    with open_tier("namespaces", "mounts") as sandbox:
        assert "Permission denied" in printed(run(sandbox, attack))
    with open_tier("namespaces", "mounts", "landlock") as sandbox:
        assert "TOP SECRET" in printed(run(sandbox, attack))


def test_control_without_rlimits_many_files_can_be_opened(tier):
    with open_tier(tier, "rlimits") as sandbox:
        assert run(sandbox, "kept = [open('/dev/null') for _ in range(200)]").ok


def test_control_without_rlimits_a_large_file_can_be_written(tier):
    with open_tier(tier, "rlimits") as sandbox:
        assert run(sandbox, "open('x', 'wb').write(bytes(6 << 20))", memory_mb=128).ok


def test_control_the_network_namespace_is_a_second_wall():
    with socket.create_server(("127.0.0.1", 0)) as server:
        attack = ATTEMPT + (
            f"import socket; attempt(socket.create_connection, ('127.0.0.1', {server.getsockname()[1]}), 2)"
        )
        with open_tier("namespaces", "seccomp", "landlock") as sandbox:
            assert "REACHED" not in printed(run(sandbox, attack))
        with open_tier("namespaces", "seccomp", "landlock", "netns") as sandbox:
            assert "REACHED" in printed(run(sandbox, attack))


READABLE = ("seccomp", "landlock", "mounts")  # without these a namespaces jail sees the machine's /proc


def test_control_without_its_step_capabilities_stay():
    attack = "print(open('/proc/self/status').read().partition('CapEff:')[2].split()[0])"
    with open_tier("namespaces", *READABLE) as sandbox:
        assert int(printed(run(sandbox, attack)), 16) == 0
    with open_tier("namespaces", *READABLE, "capabilities") as sandbox:
        assert int(printed(run(sandbox, attack)), 16) != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's template has a user namespace in any case")
def test_control_without_a_user_namespace_users_are_the_machines():
    attack = "print(open('/proc/self/uid_map').read().split()[2])"
    with open_tier("namespaces", *READABLE) as sandbox:
        assert printed(run(sandbox, attack)) == "1\n"  # one user, none of the machine's others
    with open_tier("namespaces", *READABLE, "userns") as sandbox:
        assert int(printed(run(sandbox, attack))) > 1


def test_control_without_limits_in_time_the_loop_goes_on(tier):
    with open_tier(tier) as sandbox:
        assert run(sandbox, "import time; time.sleep(0.3); print(1)", wall_s=10).ok


# The host's promises


def descendants(pid: int) -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(entry), *descendants(int(entry))]
    return found


def test_no_tier_is_a_refusal_with_reasons_and_never_a_fall_back(monkeypatch):
    monkeypatch.setattr(Sandbox, "_start_tier", lambda self, tier: f"no {tier} here")
    with pytest.raises(SandboxError, match=r"no code is run.*namespaces: no namespaces here; flat: no flat here"):
        Sandbox()


def test_a_protection_that_cannot_be_put_up_stops_the_job(tier):
    with open_tier(tier) as sandbox:
        outcome = sandbox.run(Job("program", {"source": "print(1)", "stdin": ""}, Limits(memory_mb=1 << 60)))
        assert outcome.status == "setup" and not outcome.stdout


def test_a_machine_out_of_processes_is_a_setup_failure_and_the_template_lives(monkeypatch):
    def refuse(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(template, "fork_jail", refuse)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = jail.Place("flat", 0, (0, 0), [], ["/nowhere"], [], {}, frozenset())
    server = template.Template(theirs, place, watch.Watcher(0, "flat"))
    job = Job("program", {"source": "", "stdin": ""})
    for _ in range(3):  # the slot is free again each time
        status, readings = local._send(ours, threading.Lock(), [job])
        assert server.accept()
        report = json.loads(status.recv(4096))
        assert report["code"] == 1 and "Resource temporarily unavailable" in report["setup"]
        status.close()
        for fd in readings[0].ends:
            os.close(fd)
    ours.close()
    assert not server.accept()
    theirs.close()


def test_a_job_that_ends_while_it_is_stopped_for_its_output_is_reported():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(json.dumps({"index": 0, "code": 0, "reason": "", "wall_s": 0, "cpu_s": 0, "rss_mb": 0}).encode())
    ours.send(b"0 output")
    theirs.close()  # with the word unread, which resets the connection
    reading = local._Reading(Job("program", {}), {})
    local._read_all(ours, [reading])
    ours.close()
    assert reading.report["code"] == 0


def test_a_host_that_leaves_a_report_unread_does_not_end_the_template():
    control, status = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    place = jail.Place("flat", 0, (0, 0), [], ["/nowhere"], [], {}, frozenset())
    server = template.Template(control[0], place, watch.Watcher(0, "flat"))
    with subprocess.Popen(["sleep", "60"]) as process:
        jailed = template.Running(
            0, process.pid, os.pidfd_open(process.pid), 0, Limits(), template.Group(status[0]), time.monotonic()
        )
        jailed.group.jails.append(jailed)
        status[0].send(b"a report")
        status[1].close()
        server.hear(jailed.group)
        assert process.wait(10) == -signal.SIGKILL and jailed.reason == "stopped"
    os.close(jailed.pidfd)
    for end in (*control, status[0]):
        end.close()


def test_unknown_tier_and_unknown_switch_are_errors():
    with pytest.raises(ValueError, match="unknown sandbox tier"):
        Sandbox("docker")
    with pytest.raises(ValueError, match="unknown protections"):
        Sandbox(_off=["walls"])


def test_nothing_is_left_behind(tier):
    with open_tier(tier) as sandbox:
        files_before = len(os.listdir("/proc/self/fd"))
        template = sandbox._process.pid
        run(sandbox, "print(1)")
        time.sleep(0.1)
        template_files = len(os.listdir(f"/proc/{template}/fd"))
        for source in ("open('x', 'w').write('1')", "while True: pass", "import os; os.abort()", "print('x' * 10**7)"):
            for _ in range(5):
                run(sandbox, source, cpu_s=0.1)
        assert descendants(template) == []
        assert len(os.listdir("/proc/self/fd")) == files_before
        time.sleep(0.1)  # the template reports first and closes then
        assert len(os.listdir(f"/proc/{template}/fd")) == template_files
        work = sandbox._work
        assert (tier == "flat") == bool(work)
        assert [name for _, _, names in os.walk(work) for name in names] == []
    assert not os.path.exists(work) and not os.path.exists(f"/proc/{template}")


def test_template_never_holds_a_payload(tier):
    mark = f"payload-mark-{os.getpid()}-".encode() + b"z" * 20
    with open_tier(tier) as sandbox:
        source = f"x = {mark.decode()!r}; print(x)"
        assert printed(run(sandbox, source)).strip() == mark.decode()
        assert not _in_memory(sandbox._process.pid, mark)
        assert _in_memory(sandbox._process.pid, b"wall_time")  # the search can find things


def _in_memory(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
            for line in maps:
                found = re.match(r"(\w+)-(\w+) rw", line)
                if found:
                    start, end = (int(part, 16) for part in found.groups())
                    memory.seek(start)
                    if mark in memory.read(end - start):
                        return True
    except PermissionError:
        pytest.skip("this user may not read the template's memory")
    return False


def test_jails_die_with_a_killed_template(tier):
    with open_tier(tier) as sandbox:
        failed: list[Exception] = []

        def job() -> None:
            try:
                run(sandbox, "import time; time.sleep(60)", wall_s=60)
            except SandboxError as error:
                failed.append(error)

        thread = threading.Thread(target=job)
        thread.start()
        template = sandbox._process.pid
        while not (jails := descendants(template)):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(template, signal.SIGKILL)
        thread.join(20)
        assert len(failed) == 1 and not thread.is_alive()
        deadline = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{pid}") for pid in jails) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(os.path.exists(f"/proc/{pid}") for pid in jails)
        assert printed(run(sandbox, "print(1)")) == "1\n"  # a new template took over


def test_template_ends_when_its_host_dies(tier):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        sandbox = Sandbox(tier, workers=1)
        os.write(write, str(sandbox._process.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    template = int(os.read(read, 20))
    deadline = time.monotonic() + 20
    while _alive(template) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(template)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_many_threads_may_share_one_sandbox(tier):
    with open_tier(tier) as sandbox:
        answers: dict[int, str] = {}

        def job(n: int) -> None:
            answers[n] = printed(run(sandbox, "print(int(input()) ** 2)", stdin=str(n)))

        threads = [threading.Thread(target=job, args=(n,)) for n in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {n: f"{n * n}\n" for n in range(24)}


def test_a_forked_host_gets_a_template_of_its_own(tier):
    with open_tier(tier) as sandbox:
        pid = os.fork()
        if pid == 0:
            good = printed(run(sandbox, "print(2)")) == "2\n"
            sandbox.close()
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert printed(run(sandbox, "print(3)")) == "3\n"


def test_modes_cover_both_tiers():
    assert {mode.partition("-")[0] for mode in MODES} == set(local.TIERS)
    assert open_mode.__doc__

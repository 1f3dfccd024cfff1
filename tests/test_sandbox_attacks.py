"""What hostile programs try, one property per test, in every tier and for every kind of user that this machine offers.

All floods stop by themselves at small sizes, so that a missing protection fails a test and hurts nobody.
"""

from __future__ import annotations

import glob
import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.sandbox_modes import MODES, open_mode
from verifiers.sandbox import Job, Limits, Outcome, SandboxError
from verifiers.sandbox.syscall_numbers import NUMBERS

SMALL = {
    "wall_s": 20.0,
    "cpu_s": 5.0,
    "memory_mb": 64,
    "processes": 16,
    "open_files": 32,
    "file_mb": 4,
    "disk_mb": 8,
    "files": 64,
}
RAW = """
import ctypes, os
def raw(number, *args):
    ctypes.set_errno(0)
    result = ctypes.CDLL(None, use_errno=True).syscall(number, *args)
    return result if result >= 0 else os.strerror(ctypes.get_errno())
"""
ATTEMPT = """
def attempt(action, *args):
    try:
        print("REACHED", action(*args))
    except OSError as error:
        print("refused", error.strerror)
"""


@pytest.fixture(scope="module", params=MODES)
def sandbox(request: pytest.FixtureRequest) -> Iterator:
    try:
        backend = open_mode(request.param)
    except SandboxError as error:
        pytest.skip(str(error))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def secret() -> Iterator[str]:
    """A host file that any user may read and write, in a directory that any user may change."""
    directory = f"/var/tmp/sandbox-test-{os.getpid()}"
    os.mkdir(directory)
    os.chmod(directory, 0o777)
    path = f"{directory}/secret"
    with open(path, "w") as file:
        file.write("TOP SECRET")
    os.chmod(path, 0o666)
    yield path
    for left in glob.glob(f"{directory}/*"):
        os.unlink(left)
    os.rmdir(directory)


def run(sandbox, source: str, stdin: str = "", processes: bool = False, **limits) -> Outcome:
    job = Job("program", {"source": source, "stdin": stdin}, Limits(**{**SMALL, **limits}), processes=processes)
    return sandbox.run(job)


def printed(outcome: Outcome) -> str:
    assert outcome.status == "ok", outcome
    return outcome.stdout.decode()


def assert_refused(outcome: Outcome) -> None:
    text = printed(outcome)
    assert "refused" in text and "REACHED" not in text


def assert_alive(sandbox) -> None:
    assert printed(run(sandbox, "print(6 * 7)")) == "42\n"


# Limits


@pytest.mark.parametrize(
    "source",
    ["while True: pass", "9**9**9", "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')"],
    ids=["infinite loop", "huge power", "catastrophic regex"],
)
def test_endless_computation_is_killed(sandbox, source):
    assert run(sandbox, source, cpu_s=0.2).status == "cpu_time"


def test_sleep_is_killed_at_the_wall_limit(sandbox):
    outcome = run(sandbox, "import time; time.sleep(60)", wall_s=0.2)
    assert outcome.status == "wall_time" and outcome.wall_s < 30


def test_ignored_signals_do_not_stretch_the_limit(sandbox):
    source = "import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
    assert run(sandbox, source, cpu_s=0.2).status == "cpu_time"


def test_fork_is_refused(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.fork)"))


def test_exec_is_refused(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.execv, '/bin/true', ['true'])"))


def test_threads_are_limited(sandbox):
    source = """
import threading, time
for _ in range(200):
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
time.sleep(5)
"""
    assert run(sandbox, source, memory_mb=4096).status == "processes"


def test_memory_is_limited(sandbox):
    assert run(sandbox, "kept = [bytearray(8 << 20) for _ in range(40)]").status == "memory"


def test_memory_outside_the_heap_is_limited(sandbox):
    source = "import mmap\nkept = [mmap.mmap(-1, 8 << 20) for _ in range(40)]\nfor m in kept: m.write(bytes(8 << 20))"
    assert run(sandbox, source).status == "memory"


def test_memory_files_are_refused(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.memfd_create, 'x')"))


def test_disk_is_limited(sandbox):
    source = "import time\nfor n in range(40):\n    open(str(n), 'wb').write(bytes(1 << 20)); time.sleep(0.03)"
    assert run(sandbox, source).status == "disk"


def test_file_size_is_limited(sandbox):
    assert (
        run(sandbox, "f = open('x', 'wb')\nfor _ in range(32): f.write(bytes(1 << 20)); f.flush()").status
        == "file_size"
    )


def test_number_of_files_is_limited(sandbox):
    source = "import time\nfor n in range(400):\n    open(str(n), 'w').close(); time.sleep(0.002)"
    assert run(sandbox, source).status == "disk"


def test_open_files_are_limited(sandbox):
    assert run(sandbox, "kept = [open('/dev/null') for _ in range(200)]").status == "open_files"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_flood_is_cut(sandbox, stream):
    source = f"import sys\nfor _ in range(64): sys.{stream}.write('x' * (1 << 20))"
    outcome = run(sandbox, source, output_mb=0.25)
    assert outcome.status == "output" and len(outcome.stdout) + len(outcome.stderr) <= 1 << 18


def test_result_flood_is_cut(sandbox):
    payload = {"source": "def f(): return 'x' * (16 << 20)", "entry_point": "f", "calls": [[[], {"d": []}]]}
    outcome = sandbox.run(Job("calls", payload, Limits(**{**SMALL, "memory_mb": 512}, output_mb=0.25)))
    assert outcome.status == "output" and len(outcome.stdout) <= 1 << 18


def test_rlimits_cannot_be_raised(sandbox):
    source = """
import resource
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(which, (-1, -1)); print("REACHED", which)
    except (ValueError, OSError): print("refused")
"""
    assert_refused(run(sandbox, source))


# Network


def test_no_tcp(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = f"import socket; attempt(socket.create_connection, ('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert_refused(run(sandbox, ATTEMPT + source))
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_udp(sandbox):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        source = (
            f"attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port})))"
        )
        assert_refused(run(sandbox, ATTEMPT + "import socket\n" + source))
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.recv(1)


def test_no_abstract_socket(sandbox):
    name = f"\0sandbox-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        source = f"attempt(lambda: socket.socket(socket.AF_UNIX).connect({name!r}))"
        assert_refused(run(sandbox, ATTEMPT + "import socket\n" + source))


def test_socket_pairs_work(sandbox):
    assert (
        printed(run(sandbox, "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))")) == "b'x'\n"
    )


# Files and secrets


def test_host_file_cannot_be_read(sandbox, secret):
    assert_refused(run(sandbox, ATTEMPT + f"attempt(lambda: open({secret!r}).read())"))


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hosts", "/etc/hostname", "/root/.bashrc", "/var/log/dpkg.log"])
def test_system_data_cannot_be_read(sandbox, path):
    assert_refused(run(sandbox, ATTEMPT + f"attempt(lambda: open({path!r}).read())"))


@pytest.mark.parametrize(
    "path", ["/proc/self/environ", "/proc/1/cmdline", "/proc/self/maps", "/proc/self/mem", "/sys/kernel"]
)
def test_kernel_files_cannot_be_read(sandbox, path):
    source = f"import os; attempt(lambda: (os.listdir if os.path.isdir({path!r}) else open)({path!r}))"
    assert_refused(run(sandbox, ATTEMPT + source))


def test_directories_cannot_be_listed(sandbox, secret):
    for path in ("/", "/home", "/var/tmp", "/root", os.path.dirname(secret)):
        assert_refused(run(sandbox, ATTEMPT + f"import os; attempt(os.listdir, {path!r})"))


def test_symlink_leads_nowhere(sandbox, secret):
    source = (
        f"import os\ndef follow():\n    os.symlink({secret!r}, 'link')\n    return open('link').read()\nattempt(follow)"
    )
    assert_refused(run(sandbox, ATTEMPT + source))


def test_hard_link_is_refused(sandbox, secret):
    assert_refused(run(sandbox, ATTEMPT + f"import os; attempt(os.link, {secret!r}, 'link')"))


@pytest.mark.parametrize(
    "action",
    [
        "open(PATH, 'w')",
        "open(PATH + '2', 'w')",
        "open(PATH, 'a')",
        "os.truncate(PATH, 0)",
        "os.unlink(PATH)",
        "os.rename(PATH, PATH + '3')",
        "os.chmod(PATH, 0)",
        "os.utime(PATH)",
        "os.mkdir(PATH + '4')",
        "os.chown(PATH, 0, 0)",
        "os.setxattr(PATH, 'user.x', b'x')",
        "open('/usr/lib/x', 'w')",
        "open('/etc/x', 'w')",
    ],
)
def test_host_files_cannot_be_changed(sandbox, secret, action):
    def state() -> tuple:
        with open(secret) as file:
            return (
                os.stat(secret).st_mode,
                os.stat(secret).st_mtime_ns,
                file.read(),
                os.listdir(os.path.dirname(secret)),
            )

    before = state()
    assert_refused(run(sandbox, ATTEMPT + f"import os; PATH = {secret!r}\nattempt(lambda: {action})"))
    assert state() == before


def test_environment_holds_nothing_of_the_host(sandbox, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "TOP SECRET")
    names = printed(run(sandbox, "import os; print(sorted(os.environ))"))
    assert set(eval(names)) - {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} <= {
        "HOME",
        "LANG",
        "LC_CTYPE",
        "PATH",
        "PYTHONHASHSEED",
        "TMPDIR",
    }


def test_descriptors_are_the_jails_own(sandbox):
    source = "import os\nfor fd in range(256):\n    try: os.fstat(fd); print(fd)\n    except OSError: pass"
    assert printed(run(sandbox, source)).split() == ["0", "1", "2"]


def test_own_directory_is_writable_and_starts_empty(sandbox):
    source = "import os; print(os.listdir('.')); open('x', 'w').write('1'); print(open('x').read())"
    for _ in range(2):
        assert printed(run(sandbox, source)) == "[]\n1\n"


# Other processes


def test_others_cannot_be_signalled(sandbox):
    victims = [os.getpid(), os.getppid(), 1, -1]
    source = f"import os\nfor pid in [os.getppid(), *{victims}]:\n    if pid != os.getpid(): attempt(os.kill, pid, 0)"
    assert_refused(run(sandbox, ATTEMPT + source))
    assert_alive(sandbox)


def test_own_process_group_cannot_be_signalled(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.killpg, 0, 9)"))
    assert_alive(sandbox)


REFUSED_CALLS = {
    "ptrace": (16, os.getpid(), 0, 0),
    "process_vm_readv": (os.getpid(), 0, 0, 0, 0, 0),
    "pidfd_open": (os.getpid(), 0),
    "clone": (17, 0, 0, 0, 0),
    "clone3": (0, 0),
    "unshare": (0x10000000,),
    "setns": (0, 0),
    "mount": (0, b"/", 0, 0x5000, 0),
    "umount2": (b"/", 2),
    "pivot_root": (b".", b"."),
    "chroot": (b".",),
    "io_uring_setup": (8, b"\0" * 128),
    "bpf": (0, b"\0" * 128, 128),
    "perf_event_open": (b"\0" * 128, 0, -1, -1, 0),
    "userfaultfd": (0,),
    "keyctl": (0, -3, 0, 0, 0),
    "setgroups": (0, 0),
    "seccomp": (0, 0, 0),
    "capset": (b"\0" * 16, b"\xff" * 24),
    "sethostname": (b"x", 1),
}


@pytest.mark.parametrize("name", sorted(REFUSED_CALLS))
def test_system_call_is_refused(sandbox, name):
    arguments = ", ".join(map(repr, REFUSED_CALLS[name]))
    text = printed(run(sandbox, RAW + f"print(raw({NUMBERS[name]}, {arguments}))"))
    assert text.strip() in ("Operation not permitted", "Function not implemented")


def test_clone_into_a_user_namespace_is_refused(sandbox):
    for flags in (0x10000000 | 17, 0x10000000 | 0x10F00):
        text = printed(run(sandbox, RAW + f"print(raw({NUMBERS['clone']}, {flags}, 0, 0, 0, 0))"))
        assert text.strip() == "Operation not permitted"


def test_setuid_is_refused(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.setgroups, []); attempt(os.setresuid, 5, 5, 5)"))


@pytest.mark.skipif("x86_64" not in os.uname().machine, reason="x32 is an x86-64 convention")
def test_foreign_calling_convention_is_killed(sandbox):
    assert run(sandbox, RAW + "raw(0x40000000 + 39)").status == "signal"


def test_processes_of_a_multi_process_job_are_limited_and_die_with_it(sandbox):
    if sandbox.tier == "flat":
        with pytest.raises(SandboxError, match="namespaces tier"):
            open_mode("flat").run(Job("program", {"source": "", "stdin": ""}, processes=True))
        return
    source = """
import os, time
for count in range(60):
    try:
        if os.fork() == 0:
            os.setsid(); time.sleep(60); os._exit(0)
    except OSError:
        break
print(count)
"""
    started = time.monotonic()
    assert 2 < int(printed(run(sandbox, source, processes=True, memory_mb=1024))) < 16
    assert time.monotonic() - started < 30  # the pipes closed, so nobody holds them any more


def test_daemon_does_not_survive(sandbox):
    if sandbox.tier == "flat":
        pytest.skip("no job may fork in this tier")
    mark = f"43{os.getpid()}"
    source = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sleep", ["sleep", "{mark}"])
    os._exit(0)
time.sleep(0.2)
"""
    assert run(sandbox, source, processes=True, memory_mb=1024).ok
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path) as file:
                assert mark not in file.read().split("\0")
        except OSError:
            continue


# Ends


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("import sys; sys.exit(0)", "ok", 0),
        ("import sys; sys.exit(3)", "exit", 3),
        ("import os; os._exit(4)", "exit", 4),
        ("raise SystemExit('no')", "exit", 1),
        ("1 / 0", "exit", 1),
        ("import ctypes; ctypes.string_at(0)", "signal", None),
        ("import os; os.abort()", "signal", None),
    ],
)
def test_end_is_reported_as_it_was(sandbox, source, status, code):
    outcome = run(sandbox, source, memory_mb=256)
    assert (outcome.status, outcome.exit_code) == (status, code)


def test_unbounded_recursion_ends_the_job_only(sandbox):
    source = "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"
    assert run(sandbox, source).status in ("memory", "signal")
    assert_alive(sandbox)


def test_no_state_reaches_the_next_job(sandbox):
    run(
        sandbox,
        "import builtins, json, sys; builtins.len = json.dumps = None; sys.modules['math'] = None; open('left', 'w')",
    )
    source = "import json, math, os; print(len(json.dumps([math.pi])), os.listdir('.'))"
    assert printed(run(sandbox, source)) == "19 []\n"

"""What hostile programs try, one property per test, in each tier and for each kind of user that this machine offers."""

from __future__ import annotations

import glob
import os
import socket
import time

import pytest

from tests.sandbox_modes import ATTEMPT, RAW, assert_alive, assert_refused, open_mode, printed, run, sandbox, secret
from verifiers.sandbox import Job, SandboxError
from verifiers.sandbox.syscall_numbers import NUMBERS

__all__ = ["sandbox", "secret"]  # fixtures


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


def test_clone_of_a_thread_with_files_of_its_own_is_refused(sandbox):
    shared = 0x100 | 0x200 | 0x800 | 0x10000  # memory, directories, signal handlers; a thread
    text = printed(run(sandbox, RAW + f"print(raw({NUMBERS['clone']}, {shared}, 0, 0, 0, 0))"))
    assert text.strip() == "Operation not permitted"


def test_open_files_cannot_hide_in_a_socket(sandbox):
    if sandbox.tier == "namespaces":
        pytest.skip("the directory's own file system counts them")
    source = "import socket; a, b = socket.socketpair(); attempt(socket.send_fds, a, [b'x'], [0])"
    assert_refused(run(sandbox, ATTEMPT + source))


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

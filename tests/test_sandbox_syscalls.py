"""The system call numbers of both architectures, against the kernel's own headers, and the filter of the one that this
machine is not."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from tests.test_sandbox_tiers import interpret
from verifiers.sandbox import seccomp, syscall_numbers
from verifiers.sandbox.syscall_numbers import _numbers

HEADERS = {
    "arm64": ["/usr/include/asm-generic/unistd.h"],
    "x86_64": ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"],
}
# What programs call on arm64 in place of the old calls that it does not have.
SUCCESSORS = {
    "open": "openat", "creat": "openat", "stat": "newfstatat", "lstat": "newfstatat", "access": "faccessat",
    "poll": "ppoll", "select": "pselect6", "pause": "ppoll", "pipe": "pipe2", "dup2": "dup3", "alarm": "setitimer",
    "rename": "renameat2", "mkdir": "mkdirat", "rmdir": "unlinkat", "unlink": "unlinkat", "link": "linkat",
    "symlink": "symlinkat", "readlink": "readlinkat", "getdents": "getdents64", "getpgrp": "getpgid",
    "time": "clock_gettime", "epoll_create": "epoll_create1", "epoll_wait": "epoll_pwait", "signalfd": "signalfd4",
    "eventfd": "eventfd2", "arch_prctl": "prctl", "futimesat": "utimensat",
}  # fmt: skip


def header_numbers(arch: str) -> dict[str, int]:
    path = next((p for p in map(Path, HEADERS[arch]) if p.exists()), None)
    if path is None:
        pytest.skip("the kernel's headers (linux-libc-dev) are not installed")
    text = path.read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", text)}
    renamed = re.findall(r"#define\s+__NR_(\w+)\s+__NR3264_(\w+)", text)
    return {**numbers, **{name: numbers[generic] for name, generic in renamed if generic in numbers}}


@pytest.mark.parametrize("arch", HEADERS)
def test_numbers_are_the_kernels(arch):
    kernels, ours = header_numbers(arch), _numbers(arch)
    assert len(ours) > 150 and {name: kernels[name] for name in ours} == ours
    assert not (_numbers("x86_64").keys() & kernels.keys()) - ours.keys()  # "-" only where there is no such call


def test_calling_conventions_are_the_kernels():
    machines, audit = Path("/usr/include/linux/elf-em.h"), Path("/usr/include/linux/audit.h")
    if not (machines.exists() and audit.exists()):
        pytest.skip("the kernel's headers (linux-libc-dev) are not installed")

    def constant(name: str, text: str) -> int:
        return int(re.search(rf"#define\s+{name}\s+(\w+)", text)[1], 0)

    bits = constant("__AUDIT_ARCH_64BIT", audit.read_text()) | constant("__AUDIT_ARCH_LE", audit.read_text())
    for arch, machine in (("x86_64", "EM_X86_64"), ("arm64", "EM_AARCH64")):
        assert syscall_numbers.AUDIT_ARCHS[arch] == constant(machine, machines.read_text()) | bits


def test_every_machine_name_of_the_two_architectures_is_known():
    for machine, arch in (("x86_64", "x86_64"), ("aarch64", "arm64"), ("arm64", "arm64"), ("riscv64", "")):
        assert syscall_numbers.ARCHS.get(machine, "") == arch
    assert syscall_numbers.ARCHS[os.uname().machine] == syscall_numbers.ARCH


@pytest.mark.parametrize("arch", HEADERS)
@pytest.mark.parametrize("profile", ["threads", "exec_once", "processes"])
def test_filter_of_either_architecture_decides_by_its_own_numbers(monkeypatch, arch, profile):
    numbers, audit = _numbers(arch), syscall_numbers.AUDIT_ARCHS[arch]
    monkeypatch.setattr(seccomp, "NUMBERS", numbers)
    monkeypatch.setattr(seccomp, "AUDIT_ARCH", audit)
    program = list(struct.iter_unpack("=HBBI", seccomp.compile_filter(profile, 7, own_files_only=True)))
    allow, refuse, missing, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000

    def decide(name: str, first: int = 0, second: int = 0, convention: int = audit) -> int:
        return interpret(program, numbers[name], first, second, convention)

    for name in ("read", "write", "openat", "mmap", "munmap", "brk", "futex", "exit_group", "getrandom", "rseq"):
        assert decide(name) == allow
    for name in ("ptrace", "mount", "unshare", "setns", "bpf", "io_uring_setup", "chroot", "keyctl", "setresuid"):
        assert decide(name) == refuse
    assert decide("execve") == (refuse if profile == "threads" else allow)
    assert decide("clone", 17) == (allow if profile == "processes" else refuse)
    assert decide("clone", 0x10000000 | 17) == refuse
    assert decide("clone", 0x3D0F00) == allow  # a thread as libc makes it
    assert decide("clone3") == missing
    assert decide("kill", 7) == allow and decide("socketpair", 1) == allow and decide("socketpair", 2) == refuse
    assert decide("read", convention=syscall_numbers.AUDIT_ARCHS[{"arm64": "x86_64"}.get(arch, "arm64")]) == kill


def test_arm64_has_a_successor_for_each_allowed_call_that_it_lacks():
    arm64, allowed = _numbers("arm64"), (seccomp._ALLOWED + seccomp._FILE_ATTRIBUTES).split()
    for name in allowed:
        if name not in arm64 and name not in ("chmod", "utime", "utimes"):
            assert SUCCESSORS[name] in arm64 and SUCCESSORS[name] in (*allowed, "prctl")

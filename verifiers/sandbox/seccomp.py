"""The system call filter of a jail: an allow-list compiled to classic BPF.

Three profiles. `threads`: no new process and no exec; signals go to the caller only. `exec_once`: that plus exec, for
node and the JVM. `processes`: fork and exec (compilers, shells), for jails that have a PID namespace.
Calls known to be refused answer EPERM; clone3 and unknown numbers answer ENOSYS, so that libc falls back.
A call made under a foreign calling convention (i386 or x32 on x86-64) kills the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Literal

from . import kernel
from .syscall_numbers import AUDIT_ARCH, NUMBERS

Profile = Literal["threads", "exec_once", "processes"]

_ALLOWED = """
read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise dup dup2 pause nanosleep
getitimer alarm setitimer getpid sendfile sendto recvfrom recvmsg shutdown getsockname getpeername setsockopt
getsockopt exit wait4 uname flock fsync fdatasync truncate ftruncate getdents getdents64 getcwd chdir fchdir rename
mkdir rmdir creat link unlink symlink readlink umask gettimeofday getrlimit setrlimit getrusage sysinfo times getuid
getgid geteuid getegid getppid getpgrp getgroups getresuid getresgid getpgid getsid rt_sigpending rt_sigtimedwait
rt_sigsuspend sigaltstack statfs fstatfs getpriority arch_prctl gettid time futex sched_getaffinity sched_getparam
sched_getscheduler sched_get_priority_max sched_get_priority_min set_tid_address restart_syscall fadvise64 timer_create
timer_settime timer_gettime timer_getoverrun timer_delete clock_gettime clock_getres clock_nanosleep exit_group
epoll_create epoll_create1 epoll_wait epoll_ctl epoll_pwait epoll_pwait2 waitid openat mkdirat newfstatat unlinkat
renameat renameat2 linkat symlinkat readlinkat faccessat faccessat2 pselect6 ppoll set_robust_list get_robust_list
signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime eventfd eventfd2 fallocate dup3 pipe2 preadv pwritev
preadv2 pwritev2 getcpu getrandom membarrier copy_file_range statx rseq close_range futex_waitv
"""
_PROCESSES_ONLY = "fork vfork clone execve execveat kill tgkill tkill setpgid setsid"
# Harmless on a jail's own files; in `flat`, where Landlock does not cover them, they would reach the host's.
_FILE_ATTRIBUTES = "chmod fchmod fchmodat utime utimes utimensat futimesat"
# May carry open files, which nobody can see and count while they wait in a socket.
_CARRIES_FILES = "sendmsg"

_TERMINAL_QUERIES = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIO(N)CLEX
_PRCTL = (3, 15, 16, 23, 0x53564D41)  # GET_DUMPABLE SET_NAME GET_NAME CAPBSET_READ SET_VMA
_FCNTL_REFUSED = (8, 10, 15, 1024, 1026, 1031)  # SETOWN SETSIG SETOWN_EX SETLEASE NOTIFY SETPIPE_SZ: signals, memory

_LD, _JEQ, _JGE, _JSET, _JA, _RET = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS, _ENOTTY = (0x00050000 | e for e in (errno.EPERM, errno.ENOSYS, errno.ENOTTY))
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data; arguments are 64 bits, low word first

Code = list[tuple[int, int, int, int]]


def _ret(value: int) -> Code:
    return [(_RET, 0, 0, value)]


def _one_of(offset: int, values: Iterable[int], then: int, otherwise: int) -> Code:
    """Decide by the low word of an argument. (All arguments compared so are 32-bit in the kernel.)"""
    code: Code = [(_LD, 0, 0, offset)]
    for value in values:
        code += [(_JEQ, 0, 1, value & 0xFFFFFFFF), *_ret(then)]
    return code + _ret(otherwise)


def _clone_rule(profile: Profile) -> Code:
    refuse_namespaces: Code = [(_LD, 0, 0, _ARG0), (_JSET, 0, 1, kernel.CLONE_NEW_ANY), *_ret(_EPERM)]
    if profile == "processes":
        return refuse_namespaces + _ret(_ALLOW)
    # A thread with a file table of its own could hide what it keeps open.
    thread: Code = [(_JSET, 0, 2, kernel.CLONE_FILES), (_JSET, 0, 1, kernel.CLONE_THREAD), *_ret(_ALLOW)]
    return [*refuse_namespaces, *thread, *_ret(_EPERM)]


def rules(profile: Profile, own_pid: int, *, own_files_only: bool) -> dict[int, Code]:
    """What is decided for each call number. `own_files_only`: every file the process can name is its own (the
    `namespaces` tier), so changing modes and times is harmless, and so are open files on their way through a socket."""
    decided: dict[int, Code] = {number: _ret(_EPERM) for number in NUMBERS.values()}

    def put(names: Iterable[str], code: Code) -> None:
        decided.update({NUMBERS[name]: code for name in names if name in NUMBERS})

    put(_ALLOWED.split(), _ret(_ALLOW))
    if own_files_only:
        put(_FILE_ATTRIBUTES.split() + _CARRIES_FILES.split(), _ret(_ALLOW))
    put(["ioctl"], _one_of(_ARG1, _TERMINAL_QUERIES, _ALLOW, _ENOTTY))
    put(["prctl"], _one_of(_ARG0, _PRCTL, _ALLOW, _EPERM))
    put(["fcntl"], _one_of(_ARG1, _FCNTL_REFUSED, _EPERM, _ALLOW))
    put(["prlimit64"], _one_of(_ARG0, [0], _ALLOW, _EPERM))
    put(["socketpair"], _one_of(_ARG0, [1], _ALLOW, _EPERM))  # AF_UNIX
    if profile == "processes":
        put(_PROCESSES_ONLY.split(), _ret(_ALLOW))
    else:
        put(["kill", "tgkill"], _one_of(_ARG0, [own_pid], _ALLOW, _EPERM))
    if profile == "exec_once":
        put(["execve"], _ret(_ALLOW))
    put(["clone"], _clone_rule(profile))
    put(["clone3"], _ret(_ENOSYS))
    return decided


def _search(ranges: list[tuple[int, Code]]) -> Code:
    """Binary search over (first number, code) sorted by number; each code holds up to the next first number."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    left, right = _search(ranges[:middle]), _search(ranges[middle:])
    pivot = ranges[middle][0]
    if len(left) <= 255:
        return [(_JGE, len(left), 0, pivot), *left, *right]
    return [(_JGE, 0, 1, pivot), (_JA, 0, 0, len(left)), *left, *right]


def compile_filter(profile: Profile, own_pid: int, *, own_files_only: bool) -> bytes:
    """The BPF program for `install`."""
    decided = rules(profile, own_pid, own_files_only=own_files_only)
    ranges: list[tuple[int, Code]] = [(0, _ret(_ENOSYS))]
    for number in range(max(decided) + 2):
        code = decided.get(number, _ret(_ENOSYS))
        if code != ranges[-1][1]:
            ranges.append((number, code))
    if ranges[1][0] == 0:
        del ranges[0]
    native_only: Code = [(_LD, 0, 0, _ARCH), (_JEQ, 1, 0, AUDIT_ARCH), *_ret(_KILL), (_LD, 0, 0, _NR)]
    x32: Code = [(_JGE, 0, 1, 0x40000000), *_ret(_KILL)]
    program = native_only + x32 + _search(ranges)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


_OWN_PID_MARK = 0x7ABCDEF1  # stands in a compiled filter for a pid that is known only in the child


class Filter:
    """A compiled program in memory, made once before many forks."""

    def __init__(self, program: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(program, len(program))
        self._head = struct.pack("@HP", len(program) // 8, ctypes.addressof(self._buffer))
        mark = struct.pack("=I", _OWN_PID_MARK)
        self._own_pid = [at for at in range(4, len(program), 8) if program[at : at + 4] == mark]

    def install(self) -> None:
        """Filter this thread and all its descendants from here on. Needs no_new_privs or a capability."""
        for at in self._own_pid:
            struct.pack_into("=I", self._buffer, at, os.getpid())
        kernel.syscall("seccomp", 1, 0, self._head)  # SECCOMP_SET_MODE_FILTER


def filters(*, own_files_only: bool) -> dict[Profile, Filter]:
    """One for each profile, for whichever process installs it."""
    profiles: tuple[Profile, ...] = ("threads", "exec_once", "processes")
    return {p: Filter(compile_filter(p, _OWN_PID_MARK, own_files_only=own_files_only)) for p in profiles}

"""The few raw system calls that Python's `os` module does not offer, through ctypes. Every failure raises OSError."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator

from .syscall_numbers import NUMBERS

CLONE_FILES, CLONE_THREAD = 0x00000400, 0x00010000
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEW_ANY = 0x7E020080  # every namespace flag, the cgroup and time ones included

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 4, 24, 28
PR_SET_NO_NEW_PRIVS = 38
SECBITS_NO_ROOT_LOCKED = 0b1111_1111  # no capability by uid 0, none kept over setuid, none ambient; all locked

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.setfsuid.argtypes = _libc.setfsgid.argtypes = (ctypes.c_uint,)
# fork-like calls must not drop the interpreter lock, hence PyDLL
_libc_locked = ctypes.PyDLL(None, use_errno=True)
_libc_locked.syscall.restype = ctypes.c_long
# Looked up here and not at the first call, which would be another one in every child.
_before_fork, _after_fork_in_parent, _after_fork_in_child = (
    getattr(ctypes.pythonapi, f"PyOS_{name}") for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
)


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def syscall(name: str, *args: int | bytes | None) -> int:
    """System call `name` with up to six integer or pointer arguments."""
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    return _check(_libc.syscall(ctypes.c_long(NUMBERS[name]), *values), name)


def fork_into(flags: int) -> int:
    """`fork()` whose child starts in new namespaces: 0 in the child, else the child's pid.

    `os.unshare(CLONE_NEWPID)` works once per process, this any number of times. The caller must be single-threaded.
    """
    _before_fork()
    pid = _libc_locked.syscall(ctypes.c_long(NUMBERS["clone"]), ctypes.c_long(flags | 17), *[ctypes.c_long(0)] * 4)
    if pid == 0:
        _after_fork_in_child()
        return 0
    error = ctypes.get_errno()
    _after_fork_in_parent()
    if pid < 0:
        raise OSError(error, f"clone: {os.strerror(error)}")
    return pid


def unshare(flags: int) -> None:
    syscall("unshare", flags)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    syscall("mount", os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode())


def bind(source: str, target: str, *, read_only: bool = True) -> None:
    """Show `source` (with what is mounted below it) at `target`, without set-uid programs."""
    mount(source, target, "", MS_BIND | MS_REC)
    # A user namespace may not drop flags that the mount already carries, so they are repeated.
    present = os.statvfs(target).f_flag & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | 0x400 | 0x800 | 0x200000)
    flags = MS_REMOUNT | MS_BIND | MS_NOSUID | _mount_flags(present) | (MS_RDONLY if read_only else 0)
    mount("", target, "", flags)


def _mount_flags(statvfs_flags: int) -> int:
    """mount(2) flags for those of statvfs(3): the first four bits agree, the access-time ones differ."""
    flags = statvfs_flags & 0xF
    for seen, wanted in ((0x400, 1024), (0x800, 2048), (0x1000, 1 << 21)):  # noatime, nodiratime, relatime
        flags |= wanted if statvfs_flags & seen else 0
    return flags


def pivot_into(new_root: str) -> None:
    """Make `new_root` (a mount point) the root directory and let go of the old one."""
    os.chdir(new_root)
    syscall("pivot_root", b".", b".")
    syscall("umount2", b".", MNT_DETACH)
    os.chdir("/")


def prctl(option: int, *args: int) -> int:
    return syscall("prctl", option, *args, *[0] * (4 - len(args)))


def drop_capabilities() -> None:
    """Give up every capability for good: bounding, ambient, effective, permitted and inheritable sets."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last capability, or not privileged and so without any
            break
    with contextlib.suppress(PermissionError):
        prctl(PR_SET_SECUREBITS, SECBITS_NO_ROOT_LOCKED)
    clear_capabilities()


def clear_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets."""
    header = struct.pack("=Ii", 0x20080522, 0)
    syscall("capset", header, bytes(24))


@contextlib.contextmanager
def looking_as(user: int) -> Iterator[None]:
    """What /proc tells of other processes is told to their own user, or to a privilege that containers do not have."""
    if user == os.geteuid():
        yield
        return
    group = os.getegid()
    _libc.setfsgid(user)
    _libc.setfsuid(user)
    try:
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(group)
        prctl(PR_SET_DUMPABLE, 1)  # a change of these clears it


def close_from(first: int) -> None:
    """Close all descriptors >= `first`."""
    syscall("close_range", first, 0xFFFFFFFF, 0)

"""What a forked child does between its birth and the first line of foreign code: lock every door behind itself."""

from __future__ import annotations

import math
import os
import resource
import select
import signal
from dataclasses import dataclass

from . import kernel, landlock, root, seccomp
from .job import Limits

# Descriptors inside a jail. Everything else is closed.
STDIN, STDOUT, STDERR, PAYLOAD, RESULT, PEER, STATUS = range(7)
# Protections that a test may switch off to see its attack succeed.
SWITCHES = frozenset({"seccomp", "landlock", "rlimits", "netns", "userns", "mounts", "capabilities"})


@dataclass(frozen=True, slots=True)
class Place:
    """What a template prepares once for its jails."""

    tier: str
    proc: int  # descriptor of the machine's /proc, for writing the maps of a new user namespace
    lifeline: tuple[int, int]  # a pipe whose other end only the template holds
    rulesets: list[int]  # one per slot
    work: list[str]  # one directory per slot
    uids: list[int]  # one per slot (`flat` as root), or empty: keep the user
    filters: dict[seccomp.Profile, seccomp.Filter]
    off: frozenset[str]  # protections switched off, by tests only


def profile_of(kind: str, processes: bool) -> seccomp.Profile:
    return "processes" if processes else "exec_once" if kind == "command" else "threads"


def enter(place: Place, slot: int, kind: str, processes: bool, limits: Limits, fds: list[int], status: int) -> None:
    """Turn this process into a jail. `fds`: payload, result, errors and, for a pair, the peer socket.

    Raises OSError when a protection cannot be put up; the caller must then exit without running anything foreign.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(place.lifeline[1])
    if select.select([place.lifeline[0]], [], [], 0)[0]:
        os._exit(1)  # the template died before the line above
    if place.tier == "namespaces":
        _own_namespaces(place, limits)
    else:
        _own_user(place, slot)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    os.chdir(place.work[slot])
    _arrange_descriptors(kind, fds, status, place.rulesets[slot])
    if "rlimits" not in place.off:
        _set_rlimits(place, kind, limits)
    ruleset = STATUS + 1
    if "landlock" not in place.off:
        landlock.restrict(ruleset)
    os.close(ruleset)
    if "seccomp" not in place.off:
        place.filters[profile_of(kind, processes)].install()
    os.close(STATUS)


def _own_namespaces(place: Place, limits: Limits) -> None:
    if "userns" not in place.off:
        uid, gid = os.getuid(), os.getgid()
        for name, text in (("setgroups", "deny"), ("uid_map", "%d %d 1"), ("gid_map", "%d %d 1")):
            fd = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=place.proc)
            os.write(fd, (text % (1000, _outer(name, uid, gid)) if "%" in text else text).encode())
            os.close(fd)
    if "mounts" not in place.off:
        options = f"size={limits.disk_mb}m,nr_inodes={limits.files},mode=700"
        kernel.mount("tmpfs", root.WORK, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    if "capabilities" not in place.off:
        kernel.clear_capabilities()  # those over the new user namespace; there are no others


def _outer(name: str, uid: int, gid: int) -> int:
    return uid if name == "uid_map" else gid


def _own_user(place: Place, slot: int) -> None:
    if place.uids:
        os.setgroups([])
        os.setresgid(*[place.uids[slot]] * 3)
        os.setresuid(*[place.uids[slot]] * 3)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it, and the next one too
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else the watcher cannot see what is kept open
    if "capabilities" not in place.off and os.getuid() == 0:
        kernel.drop_capabilities()


def _arrange_descriptors(kind: str, fds: list[int], status: int, ruleset: int) -> None:
    """The template keeps descriptors 0-9 busy, so no source below is overwritten by an earlier target."""
    payload, result, errors, *peer = fds
    prints = result if kind in ("program", "command") else errors
    targets = {PAYLOAD: payload, STDOUT: prints, STDERR: errors, STATUS: status, STATUS + 1: ruleset}
    if kind not in ("program",):
        targets[RESULT] = result
    if peer:
        targets[PEER] = peer[0]
    for target in (STDOUT, STDERR, PAYLOAD, RESULT, PEER, STATUS, STATUS + 1):
        if target in targets:
            os.dup2(targets[target], target)
        else:
            os.close(target)
    kernel.close_from(STATUS + 2)


def _set_rlimits(place: Place, kind: str, limits: Limits) -> None:
    def put(which: int, value: int) -> None:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))

    mb = 1 << 20
    put(resource.RLIMIT_CPU, math.ceil(limits.cpu_s) + 1)  # a backstop, counted in ticks; the template is exact
    put(resource.RLIMIT_FSIZE, limits.file_mb * mb)
    put(resource.RLIMIT_NOFILE, limits.open_files)
    put(resource.RLIMIT_CORE, 0)
    put(resource.RLIMIT_MEMLOCK, 0)
    put(resource.RLIMIT_MSGQUEUE, 0)
    if kind != "command":  # node, the JVM and Go reserve far more address space than they use
        put(resource.RLIMIT_AS, _address_space() + limits.memory_mb * mb)
    if place.tier == "namespaces" or place.uids:  # elsewhere the count would include the user's other processes
        put(resource.RLIMIT_NPROC, limits.processes)


_own_address_space = 0


def _address_space() -> int:
    return _own_address_space


def remember_address_space_from(proc: int) -> None:
    """Note, in the template, how much address space it uses: a jail has no /proc to read it from."""
    global _own_address_space
    fd = os.open("self/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    _own_address_space = int(os.read(fd, 200).split()[0]) * resource.getpagesize()
    os.close(fd)

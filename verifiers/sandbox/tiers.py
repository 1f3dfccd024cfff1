"""The two tiers, as prepared once by a template process. Each either works in full or raises OSError."""

from __future__ import annotations

import os
import sys
from typing import Any

from . import kernel, landlock, root, seccomp
from .jail import Place

_UNPRIVILEGED_ID = 65534
# Users that nothing else on the machine is likely to run as, one per slot, so that RLIMIT_NPROC binds and no jail may
# signal another. Only for `flat` as root.
_FIRST_SLOT_ID = 64100


def prepare(config: dict[str, Any]) -> Place:
    """`config`: tier, slots, extra (paths to show), off (protections that a test switches off), work (`flat` only)."""
    os.umask(0o022)
    sys.path[:] = [os.path.realpath(p) for p in sys.path]
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    raise_oom_score()
    visible = root.visible_paths(config["extra"])
    off = frozenset(config["off"])
    prepare_tier = _namespaces if config["tier"] == "namespaces" else _flat
    work, uids, allowed = prepare_tier(config, visible, off)
    rulesets = [landlock.create_ruleset(rules) for rules in allowed]
    os.environ.update(HOME=work[0], TMPDIR=work[0])
    os.environ.pop("LD_BIND_NOW", None)
    filters = seccomp.filters(own_files_only=config["tier"] == "namespaces")
    return Place(config["tier"], proc, os.pipe(), rulesets, work, uids, filters, off)


def raise_oom_score() -> None:
    """Let the kernel, out of memory, end jails rather than the host."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


Prepared = tuple[list[str], list[int], list[list[tuple[str, int]]]]


def _namespaces(config: dict[str, Any], visible: list[str], off: frozenset[str]) -> Prepared:
    shared = kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    shared |= 0 if "netns" in off else kernel.CLONE_NEWNET
    as_root = os.geteuid() == 0 and _can_unshare(shared)
    if as_root:
        kernel.unshare(shared)
    else:
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(shared | kernel.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    kernel.syscall("sethostname", b"box", 3)
    if "mounts" not in off:
        root.build(visible)
    else:
        os.chmod(config["work"], 0o777)
    if as_root and "userns" not in off:
        _become_nobody()
    work = root.WORK if "mounts" not in off else config["work"]
    parent = root.WORK_PARENT if "mounts" not in off else config["work"]
    rules = root.allowed_paths(visible, parent, landlock.FULL_WRITE)
    return [work] * config["slots"], [], [rules] * config["slots"]


def _can_unshare(flags: int) -> bool:
    """Whether this process has the privilege, tried in a child."""
    pid = os.fork()
    if pid == 0:
        try:
            kernel.unshare(flags)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(*[_UNPRIVILEGED_ID] * 3)
    os.setresuid(*[_UNPRIVILEGED_ID] * 3)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root and the maps cannot be written


def _flat(config: dict[str, Any], visible: list[str], off: frozenset[str]) -> Prepared:
    if "landlock" not in off and landlock.version() < 3:
        raise OSError(f"needs Landlock version 3 (Linux 6.2), which guards truncation; found {landlock.version()}")
    work = [os.path.join(config["work"], str(slot)) for slot in range(config["slots"])]
    uids = [_FIRST_SLOT_ID + slot for slot in range(config["slots"])] if _may_change_user(visible) else []
    for slot, path in enumerate(work):
        os.makedirs(path, mode=0o700, exist_ok=True)
        if uids:
            os.chown(path, uids[slot], uids[slot])
    if uids:
        os.chmod(config["work"], 0o711)
    return work, uids, [root.allowed_paths(visible, path, landlock.FLAT_WRITE) for path in work]


def _may_change_user(visible: list[str]) -> bool:
    """Root drops to a user of its own per slot, unless the interpreter lies where only root can read it; then jails
    stay uid 0 without any capability, and Landlock and seccomp alone stand between them and root's files."""
    return os.geteuid() == 0 and all(_open_to_all(path) for path in visible) and _may_setuid()


def _open_to_all(path: str) -> bool:
    while path != "/":
        if not os.stat(path).st_mode & (0o001 if os.path.isdir(path) else 0o004):
            return False
        path = os.path.dirname(path)
    return True


def _may_setuid() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresuid(*[_FIRST_SLOT_ID] * 3)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0

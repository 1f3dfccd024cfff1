"""What a jail sees of the machine: system directories and the interpreter, read-only, and one directory of its own."""

from __future__ import annotations

import glob
import os
import sys

from . import kernel, landlock

WORK_PARENT, WORK = "/box", "/box/work"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/java*", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_STAGES = ("/mnt", "/media", "/srv", "/opt", "/sys")


def visible_paths(extra: list[str]) -> list[str]:
    """Paths that jails may read: the system's, the interpreter's and `extra`; a path below another is left out."""
    interpreter = {os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__))}
    wanted = [*_SYSTEM, *(p for pattern in _ETC for p in glob.glob(pattern)), *sorted(interpreter), *extra]
    kept: list[str] = []
    for path in wanted:
        inside = any(path == k or path.startswith(k.rstrip("/") + "/") for k in kept)
        if path != "/" and os.path.exists(path) and not inside:
            kept.append(path)
    return kept


def allowed_paths(visible: list[str], work: str, work_rights: int) -> list[tuple[str, int]]:
    """The Landlock rules that match: read and execute what is visible, use the devices, write to `work`."""
    devices = [(d, landlock.READ_FILE | landlock.WRITE_FILE) for d in _DEVICES]
    return [*((p, landlock.READ) for p in visible), *devices, (work, work_rights)]


def build(visible: list[str]) -> None:
    """Replace the root directory of this mount namespace by one with nothing but `visible`, devices and the place
    for the jails' own directories. Needs CAP_SYS_ADMIN over the mount namespace. Raises OSError."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    stage = next(s for s in _STAGES if os.path.isdir(s) and not any(v.startswith(s) for v in visible))
    kernel.mount("tmpfs", stage, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m,nr_inodes=2000")
    for path in visible:
        _show(path, stage)
    for device in _DEVICES:
        if os.path.exists(device):
            _show(device, stage)
    os.makedirs(stage + WORK)
    if not os.path.lexists(stage + "/tmp"):  # it holds an interpreter otherwise
        os.symlink(WORK, stage + "/tmp")
    kernel.pivot_into(stage)
    kernel.mount("", "/", "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)


def _show(path: str, stage: str) -> None:
    target = stage + path
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target, 0o755)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.bind(path, target)

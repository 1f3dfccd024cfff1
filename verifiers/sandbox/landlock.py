"""Landlock: what a jail may open, execute and create, whatever mounts and file modes say (kernel 5.13 and later)."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence

from . import kernel

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_FILE, MAKE_REG = 1 << 5, 1 << 8
TRUNCATE = 1 << 14  # since version 3
# Access rights on files that each version of the interface knows.
_ALL_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_ALL = 0b11  # bind and connect TCP, since version 4
_SCOPE_ALL = 0b11  # abstract sockets and signals stay inside, since version 6

READ = EXECUTE | READ_FILE | READ_DIR
# A flat directory of regular files: no sub-directories, links, sockets or pipes, so it can be measured and emptied.
FLAT_WRITE = READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
FULL_WRITE = (1 << 16) - 1


def version() -> int:
    """The kernel's Landlock version, 0 when there is none."""
    try:
        return kernel.syscall("landlock_create_ruleset", None, 0, 1)
    except (OSError, KeyError):
        return 0


def create_ruleset(allowed: Sequence[tuple[str, int]]) -> int:
    """A descriptor of a rule set that denies everything but `allowed`, pairs of (path, access rights).

    A rule on a mount point covered by a later mount has no effect below; put it on the parent. Paths that
    are missing or out of reach get no rule, and so stay closed.
    """
    found = version()
    if not found:
        raise OSError("this kernel has no Landlock")
    handled = _ALL_BY_VERSION[min(found, 5)]
    attributes = struct.pack("=QQQ", handled, _NET_ALL if found >= 4 else 0, _SCOPE_ALL if found >= 6 else 0)
    size = 24 if found >= 6 else 16 if found >= 4 else 8
    ruleset = kernel.syscall("landlock_create_ruleset", attributes, size, 0)
    for path, rights in allowed:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            _allow(ruleset, path, rights & handled)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | 1 << 15
        kernel.syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def restrict(ruleset: int) -> None:
    """Bind this thread and its descendants to `ruleset`. Needs no_new_privs or a capability."""
    kernel.syscall("landlock_restrict_self", ruleset, 0)

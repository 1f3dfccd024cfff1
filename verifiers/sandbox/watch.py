"""What the kernel does not limit by itself: resident memory, threads, processor time below a second, and in `flat` the
size of the working directory. Polled by the template about every 20 ms, so a limit can be overshot by what fits in it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat

from .job import Limits
from .kernel import looking_as

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


class Watcher:
    def __init__(self, proc: int, tier: str) -> None:
        self.proc, self.tier = proc, tier

    def exceeded(self, pid: int, limits: Limits, work: str, uid: int) -> str:
        """The limit that the jail of `pid`, run by user `uid`, and its descendants break, "" for none."""
        cpu_s, threads, rss = 0.0, 0, 0
        for member in self._family(pid):
            figures = self._figures(member)
            cpu_s, threads, rss = cpu_s + figures[0], threads + figures[1], rss + figures[2]
        if rss > limits.memory_mb << 20:
            return "memory"
        if cpu_s >= limits.cpu_s:
            return "cpu_time"
        if threads > limits.processes:
            return "processes"
        if self.tier == "flat":
            with looking_as(uid):
                deleted = self._deleted(pid, work, limits)
            if _too_full(work, limits, deleted):
                return "disk"
        return ""

    def _deleted(self, pid: int, work: str, limits: Limits) -> list[int]:
        """The sizes of files that are in no directory any more and live on as open or mapped ones; of those that are
        mapped only, the largest size that they can have."""
        sizes: dict[int, int] = {}
        device = os.stat(work).st_dev
        with contextlib.suppress(OSError):  # it has just ended
            table = os.open(f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc)
            try:
                for name in os.listdir(table):
                    with contextlib.suppress(OSError):
                        found = os.stat(name, dir_fd=table)
                        if found.st_nlink == 0 and found.st_dev == device and stat.S_ISREG(found.st_mode):
                            sizes[found.st_ino] = found.st_blocks * 512
            finally:
                os.close(table)
        for line in self._read(f"{pid}/maps").split(b"\n"):
            if line.endswith(b"(deleted)") and os.fsencode(work) in line:
                sizes.setdefault(int(line.split()[4]), limits.file_mb << 20)
        return list(sizes.values())

    def _read(self, path: str) -> bytes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        except OSError:  # it has just ended
            return b""
        try:
            with os.fdopen(fd, "rb") as file:
                return file.read()
        except OSError:
            return b""

    def _family(self, pid: int) -> list[int]:
        family = [pid]
        for member in family:  # grows while it is walked
            family += [int(child) for child in self._read(f"{member}/task/{member}/children").split()]
        return family

    def _figures(self, pid: int) -> tuple[float, int, int]:
        """Processor seconds, threads and resident bytes."""
        fields = self._read(f"{pid}/stat").rpartition(b")")[2].split()  # the name before it may contain anything
        if len(fields) < 22:
            return 0.0, 0, 0
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[17]), int(fields[21]) * _PAGE


def _too_full(work: str, limits: Limits, deleted: list[int]) -> bool:
    """Landlock keeps the directory free of sub-directories and links."""
    total, count = sum(deleted), len(deleted)
    if count > limits.files or total > limits.disk_mb << 20:
        return True
    with contextlib.suppress(OSError), os.scandir(work) as entries:
        for entry in entries:
            count += 1
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
            if count > limits.files or total > limits.disk_mb << 20:
                return True
    return False


def empty(work: str) -> None:
    """Remove all files of a `flat` jail's directory."""
    with os.scandir(work) as entries:
        for entry in list(entries):
            os.unlink(entry.path)

"""What the kernel does not limit by itself: resident memory, threads, processor time below a second, and in `flat` the
size of the working directory. Polled by the template about every 20 ms, so a limit can be overshot by what fits in it.
"""

from __future__ import annotations

import contextlib
import os
import resource

from .job import Limits

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


class Watcher:
    def __init__(self, proc: int, tier: str) -> None:
        self.proc, self.tier = proc, tier

    def exceeded(self, pid: int, limits: Limits, work: str) -> str:
        """The limit that the jail of `pid` and its descendants break, "" for none."""
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
        if self.tier == "flat" and _too_full(work, limits):
            return "disk"
        return ""

    def _read(self, path: str) -> bytes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        except OSError:  # it has just ended
            return b""
        try:
            return os.read(fd, 1 << 16)
        except OSError:
            return b""
        finally:
            os.close(fd)

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


def _too_full(work: str, limits: Limits) -> bool:
    """Landlock keeps the directory free of sub-directories and links."""
    total = count = 0
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

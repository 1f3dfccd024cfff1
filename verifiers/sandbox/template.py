"""The warm template: a single-threaded process, kept out of all foreign text, that forks one jail per job.

It reads job *headers* only (kind and limits); payloads travel as descriptors straight into the jails. It kills at
limits that the kernel does not enforce by itself (wall time, resident memory, threads, disk in `flat`), reaps, and
reports. When the host goes away it kills all jails and ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from . import codec, jail, tiers, watch, worker
from .job import Limits
from .kernel import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, fork_into

_MAX_HEADER = 1 << 16
_TICK_S = 0.02


@dataclass(slots=True)
class Running:
    index: int
    pid: int
    pidfd: int
    slot: int
    limits: Limits
    group: Group
    started: float
    reason: str = ""


@dataclass(slots=True)
class Group:
    """Jobs that were sent together; the last one leads: when it ends, the others are stopped."""

    status: socket.socket
    jails: list[Running] = field(default_factory=list)


class Template:
    def __init__(self, control: socket.socket, place: jail.Place, watcher: watch.Watcher) -> None:
        self.control, self.place, self.watcher = control, place, watcher
        self.free_slots = list(range(len(place.work)))
        self.jails: dict[int, Running] = {}  # by pidfd
        self.groups: dict[int, Group] = {}  # by status descriptor
        self.poll = select.epoll()
        self.poll.register(control, select.EPOLLIN)

    def serve(self) -> None:
        """Until the host closes its end."""
        parent, control, checked = os.getppid(), self.control.fileno(), 0.0
        while True:
            for fd, _ in self.poll.poll(_TICK_S if self.jails else 1.0):
                if fd == control:
                    if not self.accept():
                        return
                elif fd in self.jails:
                    self.finish(self.jails[fd])
                elif fd in self.groups:
                    self.hear(self.groups[fd])
            now = time.monotonic()
            if now - checked >= _TICK_S:
                checked = now
                if os.getppid() != parent:
                    return
                self.check_limits(now)

    def accept(self) -> bool:
        try:
            header, fds, _, _ = socket.recv_fds(self.control, _MAX_HEADER, 16)
        except ConnectionError:
            return False
        if not header:
            return False
        group = Group(socket.socket(fileno=fds.pop(0)))
        group.status.setblocking(False)
        for index, spec in enumerate(codec.from_bytes(header)):
            count = 4 if spec["peer"] else 3
            mine, fds = fds[:count], fds[count:]
            self.start(group, index, spec, mine)
            for fd in mine:
                os.close(fd)
        if not group.jails:
            group.status.close()
            return True
        self.groups[group.status.fileno()] = group
        self.poll.register(group.status, select.EPOLLIN)
        return True

    def start(self, group: Group, index: int, spec: dict[str, Any], fds: list[int]) -> None:
        limits, slot = Limits(**spec["limits"]), self.free_slots.pop()
        status = group.status.fileno()
        try:
            pid = fork_jail(self.place, slot, spec["kind"], spec["processes"], limits, fds, status, index)
        except OSError as error:  # the machine is out of processes or memory
            self.free_slots.append(slot)
            report = {"index": index, "setup": str(error), "code": 1, "wall_s": 0.0, "cpu_s": 0.0, "rss_mb": 0.0}
            group.status.send(json.dumps(report).encode())
            return
        jailed = Running(index, pid, os.pidfd_open(pid), slot, limits, group, time.monotonic())
        group.jails.append(jailed)
        self.jails[jailed.pidfd] = jailed
        self.poll.register(jailed.pidfd, select.EPOLLIN)

    def hear(self, group: Group) -> None:
        try:
            word = group.status.recv(64)  # "<index> <reason>", or nothing when the host lost interest
        except BlockingIOError:  # the event was for an earlier bearer of this descriptor's number
            return
        except ConnectionResetError:  # the host closed it with a report unread
            word = b""
        for jailed in list(group.jails):
            if not word or jailed.index == int(word.split()[0]):
                self.kill(jailed, word.split()[1].decode() if word else "stopped")

    def kill(self, jailed: Running, reason: str) -> None:
        jailed.reason = jailed.reason or reason
        signal.pidfd_send_signal(jailed.pidfd, signal.SIGKILL)

    def check_limits(self, now: float) -> None:
        for jailed in self.jails.values():
            if jailed.reason:
                continue
            if now - jailed.started >= jailed.limits.wall_s:
                self.kill(jailed, "wall_time")
            elif now - jailed.started >= _TICK_S:
                uid = self.place.uids[jailed.slot] if self.place.uids else os.geteuid()
                reason = self.watcher.exceeded(jailed.pid, jailed.limits, self.place.work[jailed.slot], uid)
                if reason:
                    self.kill(jailed, reason)

    def finish(self, jailed: Running) -> None:
        """Reap: in `namespaces` the kernel has by then ended every process of the jail's PID namespace."""
        _, code, usage = os.wait4(jailed.pid, 0)
        report = {
            "index": jailed.index,
            "reason": jailed.reason,
            "code": os.waitstatus_to_exitcode(code),
            "wall_s": time.monotonic() - jailed.started,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "rss_mb": usage.ru_maxrss / 1024,
        }
        self.poll.unregister(jailed.pidfd)
        del self.jails[jailed.pidfd]
        os.close(jailed.pidfd)
        if self.place.tier == "flat":
            watch.empty(self.place.work[jailed.slot])
        self.free_slots.append(jailed.slot)
        group = jailed.group
        with contextlib.suppress(OSError):  # the host lost interest
            group.status.send(codec.to_bytes(report))
        group.jails.remove(jailed)
        if not group.jails:
            self.poll.unregister(group.status)
            del self.groups[group.status.fileno()]
            group.status.close()
        elif jailed.index > max(other.index for other in group.jails):
            for other in group.jails:
                self.kill(other, "stopped")

    def end(self) -> None:
        for jailed in self.jails.values():
            signal.pidfd_send_signal(jailed.pidfd, signal.SIGKILL)
            os.wait4(jailed.pid, 0)
        if self.place.tier == "flat":
            for work in self.place.work:
                watch.empty(work)
                os.rmdir(work)
            with contextlib.suppress(OSError):  # the host has been faster
                os.rmdir(os.path.dirname(self.place.work[0]))


def fork_jail(
    place: jail.Place, slot: int, kind: str, processes: bool, limits: Limits, fds: list[int], status: int, index: int
) -> int:
    """Fork a child that locks itself in and runs its payload; returns its pid."""
    flags = 0
    if place.tier == "namespaces":
        flags = CLONE_NEWPID | CLONE_NEWNS | (0 if "userns" in place.off else CLONE_NEWUSER)
    pid = fork_into(flags)
    if pid:
        return pid
    try:
        jail.enter(place, slot, kind, processes, limits, fds, status)
    except BaseException as error:
        report = json.dumps({"index": index, "setup": f"{type(error).__name__}: {error}"}).encode()
        # The descriptor is where it came from until it has been moved.
        for fd in (status, jail.STATUS):
            try:
                os.write(fd, report)
                break
            except OSError:
                continue
        os._exit(1)
    try:
        worker.run(kind, pid_one=flags != 0 and processes)
    finally:
        os._exit(1)


def _self_test(place: jail.Place) -> None:
    """Run an empty job through every door. Raises RuntimeError with the reason when one cannot be closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open("/dev/null", os.O_RDWR)
    payload = os.memfd_create("payload")
    os.write(payload, b'{"source": "raise SystemExit(7)", "stdin": ""}')
    pid = fork_jail(place, 0, "program", False, Limits(), [payload, null, null], theirs.fileno(), 0)
    for fd in (null, payload):
        os.close(fd)
    theirs.close()
    report = ours.recv(4096)
    ours.close()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if report:
        raise RuntimeError(json.loads(report)["setup"])
    if code != 7:
        raise RuntimeError(f"a trial job ended with code {code} instead of 7")


def main(config_text: str) -> None:
    """Entry point of the template process. Descriptor 3 is the control socket; the first message on it says whether
    this tier works."""
    config = json.loads(config_text)
    control = socket.socket(fileno=os.dup(3))
    while os.open("/dev/null", os.O_RDWR) < 9:  # keeps 0-9 busy, see jail._arrange_descriptors
        pass
    moved = socket.socket(fileno=os.dup(control.fileno()))
    control.close()
    try:
        sys.path += config["extra"]
        worker.preload()
        for name in config["modules"]:
            __import__(name)
        place = tiers.prepare(config)
        jail.remember_address_space_from(place.proc)
        _self_test(place)
    except Exception as error:
        moved.send(json.dumps({"refused": f"{type(error).__name__}: {error}"}).encode())
        return
    watcher = watch.Watcher(place.proc, place.tier)
    gc.collect()
    gc.freeze()
    gc.disable()
    moved.send(json.dumps({"ready": True, "pid": os.getpid()}).encode())
    template = Template(moved, place, watcher)
    try:
        template.serve()
    finally:
        template.end()
        sys.exit(0)

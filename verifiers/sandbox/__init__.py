"""A sandbox for code that a model wrote: no Docker, no account, standard library only, Linux on x86-64 and arm64.

A warm template process forks one jail per job. `Sandbox()` picks the best tier that works on this machine, or raises
`SandboxError` with the reason for each; it never runs code with less than a whole tier.

namespaces: user, mount, PID, network and IPC namespaces, Landlock, a seccomp allow-list, rlimits. A root directory with
    the system's and the interpreter's files, read-only, and a fresh directory in memory per job.
flat: Landlock, the seccomp allow-list and rlimits, for where namespaces are refused (Docker's default profile, pods).
    No job may fork. Nothing is writable but the job's own directory, which holds plain files only.

Covered, each by a test in tests/test_sandbox_*.py: time (wall and processor), memory, processes, threads, files, file
and disk size, output size; network of every family; reading, writing, listing host files; environment and descriptors
of the host; signals to, tracing of and memory of other processes; new namespaces, mounts, io_uring, bpf and the other
calls that have let programs out before; daemons; anything left for the next job.

Not covered: bugs of the kernel and of the processor; timing and cache channels; the load that a job puts on shared
caches and disks within its limits; who can become root on the host anyway. In `flat`, names, sizes and modes of host
files can be asked for (`stat`), though not contents, and uid 0 stays uid 0, without capabilities, where the interpreter
lies in a directory that only root can read. What is polled (resident memory of programs other than Python, threads and
disk use in `flat`) can overshoot by what fits into 20 ms.

Whose word counts is a second question, answered in testing.py: no verdict is ever taken from a jail with foreign code.
`verifiers.sandbox.remote.RemoteSandbox` runs the same jobs on other machines.
"""

from .job import Backend, Job, Limits, Outcome, SandboxError
from .local import TIERS, Sandbox, probe

__all__ = ["TIERS", "Backend", "Job", "Limits", "Outcome", "Sandbox", "SandboxError", "probe"]

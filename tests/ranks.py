"""Starting the modules of tests/ as processes of their own, on one rank or several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(module: str, *arguments: object, ranks: int = 1, **environment: str) -> subprocess.Popen:
    """`python -m module arguments`, by torchrun for several ranks. A crash in native code leaves the Python stack."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    command += [module, *map(str, arguments)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    env = {**os.environ, **own, **environment}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, timeout: int = 300) -> str:
    """What it printed. The whole of it is shown when the process fails: the first rank to fail stands far above the
    last lines, which are the launcher's."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {timeout} s:\n{process.communicate()[0]}") from None
    assert process.returncode == 0, output
    return output

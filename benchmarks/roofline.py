"""How fast this machine multiplies matrices: what the times of a run are held against."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

from benchmarks.sides import ROOT

SIZE = 2048


def matmul_gflops(threads: int) -> dict[str, float]:
    """GFLOP/s of a 2048 x 2048 x 2048 product per type, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.roofline", str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = torch.randn(SIZE, SIZE, dtype=dtype), torch.randn(SIZE, SIZE, dtype=dtype)
        out, seconds = torch.empty(SIZE, SIZE, dtype=dtype), []
        for _ in range(12):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
        rates[name] = 2 * SIZE**3 / median(seconds[2:]) / 1e9
    print(json.dumps(rates))


if __name__ == "__main__":
    main()

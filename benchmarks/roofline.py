"""How fast this machine multiplies matrices: what the times of a run are held against."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

from benchmarks.sides import ROOT

SIZE = 2048


def matmul_gflops(threads: int) -> dict[str, float]:
    """GFLOP/s of a 2048 x 2048 x 2048 product per type, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.roofline", str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    rates = {name: rate(getattr(torch, name)) for name in ("float32", "bfloat16")}
    # torch takes float32 products in MKL; told that bfloat16 would do it takes them in oneDNN, which on a processor
    # without AMX still computes in float32
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    x = torch.randn(64, 64)
    if torch.equal(x @ torch.eye(64), x):
        rates["float32 (oneDNN)"] = rate(torch.float32)
    print(json.dumps(rates))


def rate(dtype: torch.dtype) -> float:
    """GFLOP/s of the fastest of ten products: what the machine can do."""
    a, b = torch.randn(SIZE, SIZE, dtype=dtype), torch.randn(SIZE, SIZE, dtype=dtype)
    out, seconds = torch.empty(SIZE, SIZE, dtype=dtype), []
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(seconds[2:]) / 1e9


if __name__ == "__main__":
    main()

"""The head alone: log-probabilities and entropies at 1,024 scored positions of a vocabulary of 151,936, width 1,024.

Memory is what forward and backward take beyond inputs, weights and their gradients. Each way runs in its own process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.sides import PATIENCE, ROOT, Differ, Stopwatch, memory_mb, reset_peak_memory, wait_until_quiet

POSITIONS, WIDTH, VOCABULARY = 1024, 1024, 151936
WAYS = ("known loss", "ours", "dense log_softmax")
REPEATS = 2

# name, with entropy
CASES = [("log-probabilities", False), ("log-probabilities and entropy", True)]


def loss_of(way: str, hidden, weight, targets, entropy: bool):
    """The mean of -log p, less a part of the entropies' if asked for."""
    from alignment.models.head import ScoreRequest, chunked_scores

    def loss(logprobs, entropies):
        return -logprobs.mean() - 0.01 * entropies.mean() if entropy else -logprobs.mean()

    if way == "known loss":
        return chunked_scores(hidden, weight, None, ScoreRequest(targets, entropy=entropy, loss=loss)).total
    if way == "ours":
        out = chunked_scores(hidden, weight, None, ScoreRequest(targets, entropy=entropy))
        return loss(out.logprobs_N, out.entropy_N)
    log_softmax = (hidden @ weight.t()).log_softmax(-1)
    logprobs = log_softmax.gather(1, targets[:, None])[:, 0]
    return loss(logprobs, -(log_softmax.exp() * log_softmax).sum(-1) if entropy else None)


def measure(way: str, entropy: bool) -> dict[str, Any]:
    """One way, in this process."""
    import torch

    torch.manual_seed(0)
    weight = (torch.randn(VOCABULARY, WIDTH) * 0.02).requires_grad_()
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    targets = torch.randint(VOCABULARY, (POSITIONS,))
    gradients_mb = 4 * (weight.numel() + hidden.numel()) / 2**20
    loss_of(way, hidden[:8], weight, targets[:8], entropy).backward()  # libraries loaded, pools made
    weight.grad = hidden.grad = None
    reset_peak_memory()
    before, steps = memory_mb("VmRSS"), []
    for _ in range(REPEATS):
        weight.grad = hidden.grad = None
        watch = Stopwatch()
        loss = loss_of(way, hidden, weight, targets, entropy)
        loss.backward()
        steps.append(watch.read())
    return {
        **min(steps, key=lambda step: step["seconds"]),
        "extra_mb": memory_mb("VmHWM") - before - gradients_mb,
        "loss": loss.item(),
        "grad_norm": float(torch.linalg.vector_norm(weight.grad)),
    }


def run_case(case: tuple[str, bool], threads: int) -> dict[str, Any]:
    """Every way in turn; they must agree on loss and gradient."""
    name, entropy = case
    results: dict[str, Any] = {}
    for way in WAYS:
        wait_until_quiet()
        command = [sys.executable, "-m", "benchmarks.bench_head", "--side", json.dumps([way, entropy, threads])]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    dense = results[WAYS[-1]]
    for way in WAYS[:-1]:
        for key in ("loss", "grad_norm"):
            if abs(results[way][key] - dense[key]) > 1e-4 * abs(dense[key]):
                raise Differ(f"{name}, {way}: {key} {results[way][key]} and {dense[key]}")
    return {"name": name, "useful_flops": 3 * 2.0 * POSITIONS * WIDTH * VOCABULARY, "sides": results}


def main() -> None:
    import torch

    way, entropy, threads = json.loads(sys.argv[2])
    torch.set_num_threads(threads)
    print(json.dumps(measure(way, entropy)))


if __name__ == "__main__":
    main()

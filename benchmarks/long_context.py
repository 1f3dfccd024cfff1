"""How memory and time of one SFT step grow with the length of a sequence: "Long context" in docs/scale.md.

python -m benchmarks.long_context [--lengths 2048,4096,…]. A Qwen3 of 4 layers and width 256 with a vocabulary of 32,768
in float32 on this CPU; one sequence, half of it scored. Every point is a process of its own: its peak memory is that of
the operating system, less what was there before the step; of two ranks, the larger. Prints Markdown, with the estimate
of `align inspect`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time

import numpy as np
import torch
import torch.distributed as dist
from transformers import Qwen3Config
from transformers import Qwen3ForCausalLM as Model

from alignment.inspect import estimate_memory
from alignment.models import Policy
from alignment.models.trunk import base_of, checkpoint_activations
from alignment.packing import conversation, cut
from alignment.packing.sequence_parallel import make_sequence_group

WAYS = {"whole": (False, 1), "checkpointed": (True, 1), "checkpointed, two ranks": (True, 2)}
"""Checkpointed activations, and ranks that share the row."""
CONFIG = Qwen3Config(
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=32768,
    max_position_embeddings=2**18,
)


def step(length: int, way: str, rank: int = 0, meeting: str = "") -> dict[str, float]:
    """Seconds and bytes of a forward and backward pass on one rank."""
    torch.manual_seed(0)
    checkpointed, ranks = WAYS[way]
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    policy = Policy(Model(CONFIG).train())
    if checkpointed:
        checkpoint_activations(base_of(policy.model))
    ids = np.random.default_rng(0).integers(5, 32000, length).tolist()
    micro = cut([conversation(ids, np.arange(length) >= length // 2)], length)[0]
    micro = make_sequence_group(ranks, CONFIG.num_attention_heads).own_part(micro)
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)  # not counted as activations
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    policy(micro, loss=lambda logprobs_N, _: -logprobs_N.sum()).total.backward()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def in_children(length: int, way: str) -> dict[str, float]:
    """The slowest and the largest of the ranks, each a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = []
        for rank in range(WAYS[way][1]):
            read, write = os.pipe()
            if os.fork() == 0:
                os.write(write, json.dumps(step(length, way, rank, f"{folder}/meeting")).encode())
                os._exit(0)
            os.close(write)
            pipes.append(read)
        found = [json.loads(os.fdopen(pipe).read()) for pipe in pipes]
        for _ in pipes:
            os.wait()
    return {name: max(f[name] for f in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="2048,4096,8192,16384,32768")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| tokens | activations | seconds | MiB above the weights | estimate, MiB |")
    print("|---:|---|---:|---:|---:|")
    for length in map(int, options.lengths.split(",")):
        for way, (checkpointed, ranks) in WAYS.items():
            found = in_children(length, way)
            e = estimate_memory(CONFIG, length // ranks, length // 2, gradient_checkpointing=checkpointed)
            estimate = (e.activations + e.head) / 2**20
            print(f"| {length:,} | {way} | {found['seconds']:.1f} | {found['bytes'] / 2**20:,.0f} | {estimate:,.0f} |")


if __name__ == "__main__":
    main()

"""How memory and time of one SFT step grow with the length of a sequence: the last table of docs/scale.md.

python -m benchmarks.long_context [--lengths 2048,4096,…]. A Qwen3 of 4 layers and width 256 with a vocabulary of 32,768
in float32 on this CPU; one sequence, half of it scored. Every point is a process of its own: its peak memory is that of
the operating system, less what was there before the step. Prints Markdown, with the estimate of `align inspect`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

import numpy as np
import torch
from transformers import Qwen3Config
from transformers import Qwen3ForCausalLM as Model

from alignment.inspect import estimate_memory
from alignment.models import Policy
from alignment.models.trunk import base_of, checkpoint_activations
from alignment.packing import conversation, cut

WAYS = {"whole": (False, False), "checkpointed": (True, False)}
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


def step(length: int, way: str) -> dict[str, float]:
    """Seconds and bytes of a forward and backward pass."""
    torch.manual_seed(0)
    policy = Policy(Model(CONFIG).train())
    checkpointed, offload = WAYS[way]
    if checkpointed:
        checkpoint_activations(base_of(policy.model), offload)
    ids = np.random.default_rng(0).integers(5, 32000, length).tolist()
    micro = cut([conversation(ids, np.arange(length) >= length // 2)], length)[0]
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)  # not counted as activations
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    policy(micro).logprobs_N.sum().backward()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def in_child(length: int, way: str) -> dict[str, float]:
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(step(length, way)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        content = stream.read()
    os.wait()
    return json.loads(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="2048,4096,8192,16384,32768")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| tokens | activations | seconds | MiB above the weights | estimate, MiB |")
    print("|---:|---|---:|---:|---:|")
    for length in map(int, options.lengths.split(",")):
        for way, (checkpointed, _) in WAYS.items():
            found = in_child(length, way)
            e = estimate_memory(CONFIG, length, length // 2, gradient_checkpointing=checkpointed)
            estimate = (e.activations + e.head) / 2**20
            print(f"| {length:,} | {way} | {found['seconds']:.1f} | {found['bytes'] / 2**20:,.0f} | {estimate:,.0f} |")


if __name__ == "__main__":
    main()

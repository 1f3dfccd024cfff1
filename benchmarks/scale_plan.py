"""Memory and traffic per GPU for Qwen3-8B and Qwen3-32B on 8 and 64 GPUs: "Memory and traffic" in docs/scale.md.

python -m benchmarks.scale_plan. SFT with bf16 and checkpointed activations, micro-batches of 16,384 tokens, one per
step and GPU, half of the tokens scored. The formulas are alignment.memory_plan's and alignment.inspect's;
nothing is loaded.
"""

from __future__ import annotations

from transformers import Qwen3Config

from alignment.inspect import estimate_memory
from alignment.memory_plan import CONFIGURATIONS, model_sizes, spread

SHARED = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}
MODELS = {
    "Qwen3-8B": Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, **SHARED
    ),
    "Qwen3-32B": Qwen3Config(
        hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64, **SHARED
    ),
}
TOKENS = 16384
GIB = 2**30


def main() -> None:
    columns = ("state", "gradients", "gathered", "activations", "per GPU", "host", "sent per step")
    print(f"| model | GPUs | configuration | {' | '.join(columns)} |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, config in MODELS.items():
        sizes = model_sizes(config)
        one = estimate_memory(config, TOKENS, TOKENS // 2, bf16=True, gradient_checkpointing=True)
        own = one.activations + one.head
        for ranks in (8, 64):
            for configuration in CONFIGURATIONS:
                s = spread(sizes, configuration, ranks, bf16=True)
                parts = (s.state, s.gradients, s.gathered, own, s.total + own, s.cpu, s.sent)
                cells = " | ".join(f"{part / GIB:,.1f}" for part in parts)
                print(f"| {name} | {ranks} | {configuration} | {cells} |")


if __name__ == "__main__":
    main()

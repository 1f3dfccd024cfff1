"""Small Qwen3-architecture models from random weights, stored as plain transformers checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

Size = Literal["quickstart", "gsm8k", "qwen3_tiny"]

# Width, layers, MLP width, context. Heads are 32 wide; two query heads share a key-value head.
_SHAPES: dict[str, tuple[int, int, int, int]] = {
    "quickstart": (128, 4, 384, 512),
    "gsm8k": (256, 6, 768, 1024),
    "qwen3_tiny": (128, 4, 384, 1024),
}
_HEAD_DIM = 32


def build_model(tokenizer: PreTrainedTokenizerBase, size: Size, seed: int) -> Qwen3ForCausalLM:
    """A float32 model with random weights drawn from `seed`; the caller's random state is left as it was.

    Raises ValueError for an unknown `size`.
    """
    if size not in _SHAPES:
        raise ValueError(f"size: {size!r} is not one of {sorted(_SHAPES)}")
    width, layers, mlp_width, context = _SHAPES[size]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=mlp_width,
        num_attention_heads=width // _HEAD_DIM,
        num_key_value_heads=width // _HEAD_DIM // 2,
        head_dim=_HEAD_DIM,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.04,  # about 0.5/sqrt(width): 0.02 suits widths in the thousands and learns slowly here
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def write_base_model(path: str | Path, tokenizer: PreTrainedTokenizerBase, size: Size, seed: int) -> Path:
    """Store a new model and its tokenizer at `path`, for `AutoModelForCausalLM.from_pretrained(path)`."""
    path = Path(path)
    build_model(tokenizer, size, seed).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path

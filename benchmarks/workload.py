"""What is measured: models, texts and the work they need. Everything is made on the spot from fixed seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

WORDS = 4096
PAD, EOS = 0, 1

CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 768,
        "vocab_size": WORDS,
        "tie_word_embeddings": False,
    },
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Row:
    """A conversation: the last `answer` tokens carry loss."""

    token_ids: list[int]
    answer: int


def make_model(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A Qwen3 in float32 with random weights; the same arguments give the same weights in every process."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        **{**CONFIGS[name], **overrides},
        max_position_embeddings=8192,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word w0 … w4095, so that a text has exactly as many tokens as words."""
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w2"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, eos = (AddedToken(f"w{i}", single_word=True) for i in (PAD, EOS))  # w1 must not be found in w17
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, eos_token=eos)


def text_of(token_ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in token_ids)


def random_ids(rng: np.random.Generator, n: int) -> list[int]:
    return rng.integers(3, WORDS, n).tolist()


def sft_rows(lengths: str, rows: int = 8, length: int = 512, answer: int = 48, batches: int = 1) -> list[list[Row]]:
    """`batches` batches of rows. `fixed`: every row has `length` tokens; `mixed`: log-normal with a median of
    0.39 x length, at most `length`."""
    rng = np.random.default_rng(0)
    sizes = np.full((batches, rows), length)
    if lengths == "mixed":
        sizes = np.exp(rng.normal(np.log(0.39 * length), 0.55, (batches, rows))).clip(2 * answer, length).astype(int)
    return [[Row(random_ids(rng, int(n)), answer) for n in batch] for batch in sizes]


def prompts(n: int, length: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [random_ids(rng, length) for _ in range(n)]


def completions(n: int, group_size: int, length: int, seed: int = 2) -> list[list[list[int]]]:
    rng = np.random.default_rng(seed)
    return [[random_ids(rng, length) for _ in range(group_size)] for _ in range(n)]


def reward_of(token_ids: list[int]) -> float:
    """Arbitrary, different within a group, and large beside the 1e-4 that some add to a standard deviation."""
    return 1000.0 * (sum(token_ids) % 7)


def backbone_flops(name: str, segments: list[tuple[int, int]], **overrides: Any) -> float:
    """Floating-point operations of the forward pass over segments (own tokens, tokens of the visible prefix)."""
    c = {**CONFIGS[name], **overrides}
    width, heads, keys, inner = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    linear = 2 * width * inner * (2 * heads + 2 * keys) + 6 * width * c["intermediate_size"]
    total = 0.0
    for own, prefix in segments:
        total += own * linear + 4 * heads * inner * own * (prefix + own / 2)
    return c["num_hidden_layers"] * total


def head_flops(name: str, positions: int, **overrides: Any) -> float:
    """Floating-point operations of the head's product at `positions`."""
    c = {**CONFIGS[name], **overrides}
    return 2.0 * c["hidden_size"] * c["vocab_size"] * positions


def training_flops(forward: float) -> float:
    """Forward and backward: three products for one."""
    return 3.0 * forward

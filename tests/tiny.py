"""A tiny tokenizer and tiny random models, made in the process without any download, for tests of every module."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers import AutoModelForCausalLM as Causal

from alignment.chat.template import CHATML

VOCABULARY = 512
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINKING_TOKENS = ("<think>", "</think>")

CORPUS = (
    "system\nYou are a helpful assistant. user\nWhat is 2 + 3? assistant\n2 + 3 = 5. The answer is \\boxed{5}.",
    "user\nA baker has 48 cakes and sells half of them; how many are left? 48 / 2 = 24, so 24 cakes are left.\n\n",
    "Let us think step by step. First, 17 * 4 = 68. Then 68 - 9 = 59. So the answer is 59.\n\n\n",
    'tool\n{"name": "calculator", "arguments": {"expression": "12 * 12"}} tool_call tool_response 144',
    "def add(a, b):\n    return a + b\n\nThe quick brown fox jumps over the lazy dog. naïve café, 日本語, emoji 🙂.",
)

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "qwen2_moe": Qwen2MoeConfig,
    "qwen3_moe": Qwen3MoeConfig,
}

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}

MOE_SHAPE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}


@functools.cache
def _trained_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(THINKING_TOKENS),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    # As in Qwen3, the thinking tags are single tokens that decoding with skip_special_tokens keeps.
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINKING_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 512 tokens with the ChatML template.

    EOS is `<|im_end|>`, padding `<|endoftext|>`; `<think>` and `</think>` are single tokens. Trained once per process;
    every call returns a copy of its own, so that a test may change its template.
    """
    return copy.deepcopy(_trained_tokenizer())


def tiny_config(arch: str = "qwen3", **overrides: Any) -> PreTrainedConfig:
    """The configuration of `tiny_model`: 2 layers, width 64, 4 heads, 2 key-value heads, the tokenizer's vocabulary."""
    tokenizer = _trained_tokenizer()
    shape = {**SHAPE, **(MOE_SHAPE if arch.endswith("_moe") else {})}
    if arch == "qwen2_moe":
        shape["shared_expert_intermediate_size"] = 64
    shape.update(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return CONFIGS[arch](**{**shape, **overrides})


def tiny_model(arch: str = "qwen3", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A randomly initialised float32 causal language model in evaluation mode.

    `arch` is one of qwen2, qwen3, llama, qwen2_moe, qwen3_moe; `overrides` replace fields of the configuration. The
    same arguments give the same weights, and the global random state is left as it was.
    """
    config = copy.deepcopy(tiny_config(arch, **overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Causal.from_config(config, dtype=torch.float32).eval()

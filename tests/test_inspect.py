import io

import numpy as np
import pytest
import torch
from rich.console import Console

from alignment.data.prompts import build_prompts
from alignment.data.sft_rows import encode_sft_rows
from alignment.inspect import (
    END,
    MASKED,
    SCORED,
    count_parameters,
    estimate_memory,
    layer_activations,
    length_histogram,
    plan_steps,
    token_view,
)
from alignment.inspect_view import inspect_prompts, inspect_sft
from alignment.packing import conversation
from tests.chat_templates import PLAIN_TEXT
from tests.test_chat_masks import DIALOGUES, tokenizer_with
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer

ROWS = [{"messages": messages} for messages in DIALOGUES.values()]


def trees_of(lengths):
    return [conversation([1] * n, np.arange(n) >= n - 2) for n in lengths]


def test_the_view_colours_scored_masked_and_end_tokens():
    tokenizer = tiny_tokenizer()
    (tree,), _ = encode_sft_rows([{"messages": DIALOGUES["multi"]}], tokenizer, 512)
    view = token_view(tree, tokenizer)
    assert view.plain.replace("↵", "") == tokenizer.decode(list(tree.segments[0].token_ids))
    styled = [(view.plain[s.start : s.end], s.style) for s in view.spans]
    assert [text for text, style in styled if style == SCORED] == ["It is 5.", "68, naïve 🙂"]
    assert [text for text, style in styled if style == END] == ["<|im_end|>"] * 2
    assert all("system" in text or "user" in text for text, style in styled if style == MASKED)


def test_the_histogram_counts_every_row_once():
    lengths = [3, 3, 10, 200, 950]
    lines = length_histogram(lengths, max_length=512).plain.splitlines()
    assert sum(int(line.split()[-1]) for line in lines[:-1]) == len(lengths)
    assert lines[-1] == "mean 233, median 10, 95 % 800, longest 950 tokens"
    assert [s.style for s in length_histogram(lengths, max_length=512).spans if s.style] == ["red"] * 5
    assert len(length_histogram([7, 7]).plain.splitlines()) == 2


def test_the_plan_counts_steps_tokens_and_micro_batches():
    plan = plan_steps(trees_of([10] * 9), batch_size=4, max_tokens=20, epochs=3)
    assert (plan.steps_per_epoch, plan.steps) == (2, 6)
    assert (plan.tokens_per_step, plan.scored_per_step, plan.micro_batches_per_step) == (40, 8, 2)
    assert (plan.largest_micro_batch, plan.most_scored) == (20, 4)
    two = plan_steps(trees_of([10] * 8), batch_size=4, max_tokens=20, world_size=2)
    assert (two.tokens_per_step, two.micro_batches_per_step) == (40, 1)
    assert plan_steps(trees_of([30, 5]), batch_size=8, max_tokens=20).largest_micro_batch == 30


def saved_elements(model, tokens):
    """Float32 elements that autograd keeps for the backward pass of the backbone, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    ids = torch.arange(tokens)[None] % 400
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = model.train().model(ids, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(size for size, _ in kept.values()) / 4


@pytest.mark.parametrize("arch", ["qwen3", "qwen2", "llama", "qwen3_moe", "qwen2_moe"])
def test_the_activation_formula_is_close_to_what_autograd_keeps(arch):
    shape = {"hidden_size": 256, "num_attention_heads": 8, "head_dim": 32, "intermediate_size": 768}
    if arch.endswith("moe"):
        shape["moe_intermediate_size"] = 256
    tokens = 128
    shallow, deep = (tiny_model(arch, num_hidden_layers=n, **shape) for n in (1, 3))
    measured = (saved_elements(deep, tokens) - saved_elements(shallow, tokens)) / 2 / tokens
    assert 0.9 * measured < layer_activations(deep.config) < 1.25 * measured


def test_weights_gradients_and_optimizer_states_are_counted_exactly():
    config = tiny_config("qwen3", tie_word_embeddings=True)
    parameters = sum(p.numel() for p in tiny_model("qwen3", tie_word_embeddings=True).parameters())
    assert count_parameters(config) == parameters
    memory = estimate_memory(config, 100, 10)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert memory.autocast_copies == 0 and memory.head == 2 * 4 * 10 * config.vocab_size
    lora = estimate_memory(config, 100, 10, trainable_parameters=1000, bf16=True)
    assert (lora.gradients, lora.optimizer, lora.autocast_copies) == (4000, 8000, 2 * parameters)
    assert lora.activations * 2 == memory.activations


def test_checkpointing_saves_activations_and_the_head_is_bounded():
    config = tiny_config("qwen3", num_hidden_layers=12, vocab_size=150_000)
    full, saving = (estimate_memory(config, 4096, 4096, gradient_checkpointing=g) for g in (False, True))
    assert saving.activations < full.activations / 5
    assert full.head <= 2**28
    assert full.total == sum(
        (full.parameters, full.gradients, full.optimizer, full.autocast_copies, full.activations, full.head)
    )


def printed(show, *arguments, **settings):
    console = Console(width=110, record=True, file=io.StringIO())
    show(*arguments, console=console, **settings)
    return console.export_text()


def test_inspect_sft_shows_everything_and_returns_the_report():
    text = printed(inspect_sft, ROWS, tiny_tokenizer(), tiny_config(), max_length=100, batch_size=2, max_tokens=128)
    for expected in (
        "It is 5.<|im_end|>",
        "longest",
        "truncated to 100 tokens",
        "optimizer steps",
        "activations",
        "Generation stops at: <|im_end|>",
    ):
        assert expected in text


def test_inspect_sft_reports_turns_without_an_end_token():
    settings = {"max_length": 512, "batch_size": 2, "max_tokens": 128}
    with_end = printed(inspect_sft, ROWS, tiny_tokenizer(), tiny_config(), **settings)
    without = printed(inspect_sft, ROWS[:2], tokenizer_with(PLAIN_TEXT), tiny_config(), **settings)
    assert "at the end of every trained turn" in with_end
    assert "trained turns without an end token" in without and "at the end of every" not in without


def test_inspect_prompts_shows_what_the_model_sees():
    tokenizer = tiny_tokenizer()
    prompts = build_prompts([{"question": "Why?", "id": "q7"}], tokenizer, max_prompt_length=64)
    text = printed(inspect_prompts, prompts, tokenizer, max_prompt_length=64)
    assert "prompt q7" in text and "<|im_start|>assistant" in text and "1 prompts" in text

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from alignment.cli import main
from alignment.commands.inspect import recipe_of
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
from alignment.inspect_view import inspect_prompts, inspect_rows
from alignment.packing import conversation
from tests.chat_templates import PLAIN_TEXT
from tests.test_chat_masks import DIALOGUES, tokenizer_with
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer


def answer(text):
    return [{"role": "assistant", "content": text}]


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


def test_offloaded_activations_imply_checkpointing_and_are_the_hosts():
    config = tiny_config("qwen3", num_hidden_layers=12)
    saving = estimate_memory(config, 4096, 100, gradient_checkpointing=True)
    for checkpointing in (False, True):
        memory = estimate_memory(config, 4096, 100, gradient_checkpointing=checkpointing, activation_offload=True)
        assert memory.host == 4096 * 12 * config.hidden_size * 4
        assert memory.activations == saving.activations - memory.host
        assert memory.total == saving.total - memory.host
    assert saving.host == 0


def printed(show, *arguments, **settings):
    console = Console(width=110, record=True, file=io.StringIO())
    show(*arguments, console=console, **settings)
    return console.export_text()


def inspected(rows, tokenizer, max_length):
    found = encode_sft_rows(rows, tokenizer, max_length)
    memory = functools.partial(estimate_memory, tiny_config())
    return printed(inspect_rows, *found, tokenizer, memory, max_length=max_length, batch_size=2, max_tokens=128)


def test_inspecting_sft_shows_everything():
    text = inspected(ROWS, tiny_tokenizer(), 100)
    for expected in (
        "It is 5.<|im_end|>",
        "longest",
        "truncated to 100 tokens",
        "optimizer steps",
        "activations",
        "Generation stops at: <|im_end|>",
    ):
        assert expected in text


def test_inspecting_sft_reports_turns_without_an_end_token():
    with_end, without = inspected(ROWS, tiny_tokenizer(), 512), inspected(ROWS[:2], tokenizer_with(PLAIN_TEXT), 512)
    assert "at the end of every trained turn" in with_end
    assert "trained turns without an end token" in without and "at the end of every" not in without


def test_inspect_prompts_shows_what_the_model_sees():
    tokenizer = tiny_tokenizer()
    prompts = build_prompts([{"question": "Why?", "id": "q7"}], tokenizer, max_prompt_length=64)
    text = printed(inspect_prompts, prompts, tokenizer, max_prompt_length=64)
    assert "prompt q7" in text and "<|im_start|>assistant" in text and "1 prompts" in text


# --- the command ------------------------------------------------------------------------------------------------------

RECIPES = Path(__file__).parent.parent / "recipes"
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
PAIRS = [
    {"prompt": QUESTION, "chosen": answer("It is 5."), "rejected": answer("No."), "margin": 0.5},
    {"prompt": QUESTION, "chosen": answer("5"), "rejected": answer("5")},
]
GROUPS = [{"prompt": QUESTION, "completions": ["It is 5.", "5", "no"], "labels": [1, 0.5, 0]}]
PROMPTS = [{"question": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_config().save_pretrained(folder)  # no weights: none are read
    tiny_tokenizer().save_pretrained(folder)
    return folder


def align_inspect(capsys, base, rows, recipe, *overrides):
    path = base / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--dataset", str(path), "--dataset_split", ""]
    if recipe.endswith("off_policy.yaml"):
        given += ["--off_policy_dataset", str(path)]
    code = main(["inspect", str(RECIPES / recipe), "--model_name_or_path", str(base), *given, *overrides])
    assert code == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_pairs_are_shown_branch_by_branch_with_the_memory_of_a_reference(capsys, base):
    ways = ("precompute", "on_the_fly")
    texts = [align_inspect(capsys, base, PAIRS, "qwen2/dpo.yaml", "--reference", way) for way in ways]
    for text in texts:
        assert "── chosen: It is 5.<|im_end|>" in text and "── rejected: No.<|im_end|>" in text
        assert "dropped, branches are the same" in text and "saved by sharing" in text
    assert ["frozen copies" in text for text in texts] == [False, True]


def test_a_reward_model_is_shown_where_its_reward_is_read(capsys, base):
    text = align_inspect(capsys, base, PAIRS, "qwen1/reward_model.yaml", "--max_steps", "7")
    assert "The reward is read at '<|im_end|>'" in text and "── chosen (margin 0.5): " in text
    assert "2 scored" in text and "optimizer steps" in text and " 7 (" in text
    text = align_inspect(capsys, base, GROUPS, "qwen2.5-math/reward_model.yaml")
    assert [f"── label {label}: " in text for label in ("1", "0.5", "0")] == [True] * 3


def test_what_samples_is_shown_with_its_steps_and_rewards(capsys, base):
    text = align_inspect(capsys, base, PROMPTS, "qwen1/ppo.yaml", "--prompts_per_step", "2")
    assert "episodes" in text and " 52" in text  # 50 of value warm-up
    assert "4 = 2 prompts x 2" in text and "1 x reward_model:runs/qwen1/reward_model/model" in text
    small = ["--bf16", "false", "--dtype", "float32"]
    with_value, shared = (
        align_inspect(capsys, base, PROMPTS, "qwen1/ppo.yaml", "--value_model", kind, *small)
        for kind in ("policy", "head")
    )
    assert "frozen copies" in with_value
    assert number_behind("activations", with_value) == pytest.approx(2 * number_behind("activations", shared), rel=0.01)
    text = align_inspect(capsys, base, PROMPTS, "qwen2/online_dpo.yaml")
    assert "512 = 64 prompts x 8" in text


def number_behind(name, text):
    return float(next(line for line in text.splitlines() if line.strip().startswith(name)).split()[-2])


def test_distillation_shows_rows_or_prompts(capsys, base):
    text = align_inspect(capsys, base, ROWS, "qwen3/distill_off_policy.yaml")
    assert "It is 5.<|im_end|>" in text and "optimizer steps" in text
    text = align_inspect(capsys, base, PROMPTS, "qwen3/distill_on_policy.yaml", "--modes", "row")
    assert "256 = 32 prompts x 8" in text


def test_lora_trains_its_adapters_and_needs_no_reference_copy(base, capsys):
    lora = ["--use_peft", "true", "--lora_r", "4", "--reference", "on_the_fly", "--bf16", "false", "--dtype", "float32"]
    text = align_inspect(capsys, base, PAIRS, "qwen2/dpo.yaml", *lora)
    assert "frozen copies" not in text
    assert number_behind("gradients", text) < 0.2 * number_behind("parameters", text)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose weights are a GiB or so."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_config(hidden_size=2048, intermediate_size=8192).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def sent_by_fsdp2(text):
    """GiB per step and GPU, on 8 and on 64."""
    rows = [line.split() for line in text.splitlines() if line.split()[:1] == ["fsdp2"]]
    return [float(row[-1]) for row in rows]


SMALL = ["--bf16", "false", "--dtype", "float32"]


def test_traffic_counts_the_micro_batches_that_each_rank_has(capsys, wide):
    """512 rows of a micro-batch each are 64 on each of 8 ranks and 8 on each of 64; twice that when two share a row."""
    rows = [{"messages": [*QUESTION, *answer(f"It is {i}. " * 20)]} for i in range(512)]
    given = [*SMALL, "--batch_size", "512", "--max_length", "64", "--max_tokens_per_micro_batch"]

    def sent(*more):
        return sent_by_fsdp2(align_inspect(capsys, wide, rows, "qwen2.5/long_stage1_sft.yaml", *given, *more))

    one, many, shared = sent("100000"), sent("64"), sent("64", "--sequence_parallel_size", "2")
    assert many == pytest.approx([64 * one[0], 8 * one[1]], rel=0.05)
    assert shared == pytest.approx([2 * value for value in many], rel=0.01)


def test_traffic_counts_samples_at_their_longest(capsys, wide):
    """64 prompts with 2 samples of 1,000 tokens: 16 micro-batches of 1,000 and a bit on each of 8 ranks, 2 on 64."""
    given = [*SMALL, "--value_model", "head", "--max_tokens", "1000", "--max_tokens_per_micro_batch"]
    one, many = (
        sent_by_fsdp2(align_inspect(capsys, wide, PROMPTS, "qwen1/ppo.yaml", *given, budget))
        for budget in ("1000000", "1000")
    )
    assert many == pytest.approx([16 * one[0], 2 * one[1]], rel=0.08)


def test_offloaded_activations_of_a_recipe_are_the_hosts(base, capsys):
    given = [*SMALL, "--gradient_checkpointing", "false", "--activation_offload"]
    on, off = (align_inspect(capsys, base, ROWS, "qwen2.5/long_stage2_sft.yaml", *given, v) for v in ("true", "false"))
    assert ["host, offloaded activations" in text for text in (on, off)] == [True, False]
    assert number_behind("activations", on) < number_behind("activations", off)


FAMILIES = ("qwen1", "qwen1.5", "qwen2", "qwen2.5", "qwen2.5-math", "quickstart")
SHIPPED = sorted(path for family in FAMILIES for path in (RECIPES / family).glob("*.yaml"))
NAMED = (
    "online_dpo",
    "dpo",
    "grpo",
    "ppo",
    "sft",
    "generate",
    "distill",
)  # by their files; the others are for reward models


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(RECIPES)))
def test_every_recipe_that_ships_is_known_by_its_keys(path):
    expected = next((name for name in NAMED if name in path.stem), "reward_model")
    assert recipe_of(str(path), []) == (expected, [])


def test_of_several_recipes_that_a_file_may_be_for_the_first_is_taken_and_the_others_are_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model_name_or_path: m\nbeta: 0.1\noutput_dir: o\n")
    assert recipe_of(str(path), []) == ("dpo", ["online_dpo", "grpo"])
    assert recipe_of(str(path), ["--curriculum", "random"]) == ("grpo", [])
    assert recipe_of(str(path), ["--reference=precompute"]) == ("dpo", [])
    path.write_text("model_name_or_path: m\nbet: 0.1\noutput_dir: o\n")
    assert recipe_of(str(path), ["--curriculum", "random"]) == ("grpo", [])

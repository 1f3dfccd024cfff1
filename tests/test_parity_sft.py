"""Supervised fine-tuning follows TRL's SFTTrainer: loss, gradient norm and weights over three optimizer steps.

Both divide the sum of -log p by the number of scored tokens of the whole step. TRL pads the rows and splits a step by
gradient accumulation; here rows are packed and cut by a token budget.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from alignment.algorithms.sft import Sft
from alignment.data.sft_rows import encode_sft_rows
from alignment.models import Policy
from tests.parity import assert_same_curve, assert_same_weights, order, run_ours, trained, trl_log, trl_row_settings
from tests.tiny import tiny_model, tiny_tokenizer

BATCH, STEPS = 6, 3


def conversations() -> list[dict[str, Any]]:
    """18 dialogues of different lengths: with and without a system turn, of one turn and of two."""
    rows = []
    for i in range(BATCH * STEPS):
        answer = "The answer is " + " + ".join(str(j) for j in range(2 + i % 5)) + "."
        messages = [{"role": "user", "content": f"What is {i} + {3 * i}?"}, {"role": "assistant", "content": answer}]
        if i % 3 == 0:
            messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
        if i % 2 == 0:
            more = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": f"So it is {4 * i}."}]
            messages = [*messages, *more]
        rows.append({"messages": messages})
    return rows


def split_conversations() -> list[dict[str, Any]]:
    """The dialogues with their last answer as the completion; assistant turns remain in the prompt."""
    return [{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in conversations()]


def text_completions() -> list[dict[str, Any]]:
    """No token of these texts reaches over the border between prompt and completion."""
    return [
        {"prompt": f"{i} cakes and {i + 2} cakes:\n", "completion": f"half of them is {i + 1}" + " cakes" * (i % 4)}
        for i in range(BATCH * STEPS)
    ]


def texts() -> list[dict[str, Any]]:
    return [{"text": r["prompt"] + r["completion"]} for r in text_completions()]


def make_trl(folder, rows, model, accumulate: int = 1, **settings) -> SFTTrainer:
    config = SFTConfig(**(trl_row_settings(folder, STEPS, BATCH, accumulate) | settings))
    return SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer())


def prepared(trainer: SFTTrainer) -> list[dict[str, Any]]:
    """The rows as TRL has tokenised and masked them."""
    return list(cast(Dataset, trainer.train_dataset))


def compare(folder, rows, arch="qwen3", max_tokens=16384, accumulate=1, max_length=512, model=None, **settings) -> None:
    """Three steps of both trainers from the same weights, over the same rows in the same order."""
    start = tiny_model(arch, **(model or {}))
    trees, report = encode_sft_rows(rows, tiny_tokenizer(), max_length)
    algorithm = Sft(trees, BATCH, seed=4)
    taken = [rows[report.kept_rows_K[i]] for i in order(algorithm, STEPS)]
    trainer = make_trl(folder / "trl", taken, copy.deepcopy(start), accumulate, max_length=max_length, **settings)
    trainer.train()

    policy = Policy(copy.deepcopy(start))
    ours = run_ours(folder / "ours", STEPS, policy, algorithm, max_tokens)
    for step in ours:  # TRL's loss has the routers' in it
        step["loss"] += step.get("router_aux_loss", 0.0)
    assert_same_curve(ours, trl_log(trainer))
    assert_same_weights(policy.model, trained(trainer), start)


@pytest.mark.parametrize("arch", ["qwen3", "qwen2", "llama"])
def test_assistant_turns_of_conversations(tmp_path, arch):
    compare(tmp_path, conversations(), arch, assistant_only_loss=True)


@pytest.mark.parametrize("arch", ["qwen2_moe", "qwen3_moe"])
def test_mixtures_of_experts_without_the_router_term(tmp_path, arch):
    compare(tmp_path, conversations(), arch, model={"router_aux_loss_coef": 0.0}, assistant_only_loss=True)


@pytest.mark.parametrize("arch", ["qwen2_moe", "qwen3_moe"])
def test_mixtures_of_experts_with_the_router_term(tmp_path, arch):
    """With one layer: over several TRL takes the balance of their sum. On plain texts, since of a conversation TRL also
    computes the line break behind the last turn, which nothing depends on but the balance."""
    compare(tmp_path, texts(), arch, model={"router_aux_loss_coef": 0.3, "num_hidden_layers": 1})


@pytest.mark.parametrize(("accumulate", "max_tokens"), [(3, 16384), (1, 80), (6, 130)])
def test_gradient_accumulation_against_token_budgets(tmp_path, accumulate, max_tokens):
    """TRL counts the tokens of all micro-batches of a step before it divides, so its split does not matter either."""
    compare(tmp_path, conversations(), max_tokens=max_tokens, accumulate=accumulate, assistant_only_loss=True)


def test_the_completion_of_texts(tmp_path):
    compare(tmp_path, text_completions(), completion_only_loss=True)


def test_all_tokens_of_texts(tmp_path):
    compare(tmp_path, texts())


def test_rows_cut_at_max_length(tmp_path):
    """Both cut at the end; a row whose scored tokens all fall away is left out by both."""
    rows = conversations()
    long = {"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 20}
    rows.insert(7, {"messages": [long, {"role": "assistant", "content": "Yes."}]})
    _, report = encode_sft_rows(rows, tiny_tokenizer(), 50)
    assert report.truncated > 3
    assert report.without_scored == 1
    trainer = make_trl(tmp_path, rows, tiny_model(), max_length=50, assistant_only_loss=True)
    assert len(prepared(trainer)) == report.kept == len(rows) - 1
    compare(tmp_path, rows, max_length=50, assistant_only_loss=True)


def test_the_completion_of_conversations(tmp_path):
    """TRL scores a completion's assistant turns only with both masks on, as is always the case here."""
    compare(tmp_path, split_conversations(), assistant_only_loss=True, completion_only_loss=True)


def test_without_the_assistant_mask_trl_also_scores_the_newline_behind_the_last_turn(tmp_path):
    """Everything behind the generation prompt is TRL's completion: ChatML's newline behind `<|im_end|>` too, which the
    model never has to write, as generation stops before it. Here it carries no loss."""
    trainer = make_trl(tmp_path, split_conversations(), tiny_model(), completion_only_loss=True)
    tokenizer = tiny_tokenizer()
    (newline,) = tokenizer("\n").input_ids
    trees, _ = encode_sft_rows(split_conversations(), tokenizer, 512)
    for tree, theirs in zip(trees, prepared(trainer), strict=True):
        (segment,) = tree.segments
        scored = np.where(np.asarray(segment.scored), segment.token_ids, -100)
        assert theirs["input_ids"] == [*segment.token_ids, newline]
        assert theirs["labels"] == [*scored, newline]

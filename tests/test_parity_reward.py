"""Reward models follow TRL's RewardTrainer: loss, gradient norm, weights and metrics over three optimizer steps.

Both divide the sum of the pairs' losses by the number of pairs of a step. TRL pads each branch to the longest and
computes the prompt twice; here a pair's prompt is computed once, and its reward is read at the same token.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedModel
from trl import RewardConfig, RewardTrainer

from alignment.algorithms.reward_model import RewardModelConfig, RewardModeling
from alignment.data.preference_rows import encode_preference_rows
from alignment.models.scalar import ScalarModel
from alignment.types import Tree
from tests.parity import assert_same_curve, assert_same_weights, order, run_ours, trained, trl_log, trl_row_settings
from tests.tiny import tiny_tokenizer
from tests.training_reward import fresh_model

BATCH, STEPS = 6, 3


def conversations(margins: bool = False) -> list[dict[str, Any]]:
    """18 pairs of different lengths, some with a system turn, some with an earlier answer in the prompt."""
    rows = []
    for i in range(BATCH * STEPS):
        prompt = [{"role": "user", "content": f"What is {i} + {3 * i}?"}]
        if i % 3 == 0:
            prompt = [{"role": "system", "content": "You are a helpful assistant."}, *prompt]
        if i % 4 == 0:
            prompt = [*prompt, {"role": "assistant", "content": "Let us think."}, {"role": "user", "content": "So?"}]
        good, bad = f"So it is {4 * i}." + " Yes." * (i % 5), "No" + " half" * (i % 7)
        row: dict[str, Any] = {"prompt": prompt}
        row |= {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", good), ("rejected", bad))}
        rows.append(row | ({"margin": 0.3 * (i % 4)} if margins else {}))
    return rows


def whole_conversations() -> list[dict[str, Any]]:
    return [{name: r["prompt"] + r[name] for name in ("chosen", "rejected")} for r in conversations()]


def texts() -> list[dict[str, Any]]:
    return [
        {"chosen": f"{i} cakes:\n half of them" + " is" * (i % 4), "rejected": f"{i} cakes:\n all of them"}
        for i in range(BATCH * STEPS)
    ]


def start_model(arch: str = "qwen3", head_layers: int = 1) -> PreTrainedModel:
    """With a linear head large enough to show in every number."""
    model = fresh_model(arch, head_layers).base
    if head_layers == 1:
        model.score.weight.data *= 10
    model.config.pad_token_id = tiny_tokenizer().pad_token_id
    return model


def make_trl(folder, rows, model, accumulate: int = 1, **settings) -> RewardTrainer:
    config = RewardConfig(**(trl_row_settings(folder, STEPS, BATCH, accumulate) | settings))
    return RewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer())


def encoded(rows: list[dict[str, Any]]) -> list[Tree]:
    """TRL reads the reward at the last token: the new line that ChatML puts behind a turn's end, or a text's EOS."""
    chat = not isinstance(rows[0]["chosen"], str)
    trees, report = encode_preference_rows(rows, tiny_tokenizer(), 512, end_token="\n" if chat else "<|im_end|>")
    assert report.kept == len(rows)
    return trees


def compare(folder, rows, start=None, max_tokens=16384, accumulate=1, centre=0.0) -> None:
    """Three steps of both trainers from the same weights, over the same rows in the same order."""
    start = start or start_model()
    algorithm = RewardModeling(encoded(rows), BATCH, 4, RewardModelConfig(centre))
    taken = [rows[i] for i in order(algorithm, STEPS)]
    settings = {"center_rewards_coefficient": centre or None}
    trainer = make_trl(folder / "trl", taken, copy.deepcopy(start), accumulate, **settings)
    trainer.train()

    model = ScalarModel(copy.deepcopy(start))
    ours, theirs = run_ours(folder / "ours", STEPS, model, algorithm, max_tokens), trl_log(trainer)
    assert_same_curve(ours, theirs)
    assert_same_weights(model.base, trained(trainer), start)
    for a, b in zip(ours, theirs, strict=True):
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=1e-4)
        assert a["margin"] == pytest.approx(b["margin"], rel=1e-3, abs=1e-4)
        assert a["reward/mean"] == pytest.approx(b["mean_reward"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("arch", ["qwen3", "qwen2", "llama"])
def test_pairs_of_conversations(tmp_path, arch):
    compare(tmp_path, conversations(), start_model(arch))


def test_margin_and_centring(tmp_path):
    compare(tmp_path, conversations(margins=True), centre=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "max_tokens"), [(3, 16384), (1, 110), (2, 200)])
def test_gradient_accumulation_against_token_budgets(tmp_path, accumulate, max_tokens):
    compare(tmp_path, conversations(margins=True), max_tokens=max_tokens, accumulate=accumulate, centre=0.05)


@pytest.mark.parametrize("rows", [whole_conversations(), texts()], ids=["conversations", "texts"])
def test_pairs_without_a_prompt_column(tmp_path, rows):
    compare(tmp_path, rows)


def test_a_two_layer_head(tmp_path):
    """With centring: without, nothing moves the last bias, which cancels in every comparison."""
    compare(tmp_path, conversations(), start_model(head_layers=2), centre=0.05)

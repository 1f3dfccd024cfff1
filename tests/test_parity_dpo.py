"""DPO follows TRL's DPOTrainer: loss, rewards, gradient norm and weights over three optimizer steps.

Both sum log-probabilities over the tokens of a branch and take the mean of the losses over the pairs of a step. TRL
pads chosen and rejected rows, with the prompt in each; here a pair is packed with its prompt once.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer

from alignment.algorithms.dpo import Dpo
from alignment.algorithms.dpo import DpoConfig as OurConfig
from alignment.algorithms.reference import Reference, precompute
from alignment.models import Policy
from alignment.packing import group
from alignment.types import Segment, Tree
from tests.parity import assert_same_curve, assert_same_weights, run_ours, trained, trl_log, trl_row_settings
from tests.tiny import tiny_model, tiny_tokenizer

BATCH, STEPS = 4, 3


def pairs() -> list[dict[str, Any]]:
    """Answers of different lengths to prompts with and without a system turn."""
    rows = []
    for i in range(BATCH * STEPS):
        prompt = [{"role": "user", "content": f"What is {i} + {3 * i}?"}]
        if i % 3 == 0:
            prompt = [{"role": "system", "content": "You are a helpful assistant."}, *prompt]
        right = "The answer is " + " + ".join(str(j) for j in range(2 + i % 4)) + "."
        wrong = "No." if i % 2 else f"It is {i} cakes, so {i + 1} are left over."
        texts = {"chosen": right, "rejected": wrong}
        rows.append({"prompt": prompt, **{k: [{"role": "assistant", "content": v}] for k, v in texts.items()}})
    return rows


def make_trl(folder, start, reference, accumulate: int = 1, **settings) -> DPOTrainer:
    config = DPOConfig(**(trl_row_settings(folder, STEPS, BATCH, accumulate) | settings))
    rows = Dataset.from_list(pairs())
    return DPOTrainer(copy.deepcopy(start), reference, config, train_dataset=rows, processing_class=tiny_tokenizer())


def trees_of(trainer: DPOTrainer) -> list[Tree]:
    """The pairs as TRL has tokenised them."""
    rows = cast(Dataset, trainer.train_dataset)
    return [group(r["prompt_ids"], [Segment(r["chosen_ids"]), Segment(r["rejected_ids"])], atomic=True) for r in rows]


class InOrder:
    """Epochs in the order of the rows."""

    def __init__(self, trees: list[Tree]):
        self.trees = trees

    def take(self, step: int) -> list[Tree]:
        return self.trees[step * BATCH : (step + 1) * BATCH]

    def state_dict(self):
        return {}


def run_dpo(folder, trainer, start, config, reference=None, max_tokens=16384, precomputed=False):
    policy = Policy(copy.deepcopy(start))
    other = None if reference is None else Policy(copy.deepcopy(reference)).requires_grad_(False)
    score = Reference(policy, other, max_tokens)
    trees = trees_of(trainer)
    if precomputed:
        precompute(trees, score, folder / "reference.jsonl", "start", say=lambda text: None)
    algorithm = Dpo(trees, BATCH, 0, config, None if precomputed else score)
    algorithm.epochs = cast(Any, InOrder(trees))
    return policy, run_ours(folder, STEPS, policy, algorithm, max_tokens)


def compare(folder, trl: dict[str, Any], ours: dict[str, Any], max_tokens=16384, precomputed=False, start=None):
    """Both from the same weights against a reference that differs from them; returns the metrics of both."""
    start = start or tiny_model()
    reference = start if precomputed else tiny_model(seed=5)
    theirs_reference = None if precomputed else copy.deepcopy(reference)
    trainer = make_trl(folder / "trl", start, theirs_reference, precompute_ref_log_probs=precomputed, **trl)
    config = OurConfig(**ours)
    policy, metrics = run_dpo(folder / "ours", trainer, start, config, reference, max_tokens, precomputed)
    trainer.train()
    theirs = trl_log(trainer)
    assert_same_curve(metrics, theirs, rel=2e-5)
    assert_same_weights(policy.model, trained(trainer), start, atol=5e-6)
    for a, b in zip(metrics, theirs, strict=True):
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            assert a[name] == pytest.approx(b[name], rel=2e-5, abs=2e-6), name
        for name in ("logps/chosen", "logps/rejected"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    return metrics, theirs


@pytest.mark.parametrize("arch", ["qwen3", "qwen2", "llama"])
def test_sigmoid(tmp_path, arch):
    metrics, _ = compare(tmp_path, {}, {}, start=tiny_model(arch))
    assert metrics[0]["rewards/margins"] != 0


@pytest.mark.parametrize("accumulate", [1, 4])
def test_precomputed_reference(tmp_path, accumulate):
    metrics, _ = compare(tmp_path, {"accumulate": accumulate}, {}, max_tokens=90, precomputed=True)
    assert metrics[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_gradient_accumulation_against_a_small_token_budget(tmp_path):
    compare(tmp_path, {"accumulate": 2}, {}, max_tokens=60)


def test_ipo(tmp_path):
    compare(tmp_path, {"loss_type": ["ipo"], "beta": 0.2}, {"loss": "ipo", "beta": 0.2})


def test_length_normalised(tmp_path):
    compare(tmp_path, {"loss_type": ["sigmoid_norm"], "beta": 5.0}, {"loss": "length_normalised", "beta": 5.0})


def test_label_smoothing(tmp_path):
    """TRL has cDPO under no name of its own: its `aot` is cDPO on sorted log-ratios, so on single pairs it is cDPO."""
    trl = {"loss_type": ["aot"], "label_smoothing": 0.2, "accumulate": BATCH}
    compare(tmp_path, trl, {"loss": "cdpo", "label_smoothing": 0.2})


def test_likelihood_of_the_chosen_branch(tmp_path):
    """TRL takes the mean over the chosen tokens of a micro-batch; with one pair in each that is the mean per pair."""
    trl = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "accumulate": BATCH}
    compare(tmp_path, trl, {"nll_coef": 0.5})


@pytest.mark.parametrize("precomputed", [False, True])
def test_lora_is_measured_against_its_base(tmp_path, precomputed):
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian")
    base = tiny_model()
    start = get_peft_model(copy.deepcopy(base), lora)
    arguments = DPOConfig(
        **trl_row_settings(tmp_path / "trl", STEPS, BATCH, 1),
        precompute_ref_log_probs=precomputed,
    )
    rows = Dataset.from_list(pairs())
    trainer = DPOTrainer(base, args=arguments, train_dataset=rows, processing_class=tiny_tokenizer(), peft_config=lora)
    trained(trainer).load_state_dict(start.state_dict())
    policy, metrics = run_dpo(tmp_path / "ours", trainer, start, OurConfig(), precomputed=precomputed)
    trainer.train()
    assert_same_curve(metrics, trl_log(trainer), rel=2e-5)
    ours = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    for name, parameter in trained(trainer).named_parameters():
        if name in ours:
            assert (parameter - ours[name]).abs().max() < 5e-6, name
    assert metrics[-1]["rewards/margins"] != 0

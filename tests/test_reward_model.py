"""Training reward models: losses and metrics by hand, packed = separate, any cut, any ranks, exact resumes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alignment.algorithms.reward_model import (
    RewardModelConfig,
    RewardModeling,
    TreeRewards,
    calibration_error,
    compared,
    heldout_rewards,
    summarise,
    tree_rewards,
)
from alignment.errors import UserError
from alignment.losses.reward import bradley_terry_loss, comparisons, listwise_loss
from alignment.metrics import read_metrics
from alignment.packing import conversation, cut, group, pack
from alignment.types import Segment
from tests import training_reward
from tests.training import weights_hash
from tests.training_reward import fresh_model, train_reward_model


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


# --- losses by hand ---------------------------------------------------------------------------------------------------


def test_bradley_terry_with_margin_and_centring_by_hand():
    better, worse, margins = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    plain = bradley_terry_loss(better, worse, margins)
    assert plain.tolist() == pytest.approx([-log_sigmoid(0.5), -log_sigmoid(-1.5)])
    centred = bradley_terry_loss(better, worse, margins, centre_coef=0.1)
    assert (centred - plain).tolist() == pytest.approx([0.1 * 2.5**2, 0.1 * 0.5**2])


def test_listwise_loss_of_k_positives_among_n_by_hand():
    """Qwen2.5-Math: -1/(k(n-k)) sum over positives i and negatives j of log sigma(r_i - r_j)."""
    rewards = torch.tensor([0.3, -0.2, 1.0, 0.1, 0.0, 2.0])
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    pairs = comparisons(labels, torch.zeros(6, dtype=torch.long))
    expected = -sum(log_sigmoid(rewards[i].item() - rewards[j].item()) for i in (0, 1) for j in (2, 3, 4, 5)) / (2 * 4)
    assert listwise_loss(rewards, pairs).item() == pytest.approx(expected)


def test_a_pair_is_a_group_of_one_positive_and_one_negative():
    rewards, margins = torch.tensor([0.3, -0.4]), torch.tensor([0.7, 0.0])
    pairs = comparisons(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long))
    single = bradley_terry_loss(rewards[:1], rewards[1:], margins[:1], 0.2)
    assert listwise_loss(rewards, pairs, margins, 0.2).item() == pytest.approx(single.item())


def test_comparisons_stay_within_trees_and_skip_equal_labels():
    pairs = comparisons(torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1, 1]))
    found = list(zip(pairs.better_C.tolist(), pairs.worse_C.tolist(), pairs.weight_C.tolist(), strict=True))
    assert found == [(0, 1, 1.0), (2, 3, 0.5), (2, 4, 0.5)]


def test_every_tree_weighs_one_however_many_comparisons_it_has():
    """All rewards equal: each tree's loss is log 2."""
    labels, trees = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1, 1, 1])
    assert listwise_loss(torch.zeros(6), comparisons(labels, trees)).item() == pytest.approx(2 * math.log(2))


def test_a_shift_of_all_rewards_changes_nothing_but_the_centring():
    rewards, pairs = torch.randn(4), comparisons(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1]))
    assert listwise_loss(rewards + 3, pairs).item() == pytest.approx(listwise_loss(rewards, pairs).item(), rel=1e-5)
    assert listwise_loss(rewards + 3, pairs, None, 0.1) > listwise_loss(rewards, pairs)


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_held_out_metrics_by_hand():
    found = [TreeRewards([1.0, 0.0], [1.0]), TreeRewards([0.0, 2.0], [-2.0]), TreeRewards([3.0, 0.0, 0.0], [3.0, 3.0])]
    metrics = summarise(found)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["ci_low"] < 2 / 3 < metrics["ci_high"]
    assert metrics["margin"] == pytest.approx((1 - 2 + 3) / 3)
    assert metrics["log_loss"] == pytest.approx(-(log_sigmoid(1) + log_sigmoid(-2) + log_sigmoid(3)) / 3)
    rewards = [1, 0, 0, 2, 3, 0, 0]
    assert (metrics["reward/mean"], metrics["reward/std"]) == pytest.approx((np.mean(rewards), np.std(rewards)))
    assert (metrics["comparisons"], metrics["trees"]) == (4, 3)


def test_calibration_error_by_hand():
    """Confidence sigma(log 3) = 0.75 throughout: right three times of four is calibrated, always right is 0.25 off."""
    margin, weights = math.log(3), np.ones(4)
    assert calibration_error(np.array([margin, margin, -margin, margin]), weights) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.full(4, margin), weights) == pytest.approx(0.25)
    assert calibration_error(np.full(4, -margin), weights) == pytest.approx(0.75)
    assert calibration_error(np.zeros(4), weights) == 0
    assert calibration_error(np.array([margin, -margin]), np.array([3.0, 1.0])) == pytest.approx(0, abs=1e-9)


def test_margins_drawn_from_the_model_are_calibrated_and_sharper_ones_are_not():
    rng = np.random.default_rng(0)
    sizes = np.abs(rng.normal(0, 2, 20000))
    margins = np.where(rng.random(20000) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)
    assert calibration_error(margins, np.ones(20000)) < 0.01
    assert calibration_error(3 * margins, np.ones(20000)) > 0.08


def test_training_metrics_equal_the_evaluation_of_the_same_model(tmp_path):
    model, trees = fresh_model(), training_reward.comparisons(5)
    before = heldout_rewards(model, trees, 16384)
    train_reward_model(str(tmp_path), 1, model=model, trees=trees)
    (line,) = read_metrics(tmp_path / "metrics.jsonl", "train")
    for name in ("accuracy", "margin", "log_loss", "reward/mean"):
        assert line[name] == pytest.approx(before[name], rel=1e-4, abs=1e-6)
    mean, std = before["reward/mean"], before["reward/std"]
    assert line["reward/mean_square"] == pytest.approx(mean**2 + std**2, rel=1e-4)


# --- invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_layers", [1, 2])
@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "llama", "qwen2_moe", "qwen3_moe"])
def test_packed_with_a_shared_prompt_equals_each_branch_alone(arch, head_layers):
    """Rewards, and the gradient of the loss over them."""
    model, trees = fresh_model(arch, head_layers), training_reward.comparisons(4)
    packed = pack(trees)
    rewards_R = model(packed)
    branches = [tree.branch_token_ids(i) for tree in trees for i in range(1, len(tree.segments))]
    alone_R = torch.cat([model(pack([conversation(b, np.arange(len(b)) == len(b) - 1)])) for b in branches])
    assert rewards_R.tolist() == pytest.approx(alone_R.tolist(), abs=1e-6)
    gradients = []
    for values in (rewards_R, alone_R):
        loss = listwise_loss(values, compared(packed), packed.columns["margins"], 0.1)
        gradients.append(
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        )
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() < 1e-5 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("max_tokens", [30, 75])
def test_the_update_does_not_depend_on_the_cut_into_micro_batches(tmp_path, max_tokens):
    trees = training_reward.comparisons()
    assert len(cut(trees[:5], max_tokens)) > 1
    train_reward_model(str(tmp_path / "a"), 3, trees=trees)
    train_reward_model(str(tmp_path / "b"), 3, max_tokens=max_tokens, trees=trees)
    a, b = (read_metrics(tmp_path / x / "metrics.jsonl", "train") for x in "ab")
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "grad_norm", "accuracy", "margin", "log_loss", "reward/mean", "reward/mean_square"):
            assert x[name] == pytest.approx(y[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("head_layers", [1, 2])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path, head_layers):
    straight = weights_hash(train_reward_model(str(tmp_path / "a"), 4, model=fresh_model(head_layers=head_layers)))
    train_reward_model(str(tmp_path / "b"), 2, model=fresh_model(head_layers=head_layers))
    assert (
        weights_hash(train_reward_model(str(tmp_path / "b"), 4, model=fresh_model(head_layers=head_layers))) == straight
    )


def test_training_tells_better_from_worse(tmp_path):
    """40 steps on 14 comparisons: all of them are learnt, and by the margin they ask for."""
    trees = training_reward.comparisons()
    model = train_reward_model(str(tmp_path), 40, trees=trees)
    metrics = heldout_rewards(model, trees, 100)
    assert metrics["accuracy"] == 1
    assert metrics["log_loss"] < 0.1


def test_rewards_come_in_the_order_of_the_trees_under_any_budget():
    model, trees = fresh_model(), training_reward.comparisons()
    whole, pieces = tree_rewards(model, trees, 16384), tree_rewards(model, trees, 40)
    assert [len(found.rewards) for found in whole] == [len(tree.segments) - 1 for tree in trees]
    for a, b in zip(whole, pieces, strict=True):
        assert a.rewards == pytest.approx(b.rewards, abs=1e-6)
        assert a.margins == pytest.approx(b.margins, abs=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_trees_that_are_no_comparisons_are_refused_by_number():
    good = training_reward.comparisons(1)[0]

    def refused(tree, message):
        with pytest.raises(UserError, match=f"comparison 2: .*{message}"):
            RewardModeling([good, tree], 2, 0, RewardModelConfig())

    refused(group([5, 6], [Segment([7]), Segment([8])]), "atomic")
    refused(group([5, 6], [Segment([7, 9]), Segment([8, 9])], atomic=True), "end token alone")
    refused(conversation([5, 6, 7], [False, True, True]), "atomic")
    end = np.array([False, True])
    refused(group([5, 6], [Segment([7, 9], scored=end), Segment([8, 9], scored=end)], atomic=True), "columns")
    same = training_reward.comparisons(2)[1]
    for segment in same.segments[1:]:
        segment.columns["labels"][:] = 1
    refused(same, "same label")
    with pytest.raises(UserError, match="centre_coef: -1 is not valid"):
        RewardModelConfig(-1)

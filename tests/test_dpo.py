"""Offline DPO: the losses by hand, the packed pair against its branches alone, the reference, exact resumes."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignment.algorithms.dpo import Dpo, DpoConfig, heldout_pairs, pair_loss
from alignment.algorithms.reference import REFERENCE, Reference, precompute
from alignment.errors import UserError
from alignment.losses.preference import (
    PairLogprobs,
    cdpo_loss,
    chosen_nll,
    dpo_loss,
    ipo_loss,
    length_normalised_loss,
)
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.packing import cut, group, pack
from alignment.types import Segment, Tree
from tests.tiny import tiny_model
from tests.training import weights_hash
from tests.training_dpo import frozen, pairs, train_dpo

VARIANTS = [
    DpoConfig(),
    DpoConfig(loss="cdpo", label_smoothing=0.1),
    DpoConfig(loss="ipo"),
    DpoConfig(loss="length_normalised", beta=3.0),
    DpoConfig(nll_coef=0.4),
]


def names(config: DpoConfig) -> str:
    return config.loss + ("+nll" if config.nll_coef else "")


# --- losses by hand ---------------------------------------------------------------------------------------------------


def logprobs(chosen, rejected, ref_chosen, ref_rejected, chosen_tokens=4, rejected_tokens=2) -> PairLogprobs:
    values = (chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens)
    return PairLogprobs(*(torch.tensor([float(value)]) for value in values))


HAND = logprobs(-10, -7, -12, -6)  # log-ratios 2 and -1; per token 1/2 and -1/2


def test_losses_of_a_hand_computed_pair():
    assert dpo_loss(HAND, 0.5).item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    flipped = math.log(1 + math.exp(1.5))
    assert cdpo_loss(HAND, 0.5, 0.25).item() == pytest.approx(0.75 * math.log(1 + math.exp(-1.5)) + 0.25 * flipped)
    assert length_normalised_loss(HAND, 2.0).item() == pytest.approx(math.log(1 + math.exp(-2.0)))
    assert ipo_loss(HAND, 0.25).item() == pytest.approx((1.0 - 2.0) ** 2)
    assert chosen_nll(HAND).item() == pytest.approx(2.5)


def test_a_policy_that_is_its_reference_loses_ln_2_and_the_square_of_the_target():
    same = logprobs(-10, -7, -10, -7)
    assert dpo_loss(same, 0.1).item() == cdpo_loss(same, 0.1, 0.3).item() == pytest.approx(math.log(2))
    assert ipo_loss(same, 0.1).item() == pytest.approx(25.0)


def slope(loss, margin: float) -> float:
    """d loss / d log pi(chosen) where the log-ratio of the chosen branch is `margin` and the other's 0."""
    pair = logprobs(margin - 5, -5, -5, -5, 1, 1)
    pair.chosen_P.requires_grad_()
    loss(pair).sum().backward()
    return pair.chosen_P.grad.item()


def test_minima_are_where_the_equations_put_them():
    """cDPO's where sigma(beta margin) = 1 - eps, IPO's at 1/(2 beta); DPO's nowhere."""
    best = math.log(0.8 / 0.2) / 0.5
    assert slope(lambda pair: cdpo_loss(pair, 0.5, 0.2), best) == pytest.approx(0, abs=1e-6)
    assert slope(lambda pair: ipo_loss(pair, 0.25), 2.0) == pytest.approx(0, abs=1e-6)
    for margin in (-1.0, best, 8.0):
        assert slope(lambda pair: dpo_loss(pair, 0.5), margin) < -1e-3


# --- the packed pair --------------------------------------------------------------------------------------------------


def ordinary_sums(model, tree: Tree) -> list[torch.Tensor]:
    """Log-probabilities of both branches, each run alone with its own copy of the prompt."""
    prompt = list(tree.segments[0].token_ids)
    out = []
    for branch in tree.segments[1:]:
        ids = torch.tensor([prompt + list(branch.token_ids)])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        out.append(logits.log_softmax(-1)[torch.arange(len(branch.token_ids)), ids[0, len(prompt) :]].sum())
    return out


@pytest.mark.parametrize("config", VARIANTS, ids=names)
def test_packed_pairs_equal_separate_branches_in_loss_and_gradient(config):
    policy, reference = Policy(tiny_model()), Policy(tiny_model(seed=3)).requires_grad_(False)
    trees = pairs(5)
    Reference(policy, reference, 50)(trees)
    loss, stats = pair_loss(policy, pack(trees), config)
    loss.backward()
    plain, plain_reference = tiny_model(), tiny_model(seed=3)  # never made to read packed rows
    total, margins = torch.zeros(()), []
    for tree in trees:
        chosen, rejected = ordinary_sums(plain, tree)
        with torch.no_grad():
            ref_chosen, ref_rejected = ordinary_sums(plain_reference, tree)
        lengths = [torch.tensor([len(branch.token_ids)]) for branch in tree.segments[1:]]
        pair = PairLogprobs(chosen[None], rejected[None], ref_chosen[None], ref_rejected[None], *lengths)
        losses = {
            "dpo": lambda p: dpo_loss(p, config.beta),
            "cdpo": lambda p: cdpo_loss(p, config.beta, config.label_smoothing),
            "ipo": lambda p: ipo_loss(p, config.beta),
            "length_normalised": lambda p: length_normalised_loss(p, config.beta),
        }
        total = total + losses[config.loss](pair).sum() + config.nll_coef * chosen_nll(pair).sum()
        margins.append(config.beta * (chosen - ref_chosen - rejected + ref_rejected).item())
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert stats["rewards/margins"][0].item() == pytest.approx(sum(margins), abs=1e-5)
    assert stats["rewards/accuracies"][0].item() == sum(margin > 0 for margin in margins)
    for p, q in zip(policy.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-5 * max(1.0, q.grad.abs().max().item()))


def test_pairs_are_never_cut_and_their_gradient_does_not_depend_on_the_cut():
    trees = pairs(6)
    gradients, pieces = [], []
    for max_tokens in (16384, 60, 10):
        policy = Policy(tiny_model())
        Reference(policy, frozen(Policy(tiny_model(seed=3))), max_tokens)(trees)
        micros = cut(trees, max_tokens)
        for micro in micros:
            assert micro.rows % 2 == 0
            pair_loss(policy, micro, DpoConfig())[0].backward()
        gradients.append([p.grad for p in policy.parameters()])
        pieces.append(len(micros))
    assert pieces[0] == 1 < pieces[1] < pieces[2] == 6
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_tokens_without_loss_do_not_count():
    policy = Policy(tiny_model())
    tree, longer = pairs(1)[0], pairs(1)[0]
    branch = longer.segments[1]
    branch.token_ids = [*branch.token_ids, 7, 8]
    branch.scored = np.append(branch.scored, [False, False])
    values = []
    for t in (tree, longer):
        Reference(policy, frozen(Policy(tiny_model(seed=3))), 100)([t])
        values.append(pair_loss(policy, pack([t]), DpoConfig(loss="length_normalised"))[0].item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("max_tokens", [16384, 50])
def test_before_the_first_update_the_loss_is_ln_2_and_every_margin_0_exactly(tmp_path, max_tokens):
    train_dpo(str(tmp_path), 1, max_tokens=max_tokens)
    (line,) = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert line["loss"] == float(torch.tensor(2.0).log())
    assert line["rewards/margins"] == line["rewards/chosen"] == line["rewards/rejected"] == 0
    assert line["rewards/accuracies"] == 0
    assert line["grad_norm"] > 0


@pytest.mark.parametrize("config", VARIANTS, ids=names)
def test_training_separates_the_pairs(tmp_path, config):
    policy = train_dpo(str(tmp_path), 6, config=config, batch_size=12)
    lines = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["rewards/accuracies"] == 1
    assert lines[-1]["rewards/margins"] > 10 * abs(lines[0]["rewards/margins"])
    trees = pairs()
    Reference(policy, Policy(tiny_model()), 100)(trees)
    assert heldout_pairs(policy, trees, config, 100)["rewards/accuracies"] == 1


def test_heldout_figures_do_not_depend_on_the_cut_and_agree_with_the_loss_of_training():
    policy, trees = Policy(tiny_model()), pairs(7)
    Reference(policy, frozen(Policy(tiny_model(seed=3))), 100)(trees)
    whole, pieces = (heldout_pairs(policy, trees, DpoConfig(), n) for n in (16384, 40))
    assert whole.keys() == pieces.keys() >= {"loss", "rewards/margins", "rewards/accuracies", "logps/chosen"}
    for name, value in whole.items():
        assert value == pytest.approx(pieces[name], rel=1e-5, abs=1e-6), name
    assert whole["loss"] == pytest.approx(pair_loss(policy, pack(trees), DpoConfig())[0].item() / 7, rel=1e-5)


# --- the reference ----------------------------------------------------------------------------------------------------


def test_branches_that_begin_differently_are_a_pair_without_a_prompt():
    """As with templates whose first token depends on the answer: nothing is shared, and nothing changes."""
    shared = group([5, 6], [Segment([7, 8, 9]), Segment([10, 11])], atomic=True)
    scored = [np.array([False, False, True, True, True]), np.array([False, False, True, True])]
    ids = [[5, 6, 7, 8, 9], [5, 6, 10, 11]]
    apart = Tree([Segment(i, scored=s) for i, s in zip(ids, scored, strict=True)], atomic=True)
    policy, losses = Policy(tiny_model()), []
    for tree in (shared, apart):
        Dpo([tree], 1, 0, DpoConfig(), Reference(policy, Policy(tiny_model(seed=3)), 50)).collect(0)
        losses.append(pair_loss(policy, pack([tree]), DpoConfig())[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(math.log(2), rel=1e-6)


def values_of(trees: list[Tree]) -> list[float]:
    return [float(branch.columns[REFERENCE][0]) for tree in trees for branch in tree.segments[1:]]


def test_the_reference_is_the_sum_over_each_branch():
    policy, trees = Policy(tiny_model()), pairs(4)
    Reference(policy, policy, 40)(trees)
    expected = [x.item() for tree in trees for x in ordinary_sums(tiny_model(), tree)]
    assert values_of(trees) == pytest.approx(expected, rel=1e-5)


def test_with_adapters_the_reference_is_their_base():
    base = tiny_model()
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)  # far from zero
    policy = Policy(get_peft_model(copy.deepcopy(base), lora))
    trees, plain = pairs(4), pairs(4)
    Reference(policy, None, 60)(trees)
    Reference(policy, Policy(base), 60)(plain)
    assert values_of(trees) == pytest.approx(values_of(plain), rel=1e-6)
    stats = pair_loss(policy, pack(trees), DpoConfig())[1]
    assert abs(stats["rewards/chosen"][0].item()) > 1e-4  # the adapters are on again


def test_precomputed_values_are_those_of_the_fly_and_are_read_back_exactly(tmp_path):
    policy = Policy(tiny_model())
    path = tmp_path / "r.jsonl"
    said: list[str] = []
    first, again, fly = pairs(6), pairs(6), pairs(6)
    precompute(first, Reference(policy, policy, 60), path, "m", said.append)
    precompute(again, Reference(policy, policy, 60), path, "m", said.append)
    Reference(policy, policy, 60)(fly)
    assert values_of(first) == values_of(again) == values_of(fly)
    assert said == ["reference log-probabilities: 6/6 pairs"]
    assert len(path.read_text().splitlines()) == 1 + 6


def test_interrupted_scoring_goes_on_and_only_new_pairs_are_scored(tmp_path):
    policy = Policy(tiny_model())
    path = tmp_path / "r.jsonl"
    said: list[str] = []
    precompute(pairs(8)[:5], Reference(policy, policy, 60), path, "m", said.append)
    torn = path.read_text()[:-20]  # a kill in the middle of the last line
    path.write_text(torn)
    trees = pairs(8)
    trees[0].segments[1].token_ids = [9, 9, 9]  # another row, or another template
    trees[0].segments[1].scored = np.ones(3, dtype=bool)
    precompute(trees, Reference(policy, policy, 60), path, "m", said.append)
    assert said[-1] == "reference log-probabilities: 5/5 pairs"
    fly = copy.deepcopy(trees)
    Reference(policy, policy, 60)(fly)
    assert values_of(trees) == pytest.approx(values_of(fly), rel=1e-6)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_values_of_another_model_are_refused(tmp_path):
    policy = Policy(tiny_model())
    precompute(pairs(2), Reference(policy, policy, 60), tmp_path / "r.jsonl", "a", lambda text: None)
    with pytest.raises(UserError, match=r"another reference .fingerprint a, this run's is b.*reference_file"):
        precompute(pairs(2), Reference(policy, policy, 60), tmp_path / "r.jsonl", "b", lambda text: None)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precomputed", [False, True])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path, precomputed):
    """Over two epochs; the resumed process makes its reference anew from the starting model, or reads the file."""
    straight = weights_hash(train_dpo(str(tmp_path / "a"), 5, precomputed=precomputed))
    train_dpo(str(tmp_path / "b"), 2, precomputed=precomputed)
    assert weights_hash(train_dpo(str(tmp_path / "b"), 5, precomputed=precomputed)) == straight
    assert [x["step"] for x in read_metrics(tmp_path / "b" / "metrics.jsonl", "train")] == [1, 2, 3, 4, 5]


def test_changed_pairs_are_refused_on_resume_with_both_fingerprints(tmp_path):
    train_dpo(str(tmp_path), 2)
    with pytest.raises(UserError, match=r"training data changed .* then, .* now"):
        train_dpo(str(tmp_path), 4, trees=pairs(seed=9))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_trees_that_are_no_pairs_are_named():
    good = pairs(1)[0]
    three = group([1, 2], [Segment([3]), Segment([4]), Segment([5])], atomic=True)
    root = group([1, 2], [Segment([3]), Segment([4])], atomic=True)
    root.segments[0].scored = np.array([False, True])
    loose = group([1, 2], [Segment([3]), Segment([4])])
    silent = group([1, 2], [Segment([3]), Segment([4], scored=np.zeros(1, dtype=bool))], atomic=True)
    for bad, message in (
        (three, "pair 2: .*two branches"),
        (loose, "pair 2: .*atomic"),
        (silent, "pair 2: .*no token"),
    ):
        with pytest.raises(UserError, match=message):
            Dpo([good, bad], 1, 0, DpoConfig(), lambda trees: None)
    with pytest.raises(UserError, match="pair 1: the reference's log-probabilities are missing"):
        Dpo([good], 1, 0, DpoConfig())


def test_bad_settings_name_the_key():
    for settings, key in (
        ({"beta": 0.0}, "beta"),
        ({"nll_coef": -1.0}, "nll_coef"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "cdpo"}, "label_smoothing"),
        ({"loss": "cdpo", "label_smoothing": 0.5}, "label_smoothing"),
    ):
        with pytest.raises(UserError, match=key):
            DpoConfig(**settings)

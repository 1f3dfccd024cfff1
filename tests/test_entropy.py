"""GRPO's entropy: what is measured, the bonus, the band that holds it."""

import pytest
import torch

from alignment.algorithms.entropy import EntropyControl
from tests.test_grpo import make, run_loss


def test_a_controlled_entropy_is_that_of_all_groups_whatever_the_coefficient():
    def flat_but_one(rollouts):
        for r in rollouts:
            r.reward = float(r.index) if r.prompt.id == "p1" else 1.0
        return {}

    found = []
    for coefficient in (0.0, 1e-12):
        algorithm = make(flat_but_one, prompts_per_step=6, entropy_coef=coefficient, entropy_band=[0.0, 9.0],
                         entropy_coef_step=1e-3)  # fmt: skip
        (batch,) = algorithm.collect(0).batches
        assert len(batch.trees) == 6
        found.append(run_loss(algorithm, batch)[2]["entropy"])
    assert float(found[0][0]) == pytest.approx(float(found[1][0])) and found[0][1] == found[1][1]


def test_the_entropy_coefficient_follows_the_band_and_enters_the_loss():
    algorithm = make(entropy_coef=0.1, entropy_band=[2.0, 3.0], entropy_coef_step=0.05)
    episode = algorithm.collect(0)
    assert episode.stats["entropy_coef"] == 0.1
    before, _, stats = run_loss(algorithm, episode.batches[0])
    algorithm.after_update(1, {"entropy": 1.5})
    entropy = float(stats["entropy"][0]) / stats["entropy"][1]
    assert run_loss(algorithm, episode.batches[0])[0] == pytest.approx(before - 0.05 * entropy, abs=1e-4)
    for seen, coef in ((2.5, 0.15), (3.5, 0.10), (3.5, 0.05), (3.5, 0.0), (3.5, 0.0), (float("nan"), 0.0), (0.1, 0.05)):
        algorithm.after_update(2, {"entropy": seen})
        assert algorithm.entropy.coef == pytest.approx(coef)
    algorithm.after_update(3, {})  # as after a resume
    again = make(entropy_coef=0.1, entropy_band=[2.0, 3.0], entropy_coef_step=0.05)
    again.load_state_dict(algorithm.state_dict())
    assert again.entropy.coef == algorithm.entropy.coef == pytest.approx(0.05)


def test_without_a_band_the_entropy_coefficient_stays():
    algorithm = make(entropy_coef=0.1)
    algorithm.after_update(1, {"entropy": 0.0})
    assert algorithm.entropy.coef == 0.1
    assert "entropy_coef" not in algorithm.collect(0).stats


def test_entropy_is_held_in_its_band_where_it_would_collapse():
    """A choice of one among 8 that pays for one of them, by exact policy gradient."""
    reward = torch.tensor([1.0] + [0.0] * 7)

    def final_entropy(control):
        logits = torch.zeros(8, requires_grad=True)
        for _ in range(600):
            logprobs = logits.log_softmax(0)
            entropy = -(logprobs.exp() * logprobs).sum()
            (-(logprobs.exp() * reward).sum() - control.coef * entropy).backward()
            with torch.no_grad():
                logits -= 0.5 * logits.grad
            logits.grad = None
            control.observe({"entropy": float(entropy.detach())})
        return float(entropy.detach())

    assert final_entropy(EntropyControl(0.0)) < 0.1
    assert 0.7 < final_entropy(EntropyControl(0.0, [0.8, 1.2], 0.005)) < 1.3

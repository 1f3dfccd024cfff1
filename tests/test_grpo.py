"""GRPO: what enters the loss, and what never does."""

import numpy as np
import pytest
import torch

from alignment.algorithms.grpo import Grpo, GrpoConfig
from alignment.data.curriculum import Curriculum
from alignment.errors import UserError
from alignment.losses.advantages import group_advantages
from alignment.losses.policy_gradient import gspo_loss, k3, sequence_mean_loss, token_loss
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.models.score import add_logprobs
from alignment.packing import cut, group
from alignment.types import Prompt, Rollout, Sampling, Segment
from tests.tiny import tiny_model
from tests.training import train

PROMPTS = [Prompt(f"p{i}", [{"role": "user", "content": f"q{i}"}], list(range(10 + i, 16 + 2 * i))) for i in range(6)]


class RandomTokens:
    """An engine whose samples are random tokens with the policy's true log-probabilities."""

    def __init__(self, policy, lengths=(3, 5, 2, 7)):
        self.policy, self.lengths, self.asked = policy, lengths, []

    def generate(self, prompts, n, sampling, step=0):
        self.asked.append([p.id for p in prompts])
        out = []
        for prompt in prompts:
            rng = np.random.default_rng([step, int(prompt.id[1:])])
            ids = [rng.integers(5, 300, self.lengths[i % len(self.lengths)]).tolist() for i in range(n)]
            tree = group(prompt.token_ids, [Segment(x) for x in ids])
            add_logprobs(self.policy, [tree], "logprobs", 10_000, sampling.temperature)
            logprobs = [s.columns["logprobs"].tolist() for s in tree.segments[1:]]
            reason = ["length" if len(x) == 7 else "stop" for x in ids]
            out.append([Rollout(prompt, i, ids[i], logprobs[i], "text", reason[i], step) for i in range(n)])
        return out

    def load_weights(self, model, step):
        pass


def first_token(rollouts):
    for r in rollouts:
        r.reward = float(r.token_ids[0] % 7)
    return {}


def make(score=first_token, policy=None, order="random", prompts=PROMPTS, **settings):
    policy = policy or Policy(tiny_model("qwen3"))
    config = GrpoConfig(**{"prompts_per_step": 3, "group_size": 4, **settings})
    curriculum = Curriculum([p.id for p in prompts], order, seed=0)
    reference = Policy(tiny_model("qwen3")) if config.beta else None
    sampling = Sampling(max_tokens=7, seed=3)
    return Grpo(policy, RandomTokens(policy), prompts, score, curriculum, config, sampling, reference)


def run_loss(algorithm, batch, max_tokens=10_000):
    """Loss over the batch, gradients, and the stats of the last micro-batch."""
    algorithm.policy.zero_grad()
    total = 0.0
    for micro in cut(batch.trees, max_tokens):
        loss, stats = algorithm.loss(algorithm.policy, micro)
        (loss / batch.units).backward()
        total += float(loss.detach()) / batch.units
    return total, [p.grad.clone() for p in algorithm.policy.parameters()], stats


# --- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_of_a_hand_computed_group():
    advantages, flat = group_advantages(np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, np.nan]]))
    assert advantages[0] == pytest.approx([1.5, -0.5, -0.5, -0.5])  # mean 1/4, deviation 1/2
    assert advantages[1] == pytest.approx([-1.0, 0.0, 1.0, 0.0])  # the unscored sample is left out of both
    assert flat.tolist() == [False, False]
    assert group_advantages(np.array([[1.0, 2.0, 6.0]]), divide_by_std=False)[0][0] == pytest.approx([-2, -1, 3])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-9, 1e9, -0.3])
def test_an_all_equal_group_has_exactly_zero_advantage(value):
    advantages, flat = group_advantages(np.full((1, 7), value))
    assert (advantages == 0).all()
    assert flat.all()


def test_groups_with_fewer_than_two_scored_samples_have_no_signal():
    advantages, flat = group_advantages(np.array([[np.nan] * 3, [np.nan, 5.0, np.nan]]))
    assert (advantages == 0).all()
    assert flat.all()


def test_small_but_real_differences_are_not_flat():
    assert not group_advantages(np.array([[1e-9, 2e-9]]))[1][0]
    assert not group_advantages(np.array([[1000.0, 1000.1]]))[1][0]


# --- losses -----------------------------------------------------------------------------------------------------------

OLD = torch.tensor([-1.0, -1.0, -1.0])
NEW = OLD + torch.log(torch.tensor([1.5, 0.5, 1.0]))
ROWS = torch.tensor([0, 0, 1])


def test_clip_binds_only_where_it_takes_the_incentive_away():
    surrogate = token_loss(NEW, OLD, torch.tensor([1.0, 1.0, 1.0]), ROWS, 2, 0.2, 0.28)
    assert surrogate.loss_N.tolist() == pytest.approx([-1.28, -0.5, -1.0])
    assert surrogate.clipped_high_N.tolist() == [True, False, False]
    surrogate = token_loss(NEW, OLD, torch.tensor([-1.0, -1.0, -1.0]), ROWS, 2, 0.2, 0.28)
    assert surrogate.loss_N.tolist() == pytest.approx([1.5, 0.8, 1.0])
    assert surrogate.clipped_low_N.tolist() == [False, True, False]


def test_normalisations_at_hand_computed_lengths():
    advantages = torch.tensor([2.0, 2.0, 3.0])
    same = token_loss(OLD, OLD, advantages, ROWS, 2, 0.2, 0.2)
    assert (same.loss_N * same.norm_N).sum().item() == pytest.approx(-7.0)
    mean = sequence_mean_loss(OLD, OLD, advantages, ROWS, 2, 0.2, 0.2)
    assert (mean.loss_N * mean.norm_N).sum().item() == pytest.approx(-5.0)


def test_gspo_ratio_is_the_geometric_mean_of_the_completion():
    surrogate = gspo_loss(NEW, OLD, torch.ones(3), ROWS, 2, 0.5, 0.5)
    assert surrogate.ratio_N.tolist() == pytest.approx([0.75**0.5, 0.75**0.5, 1.0])
    assert (surrogate.loss_N * surrogate.norm_N).sum().item() == pytest.approx(-(0.75**0.5) - 1)


def test_k3_is_zero_at_equality_positive_elsewhere_and_unbiased():
    assert k3(OLD, OLD).tolist() == [0, 0, 0]
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    estimate = k3(p.log(), q.log())
    assert (estimate > 0).all()
    assert (p * estimate).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)


# --- the algorithm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"mini_batches": 2, "episode_epochs": 2}, {"old_logprobs": "recompute", "episode_epochs": 2}],
)
def test_first_update_has_ratio_one_and_kl_zero(settings):
    algorithm = make(beta=0.1, **settings)
    batch = algorithm.collect(0).batches[0]
    _, _, stats = run_loss(algorithm, batch)
    for name in ("ratio/mean", "sampler_ratio/mean"):
        assert stats[name][0] / stats[name][1] == pytest.approx(1.0, abs=1e-5)
    assert stats["ratio/max"] == pytest.approx(1.0, abs=1e-5)
    assert float(stats["kl"][0]) == pytest.approx(0.0, abs=1e-6)


def test_gradient_is_that_of_advantage_weighted_logprobs():
    algorithm = make()
    episode = algorithm.collect(0)
    _, gradients, _ = run_loss(algorithm, episode.batches[0])
    algorithm.policy.zero_grad()
    objective, tokens = 0.0, 0
    for tree in episode.batches[0].trees:
        for i, segment in enumerate(tree.segments[1:], 1):
            ids = torch.tensor([tree.branch_token_ids(i)])
            logp = algorithm.policy.model(input_ids=ids).logits[0].log_softmax(-1)
            start = len(tree.segments[0].token_ids)
            picked = logp[start - 1 : -1].gather(1, ids[0, start:, None])
            objective = objective - segment.columns["advantages"][0] * picked.sum()
            tokens += len(segment.token_ids)
    assert tokens == episode.batches[0].units
    (objective / tokens).backward()
    for ours, p in zip(gradients, algorithm.policy.parameters(), strict=True):
        assert torch.allclose(ours, p.grad, atol=1e-6)


@pytest.mark.parametrize("loss", ["token", "constant", "sequence_mean", "gspo"])
def test_gradient_does_not_depend_on_the_cut(loss):
    algorithm = make(loss=loss, beta=0.05, entropy_coef=0.01)
    batch = algorithm.collect(0).batches[0]
    whole = run_loss(algorithm, batch)
    pieces = run_loss(algorithm, batch, max_tokens=20)
    assert len(cut(batch.trees, 20)) > 4
    assert whole[0] == pytest.approx(pieces[0], abs=1e-6)
    for a, b in zip(whole[1], pieces[1], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def flat_then_not(rollouts):
    for r in rollouts:
        r.reward = 1.0 if r.prompt.id == "p0" else float(r.index)
    return {}


def test_groups_without_signal_count_but_are_not_computed():
    algorithm = make(flat_then_not, prompts_per_step=6)
    episode = algorithm.collect(0)
    assert episode.stats["flat_groups"] == (1, 6)
    assert len(episode.batches[0].trees) == 5
    assert episode.batches[0].units == 6 * (3 + 5 + 2 + 7)
    assert len(make(flat_then_not, prompts_per_step=6, entropy_coef=0.1).collect(0).batches[0].trees) == 6


def test_groups_without_signal_are_replaced_within_the_budget():
    algorithm = make(flat_then_not, prompts_per_step=5, resample_prompts=4)
    algorithm.curriculum._queue = [0, 1, 2, 3, 4, 5]
    episode = algorithm.collect(0)
    assert algorithm.engine.asked == [["p0", "p1", "p2", "p3", "p4"], ["p5"]]
    assert episode.stats["flat_groups"] == (0, 5)
    assert episode.stats["groups_resampled"] == (1, 1)


def none_for_the_first(rollouts):
    for r in rollouts:
        r.reward = None if r.index == 0 else float(r.index)
    return {}


def test_unscored_samples_carry_no_loss_and_do_not_move_the_baseline():
    episode = make(none_for_the_first).collect(0)
    for tree in episode.batches[0].trees:
        assert not tree.segments[1].scored.any()
        assert [s.columns["advantages"][0] for s in tree.segments[2:]] == pytest.approx([-1, 0, 1])
    assert episode.stats["unscored"] == (3, 12)
    assert episode.batches[0].units == 3 * (5 + 2 + 7)


def none_at_all(rollouts):
    for r in rollouts:
        r.reward = None
    return {"unscored/broken": float(len(rollouts))}


def test_a_reward_that_fails_on_everything_leaves_an_empty_step_also_with_a_reference():
    episode = make(none_at_all, beta=0.1, old_logprobs="recompute", episode_epochs=2).collect(0)
    assert all(batch.units == 0 for batch in episode.batches)
    assert episode.stats["unscored"] == (12, 12)
    assert episode.stats["unscored/broken"] == (12.0, None)


def test_changed_prompts_are_refused_on_resume():
    with pytest.raises(UserError, match="the prompts changed since the checkpoint"):
        make(prompts=PROMPTS[:4]).load_state_dict(make().state_dict())


def test_truncated_completions_can_be_left_out_of_the_loss_but_stay_in_the_baseline():
    episode = make(mask_truncated=True).collect(0)
    assert episode.batches[0].units == 3 * (3 + 5 + 2)
    for tree in episode.batches[0].trees:
        assert not tree.segments[4].scored.any()
        assert sum(s.columns["advantages"][0] for s in tree.segments[1:]) == pytest.approx(0, abs=1e-6)


def test_forced_tokens_carry_no_loss():
    class Forced(RandomTokens):
        def generate(self, *a, **k):
            groups = super().generate(*a, **k)
            for g in groups:
                g[1].loss_mask = [True, False, False, True, True]
            return groups

    algorithm = make()
    algorithm.engine = Forced(algorithm.policy)
    assert algorithm.collect(0).batches[0].units == 3 * (3 + 3 + 2 + 7)


def test_kl_in_the_reward_lowers_the_advantage_of_what_the_reference_finds_unlikely():
    algorithm = make(beta=0.5, kl="reward")
    algorithm.reference = Policy(tiny_model("qwen3", seed=5))
    plain = make(beta=0.0)
    penalised = algorithm.collect(0).batches[0].trees
    free = plain.collect(0).batches[0].trees
    for a, b in zip(penalised, free, strict=True):
        gaps = [float((s.columns["sampler_logprobs"] - s.columns["ref_logprobs"]).sum()) for s in a.segments[1:]]
        rewards = np.array([float(s.token_ids[0] % 7) for s in b.segments[1:]]) - 0.5 * np.array(gaps)
        expected = (rewards - rewards.mean()) / rewards.std(ddof=1)
        assert [s.columns["advantages"][0] for s in a.segments[1:]] == pytest.approx(expected, rel=1e-4)


def test_kl_in_the_reward_charges_truncated_completions_too():
    """They stay in their group's baseline, so one that went free would lower the advantage of all others."""
    settings = {"beta": 0.1, "kl": "reward", "divide_by_std": False}
    whole, masked = (make(mask_truncated=masked, **settings).collect(0).batches for masked in (False, True))
    for batch, other in zip(list(whole), list(masked), strict=True):
        for tree, same in zip(batch.trees, other.trees, strict=True):
            for segment, cut_out in zip(tree.segments[1:], same.segments[1:], strict=True):
                assert segment.columns["advantages"].tolist() == cut_out.columns["advantages"].tolist()
                assert cut_out.scored.any() == (len(segment.token_ids) < 7)


def test_kl_in_the_reward_is_the_recomputed_policys():
    """A sampler that reports other log-probabilities changes nothing where the policy scores the samples itself."""
    same = Policy(tiny_model("qwen3"))

    class Off(RandomTokens):
        def generate(self, *arguments):
            groups = super().generate(*arguments)
            for r in (r for g in groups for r in g):
                r.logprobs = [logprob - 0.05 for logprob in r.logprobs]
            return groups

    algorithm = make(policy=same, beta=0.1, kl="reward", old_logprobs="recompute", mini_batches=2,
                     score=lambda rollouts: [setattr(r, "reward", 1.0) for r in rollouts] and {})  # fmt: skip
    algorithm.engine = Off(same)
    assert algorithm.collect(0).stats["flat_groups"] == (3, 3)  # equal rewards, and the reference is the policy


def test_a_step_that_replaces_groups_never_has_a_prompt_twice():
    def all_equal(rollouts):
        for r in rollouts:
            r.reward = 1.0
        return {}

    algorithm = make(all_equal, prompts_per_step=4, resample_prompts=6)
    for step in range(3):
        algorithm.engine.asked.clear()
        algorithm.collect(step)
        ids = [i for round_ids in algorithm.engine.asked for i in round_ids]
        assert len(ids) == len(set(ids)) == 6


def test_mini_batches_and_epochs_visit_every_group_in_each_epoch():
    algorithm = make(prompts_per_step=6, mini_batches=3, episode_epochs=2)
    batches = algorithm.collect(0).batches
    assert [len(b.trees) for b in batches] == [2] * 6
    prompts = [t.segments[0].token_ids[0] for b in batches for t in b.trees]
    assert sorted(prompts[:6]) == sorted(prompts[6:]) == [p.token_ids[0] for p in PROMPTS]


def test_training_raises_the_reward_and_resumes_exactly(tmp_path):
    """Over a fixed set of samples the policy learns to prefer the rewarded ones."""

    def new(policy):
        return make(policy=policy, prompts=PROMPTS[:3], prompts_per_step=3)

    finals = []
    for folder, stops in (("a", [8]), ("b", [3, 8])):
        for steps in stops:
            policy = Policy(tiny_model("qwen3"))
            train(str(tmp_path / folder), 8 if steps == 8 else 3, algorithm=new(policy), policy=policy, save_every=1,
                  lr_schedule="constant", warmup_steps=0)  # fmt: skip
        finals.append([p.clone() for p in policy.parameters()])
    for a, b in zip(*finals, strict=True):
        assert torch.equal(a, b)
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl", "train")
    assert all(line["grad_norm"] > 0 for line in lines)
    assert [line["step"] for line in lines] == list(range(1, 9))


def test_bad_settings_name_the_key():
    with pytest.raises(UserError, match="group_size"):
        GrpoConfig(group_size=1)
    for settings in ({"entropy_band": [0.5, 0.2], "entropy_coef_step": 0.1}, {"entropy_band": [0.2, 0.5]}):
        with pytest.raises(UserError, match="entropy_band"):
            GrpoConfig(**settings)
    with pytest.raises(UserError, match="mini_batches"):
        GrpoConfig(prompts_per_step=2, mini_batches=3)
    policy = Policy(tiny_model("qwen3"))
    with pytest.raises(UserError, match="temperature"):
        Grpo(policy, RandomTokens(policy), PROMPTS, first_token, Curriculum(["p0"], "random", 0), GrpoConfig(),
             Sampling(temperature=0.0))  # fmt: skip

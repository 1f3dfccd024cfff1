"""PPO: the numbers by hand, the invariants, a problem with a known optimum."""

import copy

import numpy as np
import pytest
import torch

from alignment.algorithms.ppo import PpoConfig
from alignment.algorithms.ppo_parts import AdaptiveKl, Pretraining, RunningMoments, explained_variance, whiten
from alignment.errors import UserError
from alignment.losses.advantages import gae
from alignment.losses.value import clipped_value_loss
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.packing import conversation, cut, pack
from tests.tiny import tiny_model
from tests.training import weights_hash
from tests.training_ppo import make_ppo, tiny_actor_critic, train_ppo

CPU = torch.device("cpu")


# --- pieces by hand ---------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5; deltas from the end: 1 - 0.4 = 0.6, 0 + 0.5 * 0.4 - 0.2 = 0, 0.1 + 0.5 * 0.2 - 0.6 = -0.4
    rewards = [np.array([0.1, 0.0, 1.0]), np.array([2.0])]
    values = [np.array([0.6, 0.2, 0.4]), np.array([0.5])]
    advantages, returns = gae(rewards, values, gamma=0.5, lam=0.5)
    # A_2 = 0.6, A_1 = 0 + 0.25 * 0.6, A_0 = -0.4 + 0.25 * 0.15
    assert advantages[0] == pytest.approx([-0.3625, 0.15, 0.6])
    assert returns[0] == pytest.approx([0.2375, 0.35, 1.0])
    assert advantages[1] == pytest.approx([1.5])


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    rng = np.random.default_rng(0)
    rewards, values = [rng.normal(size=7)], [rng.normal(size=7)]
    advantages, returns = gae(rewards, values, gamma=1.0, lam=1.0)
    assert returns[0] == pytest.approx(np.cumsum(rewards[0][::-1])[::-1])
    assert advantages[0] == pytest.approx(returns[0] - values[0])


def test_gae_of_a_perfect_value_is_zero():
    rewards = [np.array([0.0, 0.0, 1.0])]
    advantages, _ = gae(rewards, [np.ones(3)], gamma=1.0, lam=0.95)
    assert advantages[0] == pytest.approx(np.zeros(3))


def test_whitened_advantages_have_mean_zero_and_deviation_one():
    rows = whiten([np.array([3.0, 5.0]), np.array([10.0, -2.0, 4.0])], CPU)
    flat = np.concatenate(rows)
    assert flat.mean() == pytest.approx(0, abs=1e-12) and flat.std(ddof=1) == pytest.approx(1, rel=1e-6)
    assert [len(r) for r in rows] == [2, 3]
    assert whiten([], CPU) == []


def test_value_loss_by_hand():
    values = torch.tensor([1.0, 1.0, 0.1, 2.0], requires_grad=True)
    old, returns = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([2.0, 0.5, 1.0, 0.0])
    loss, clipped = clipped_value_loss(values, old, returns, 0.15)
    # near values: 0.15, 0.15, 0.1, 0.15; errors^2 1, 0.25, 0.81, 4 against 3.4225, 0.1225, 0.81, 0.0225
    assert loss.tolist() == pytest.approx([1.71125, 0.125, 0.405, 2.0])
    assert clipped.tolist() == [True, False, False, False]
    loss.sum().backward()
    assert values.grad.tolist() == pytest.approx([0.0, 0.5, -0.9, 2.0])


def test_value_loss_without_clip_is_half_the_square():
    loss, clipped = clipped_value_loss(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0)
    assert loss.item() == 2.0 and not clipped.any()


def test_explained_variance_by_hand():
    returns = [np.array([1.0, 3.0]), np.array([5.0])]
    assert explained_variance(returns, returns, CPU) == pytest.approx(1.0)
    assert explained_variance([np.zeros(2), np.zeros(1)], returns, CPU) == pytest.approx(0.0)
    # errors 1, -1, 0: variance 2/3 against 8/3
    assert explained_variance([np.array([0.0, 4.0]), np.array([5.0])], returns, CPU) == pytest.approx(0.75)
    assert explained_variance([np.zeros(2)], [np.ones(2)], CPU) == 0.0


def test_running_moments_are_those_of_all_values():
    moments, values = RunningMoments(), np.random.default_rng(1).normal(2, 3, 50)
    moments.update(values[:20], CPU)
    moments.update(values[20:], CPU)
    assert moments.mean == pytest.approx(values.mean()) and moments.std == pytest.approx(values.std())


def test_kl_is_steered_towards_its_target():
    kl = AdaptiveKl(0.1, target=6.0, horizon=1000)
    kl.update(60.0, completions=100)  # far above: the error is cut to 0.2
    assert kl.coefficient == pytest.approx(0.1 * 1.02)
    kl.update(5.4, completions=100)
    assert kl.coefficient == pytest.approx(0.1 * 1.02 * 0.99)
    fixed = AdaptiveKl(0.1, 0.0, 1000)
    fixed.update(60.0, 100)
    assert fixed.coefficient == 0.1


def test_pretraining_text_weighs_its_own_mean():
    trees = [conversation(list(range(1, n)), [False] + [True] * (n - 2)) for n in (8, 12, 20, 6, 9)]
    taken = Pretraining(trees, ratio=0.5, seed=3).take(0, units=40, coefficient=0.2, columns=["values"], device=CPU)
    tokens = sum(t.scored_tokens for t in taken)
    assert tokens >= 20
    for tree in taken:
        columns = tree.segments[0].columns
        # the trainer divides by 40 units: weight / 40 * tokens is the coefficient
        assert columns["ptx_weight"] == pytest.approx(0.2 * 40 / tokens)
        assert not columns["values"].any()
    assert all("ptx_weight" not in t.segments[0].columns for t in trees)


# --- the algorithm ----------------------------------------------------------------------------------------------------


def test_first_policy_update_has_ratio_one_and_no_kl_under_truncated_sampling(tmp_path):
    train_ppo(str(tmp_path), steps=1, value_warmup_steps=0)
    (first,) = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert first["ratio/mean"] == pytest.approx(1, abs=1e-5) and first["ratio/max"] == pytest.approx(1, abs=1e-4)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["kl_to_sampler"] == pytest.approx(0, abs=1e-6)
    assert first["sampler_ratio/mean"] == pytest.approx(1, abs=1e-5) and first["sampler_ratio/outside"] == 0


class OtherSampler:
    """An engine that samples as the policy does and then tells log-probabilities of a sampler that is not it."""

    def __init__(self, engine, error):
        self.engine, self.error = engine, error

    def generate(self, *arguments):
        groups = self.engine.generate(*arguments)
        for rollout in (r for g in groups for r in g):
            rollout.logprobs = [p - self.error(t) for p, t in zip(rollout.logprobs, rollout.token_ids, strict=True)]
        return groups

    def load_weights(self, model, step):
        self.engine.load_weights(model, step)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("settings", [{}, {"mini_batches": 2, "old_logprobs": "recompute"}])
def test_samples_of_another_sampler_are_weighed_by_the_policys_probability_over_its_own(shared, settings):
    """Even tokens are twice as likely under the policy, multiples of 7 ten times (cut off at the cap of 3)."""

    def error(token: int) -> float:
        return float(np.log(10.0 if token % 7 == 0 else 2.0 if token % 2 == 0 else 1.0))

    def gradient(other: bool, weight) -> dict[str, torch.Tensor]:
        model = tiny_actor_critic(shared=shared)
        algorithm = make_ppo(model, value_warmup_steps=0, kl_coef=0.0, importance_cap=3.0, value_coef=0.0, **settings)
        if other:
            algorithm.engine = OtherSampler(algorithm.engine, error)
        batch = next(iter(algorithm.collect(0).batches))
        micro = pack(batch.trees)
        micro.columns["advantages"] = micro.columns["advantages"] * weight(micro.score_target_N)
        loss, stats = algorithm.loss(model, micro)
        loss.backward()
        assert stats["ratio/mean"][0] / stats["ratio/mean"][1] == pytest.approx(1, abs=1e-5)
        unlike = (capped(micro.score_target_N) != 1).sum() if other else 0
        assert stats["sampler_ratio/outside"][0] == unlike
        return {n: p.grad for n, p in model.policy.named_parameters() if p.grad is not None}

    def capped(tokens):
        return torch.tensor([min(3.0, float(np.exp(error(int(t))))) for t in tokens])

    seen, expected = gradient(True, torch.ones_like), gradient(False, capped)
    assert seen.keys() == expected.keys() and len(seen) > 5
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=1e-4, atol=1e-6)


def test_recomputed_log_probabilities_give_the_kl_of_the_policy_whatever_the_sampler_says(tmp_path):
    for name, warm_up in (("cold", 0), ("warm", 2)):
        model = tiny_actor_critic()
        algorithm = make_ppo(model, value_warmup_steps=warm_up, old_logprobs="recompute")
        algorithm.engine = OtherSampler(algorithm.engine, lambda token: 0.5)
        train_ppo(str(tmp_path / name), warm_up + 1, 0, model, algorithm)
        lines = read_metrics(tmp_path / name / "metrics.jsonl", "train")
        assert [line["kl"] for line in lines] == pytest.approx([0] * len(lines), abs=1e-5)
        assert lines[-1]["sampler_ratio/mean"] == pytest.approx(np.exp(0.5), rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_warm_up_trains_the_value_and_leaves_the_policy_as_it_is(shared, tmp_path):
    model = tiny_actor_critic(shared=shared)
    start = weights_hash(model.policy)
    head = model.value.model.score.weight.clone()
    train_ppo(str(tmp_path), 3, 0, model, make_ppo(model, value_warmup_steps=3))
    assert weights_hash(model.policy) == start
    assert (model.value.model.score.weight - head).abs().max() > 1e-3
    assert all(line["grad_norm"] == 0 < line["grad_norm/value"] for line in read_metrics(tmp_path / "metrics.jsonl"))


def test_warm_up_draws_each_prompt_once_and_later_steps_draw_anew(tmp_path):
    train_ppo(str(tmp_path), 6, value_warmup_steps=4)  # 6 prompts, 3 a step: two steps see them all
    drawn = [line["prompts_sampled"] for line in read_metrics(tmp_path / "metrics.jsonl", "train")]
    assert drawn == [3, 3, 0, 0, 3, 3]
    train_ppo(str(tmp_path / "few"), 4, value_warmup_steps=3, value_warmup_prompts=3)
    drawn = [line["prompts_sampled"] for line in read_metrics(tmp_path / "few" / "metrics.jsonl", "train")]
    assert drawn == [3, 0, 0, 3]


def test_warm_up_rows_of_earlier_and_of_new_samples_fit_into_one_pass():
    """6 prompts, 4 a step: from the second step on samples of both kinds are scored together."""
    algorithm = make_ppo(tiny_actor_critic(), value_warmup_steps=4, prompts_per_step=4)
    drawn = [algorithm.collect(step).stats["prompts_sampled"][0] for step in range(4)]
    assert sum(drawn) == 6 and 0 < drawn[1] < 4


def test_warm_up_keeps_samples_only_of_prompts_that_come_again():
    def kept(**settings) -> list[int]:
        algorithm = make_ppo(tiny_actor_critic(), **settings)
        sizes = []
        for step in range(settings["value_warmup_steps"] + 1):
            algorithm.collect(step)
            sizes.append(len(algorithm.state_dict()["warm_up"]))
        return sizes

    assert kept(value_warmup_steps=2) == [0, 0, 0]  # 6 prompts, 3 a step: none comes twice
    assert kept(value_warmup_steps=4) == [3, 6, 3, 0, 0]
    assert kept(value_warmup_steps=3, value_warmup_prompts=3) == [3, 3, 0, 0]


def test_warm_up_raises_the_explained_variance_of_the_first_policy_step(tmp_path):
    def every_other_prompt_pays(rollouts):
        for r in rollouts:
            r.reward = float(int(r.prompt.id[1:]) % 2)
        return {}

    def explained(warm_up: int) -> float:
        model = tiny_actor_critic()
        algorithm = make_ppo(model, every_other_prompt_pays, value_warmup_steps=warm_up, prompts_per_step=6)
        train_ppo(str(tmp_path / str(warm_up)), warm_up + 1, 0, model, algorithm)
        return read_metrics(tmp_path / str(warm_up) / "metrics.jsonl", "train")[-1]["explained_variance"]

    assert explained(0) < 0.2
    assert explained(25) > 0.7


def test_any_cut_into_micro_batches_gives_the_same_gradients():
    def gradients(budget: int) -> dict[str, torch.Tensor]:
        model = tiny_actor_critic()
        algorithm = make_ppo(model, value_warmup_steps=0, ptx_coef=0.7)
        (batch,) = algorithm.collect(0).batches
        for micro in cut(batch.trees, budget):
            (algorithm.loss(model, micro)[0] / batch.units).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole, parts = gradients(10_000), gradients(45)
    assert whole.keys() == parts.keys() and any(n.startswith("value.") for n in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_ptx_adds_its_coefficient_times_the_mean_loss_on_the_text():
    def gradient(ptx: float) -> dict[str, torch.Tensor]:
        model = tiny_actor_critic()
        algorithm = make_ppo(model, value_warmup_steps=0, ptx_coef=ptx, sampling={"temperature": 0.7})
        (batch,) = algorithm.collect(0).batches
        loss, stats = algorithm.loss(model, pack(batch.trees))
        (loss / batch.units).backward()
        texts = [t for t in batch.trees if len(t.segments) == 1]
        return {n: p.grad for n, p in model.policy.named_parameters()}, texts, stats

    plain, texts, _ = gradient(0.0)
    assert texts == []
    mixed, texts, stats = gradient(0.7)
    policy = Policy(tiny_model("qwen3"))
    mean = -policy(pack(texts)).logprobs_N.mean()  # at temperature 1, whatever the samples had
    mean.backward()
    assert stats["ptx_loss"][0] / stats["ptx_loss"][1] == pytest.approx(mean.item(), rel=1e-5)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(mixed[name] - plain[name], 0.7 * parameter.grad, rtol=2e-3, atol=2e-5)


def test_unscored_and_truncated_completions():
    def score(rollouts):
        for i, r in enumerate(rollouts):
            r.reward = None if i == 0 else 1.0
        return {}

    settings = {"value_warmup_steps": 0, "missing_eos_penalty": 3.0, "kl_coef": 0.0, "reward_mean": False}
    algorithm = make_ppo(tiny_actor_critic(), score, **settings)
    (batch,) = algorithm.collect(0).batches
    segments = [s for t in batch.trees for s in t.segments[1:]]
    assert not segments[0].scored.any() and batch.units == sum(len(s.token_ids) for s in segments[1:])
    for s in segments[1:]:
        final = s.columns["returns"][-1]  # lambda-return of the last token is its reward
        assert final == pytest.approx(1.0 if s.token_ids[-1] < 60 else -2.0, abs=1e-5)


def test_an_episode_ends_early_when_the_policy_has_drifted(tmp_path):
    settings = {"value_warmup_steps": 0, "episode_epochs": 6}
    train_ppo(str(tmp_path / "all"), 1, **settings)
    train_ppo(str(tmp_path / "stopped"), 1, kl_stop=0.005, **settings)

    def tokens(name: str) -> float:
        return read_metrics(tmp_path / name / "metrics.jsonl", "train")[0]["tokens"]

    assert 0 < tokens("stopped") < tokens("all")


def test_an_episode_that_ended_early_does_not_end_the_next_one(tmp_path):
    train_ppo(str(tmp_path), 3, value_warmup_steps=0, mini_batches=2, kl_stop=1e-9)
    lines = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert all(line["grad_norm"] > 0 and line["tokens"] > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["qwen3", "qwen3_moe"])
def test_reaches_the_optimum_of_a_toy_problem(arch, tmp_path):
    """A point for each token below 100 of 512: from one in five to nearly all."""
    model = tiny_actor_critic(arch)
    settings = {"value_warmup_steps": 3, "prompts_per_step": 6, "group_size": 8, "reward_mean": False}
    sampling = {"stop_token_ids": (), "top_p": 1.0, "max_tokens": 4}
    algorithm = make_ppo(model, sampling=sampling, kl_coef=0.0, **settings)
    train_ppo(str(tmp_path), 70, 0, model, algorithm)
    metrics = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert metrics[0]["reward"] < 0.4
    assert metrics[-1]["reward"] > 0.95
    assert ("router_aux_loss" in metrics[-1]) == (arch == "qwen3_moe")


@pytest.mark.parametrize("first", [1, 3])
def test_resume_is_exact_in_the_warm_up_and_after(first, tmp_path):
    settings = {"mini_batches": 2, "ptx_coef": 0.5, "kl_target": 1.0}
    whole = train_ppo(str(tmp_path / "whole"), 5, **settings)
    train_ppo(str(tmp_path / "parts"), first, **settings)
    resumed = train_ppo(str(tmp_path / "parts"), 5, **settings)
    assert weights_hash(resumed) == weights_hash(whole)


def test_value_and_policy_have_learning_rates_of_their_own(tmp_path):
    model = tiny_actor_critic()
    before = copy.deepcopy(model)
    train_ppo(str(tmp_path), 1, 0, model, make_ppo(model, value_warmup_steps=0, value_learning_rate=3e-4))

    def largest_step(part: str) -> float:
        pairs = zip(getattr(model, part).parameters(), getattr(before, part).parameters(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)

    # Adam's first step is the learning rate wherever there is a gradient
    assert largest_step("policy") == pytest.approx(3e-3, rel=1e-3)
    assert largest_step("value") == pytest.approx(3e-4, rel=1e-3)


@pytest.mark.parametrize(
    "setting", [{"mini_batches": 99}, {"group_size": 0}, {"value_clip": -1.0}, {"kl_target": 1.0, "kl_coef": 0.0}]
)
def test_bad_settings_are_named(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        PpoConfig(**setting)

"""Online DPO: which samples become a pair, what is left out and counted, and that runs go on exactly."""

from __future__ import annotations

import pytest
import torch

from alignment.algorithms.dpo import DpoConfig
from alignment.algorithms.online_dpo import OnlineDpo, OnlineDpoConfig, best_and_worst, pair_tree
from alignment.algorithms.reference import Reference
from alignment.errors import UserError
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.rollout import TransformersEngine
from alignment.types import Prompt, Rollout, Sampling
from tests.test_grpo import RandomTokens
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import train, weights_hash
from tests.training_dpo import frozen, train_online

PROMPTS = [Prompt(f"p{i}", [{"role": "user", "content": f"q{i}"}], list(range(10 + i, 16 + 2 * i))) for i in range(6)]


def samples(*rewards: float | None) -> list[Rollout]:
    return [
        Rollout(PROMPTS[0], i, [20 + i, 30], [0.0, 0.0], "", "stop", 0, reward=reward)
        for i, reward in enumerate(rewards)
    ]


def chosen_of(*rewards: float | None):
    found = best_and_worst(samples(*rewards))
    return found if isinstance(found, str) else tuple(r.index for r in found)


def test_the_best_and_the_worst_of_the_scored_samples_are_the_pair():
    assert chosen_of(0.5, 2.0, -1.0, 0.7) == (1, 2)
    assert chosen_of(None, 0.3, None, 0.1, 0.2) == (1, 3)
    assert chosen_of(1.0, 0.0, 1.0, 0.0) == (0, 1)  # the first of equal ones
    assert chosen_of(-3.0, -2.0) == (1, 0)


def test_ties_and_unscored_groups_are_no_pairs():
    assert chosen_of(1.0, 1.0, 1.0) == "ties"
    assert chosen_of(0.0, None, 0.0) == "ties"
    assert chosen_of(0.1 + 0.2, 0.3) == "ties"  # equal but for rounding
    assert chosen_of(1e-9, 2e-9) == (1, 0)  # small, and yet different
    assert chosen_of(None, 1.0, None) == "unscored"
    assert chosen_of(None, None) == "unscored"


def test_the_same_tokens_with_different_rewards_are_no_pair():
    """A judge that answers differently when asked twice says nothing about them."""
    group = samples(0.0, 0.5, 1.0)
    group[2].token_ids = list(group[0].token_ids)
    assert best_and_worst(group) == "ties"
    group[1].reward = 2.0
    assert best_and_worst(group) == (group[1], group[0])


def test_tokens_that_carry_no_loss_are_in_no_score():
    """Tool outputs within a sample, and samples that consist of nothing else."""
    best, worst = samples(1.0, 0.0)
    best.loss_mask = [True, False]
    tree = pair_tree(best, worst)
    assert [s.scored.tolist() for s in tree.segments[1:]] == [[True, False], [True, True]]
    best.loss_mask = [False, False]
    assert best_and_worst([best, worst]) == "unscored"


def score_by_index(rollouts):
    """p0: all equal; p1: one scored sample only; others: larger for later samples."""
    for r in rollouts:
        r.reward = {"p0": 1.0, "p1": 1.0 if r.index == 2 else None}.get(r.prompt.id, float(r.index))
    return {"rewards/index": 1.5, "unscored/index": float(sum(r.reward is None for r in rollouts))}


def make(policy=None, score=score_by_index, engine=None, dpo=None, prompts=PROMPTS, **settings):
    policy = policy or Policy(tiny_model())
    config = OnlineDpoConfig(**{"prompts_per_step": len(prompts), "group_size": 4, **settings})
    reference = Reference(policy, frozen(policy), 10_000)
    return OnlineDpo(
        policy, engine or RandomTokens(policy), prompts, score, config, dpo or DpoConfig(), Sampling(max_tokens=7),
        reference, seed=1,
    )  # fmt: skip


class SameTokens(RandomTokens):
    """The samples of step 0 in every step."""

    def generate(self, prompts, n, sampling, step=0):
        return super().generate(prompts, n, sampling)


def test_what_a_step_trains_on_and_what_it_counts():
    episode = make().collect(0)
    (batch,) = episode.batches
    assert batch.units == len(batch.trees) == 4
    lengths = [len(s.token_ids) for s in batch.trees[0].segments[1:]]
    assert lengths == [7, 3]  # the samples have 3, 5, 2 and 7 tokens: the last is best, the first is worst
    stats = episode.stats
    assert stats["pairs"] == (4, None)
    assert stats["skipped/ties"] == stats["skipped/unscored"] == (1, None)
    assert stats["unscored/index"] == (3, None)
    assert stats["unscored"] == (3, 24)
    assert stats["reward/best"] == (12.0, 4)
    assert stats["reward/worst"] == (0.0, 4)
    assert stats["completion_length/best"] == (28, 4)
    assert len(episode.samples) == 24


def test_log_probabilities_are_the_models_own_whatever_the_sampling():
    """Truncated, tempered sampling decides what is sampled; the implicit reward is of the model itself."""
    policy = Policy(tiny_model())
    other = Policy(tiny_model(seed=4))
    engine = TransformersEngine(policy.model, tiny_tokenizer())
    algorithm = make(policy, engine=engine)
    algorithm.sampling = Sampling(max_tokens=6, temperature=0.5, top_k=9, stop_token_ids=(1,))
    algorithm.reference = Reference(policy, other, 10_000)
    tree = algorithm.collect(0).batches[0].trees[0]
    assert all(segment.kept is None for segment in tree.segments)
    plain = tiny_model(seed=4)
    for leaf in (1, 2):
        ids = torch.tensor([tree.branch_token_ids(leaf)])
        first = len(tree.segments[0].token_ids)
        logp = plain(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
        expected = logp[torch.arange(ids.shape[1] - first), ids[0, first:]].sum().item()
        assert tree.segments[leaf].columns["ref_logprob"][0] == pytest.approx(expected, rel=1e-5)


def test_the_first_loss_is_ln_2_and_the_margin_0_exactly(tmp_path):
    policy = Policy(tiny_model())
    train(str(tmp_path), 1, algorithm=make(policy), policy=policy, warmup_steps=0)
    (line,) = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert line["loss"] == float(torch.tensor(2.0).log())
    assert line["rewards/margins"] == 0
    assert (line["pairs"], line["skipped/ties"], line["skipped/unscored"]) == (4, 1, 1)
    assert line["grad_norm"] > 0


def test_the_policy_comes_to_prefer_what_is_rewarded_and_the_reference_stays(tmp_path):
    """Of the same samples in every step, the best come to be preferred over the worst."""
    policy = Policy(tiny_model())
    algorithm = make(policy, prompts=PROMPTS[2:4], engine=SameTokens(frozen(policy)))
    before = weights_hash(algorithm.reference.other)
    train(str(tmp_path), 6, algorithm=algorithm, policy=policy, warmup_steps=0)
    lines = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert lines[-1]["rewards/margins"] > 0.5
    assert lines[-1]["rewards/accuracies"] == 1
    assert weights_hash(algorithm.reference.other) == before


def test_steps_without_any_pair_change_nothing_and_are_counted(tmp_path):
    policy = Policy(tiny_model())
    before = weights_hash(policy)
    train(str(tmp_path), 2, algorithm=make(policy, prompts=PROMPTS[:2]), policy=policy)
    assert weights_hash(policy) == before
    for line in read_metrics(tmp_path / "metrics.jsonl", "train"):
        assert line["skipped_updates"] == 1
        assert (line["pairs"], line["skipped/ties"], line["skipped/unscored"]) == (0, 1, 1)


def test_every_prompt_comes_once_an_epoch_in_seeded_order():
    algorithm = make(prompts_per_step=2)
    for step in range(6):
        algorithm.collect(step)
    asked = algorithm.engine.asked
    epochs = [[i for ids in asked[first : first + 3] for i in ids] for first in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(p.id for p in PROMPTS)] * 2
    assert epochs[0] != epochs[1]


def test_a_run_with_the_real_engine_resumes_bit_for_bit(tmp_path):
    straight = weights_hash(train_online(str(tmp_path / "a"), 3))
    train_online(str(tmp_path / "b"), 1)
    assert weights_hash(train_online(str(tmp_path / "b"), 3)) == straight
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl", "train")
    assert all(line["pairs"] + line["skipped/ties"] + line["skipped/unscored"] == 5 for line in lines)
    assert sum(line["pairs"] for line in lines) > 5


def test_changed_prompts_are_refused_on_resume():
    state = make().state_dict()
    with pytest.raises(UserError, match="prompts changed"):
        make(prompts=PROMPTS[:5]).load_state_dict(state)


def test_bad_settings_name_the_key():
    with pytest.raises(UserError, match="group_size"):
        OnlineDpoConfig(group_size=1)
    with pytest.raises(UserError, match="prompts_per_step"):
        OnlineDpoConfig(prompts_per_step=0)
    with pytest.raises(UserError, match="prompts_per_step: 7 exceeds the 6 prompts"):
        make(prompts_per_step=7)
    policy = Policy(tiny_model())
    with pytest.raises(UserError, match="temperature"):
        OnlineDpo(policy, RandomTokens(policy), PROMPTS, score_by_index, OnlineDpoConfig(2, 2), DpoConfig(),
                  Sampling(temperature=0.0), Reference(policy, policy, 100), 0)  # fmt: skip

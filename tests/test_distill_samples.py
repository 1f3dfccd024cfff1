"""Distillation: what a step takes, samples and rows, and what the engines that sample are told."""

from __future__ import annotations

import pytest

from alignment.algorithms.distill import Distill, DistillConfig, OffPolicy
from alignment.models import Policy
from alignment.models.student import Student
from alignment.packing import cut
from alignment.rollout import TransformersEngine
from alignment.types import Rollout, Sampling
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import train
from tests.training_distill import KINDS, REAL, dense_loss, make, rows, teachers, update


def test_a_step_mixes_samples_and_rows_in_the_given_share():
    algorithm = make(**KINDS["mixed"])
    episode = algorithm.collect(0)
    (batch,) = episode.batches
    groups = [tree for tree in batch.trees if len(tree.segments) > 1]
    assert [len(tree.segments) - 1 for tree in groups] == [3, 3]  # 6 of 10 sequences, 3 per prompt
    assert len(batch.trees) - len(groups) == 4
    weights = sum(float(t.segments[0].columns["hard_weights"][t.segments[0].scored].sum()) / 0.5
                  for t in batch.trees if len(t.segments) == 1)  # fmt: skip
    assert batch.units == pytest.approx(weights + sum(tree.scored_tokens for tree in groups))
    assert "reward" not in episode.stats
    assert episode.stats["completion_length/mean"][1] == 6
    assert len(episode.samples) == 6


def test_rows_and_prompts_come_once_an_epoch_and_leave_nothing_behind():
    algorithm = make(**{**KINDS["mixed"], "batch_size": 5})
    asked = []
    for step in range(6):
        (batch,) = algorithm.collect(step).batches
        asked += [tuple(t.segments[0].token_ids) for t in batch.trees if len(t.segments) == 1]
    assert len(set(asked)) == len(asked) == 12
    assert all(set(tree.segments[0].columns) == {"weights"} for tree in algorithm.rows.trees)


def test_rewards_of_samples_are_reported_where_there_is_a_score():
    algorithm = make(**KINDS["on"])

    def score(rollouts):
        for r in rollouts:
            r.reward, r.reward_terms = 0.5, {"x": 0.5}
        return {"rewards/x": 0.5}

    algorithm.on_policy.score = score
    stats = algorithm.collect(0).stats
    assert stats["reward"] == (5.0, 10)
    assert stats["rewards/x"] == (5.0, 10)


class WithToolOutput:
    """An engine whose completions hold tokens that the student did not write."""

    def generate(self, prompts, n, sampling, step=0):
        mask = [True, False, False, True]
        return [[Rollout(p, i, [7, 8, 9, 10 + i], [0.0] * 4, "", "stop", 0, loss_mask=mask) for i in range(n)]
                for p in prompts]  # fmt: skip

    def load_weights(self, model, step):
        pass


def test_tokens_that_the_student_did_not_write_are_not_compared():
    algorithm = make(engine=WithToolOutput(), **KINDS["on"])
    (batch,) = algorithm.collect(0).batches
    assert batch.units == 2 * 10
    expected = dense_loss(algorithm, batch)
    assert update(make(engine=WithToolOutput(), **KINDS["on"]))[0] == pytest.approx(expected.item(), rel=1e-5)


class WithPadding(WithToolOutput):
    """An engine of a student that draws ids which stand for no token."""

    samples = ([7, 8, REAL + 3, 9], [REAL, 5], [6, 7], [REAL + 11])

    def generate(self, prompts, n, sampling, step=0):
        given = {prompt.id: [self.samples[3]] * n if prompt.id == "p0" else self.samples[:n] for prompt in prompts}
        return [[Rollout(p, i, ids, [0.0] * len(ids), "", "stop", 0) for i, ids in enumerate(given[p.id])]
                for p in prompts]  # fmt: skip


def test_a_sample_ends_where_the_student_draws_padding():
    """The teacher may embed no such id. What begins with one is left out, and a prompt without any sample, too."""
    algorithm = make(engine=WithPadding(), batch_size=21, group_size=3)
    episode = algorithm.collect(0)
    (batch,) = episode.batches
    assert len(batch.trees) == 6
    assert [list(s.token_ids) for s in batch.trees[0].segments[1:]] == [[7, 8], [6, 7]]
    assert batch.units == 6 * 4
    assert episode.stats["padding_sampled"] == (3 + 6 * 2, None)
    expected = dense_loss(algorithm, batch)
    assert update(make(engine=WithPadding(), batch_size=21, group_size=3))[0] == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_soft_targets_are_those_at_the_divergence_temperature_whatever_the_sampling():
    """The student samples with another temperature and top-k; what is compared are the models' own distributions."""
    algorithm = make(**KINDS["on"])
    algorithm.on_policy.sampling = Sampling(max_tokens=6, temperature=0.5, top_k=9, stop_token_ids=(1,))
    (batch,) = algorithm.collect(0).batches
    assert all(segment.kept is None for tree in batch.trees for segment in tree.segments)
    expected = dense_loss(algorithm, batch).item()
    total = sum(algorithm.loss(algorithm.student, micro)[0].item() for micro in cut(batch.trees, 10_000))
    assert total / batch.units == pytest.approx(expected, rel=1e-5)


def test_a_sample_does_not_depend_on_the_number_of_teachers():
    """Nor on the rows beside it."""
    alone, mixed = make(**{**KINDS["on"], "batch_size": 6, "group_size": 3}), make(**KINDS["mixed"])
    a, b = alone.collect(0), mixed.collect(0)
    assert [s["completion"] for s in a.samples] == [s["completion"] for s in b.samples]


# --- engines ----------------------------------------------------------------------------------------------------------


class Counting(WithToolOutput):
    """An engine with weights of its own."""

    remote = True

    def __init__(self):
        self.steps = []

    def load_weights(self, model, step):
        self.steps.append(step)


def test_an_engine_that_only_evaluates_gets_the_weights_of_every_step(tmp_path):
    trees, tasks = rows()
    student, engine = Student(Policy(tiny_model("qwen3", vocab_size=512))), Counting()
    config = DistillConfig(batch_size=5, on_policy_share=0.0)
    algorithm = Distill(student, config, teachers(), OffPolicy(trees, tasks), evaluated_by=engine)
    assert algorithm.sends_weights and not algorithm.reads_policy
    train(str(tmp_path), 2, algorithm=algorithm, policy=student)
    assert engine.steps == [1, 2]


def test_the_engine_samples_with_the_updated_weights():
    policy = Policy(tiny_model("qwen3", vocab_size=512))
    algorithm = make(policy=policy, engine=TransformersEngine(policy.model, tiny_tokenizer()), **KINDS["on"])
    algorithm.after_update(5, {})
    assert algorithm.on_policy.engine.policy_step == 5

"""Distillation: what a step trains on, that it equals each sequence alone, and that runs go on exactly."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignment import distributed
from alignment.algorithms.distill import Distill, DistillConfig, OffPolicy
from alignment.algorithms.sft import Sft
from alignment.algorithms.teachers import DEFAULT, Teachers
from alignment.errors import EngineLost, UserError
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.models import head as limits
from alignment.models.student import Student
from alignment.packing import conversation, cut, group
from alignment.rollout import TransformersEngine
from alignment.types import Rollout, Sampling, Segment
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import train, weights_hash
from tests.training_distill import KINDS, REAL, make, prompts, rows, teacher, teachers, train_distill

STEP_STATS = ("loss", "grad_norm", "divergence", "entropy", "teacher_entropy")


def update(algorithm: Distill, step: int = 0, max_tokens: int = 10_000):
    """Loss, gradients and summed stats of one step."""
    (batch,) = algorithm.collect(step).batches
    algorithm.student.zero_grad()
    total, sums = 0.0, {}
    for micro in cut(batch.trees, max_tokens):
        loss, stats = algorithm.loss(algorithm.student, micro)
        (loss / batch.units).backward()
        total += loss.item() / batch.units
        for name, (value, count) in stats.items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + float(value), old[1] + float(count))
    gradients = {name: p.grad.clone() for name, p in algorithm.student.named_parameters() if p.grad is not None}
    return total, gradients, {name: value / count for name, (value, count) in sums.items() if count}


# --- equal to each sequence alone -------------------------------------------------------------------------------------


def dense_loss(algorithm: Distill, batch) -> torch.Tensor:
    """The definition: ordinary forward passes of student and teacher over each sequence by itself."""
    c, student = algorithm.config, algorithm.student.policy.model
    total = torch.zeros(())
    by_tokens = {tuple(p.token_ids): p.row["task"] for p in algorithm.on_policy.prompts}
    by_tokens |= {tuple(t.segments[0].token_ids): algorithm.tasks[id(t)] for t in getattr(algorithm.rows, "trees", ())}
    for tree in batch.trees:
        guide = algorithm.teachers.of(by_tokens[tuple(tree.segments[0].token_ids)]).policy.model
        sampled = len(tree.segments) > 1
        for leaf in range(1, len(tree.segments)) if sampled else [0]:
            segment = tree.segments[leaf]
            ids = torch.tensor([tree.branch_token_ids(leaf)])
            places = ids.shape[1] - len(segment.token_ids) + np.flatnonzero(segment.scored)
            with torch.no_grad():
                p = (guide(ids).logits[0, places - 1, :REAL] / c.divergence_temperature).softmax(-1)
            logits = student(ids).logits[0, places - 1, :REAL]
            q = (logits / c.divergence_temperature).softmax(-1)
            if c.teacher_top_k:
                top = p.topk(c.teacher_top_k).indices
                p, q = (torch.cat([x.gather(1, top), 1 - x.gather(1, top).sum(-1, keepdim=True)], -1) for x in (p, q))
            m = c.jsd_beta * p + (1 - c.jsd_beta) * q
            values = {
                "forward_kl": (p * (p.log() - q.log())).sum(-1),
                "reverse_kl": (q * (q.log() - p.log())).sum(-1),
                "jsd": (c.jsd_beta * p * (p / m).log() + (1 - c.jsd_beta) * q * (q / m).log()).sum(-1),
            }[c.divergence]
            nll = -logits.log_softmax(-1)[torch.arange(len(places)), ids[0, places]]
            weights = torch.ones(len(places))
            if not sampled:
                weights = torch.tensor(segment.columns["hard_weights"][segment.scored]) / (c.hard_coef or 1.0)
                weights = weights if c.hard_coef else torch.tensor(segment.columns["soft_weights"][segment.scored])
            soft, hard = (1.0, 0.0) if sampled else (c.soft_coef, c.hard_coef)
            total = total + (weights * (soft * values + hard * nll)).sum()
    return total / batch.units


@pytest.mark.parametrize("small_chunks", [False, True])
@pytest.mark.parametrize("kind", ["on", "off", "mixed", "top_k"])
def test_a_packed_step_equals_the_definition_sequence_by_sequence(monkeypatch, kind, small_chunks):
    """Loss and gradients, with two teachers, weighted rows, groups behind shared prompts and padded vocabularies."""
    if small_chunks:
        monkeypatch.setattr(limits, "MAX_LOGIT_BYTES", 40 * 4 * REAL)
    algorithm = make(**{**KINDS[kind], "divergence_temperature": 1.5})
    (batch,) = algorithm.collect(0).batches
    student = algorithm.student.policy.model
    expected = dense_loss(algorithm, batch)
    expected_gradients = torch.autograd.grad(expected, list(student.parameters()))
    loss, gradients, _ = update(make(policy=algorithm.student.policy, **{**KINDS[kind], "divergence_temperature": 1.5}))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    largest = max(g.abs().max().item() for g in expected_gradients)
    for (name, _), theirs in zip(student.named_parameters(), expected_gradients, strict=True):
        assert torch.allclose(gradients[f"policy.model.{name}"], theirs, atol=min(1e-5, 1e-3 * largest)), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches(tmp_path, kind):
    """A budget of 30 tokens splits groups and repeats their prompts."""
    folder = str(tmp_path) if kind == "stored" else ""
    whole, cut_up = (update(make(folder, **KINDS[kind]), max_tokens=budget) for budget in (10_000, 30))
    assert whole[0] == pytest.approx(cut_up[0], rel=1e-5)
    for name, gradient in whole[1].items():
        assert torch.allclose(gradient, cut_up[1][name], atol=1e-5), name
    assert whole[2] == pytest.approx(cut_up[2], rel=1e-4)


def test_hard_alone_is_supervised_fine_tuning(tmp_path):
    """Without any teacher, same rows, same weights, same curve."""
    trees, tasks = rows()
    start_ = tiny_model("qwen3")
    ours, sft = Policy(copy.deepcopy(start_)), Policy(copy.deepcopy(start_))
    config = DistillConfig(batch_size=5, on_policy_share=0.0, soft_coef=0.0, hard_coef=1.0)
    algorithm = Distill(Student(ours), config, None, OffPolicy(trees, tasks), seed=4)
    train(str(tmp_path / "a"), 4, algorithm=algorithm, policy=algorithm.student)
    train(str(tmp_path / "b"), 4, algorithm=Sft(trees, 5, seed=4), policy=sft)
    a, b = (read_metrics(tmp_path / x / "metrics.jsonl", "train") for x in "ab")
    for x, y in zip(a, b, strict=True):
        assert (x["loss"], x["grad_norm"]) == (y["loss"], y["grad_norm"])
    assert weights_hash(ours) == weights_hash(sft)


def test_hard_and_soft_add_up():
    common = {"batch_size": 6, "on_policy_share": 0.0, "divergence": "forward_kl"}
    soft = update(make(**common))
    hard = update(make(**common, soft_coef=0.0, hard_coef=1.0))
    both = update(make(**common, soft_coef=0.7, hard_coef=2.0))
    assert both[0] == pytest.approx(0.7 * soft[0] + 2 * hard[0], rel=1e-5)
    for name, gradient in both[1].items():
        assert torch.allclose(gradient, 0.7 * soft[1][name] + 2 * hard[1][name], atol=1e-5), name


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    policy = Policy(tiny_model("qwen3", vocab_size=512))
    algorithm = make(policy=policy, **KINDS["on"])
    own = teacher()
    own.policy = copy.deepcopy(policy).requires_grad_(False).eval()
    own.head = own.policy.base.get_output_embeddings()
    algorithm.teachers = Teachers({DEFAULT: own}, REAL)
    loss, gradients, stats = update(algorithm)
    assert loss == pytest.approx(0, abs=1e-6)
    assert max(g.abs().max() for g in gradients.values()) < 1e-5
    assert stats["entropy"] == pytest.approx(stats["teacher_entropy"], rel=1e-5)


def test_top_k_of_the_whole_vocabulary_is_the_whole_vocabulary():
    a, b = (update(make(**KINDS["on"], teacher_top_k=k)) for k in (0, REAL))
    assert a[0] == pytest.approx(b[0], rel=1e-4)
    for name, gradient in a[1].items():
        assert torch.allclose(gradient, b[1][name], atol=1e-5), name


def test_targets_from_the_file_are_those_asked_live(tmp_path):
    """But for float16."""
    a, b = (update(make(folder, **KINDS["stored"])) for folder in ("", str(tmp_path)))
    assert a[0] == pytest.approx(b[0], rel=1e-3)
    for name, gradient in a[1].items():
        assert torch.allclose(gradient, b[1][name], atol=1e-3), name


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters_are_trained_also_on_the_head(targets):
    peft_model = get_peft_model(
        tiny_model("qwen3", vocab_size=512), LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    )
    algorithm = make(policy=Policy(peft_model.eval()), **KINDS["mixed"])
    (batch,) = algorithm.collect(0).batches
    trainable = {n: p for n, p in algorithm.student.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(dense_loss(algorithm, batch), list(trainable.values()))
    _, gradients, _ = update(make(policy=algorithm.student.policy, **KINDS["mixed"]))
    assert gradients.keys() == trainable.keys()
    for name, theirs in zip(trainable, expected, strict=True):
        assert torch.allclose(gradients[name], theirs, atol=1e-5), name


# --- what a step takes ------------------------------------------------------------------------------------------------


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


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_the_student_approaches_its_teacher(tmp_path, divergence):
    algorithm = make(batch_size=13, on_policy_share=0.0, divergence=divergence)
    train(str(tmp_path), 20, algorithm=algorithm, policy=algorithm.student, warmup_steps=0)
    lines = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert lines[-1]["divergence"] < 0.8 * lines[0]["divergence"]
    assert lines[0]["loss"] > 0
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize("kind", ["mixed", "stored"])
def test_a_run_resumes_bit_for_bit(tmp_path, kind):
    straight = weights_hash(train_distill(kind, str(tmp_path / "a"), 3))
    train_distill(kind, str(tmp_path / "b"), 1)
    assert weights_hash(train_distill(kind, str(tmp_path / "b"), 3)) == straight


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"on_policy_share": 1.5}, "on_policy_share"),
        ({"batch_size": 10, "group_size": 4}, "no multiple of group_size 4"),
        ({"divergence": "jsd", "jsd_beta": 1.0}, "jsd_beta"),
        ({"divergence_temperature": 0.0}, "divergence_temperature"),
        ({"on_policy_share": 0.5, "soft_coef": 0.0}, "both 0"),
        ({"hard_coef": -1.0}, "hard_coef"),
    ],
)
def test_bad_settings_name_the_key(settings, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**settings)


def test_what_the_settings_need_has_to_be_there():
    student = Student(Policy(tiny_model("qwen3", vocab_size=512)))
    trees, tasks = rows()
    with pytest.raises(UserError, match="teacher is missing"):
        Distill(student, DistillConfig(), None)
    with pytest.raises(UserError, match="leaves room for rows"):
        Distill(student, DistillConfig(on_policy_share=0.5), teachers())
    with pytest.raises(UserError, match="needs prompts"):
        Distill(student, DistillConfig(), teachers(), OffPolicy(trees, tasks))
    with pytest.raises(UserError, match="a step needs 64 prompts, there are 7"):
        make(batch_size=64)
    with pytest.raises(UserError, match="teacher_top_k"):
        teachers(top_k=REAL + 1)


def test_a_task_without_a_teacher_is_refused_with_its_row():
    only = Teachers({"math": teacher()}, REAL)
    with pytest.raises(UserError, match=r"prompts\.jsonl, row 2: teachers: none for the task 'code'; known are math"):
        only.check(["math", "code"], "prompts.jsonl")


def test_changed_data_are_refused_on_resume():
    state = make(**KINDS["mixed"]).state_dict()
    with pytest.raises(UserError, match="prompts changed"):
        make(given=prompts(6), **KINDS["mixed"]).load_state_dict(state)
    with pytest.raises(UserError, match="only samples or only rows"):
        make(**KINDS["on"]).load_state_dict(state)
    trees, _ = rows()
    other = make(**KINDS["mixed"])
    other.rows = type(other.rows)(trees[:-1], 4, 3)
    with pytest.raises(UserError, match="training data changed"):
        other.load_state_dict(state)


def test_blank_columns_fill_the_place_of_a_teacher_that_is_not_asked():
    """Samples are compared, rows carry the hard loss only: both are in one packed row."""
    for top_k in (0, 5):
        settings = {**KINDS["mixed"], "soft_coef": 0.0, "hard_coef": 1.0, "teacher_top_k": top_k}
        algorithm = make(**settings)
        (batch,) = algorithm.collect(0).batches
        expected = dense_loss(algorithm, batch)
        loss, _, stats = update(make(**settings))
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert stats["divergence"] == pytest.approx(stats["divergence/samples"])
        assert "divergence/rows" not in stats


def test_a_sample_does_not_depend_on_the_number_of_teachers():
    """Nor on the rows beside it."""
    alone, mixed = make(**{**KINDS["on"], "batch_size": 6, "group_size": 3}), make(**KINDS["mixed"])
    a, b = alone.collect(0), mixed.collect(0)
    assert [s["completion"] for s in a.samples] == [s["completion"] for s in b.samples]


def test_trees_of_any_shape_are_compared():
    """A dialogue tree whose inner segment carries loss, too."""
    own = teacher()
    tree = group([5, 6, 7], [Segment([8, 9, 10])])
    tree.segments[1].scored = np.array([False, True, True])
    tree.segments.append(Segment([11, 12], parent=1, scored=np.array([True, True])))
    flat = conversation([5, 6, 7, 8, 9, 10, 11, 12], [False] * 4 + [True] * 4)
    for t in (tree, flat):
        own.add_top_k([t], 3, 1.0)
    ids, log_p = (np.concatenate([s.columns[n][s.scored] for s in tree.segments[1:]])
                  for n in ("teacher_ids", "teacher_logprobs"))  # fmt: skip
    assert np.array_equal(ids, flat.segments[0].columns["teacher_ids"][4:])
    assert np.allclose(log_p, flat.segments[0].columns["teacher_logprobs"][4:], atol=1e-5)


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


def test_a_teacher_lost_on_another_rank_is_lost_here(monkeypatch):
    algorithm = make(**KINDS["off"])
    monkeypatch.setattr(distributed, "gather_objects", lambda items: [*items, "its teacher is gone"])
    with pytest.raises(EngineLost, match="its teacher is gone"):
        algorithm.collect(0)


def test_the_engine_samples_with_the_updated_weights():
    policy = Policy(tiny_model("qwen3", vocab_size=512))
    algorithm = make(policy=policy, engine=TransformersEngine(policy.model, tiny_tokenizer()), **KINDS["on"])
    algorithm.after_update(5, {})
    assert algorithm.on_policy.engine.policy_step == 5

"""Distillation: that a step equals each sequence alone, that runs go on exactly, and what is refused."""

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
from alignment.packing import conversation, group
from alignment.types import Segment
from tests.tiny import tiny_model
from tests.training import train, weights_hash
from tests.training_distill import (
    KINDS,
    REAL,
    dense_loss,
    make,
    prompts,
    rows,
    teacher,
    teachers,
    train_distill,
    update,
)

# --- equal to each sequence alone -------------------------------------------------------------------------------------


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


def test_a_teacher_lost_on_another_rank_is_lost_here(monkeypatch):
    algorithm = make(**KINDS["off"])
    monkeypatch.setattr(distributed, "gather_objects", lambda items: [*items, "its teacher is gone"])
    with pytest.raises(EngineLost, match="its teacher is gone"):
        algorithm.collect(0)

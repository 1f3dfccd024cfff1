"""Teachers in this process: loading, where they compute, what they say, and whose tokenizers go together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from trl import ModelConfig

from alignment.algorithms.teachers import Teachers
from alignment.errors import UserError
from alignment.models import Policy
from alignment.models import head as limits
from alignment.models.teacher import LocalTeacher, check_same_tokenizer, load_teacher, vocabulary_of
from alignment.packing import group, pack
from alignment.types import Segment
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training_distill import REAL, teacher

CPU = torch.device("cpu")


def tree():
    return group([5, 6, 7, 8], [Segment([9, 10, 11]), Segment([12, 13]), Segment([9, 14, 15, 16])])


def probabilities(segment: Segment) -> np.ndarray:
    """Of all tokens, in the order of their ids."""
    order = segment.columns["teacher_ids"].argsort(-1)
    return np.take_along_axis(np.exp(segment.columns["teacher_logprobs"][:, :-1]), order, -1)


def saved(folder, seed: int = 3, tokenizer=None, **settings):
    model = tiny_model("qwen3", seed=seed, **settings)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return model


@pytest.mark.parametrize("max_tokens", [8, 1000])
@pytest.mark.parametrize("limit", [30 * 4 * REAL, 2**30])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_is_that_of_each_sequence_alone_over_the_real_tokens(monkeypatch, max_tokens, limit, temperature):
    monkeypatch.setattr(limits, "MAX_LOGIT_BYTES", limit)
    t, own = teacher(max_tokens=max_tokens), tree()
    t.add_top_k([own], 4, temperature)
    for leaf in (1, 2, 3):
        segment = own.segments[leaf]
        logits = t.policy.model(torch.tensor([own.branch_token_ids(leaf)])).logits[0, 3:-1, :REAL]
        p = (logits / temperature).softmax(-1)
        found = p.topk(4)
        assert np.array_equal(segment.columns["teacher_ids"], found.indices.numpy())
        log_p = torch.cat([found.values, 1 - found.values.sum(-1, keepdim=True)], -1).log()
        assert np.allclose(segment.columns["teacher_logprobs"], log_p.numpy(), atol=1e-4)


def test_hidden_states_are_filled_up_to_the_widest_teacher():
    own = tree()
    teacher(width=96).add_hidden([own], 128)
    hidden = own.segments[1].columns["teacher_hidden"]
    assert hidden.shape == (3, 128)
    assert np.abs(hidden[:, 96:]).max() == 0 < np.abs(hidden[:, :96]).min()


def hidden_states(policy: Policy, own) -> torch.Tensor:
    """At the scored positions of a tree without columns."""
    micro = pack([own])
    with torch.no_grad():
        return policy.hidden_states(micro).index_select(0, micro.score_index_N)


def test_hidden_states_of_bfloat16_teachers_are_kept_as_such_bit_for_bit():
    own, t = tree(), teacher()
    t.policy.bfloat16()
    Teachers({"default": t}, REAL).add_targets([own], [None])
    assert own.segments[1].columns["teacher_hidden"].itemsize == 2
    column = pack([own]).columns["teacher_hidden"]
    assert column.dtype == torch.bfloat16
    assert torch.equal(column, hidden_states(t.policy, tree()))


def test_hidden_states_beside_those_of_a_float32_teacher_are_kept_in_float32():
    a, b = teacher(), teacher(11)
    a.policy.bfloat16()
    given = [tree(), tree(), tree()]
    both = Teachers({"math": a, "default": b}, REAL)
    both.add_targets(given[:2], ["math", "code"])
    both.add_blanks(given[2:])
    column = pack(given).columns["teacher_hidden"]
    assert column.dtype == torch.float32
    assert torch.equal(column[:9], hidden_states(a.policy, tree()).float())
    assert not column[18:].any()


def test_blanks_are_of_the_type_of_the_teachers():
    own, blank, t = tree(), tree(), teacher()
    t.policy.bfloat16()
    alone = Teachers({"default": t}, REAL)
    alone.add_targets([own], [None])
    alone.add_blanks([blank])
    column = pack([own, blank]).columns["teacher_hidden"]
    assert column.dtype == torch.bfloat16 and column[:9].any() and not column[9:].any()


def test_a_head_that_is_where_it_is_wanted_is_not_copied():
    """A device may be named with and without its number."""
    t = teacher(head_device="cpu:0")
    assert t.head is t.policy.base.get_output_embeddings()


def test_a_teacher_learns_nothing_and_is_in_evaluation_mode():
    t = teacher()
    assert not any(p.requires_grad for p in t.policy.parameters())
    assert not any(m.training for m in t.policy.modules())


def test_an_offloaded_teacher_says_the_same_and_keeps_a_head_of_its_own():
    """On one device what can be seen is that the head is a copy and the answers are equal."""
    here, away = teacher(), teacher(rests=True)
    assert away.head is not away.policy.base.get_output_embeddings()
    a, b = tree(), tree()
    here.add_top_k([a], 5, 1.0)
    away.add_top_k([b], 5, 1.0)
    for x, y in zip(a.segments[1:], b.segments[1:], strict=True):
        assert np.array_equal(x.columns["teacher_logprobs"], y.columns["teacher_logprobs"])


def test_an_offloaded_teacher_leaves_the_device_after_every_use(monkeypatch):
    t = teacher(rests=True)
    moves = []
    real_to = Policy.to
    monkeypatch.setattr(Policy, "to", lambda self, where: moves.append(str(where)) or real_to(self, where))
    t.device = torch.device("cpu:0")
    t.add_top_k([tree()], 2, 1.0)
    assert moves == ["cpu:0", "cpu"]
    moves.clear()
    t.add_top_k([], 2, 1.0)
    assert moves == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_teacher_is_loaded_in_the_type_that_is_asked_for(tmp_path, dtype):
    saved(tmp_path)
    t = load_teacher(ModelConfig(model_name_or_path=str(tmp_path), dtype=dtype), tiny_tokenizer(), CPU)
    expected = {"bfloat16": torch.bfloat16}.get(dtype, torch.float32)
    assert next(t.policy.parameters()).dtype == t.head.weight.dtype == expected
    own = tree()
    t.add_top_k([own], 3, 1.0)
    assert np.isfinite(own.segments[1].columns["teacher_logprobs"]).all()


def test_vocabularies_that_differ_by_padding_only_go_together(tmp_path):
    saved(tmp_path, vocab_size=640)
    t = load_teacher(ModelConfig(model_name_or_path=str(tmp_path)), tiny_tokenizer(), CPU)
    assert t.vocabulary == len(tiny_tokenizer()) < t.policy.base.config.vocab_size == 640


def test_a_teacher_without_room_for_the_tokens_is_refused():
    with pytest.raises(UserError, match="teacher x: it has 512 tokens, the student's tokenizer has 600"):
        LocalTeacher(Policy(tiny_model("qwen3", vocab_size=512)), 600, "x")


def test_another_tokenizer_is_refused_with_the_first_token_that_differs(tmp_path):
    student = tiny_tokenizer()
    size = len(student)
    other = copy.deepcopy(student)
    other.add_tokens(["<tool>"])
    with pytest.raises(UserError, match=rf"first of 1 tokens that differ is {size}: no token .*, '<tool>' for the tea"):
        check_same_tokenizer(student, other, "T")
    student.add_tokens(["<call>"])
    with pytest.raises(UserError, match=rf"{size}: '<call>' for the student, '<tool>' for the teacher"):
        check_same_tokenizer(student, other, "T")
    saved(tmp_path, tokenizer=other, vocab_size=520)
    with pytest.raises(UserError, match=f"teacher {tmp_path}: its tokenizer is not the student's"):
        load_teacher(ModelConfig(model_name_or_path=str(tmp_path)), student, CPU)


def test_chat_templates_and_special_roles_may_differ():
    """What counts is which token an id stands for."""
    other = tiny_tokenizer()
    other.chat_template, other.eos_token = None, "<|endoftext|>"
    check_same_tokenizer(tiny_tokenizer(), other, "T")
    assert vocabulary_of(other) == len(other)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^teachers: there is no folder /no/teacher"):
        load_teacher(ModelConfig(model_name_or_path="/no/teacher"), tiny_tokenizer(), CPU)
    saved(tmp_path)
    with pytest.raises(UserError, match="teacher_device: 'nowhere'"):
        load_teacher(ModelConfig(model_name_or_path=str(tmp_path)), tiny_tokenizer(), CPU, device="nowhere")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_teachers_say_nearly_the_same(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    saved(tmp_path, hidden_size=128)
    config = ModelConfig(model_name_or_path=str(tmp_path), load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantised = load_teacher(config, tiny_tokenizer(), CPU)
    whole = load_teacher(ModelConfig(model_name_or_path=str(tmp_path)), tiny_tokenizer(), CPU)
    a, b = tree(), tree()
    for t, one in ((quantised, a), (whole, b)):
        t.add_top_k([one], t.vocabulary, 1.0)
    p, q = (probabilities(x.segments[1]) for x in (a, b))
    assert 0 < np.abs(p - q).sum(-1).max() < 0.3
    with pytest.raises(UserError, match="teacher_offload"):
        load_teacher(config, tiny_tokenizer(), CPU, offload=True)

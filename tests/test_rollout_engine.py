"""The engine: what it samples, from which distribution, and that nothing but its own stream decides a sample."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignment.errors import UserError
from alignment.models import Policy
from alignment.models.score import add_logprobs
from alignment.packing import group
from alignment.rollout import TransformersEngine
from alignment.types import Prompt, Sampling, Segment
from tests.tiny import tiny_model, tiny_tokenizer

ARCHITECTURES = ["qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "llama"]
LENGTHS = (3, 17, 9, 30, 1)


def prompts(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    return [Prompt(f"p{i}", [], rng.integers(5, 300, n).tolist()) for i, n in enumerate(lengths)]


def engine(architecture="qwen3", max_rows=8, **overrides):
    return TransformersEngine(tiny_model(architecture, **overrides), tiny_tokenizer(), max_rows)


def summary(groups):
    return [[(r.token_ids, r.finish_reason) for r in g] for g in groups]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate(architecture):
    model = tiny_model(architecture)
    sampling = Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(7,))
    ours = TransformersEngine(model, tiny_tokenizer(), 4).generate(prompts(), 1, sampling)
    fresh = tiny_model(architecture)
    for prompt, (rollout,) in zip(prompts(), ours, strict=True):
        out = fresh.generate(
            torch.tensor([prompt.token_ids]), max_new_tokens=12, do_sample=False, eos_token_id=7, pad_token_id=0
        )
        assert rollout.token_ids == out[0, len(prompt.token_ids) :].tolist()


def test_a_sample_does_not_depend_on_neighbours_rows_or_order():
    sampling = Sampling(max_tokens=20, stop_token_ids=tuple(range(40)), seed=3)
    together = summary(engine(max_rows=16).generate(prompts(), 4, sampling, step=5))
    assert len({len(ids) for g in together for ids, _ in g}) > 3  # lengths differ, so rows leave and others enter
    for max_rows in (3, 4, 5, 100):
        assert summary(engine(max_rows=max_rows).generate(prompts(), 4, sampling, step=5)) == together
    backwards = summary(engine().generate(prompts()[::-1], 4, sampling, step=5))
    assert backwards[::-1] == together
    for i, prompt in enumerate(prompts()):
        assert summary(engine().generate([prompt], 2, sampling, step=5))[0] == together[i][:2]


def test_seed_step_and_index_give_different_samples():
    base = Sampling(max_tokens=16)
    one = summary(engine().generate(prompts(), 2, base))
    assert one[0][0] != one[0][1]
    assert summary(engine().generate(prompts(), 2, base, step=1)) != one
    assert summary(engine().generate(prompts(), 2, Sampling(max_tokens=16, seed=1))) != one
    assert summary(engine().generate(prompts(), 2, base)) == one


@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 20, "top_p": 0.7, "min_p": 0.1}]
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_distribution_sampled_from(filters, temperature):
    """An independent packed forward over the same tokens, renormalised over the kept sets, agrees: with truncation too
    the importance ratio of an unchanged policy is one (invariants 3 and 7)."""
    model = tiny_model("qwen3", initializer_range=0.3)  # peaked enough for the filters to cut
    sampling = Sampling(max_tokens=15, temperature=temperature, stop_token_ids=(9, 10, 11, 12, 13), **filters)
    rollouts = TransformersEngine(model, tiny_tokenizer(), 6).generate(prompts(), 3, sampling)
    for rows in rollouts:
        tree = group(rows[0].prompt.token_ids, [Segment(r.token_ids, kept=r.kept) for r in rows])
        add_logprobs(Policy(model), [tree], "logprobs", 10_000, temperature)
        for rollout, segment in zip(rows, tree.segments[1:], strict=True):
            assert len(rollout.logprobs) == len(rollout.token_ids)
            assert np.allclose(rollout.logprobs, segment.columns["logprobs"], atol=1e-5)
            assert (rollout.kept is None) == (not filters)
            if rollout.kept is not None:
                assert all(t in kept for t, kept in zip(rollout.token_ids, rollout.kept, strict=True))
                assert min(map(len, rollout.kept)) < 200


def test_stop_tokens_end_a_completion_and_are_part_of_it():
    sampling = Sampling(max_tokens=40, stop_token_ids=tuple(range(100)))
    for rows in engine().generate(prompts(), 4, sampling):
        for r in rows:
            inside = [t for t in r.token_ids[:-1] if t < 100]
            assert not inside
            assert (r.token_ids[-1] < 100) == (r.finish_reason == "stop")
            assert r.finish_reason == "stop" or len(r.token_ids) == 40


def test_stop_strings_are_found_across_token_borders():
    tokenizer = tiny_tokenizer()
    free = engine().generate(prompts(), 4, Sampling(max_tokens=30))
    rollout = free[1][2]
    text = tokenizer.decode(rollout.token_ids)
    middle = len(text) // 2
    stop = text[middle : middle + 3]
    stopped = engine().generate(prompts(), 4, Sampling(max_tokens=30, stop=(stop,)))[1][2]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == rollout.token_ids[: len(stopped.token_ids)]
    assert stop in tokenizer.decode(stopped.token_ids)
    assert stop not in tokenizer.decode(stopped.token_ids[:-1])


def test_limits_and_edges():
    assert engine().generate([], 4, Sampling()) == []
    (rows,) = engine().generate(prompts()[:1], 3, Sampling(max_tokens=1))
    assert [len(r.token_ids) for r in rows] == [1, 1, 1]
    assert {r.finish_reason for r in rows} == {"length"}
    (rows,) = engine(max_rows=2).generate(prompts()[:1], 7, Sampling(max_tokens=5))
    assert [r.index for r in rows] == list(range(7))


def test_the_models_longest_sequence_bounds_prompt_and_completion():
    short = engine(max_position_embeddings=12)
    (rows,) = short.generate([Prompt("a", [], [5] * 9)], 1, Sampling(max_tokens=50))
    assert len(rows[0].token_ids) <= 3
    with pytest.raises(UserError, match="prompt b has 12 tokens"):
        short.generate([Prompt("b", [], [5] * 12)], 1, Sampling())


def test_weights_changed_in_place_are_used_and_rollouts_carry_the_step():
    model = tiny_model("qwen3")
    ours = TransformersEngine(model, tiny_tokenizer())
    sampling = Sampling(max_tokens=10, temperature=0.0)
    before = summary(ours.generate(prompts(), 1, sampling))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    ours.load_weights(Policy(model), 7)
    after = ours.generate(prompts(), 1, sampling)
    assert summary(after) != before
    assert after[0][0].policy_step == 7
    separate = TransformersEngine(tiny_model("qwen3"), tiny_tokenizer())
    separate.load_weights(Policy(model), 7)
    assert summary(separate.generate(prompts(), 1, sampling)) == summary(after)


def test_the_training_mode_of_the_model_is_left_as_it_was():
    model = tiny_model("qwen3").train()
    TransformersEngine(model, tiny_tokenizer()).generate(prompts(), 1, Sampling(max_tokens=3))
    assert model.training


def test_adapters_are_sampled_with():
    peft_model = get_peft_model(
        tiny_model("qwen3"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    sampling = Sampling(max_tokens=10, temperature=0.0)
    with_adapter = summary(TransformersEngine(peft_model, tiny_tokenizer()).generate(prompts(), 1, sampling))
    assert with_adapter != summary(engine().generate(prompts(), 1, sampling))


def test_bfloat16_models_and_autocast_sample():
    model = tiny_model("qwen3").to(torch.bfloat16)
    (rows,) = TransformersEngine(model, tiny_tokenizer()).generate(prompts()[:1], 2, Sampling(max_tokens=8))
    assert all(np.isfinite(r.logprobs).all() for r in rows)
    with torch.autocast("cpu", torch.bfloat16):
        (rows,) = engine().generate(prompts()[:1], 2, Sampling(max_tokens=8))
    assert all(np.isfinite(r.logprobs).all() for r in rows)

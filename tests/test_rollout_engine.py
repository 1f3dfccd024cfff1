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
from alignment.rollout.engine import FEW_STEPS
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


@pytest.mark.parametrize("as_policy", [True, False])
def test_load_weights_takes_a_policy_or_the_model_itself(as_policy):
    source, sampling = tiny_model("qwen3", seed=1), Sampling(max_tokens=10)
    separate = TransformersEngine(tiny_model("qwen3"), tiny_tokenizer())
    separate.load_weights(Policy(source) if as_policy else source, 1)
    expected = TransformersEngine(source, tiny_tokenizer()).generate(prompts(), 2, sampling)
    assert summary(separate.generate(prompts(), 2, sampling)) == summary(expected)


def test_the_model_is_left_as_it_was():
    """Modes of all modules, weights and their memory, and the optimizer step that follows."""
    model = tiny_model("qwen3", tie_word_embeddings=True).train()
    model.model.layers[0].eval()  # partly frozen
    modes = [m.training for m in model.modules()]
    before = [(p.data_ptr(), p.stride(), p.detach().clone()) for p in model.parameters()]
    engine = TransformersEngine(model, tiny_tokenizer())
    with pytest.raises(UserError, match="0 tokens"):
        engine.generate([*prompts(), Prompt("none", [], [])], 1, Sampling(max_tokens=40))
    engine.generate(prompts(), 1, Sampling(max_tokens=40))
    assert [m.training for m in model.modules()] == modes
    for p, (pointer, stride, values) in zip(model.parameters(), before, strict=True):
        assert p.data_ptr() == pointer
        assert p.stride() == stride
        assert torch.equal(p, values)
    model(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(p.grad.stride() == p.stride() for p in model.parameters() if p.grad is not None)


def test_rearranged_weights_give_the_same_greedy_completions():
    """Completions of more than FEW_STEPS tokens are decoded with rearranged weights, shorter ones are not."""
    ours = engine()
    short = summary(ours.generate(prompts(), 1, Sampling(max_tokens=FEW_STEPS, temperature=0.0)))
    long = summary(ours.generate(prompts(), 1, Sampling(max_tokens=FEW_STEPS + 8, temperature=0.0)))
    assert [ids for ((ids, _),) in short] == [ids[:FEW_STEPS] for ((ids, _),) in long]


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


def test_samples_that_end_with_their_first_token_leave_the_others_as_they_are():
    """More rows end at once than the cache has slots for yet."""
    sampling = Sampling(max_tokens=12, stop_token_ids=tuple(range(150)), seed=1)
    groups = engine(max_rows=40).generate(prompts(), 8, sampling)
    assert sum(len(r.token_ids) == 1 for g in groups for r in g) > 5
    assert summary(groups) == summary(engine(max_rows=8).generate(prompts(), 8, sampling))
    for max_tokens_one in engine(max_rows=3).generate(prompts(), 5, Sampling(max_tokens=1)):
        assert [len(r.token_ids) for r in max_tokens_one] == [1] * 5

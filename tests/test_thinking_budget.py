"""Thinking that reaches its budget is ended by the published sentence: where, exactly, and without loss."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignment.algorithms.grpo import Grpo, GrpoConfig
from alignment.data.curriculum import Curriculum
from alignment.data.prompts import build_prompts
from alignment.errors import UserError
from alignment.metrics import read_json_lines
from alignment.models import Policy
from alignment.models.score import add_logprobs
from alignment.packing import cut, group
from alignment.rollout import TransformersEngine
from alignment.rollout.thinking import STOP_THINKING, ThinkingTokens, ThinkingWatch
from alignment.types import Prompt, Sampling, Segment
from recipes.quickstart.model import write_base_model
from recipes.verify import main as verify
from tests.responses import all_of
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer
from tests.training_ppo import make_ppo, tiny_actor_critic

TOKENIZER = tiny_tokenizer()
OPEN, CLOSE = TOKENIZER.convert_tokens_to_ids(["<think>", "</think>"])
END = TOKENIZER.eos_token_id
SENTENCE = TOKENIZER(STOP_THINKING, add_special_tokens=False).input_ids
ROOM = len(SENTENCE)


def biased(architecture="qwen3", **bias):
    """A random model whose head prefers some tokens: names of tags and how much."""
    model = tiny_model(architecture)
    ids = {"opening": OPEN, "closing": CLOSE, "end": END}
    vector = torch.zeros(model.config.vocab_size)
    for name, amount in bias.items():
        vector[ids[name]] = amount
    model.lm_head.bias = torch.nn.Parameter(vector)
    return model


def prompts(lengths=(3, 17, 9, 30, 1), opened=True, **settings):
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 300, n).tolist() + [OPEN] * opened for n in lengths]
    return [Prompt(f"p{i}", [], ids, **settings) for i, ids in enumerate(rows)]


def sampling(budget, **settings):
    return Sampling(
        **{"max_tokens": ROOM + 30, "stop_token_ids": (END,), "seed": 3, "thinking_budget": budget, **settings}
    )


def summary(groups):
    return [[(r.token_ids, r.finish_reason, r.loss_mask) for r in g] for g in groups]


def test_the_sentence_comes_exactly_at_the_budget_and_the_answer_behind_it():
    engine = TransformersEngine(biased(closing=2.5, end=3.0), TOKENIZER, 30)
    rollouts = all_of(engine.generate(prompts(), 6, sampling(12)))
    free = all_of(engine.generate(prompts(), 6, sampling(None)))
    kinds = set()
    for rollout, without in zip(rollouts, free, strict=True):
        ids = rollout.token_ids
        first = next((i for i, t in enumerate(without.token_ids) if t in (CLOSE, END)), len(without.token_ids))
        if first < 12:  # closed or ended by itself within 12 tokens: nothing changes
            kinds.add("own")
            assert (ids, rollout.finish_reason, rollout.loss_mask) == (without.token_ids, without.finish_reason, None)
            continue
        kinds.add(rollout.finish_reason)
        assert ids[:12] == without.token_ids[:12]
        assert ids[12 : 12 + ROOM] == SENTENCE and len(ids) > 12 + ROOM
        assert rollout.loss_mask == [not 12 <= i < 12 + ROOM for i in range(len(ids))]
        assert [math.isnan(x) for x in rollout.logprobs] == [not drawn for drawn in rollout.loss_mask]
        assert STOP_THINKING in rollout.text
        assert rollout.finish_reason == ("budget" if ids[-1] == END else "length")
    assert kinds == {"own", "budget", "length"}


def test_the_closing_tag_as_the_last_token_of_the_budget_ends_the_thinking_by_itself():
    """`</think>` is certain to be the first token: with a budget of 1 nothing is inserted, with 0 the sentence is."""
    engine = TransformersEngine(biased(closing=60.0), TOKENIZER)
    (one,) = all_of(engine.generate(prompts((5,)), 1, sampling(1)))
    assert one.token_ids[0] == CLOSE and one.loss_mask is None
    (zero,) = all_of(engine.generate(prompts((5,)), 1, sampling(0)))
    assert zero.token_ids[: ROOM + 1] == [*SENTENCE, CLOSE]
    assert zero.loss_mask == [False] * ROOM + [True] * 30


def test_thinking_that_the_response_opens_is_counted_behind_the_tag():
    engine = TransformersEngine(biased(opening=6.0, end=5.0), TOKENIZER, 30)
    rollouts = all_of(engine.generate(prompts(opened=False), 6, sampling(4)))
    opened = [r for r in rollouts if r.token_ids[0] == OPEN]
    assert 0 < len(opened) < len(rollouts)
    for rollout in rollouts:
        if rollout in opened and CLOSE not in rollout.token_ids[:5] and END not in rollout.token_ids[:5]:
            assert rollout.token_ids[5 : 5 + ROOM] == SENTENCE
        elif rollout not in opened:
            assert rollout.loss_mask is None  # a response without a block is never interrupted
    (zero,) = all_of(TransformersEngine(biased(opening=60.0), TOKENIZER).generate(prompts((5,), False), 1, sampling(0)))
    assert zero.token_ids[: ROOM + 1] == [OPEN, *SENTENCE]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "llama"])
@pytest.mark.parametrize("budget", [0, 7])
def test_logprobs_behind_the_sentence_are_those_of_a_fresh_forward_pass(architecture, budget):
    model = biased(architecture, end=3.0)
    groups = TransformersEngine(model, TOKENIZER, 6).generate(prompts(), 3, sampling(budget))
    assert_logprobs(model, groups, 1.0)


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2, "top_k": 20}])
def test_truncated_sampling_leaves_the_ratio_unbiased_behind_the_sentence(filters):
    model = tiny_model("qwen3", initializer_range=0.3)
    for budget in (0, 5):
        groups = TransformersEngine(model, TOKENIZER, 6).generate(
            prompts(), 3, sampling(budget, temperature=0.6, **filters)
        )
        assert_logprobs(model, groups, 0.6)
        for rollout in all_of(groups):
            assert [len(kept) == 0 for kept in rollout.kept] == [not drawn for drawn in rollout.loss_mask]


def assert_logprobs(model, groups, temperature):
    assert sum(r.loss_mask is not None for r in all_of(groups)) > 5
    for rows in groups:
        masks = [np.array(r.loss_mask if r.loss_mask else [True] * len(r.token_ids)) for r in rows]
        segments = [Segment(r.token_ids, scored=m, kept=r.kept) for r, m in zip(rows, masks, strict=True)]
        tree = group(rows[0].prompt.token_ids, segments)
        add_logprobs(Policy(model), [tree], "logprobs", 10_000, temperature)
        for rollout, segment, mask in zip(rows, tree.segments[1:], masks, strict=True):
            assert np.allclose(np.array(rollout.logprobs)[mask], segment.columns["logprobs"][mask], atol=1e-5)


def test_a_sample_depends_neither_on_its_neighbours_nor_on_their_budgets():
    settings = sampling(9)
    model = biased(closing=2.0, end=4.0)
    together = summary(TransformersEngine(model, TOKENIZER, 16).generate(prompts(), 4, settings, step=5))
    assert len({len(ids) for g in together for ids, _, _ in g}) > 5
    for max_rows in (3, 5, 100):
        assert summary(TransformersEngine(model, TOKENIZER, max_rows).generate(prompts(), 4, settings, 5)) == together
    engine = TransformersEngine(model, TOKENIZER, 8)
    assert summary(engine.generate(prompts()[::-1], 4, settings, 5))[::-1] == together
    for i, prompt in enumerate(prompts()):
        assert summary(engine.generate([prompt], 2, settings, 5))[0] == together[i][:2]


def test_budgets_of_prompts_take_the_place_of_the_samplings():
    engine = TransformersEngine(biased(end=3.0), TOKENIZER, 16)
    budgets = (3, None, 0)
    mixed = [Prompt(p.id, [], p.token_ids, thinking_budget=b) for p, b in zip(prompts(), budgets, strict=False)]
    for default in (None, 6):
        groups = summary(engine.generate(mixed, 3, sampling(default)))
        for i, own in enumerate(budgets):
            budget = default if own is None else own
            assert groups[i] == summary(engine.generate([prompts()[i]], 3, sampling(budget)))[0]
            inserted = [ids[budget : budget + ROOM] == SENTENCE for ids, _, _ in groups[i] if budget is not None]
            assert any(inserted) == (budget is not None)


def test_rows_bring_their_budgets():
    rows = [{"question": "2 + 3?", "thinking_budget": 40}, {"prompt": "2 + 3 =", "thinking_budget": 0}, {"prompt": "x"}]
    assert [p.thinking_budget for p in build_prompts(rows, TOKENIZER, max_prompt_length=99)] == [40, 0, None]
    for wrong in (-1, 1.5, "many", True):
        with pytest.raises(UserError, match=r"row 1: thinking_budget must be a number of tokens"):
            build_prompts([{"question": "2 + 3?", "thinking_budget": wrong}], TOKENIZER, max_prompt_length=99)


def test_no_token_goes_through_the_model_twice():
    """Prompt once, then every completion token but the last: no second prefill."""
    model = biased(end=2.0)
    fed = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: fed.append(args[0].numel()))
    groups = TransformersEngine(model, TOKENIZER, 16).generate(prompts(), 4, sampling(6))
    assert sum(r.loss_mask is not None for r in all_of(groups)) > 10
    expected = sum(len(g[0].prompt.token_ids) + sum(len(r.token_ids) - 1 for r in g) for g in groups)
    assert sum(fed) == expected


def test_without_room_for_an_answer_the_budget_is_refused():
    engine = TransformersEngine(tiny_model(), TOKENIZER)
    least = 10 + ROOM + 1
    with pytest.raises(UserError, match=rf"no room for an answer within max_tokens {least - 1}: raise it to {least}"):
        engine.generate(prompts(), 1, sampling(10, max_tokens=least - 1))
    engine.generate(prompts(), 1, sampling(10, max_tokens=least))
    with pytest.raises(UserError, match="-1 is not valid"):
        engine.generate(prompts(), 1, sampling(-1))


def test_where_the_models_longest_sequence_leaves_no_room_the_row_is_cut_there():
    longest = 12 + 10 + ROOM
    model = tiny_model(max_position_embeddings=longest)
    (short, tight) = TransformersEngine(model, TOKENIZER).generate(prompts((8, 11)), 1, sampling(10, stop_token_ids=()))
    assert short[0].token_ids[10 : 10 + ROOM] == SENTENCE and len(short[0].token_ids) == longest - 9
    assert tight[0].loss_mask is None and tight[0].finish_reason == "length"
    assert len(tight[0].token_ids) == longest - 12


# --- tags of several tokens -------------------------------------------------------------------------------------------


def plain_tokenizer():
    """Thinking tags are no tokens of their own, as in models that learned to think without them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("<think>\nlet us see</think> four", 3, True),
        ("<think>\nlet us see</think> four", 60, False),
        ("\n<think>let us see four and five", 4, True),
        ("four is the answer <think>", 2, False),
        ("\t\n\t\n\t\n\t\n\t\n\t\n\t\n\t\n\t\n\t\n<think>let us see four and five", 2, False),
    ],
)
def test_tags_of_several_tokens_are_seen(text, budget, expected):
    tokenizer = plain_tokenizer()
    tokens = ThinkingTokens(tokenizer)
    assert tokens.close_id is None
    ids = tokenizer(text, add_special_tokens=False).input_ids
    watch = ThinkingWatch(tokens, budget, opened=False)
    stops = [i for i in range(len(ids) + 1) if watch.must_stop(ids[:i])]
    assert bool(stops) == expected and len(stops) <= 1
    if stops:
        behind_tag = tokenizer.decode(ids[: stops[0] - budget])
        assert behind_tag.lstrip().startswith("<think>") and "<think>" not in tokenizer.decode(
            ids[: stops[0] - budget - 1]
        )


# --- training ---------------------------------------------------------------------------------------------------------


def by_length(rollouts):
    for r in rollouts:
        r.reward = float(len(r.token_ids) % 5)
    return {}


def make_grpo(model, **settings):
    items = prompts((4, 6, 8))
    engine = TransformersEngine(model, TOKENIZER, 8)
    curriculum = Curriculum([p.id for p in items], "random", seed=0)
    config = GrpoConfig(prompts_per_step=3, group_size=4, **settings)
    reference = Policy(biased(end=2.0)) if settings.get("beta") else None
    return Grpo(
        Policy(model), engine, items, by_length, curriculum, config, sampling(6, top_p=0.9), reference=reference
    )


@pytest.mark.parametrize("settings", [{}, {"mini_batches": 2, "beta": 0.1}, {"loss": "gspo"}, {"loss": "constant"}])
def test_grpo_trains_on_what_was_drawn_and_on_nothing_else(settings):
    algorithm = make_grpo(biased(end=3.0), **settings)
    episode = algorithm.collect(0)
    scored = 0
    for batch in episode.batches:
        for tree in batch.trees:
            for segment in tree.segments[1:]:
                inserted = np.flatnonzero(~segment.scored)
                assert len(inserted) in (0, ROOM) and [segment.token_ids[i] for i in inserted] in ([], SENTENCE)
                scored += len(inserted) > 0
        for micro in cut(batch.trees, 10_000):
            loss, stats = algorithm.loss(algorithm.policy, micro)
            (loss / batch.units).backward()
            assert stats["ratio/mean"][0] / stats["ratio/mean"][1] == pytest.approx(1, abs=1e-5)
            if algorithm.measuring:
                assert stats["sampler_ratio/mean"][0] / stats["sampler_ratio/mean"][1] == pytest.approx(1, abs=1e-5)
        if algorithm.config.loss == "token":
            assert batch.units == sum(t.scored_tokens for t in batch.trees)
    assert scored > 3
    gradients = [p.grad for p in algorithm.policy.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)


def test_ppo_trains_on_samples_with_a_budget():
    actor_critic = tiny_actor_critic()
    ppo = make_ppo(actor_critic, by_length, {"max_tokens": ROOM + 20, "thinking_budget": 4}, value_warmup_steps=0)
    ppo.prompts = [Prompt(p.id, [], [*p.token_ids, OPEN]) for p in ppo.prompts]
    (batch, *_) = ppo.collect(0).batches
    children = [s for tree in batch.trees for s in tree.segments if s.columns and "returns" in s.columns]
    inserted = [s for s in children if not s.scored.all()]
    assert inserted and all([s.token_ids[i] for i in np.flatnonzero(~s.scored)] == SENTENCE for s in inserted)
    for micro in cut(batch.trees, 10_000):
        loss, _ = ppo.loss(actor_critic, micro)
        assert torch.isfinite(loss)
        loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in actor_critic.parameters() if p.grad is not None)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_the_recipe_draws_the_pass_rate_against_the_budget(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{%- if add_generation_prompt %}{{- '<think>' }}{%- endif %}"
    write_base_model(tmp_path / "base", tokenizer, "quickstart", 0)
    rows = [{"question": f"{i} + 3?", "thinking_budget": 1} for i in range(4)]  # a sweep overrules the rows
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model_name_or_path", str(tmp_path / "base"), "--dataset", str(tmp_path / "rows.jsonl")]
    arguments += ["--verifier", "tests.responses:even_length", "--samples", "3", "--max_tokens", str(ROOM + 8)]
    arguments += ["--figure", str(tmp_path / "new" / "curve.png"), "--responses", str(tmp_path / "r.jsonl")]
    content = verify([*arguments, "--thinking_budgets", "4,0"])
    assert [point["budget"] for point in content["points"]] == [0, 4, None]
    assert json.loads((tmp_path / "new" / "curve.json").read_text()) == content
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")
    for name, budget in (("budget-0", 0), ("budget-4", 4), ("no-budget", None)):
        records = read_json_lines(tmp_path / f"r.{name}.jsonl")
        (point,) = [point for point in content["points"] if point["budget"] == budget]
        assert point["pass_rate"] == pytest.approx(sum(r["score"] for r in records) / 12)
        assert point["tokens"] == pytest.approx(sum(r["tokens"] for r in records) / 12)
        starts = [r["response"].startswith(STOP_THINKING) for r in records]
        assert all(starts) if budget == 0 else not any(starts)
    assert "budget" in capsys.readouterr().out
    again = verify([*arguments, "--thinking_budgets", "0", "4"])
    assert again == content and "holds 4 of 4 prompts" in capsys.readouterr().out
    with pytest.raises(UserError, match="'4x' is no number of tokens"):
        verify([*arguments, "--thinking_budgets", "0,4x"])
    with pytest.raises(UserError, match="no room for an answer"):
        verify([*arguments, "--thinking_budgets", "0,64"])

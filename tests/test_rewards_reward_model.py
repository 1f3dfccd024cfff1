"""A reward model as a reward: the trainer's numbers, in any order and company, and no score for what cannot be read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer
from trl import ModelConfig

from alignment.algorithms.reward_model import tree_rewards
from alignment.data.preference_rows import encode_preference_rows
from alignment.errors import UserError
from alignment.models.load_scalar import load_scalar
from alignment.models.reward_scoring import RewardScorer, end_token_of
from alignment.models.scalar import END_TOKEN_KEY
from alignment.models.score import add_scalars
from alignment.types import Prompt
from rewards import RewardRunner, get_reward
from rewards.registry import check_reward, list_rewards, reward_info
from rewards.specs import read_spec
from tests.test_load_scalar import save
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training_reward import fresh_model

QUESTIONS = [f"What is {i} + 3?" for i in range(4)]
ANSWERS = ["5.", "It is 7, so 7.", "Let us think step by step. 59."]


def chat_rows():
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "completions": [[{"role": "assistant", "content": answer}] for answer in ANSWERS],
            "labels": [2, 1, 0],
        }
        for question in QUESTIONS
    ]


def text_rows():
    return [{"prompt": f"{q}\n", "completions": ANSWERS, "labels": [2, 1, 0]} for q in QUESTIONS]


@pytest.fixture(params=[1, 2], ids=["linear", "two layers"])
def path(request, tmp_path):
    return save(fresh_model(head_layers=request.param).model, tmp_path / "reward")


def scores(path, rows, **parameters):
    prompts = [row["prompt"] for row in rows for _ in row["completions"]]
    completions = [completion for row in rows for completion in row["completions"]]
    return get_reward(f"reward_model:{path}", parameters)(prompts, completions)


@pytest.mark.parametrize("rows", [chat_rows(), text_rows()], ids=["messages", "texts"])
def test_it_gives_the_number_of_the_trainers_evaluation(path, rows):
    trees, _ = encode_preference_rows(rows, tiny_tokenizer(), 512, end_token="<|im_end|>")
    model, _ = load_scalar(ModelConfig(model_name_or_path=path))
    expected = [reward for found in tree_rewards(model, trees, 16384) for reward in found.rewards]
    assert len(set(expected)) == len(expected) == 12
    assert scores(path, rows) == pytest.approx(expected, abs=1e-6)
    assert scores(path, rows, max_tokens=40) == pytest.approx(expected, abs=1e-6)


def test_neither_order_nor_company_changes_a_score(path):
    reward = get_reward("reward_model", {"path": path})
    pairs = [(row["prompt"], completion) for row in chat_rows() for completion in row["completions"]]
    together = reward(*map(list, zip(*pairs, strict=True)))
    mixed = [pairs[i] for i in (7, 0, 11, 3, 1, 7)]
    assert reward(*map(list, zip(*mixed, strict=True))) == pytest.approx(
        [together[i] for i in (7, 0, 11, 3, 1, 7)], abs=1e-6
    )
    for (prompt, completion), expected in zip(pairs[:3], together, strict=False):
        assert reward([prompt], [completion]) == pytest.approx([expected], abs=1e-6)


def test_a_groups_prompt_is_computed_once(path, monkeypatch):
    model = fresh_model()
    scorer = RewardScorer(model, tiny_tokenizer())
    lengths = []
    forward = type(model.base.base_model).forward

    def counting(self, *args, **kwargs):
        lengths.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base.base_model), "forward", counting)
    (row, *_) = chat_rows()
    scorer([row["prompt"]] * 3, row["completions"])
    trees, report = encode_preference_rows([row], tiny_tokenizer(), 512, end_token="<|im_end|>")
    assert lengths == [trees[0].tokens]
    assert lengths[0] < 0.6 * report.separate_tokens


def test_a_group_larger_than_a_row_is_scored_in_several():
    row = text_rows()[0]
    completions = [f"{answer} {i}" for i in range(4) for answer in ANSWERS]
    whole = RewardScorer(fresh_model(), tiny_tokenizer())([row["prompt"]] * 12, completions).rewards
    scorer = RewardScorer(fresh_model(), tiny_tokenizer(), max_tokens=60)
    lengths = []

    def note(module, arguments, named):
        lengths.append(named["input_ids"].numel())

    scorer.model.base.base_model.register_forward_pre_hook(note, with_kwargs=True)
    assert scorer([row["prompt"]] * 12, completions).rewards == pytest.approx(whole, abs=1e-6)
    assert len(lengths) > 2 and max(lengths) <= 60


def test_what_cannot_be_scored_is_none_and_counted(path):
    logged = {}
    reward = get_reward("reward_model", {"path": path, "max_length": 40})
    question = chat_rows()[0]["prompt"]
    completions = [
        [{"role": "assistant", "content": "5."}],
        [{"role": "user", "content": "nobody answers"}],
        [{"role": "assistant", "content": "on and on " * 40}],
        "a text that answers messages",
    ]
    values = reward([question] * 4, completions, log_metric=logged.__setitem__)
    assert [value is None for value in values] == [False, True, True, False]
    assert logged == {"reward_model/malformed": 1, "reward_model/too_long": 1}
    assert reward([question], completions[:1]) == pytest.approx(values[:1], abs=1e-6)


def test_columns_of_the_row_reach_the_template(path):
    """The empty thinking block of non-thinking mode is part of what is scored."""
    reward, row = get_reward("reward_model", {"path": path}), chat_rows()[0]
    given = [row["prompt"]] * 2, row["completions"][:2]
    plain = reward(*given)
    columns = {"chat_template_kwargs": [{"enable_thinking": False}, None]}
    mixed = reward(*given, **columns)
    assert mixed[1] == pytest.approx(plain[1], abs=1e-6)
    assert mixed[0] != pytest.approx(plain[0], abs=1e-4)


def test_thinking_is_not_scored_and_thinking_that_never_ends_is_an_empty_answer(path):
    reward, question = get_reward("reward_model", {"path": path}), chat_rows()[0]["prompt"]
    logged = {}

    def of(*texts, **columns):
        turns = [[{"role": "assistant", "content": text}] for text in texts]
        return reward([question] * len(texts), turns, log_metric=logged.__setitem__, **columns)

    plain, empty = of("It is 7.", "")
    assert of("<think>\nhm\n</think>\n\nIt is 7.", "<think>\nhm") == pytest.approx([plain, empty], abs=1e-6)
    opened = of("hm</think>It is 7.", "hm, it is 7.", "hm, it is 7.", think_opened=[True, True, None])
    assert opened[:2] == pytest.approx([plain, empty], abs=1e-6)
    assert opened[2] != pytest.approx(empty, abs=1e-6)
    assert not logged
    texts = reward(["2 + 3 ="] * 2, ["<think>hm</think>5", "5"])
    assert texts[0] == pytest.approx(texts[1], abs=1e-6)


def test_the_thinking_of_every_turn_of_an_episode_is_left_out(path):
    reward, question = get_reward("reward_model", {"path": path}), chat_rows()[0]["prompt"]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}

    def episode(first, last):
        asked = {"role": "assistant", "tool_calls": [call], **first}
        return [asked, {"role": "tool", "content": "7"}, {"role": "assistant", **last}]

    bare = episode({"content": ""}, {"content": "It is 7."})
    tagged = episode({"content": "<think>I ask</think>"}, {"content": "<think>so</think>It is 7."})
    split = episode({"content": "", "reasoning_content": "I ask"}, {"content": "It is 7.", "reasoning_content": "so"})
    values = reward([question] * 3, [bare, tagged, split])
    assert values == pytest.approx(values[:1] * 3, abs=1e-6)


def test_the_runner_scores_rollouts_with_it(path):
    prompts = [Prompt(q, [{"role": "user", "content": q}], [], {"question": q}) for q in QUESTIONS[:2]]
    rollouts = [
        SimpleNamespace(prompt=p, text=a, token_ids=[1], reward=None, reward_terms={}) for p in prompts for a in ANSWERS
    ]
    name = f"reward_model:{path}"
    metrics = RewardRunner([(name, get_reward(name), 2.0)], timeout_s=60)(rollouts)
    expected = scores(path, chat_rows()[:2])
    assert [r.reward for r in rollouts] == pytest.approx([2 * x for x in expected], abs=1e-5)
    assert metrics[f"rewards/{name}"] == pytest.approx(sum(expected) / 6, abs=1e-6)


def test_the_end_token_of_the_checkpoint_counts_unless_another_is_asked_for(tmp_path):
    model = fresh_model()
    trees, _ = encode_preference_rows(chat_rows(), tiny_tokenizer(), 512, end_token="\n")
    add_scalars(model, trees, "reward", 16384)
    expected = [float(segment.columns["reward"][-1]) for tree in trees for segment in tree.segments[1:]]
    setattr(model.base.config, END_TOKEN_KEY, "\n")
    path = save(model.model, tmp_path / "reward")
    assert scores(path, chat_rows()) == pytest.approx(expected, abs=1e-6)
    other = scores(path, chat_rows(), end_token="<|im_end|>")
    assert max(abs(a - b) for a, b in zip(other, expected, strict=True)) > 1e-4


def test_a_reward_model_without_a_chat_template_reads_texts_at_its_own_eos(tmp_path):
    """No token is added to it: the embedding of a new one would be random."""
    path = save(fresh_model().model, tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template, tokenizer.eos_token = None, "<|endoftext|>"
    (tmp_path / "reward" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(path)
    trees, _ = encode_preference_rows(text_rows(), tiny_tokenizer(), 512, end_token="<|endoftext|>")
    expected = [reward for found in tree_rewards(fresh_model(), trees, 16384) for reward in found.rewards]
    assert scores(path, text_rows()) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match=r"no chat template.*chat_template\.jinja"):
        scores(path, chat_rows())
    model, loaded = load_scalar(ModelConfig(model_name_or_path=path))
    assert loaded.chat_template is None and len(loaded) == len(tokenizer)
    with pytest.raises(UserError, match=r"row 1: .*no chat template"):
        encode_preference_rows(chat_rows(), loaded, 512, end_token=end_token_of(model, loaded))


def test_the_model_takes_no_gradient_and_stays_in_evaluation_mode():
    model = fresh_model().train()
    scorer = RewardScorer(model, tiny_tokenizer())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert isinstance(scorer(["a"], ["b"]).rewards[0], float)
    assert torch.is_grad_enabled()


def test_it_is_found_by_name_and_describes_itself(path):
    assert "reward_model" in list_rewards()
    assert reward_info(f"reward_model:{path}").parameters[0] == "path"
    check_reward(f"reward_model:{path}", {})  # loads nothing: a path that is not there passes
    check_reward("reward_model:/nowhere", {"device": "cpu"})
    with pytest.raises(ValueError, match="no parameter 'devise'; did you mean 'device'"):
        check_reward("reward_model:/nowhere", {"devise": "cpu"})
    assert read_spec(f"reward_model:{path}").build()(["a"], ["b"]) == get_reward("reward_model", {"path": path})(
        ["a"], ["b"]
    )


def test_models_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no configuration could be loaded from"):
        get_reward(f"reward_model:{tmp_path}/nowhere")
    base = save(tiny_model("qwen3"), tmp_path / "base")
    with pytest.raises(ValueError, match="without a reward head"):
        get_reward(f"reward_model:{base}")
    reward = save(fresh_model().model, tmp_path / "reward")
    with pytest.raises(ValueError, match="device: 'cuda:77' cannot be used"):
        get_reward("reward_model", {"path": reward, "device": "cuda:77"})
    with pytest.raises(ValueError, match="end_token"):
        get_reward("reward_model", {"path": reward, "end_token": "no single token"})

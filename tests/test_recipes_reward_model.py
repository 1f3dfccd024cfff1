"""The reward model recipes as a user starts them, from their YAML with a tiny model."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForSequenceClassification

from alignment.metrics import read_metrics
from rewards import get_reward
from tests.test_recipes import ROOT, data, recipe  # noqa: F401  data is a fixture

TINY = ["--bf16", "false", "--gradient_checkpointing", "false", "--batch_size", 4, "--max_steps", 2]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def votes(tmp_path):
    rows = [
        {"question": f"{i} + 1?", "answers": [{"text": f"{i + k}", "upvotes": (9, 4, 1, 1)[k]} for k in range(4)]}
        for i in range(6)
    ]
    return write(tmp_path / "votes.jsonl", rows)


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} + 1?"}], "chosen": answer(f"{i + 1}"), "rejected": answer("no")}
        for i in range(12)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


def arguments(name, base, dataset, folder, *more):
    config = ROOT / "recipes" / f"{name}.yaml"
    return [
        "--config",
        config,
        "--model_name_or_path",
        base,
        "--dataset",
        dataset,
        "--output_dir",
        folder,
        *TINY,
        *more,
    ]


@pytest.mark.slow
def test_two_stages_from_yaml_and_the_reward_they_serve(data, tmp_path, votes, pairs):  # noqa: F811
    pmp = tmp_path / "pmp"
    out = recipe("reward_model", *arguments("qwen1/pmp", data / "base", votes, pmp)).stdout
    assert "24 pairs from 6 questions with 24 answers; 6 ties dropped, 6 pairs over the limit" in out
    second = tmp_path / "reward_model"
    more = ["--eval_dataset", pairs, "--eval_split", "train", "--learning_rate", "1e-4"]
    command = arguments("qwen1/reward_model", pmp / "model", pairs, second, *more)
    recipe("reward_model", *command)
    assert len(read_metrics(second / "metrics.jsonl", "train")) == 2
    evaluation = read_metrics(second / "metrics.jsonl", "eval")[-1]
    assert evaluation["trees"] == 12
    assert 0.7 < evaluation["ci_low"] < evaluation["accuracy"] == 1
    first, last = (
        AutoModelForSequenceClassification.from_pretrained(folder / "model").score.weight for folder in (pmp, second)
    )
    moved = (last - first).abs().max()
    assert 0 < moved < 5e-4 < first.abs().max()  # the second stage goes on from the first one's head
    scores = get_reward(f"reward_model:{second}/model")(["What is 1 + 1?"] * 2, ["2", "no"])
    assert all(isinstance(score, float) for score in scores)
    assert "going on after step 2" in recipe("reward_model", *command).stdout


@pytest.mark.slow
def test_two_steps_on_groups_of_sampled_responses(data, tmp_path):  # noqa: F811
    records = [
        {
            "question": f"{i} + 1?",
            "prompt_id": f"p{i}",
            "response": f"It is {i + k}.",
            "score": float(k % 3 == 1),
            "finish_reason": "stop",
        }
        for i in range(8)
        for k in range(6)
    ]
    for record in records[:6]:
        record["score"] = 1.0  # a problem that is always solved teaches nothing
    responses = write(tmp_path / "responses.jsonl", records)
    command = arguments("qwen2.5-math/reward_model", data / "base", responses, tmp_path / "run")
    out = recipe("reward_model", *command).stdout
    assert "7 groups from 48 responses" in out
    assert "1 prompts without a comparison" in out
    assert "7 of 7 rows, 42 branches" in out
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl", "train")) == 2
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == ["TwoLayerRewardModel"]
    assert config["reward_end_token"] == "<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--end_token", "z"], "row 1: the last turn does not end with"),
        (["--head_layers", "3"], "head_layers: 3 is not valid"),
        (["--max_length", "12", "--overflow", "error"], "row 1: a branch has"),
        (["--centre_coef", "-1"], "centre_coef: -1.0 is not valid"),
    ],
)
def test_bad_input_is_one_message(data, tmp_path, pairs, more, message):  # noqa: F811
    command = arguments("qwen1/reward_model", data / "base", pairs, tmp_path / "run", *more)
    result = recipe("reward_model", *command, "--eval_dataset", "", code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr

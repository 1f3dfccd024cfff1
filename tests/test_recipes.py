"""The recipe scripts with real files and a tiny model, in processes of their own; a chain of them as users start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignment.metrics import read_json_lines, read_metrics
from recipes.quickstart.model import write_base_model
from recipes.quickstart.task import make_problems, prompt_rows
from recipes.quickstart.tokenizer import build_tokenizer
from tests.recipe_runs import run_recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = make_problems(60, seed=0, levels=(1, 2))
    for name, part in (("sft", rows), ("prompts", prompt_rows(rows[:12])), ("heldout", prompt_rows(rows[12:20]))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    texts = (message["content"] for row in rows for message in row["messages"])
    write_base_model(folder / "base", build_tokenizer(texts, 512), "quickstart", 0)
    return folder


def recipe(name, *arguments, code=0, cwd="/"):
    result = run_recipe(name, [str(argument) for argument in arguments], str(cwd))
    assert result.returncode == code, result.stdout[-1500:] + result.stderr[-3000:]
    return result


def script(name, *arguments, code=0):
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", env=env, timeout=300)
    assert result.returncode == code, result.stdout[-1500:] + result.stderr[-3000:]
    return result


@pytest.mark.slow
def test_sft_then_grpo_then_pass_rates(data, tmp_path):
    """Two steps of each from YAML; every stage reads what the one before wrote."""
    yaml = ROOT / "recipes" / "quickstart"
    sft = ["--config", yaml / "sft.yaml", "--model_name_or_path", data / "base", "--dataset", data / "sft.jsonl"]
    sft += ["--eval_dataset", data / "sft.jsonl", "--max_steps", 2, "--output_dir", tmp_path / "sft"]
    script("sft", *sft)
    assert [line["step"] for line in read_metrics(tmp_path / "sft" / "metrics.jsonl", "train")] == [1, 2]
    assert (tmp_path / "sft" / "best" / "model.safetensors").is_file()

    grpo = ["--config", yaml / "grpo.yaml", "--model_name_or_path", tmp_path / "sft" / "model"]
    grpo += ["--dataset", data / "prompts.jsonl", "--eval_dataset", data / "heldout.jsonl", "--max_steps", 2]
    grpo += ["--prompts_per_step", 4, "--group_size", 4, "--max_tokens", 12, "--output_dir", tmp_path / "grpo"]
    grpo += ["--merge", "ondare", "--merge_base_model", data / "base", "--merge_keep", 0.01]
    out = script("grpo", *grpo).stdout
    assert "scored 12/12 prompts" in out
    scores = read_json_lines(tmp_path / "grpo" / "prompt_scores.jsonl")
    assert set(scores[0]) == {"model", "sampling", "reward"}
    assert len(scores) == 13
    assert len(read_metrics(tmp_path / "grpo" / "metrics.jsonl", "train")) == 2
    assert "pass_rate" in read_metrics(tmp_path / "grpo" / "metrics.jsonl", "eval")[-1]
    optimizer = torch.load(next((tmp_path / "grpo" / "checkpoints").glob("step-*")) / "optimizer.pt", weights_only=True)
    assert all(
        group["merge_fingerprint"] != "none" for group in optimizer["param_groups"]
    )  # Online Merging, with a pull
    assert "going on after step 2" in script("grpo", *grpo).stdout

    verify = ["--model_name_or_path", tmp_path / "grpo" / "model", "--dataset", data / "heldout.jsonl"]
    verify += ["--samples", 3, "--max_tokens", 12, "--responses", tmp_path / "responses.jsonl"]
    out = script("verify", *verify).stdout
    assert "pass@1" in out
    assert "pass@2" in out
    assert len(read_json_lines(tmp_path / "responses.jsonl")) == 8 * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "/none.jsonl"], "/none.jsonl"),
        (["--dataset", "{data}/sft.jsonl", "--learning_rat", "1"], "did you mean `learning_rate`"),
        (["--dataset", "{data}/sft.jsonl", "--model_name_or_path", "/no/model"], "/no/model"),
        (["--dataset", "{data}/sft.jsonl", "--max_length", "20", "--overflow", "error"], "row 1"),
        (["--dataset", "{data}/broken.jsonl"], "line 2"),
        (["--dataset", "{data}/empty.jsonl"], "empty"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(data, tmp_path, arguments, message):
    (data / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (data / "empty.jsonl").write_text("")
    base = ["--model_name_or_path", str(data / "base"), "--output_dir", str(tmp_path)]
    result = recipe("sft", *base, *[a.format(data=data) for a in arguments], code=2)
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr

"""The recipes on real vLLM servers, as a user starts them. `make test-vllm` runs these."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import recipes.generate
import recipes.grpo
import recipes.online_dpo
import recipes.ppo
import recipes.verify
from alignment.metrics import read_metrics
from alignment.rollout import TransformersEngine
from tests.test_vllm import GREEDY, TOKENIZER, assert_same, make, prompts
from tests.training import weights_hash
from tests.vllm_servers import ROOT, running, vllm_python

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def processes():
    return running()


@pytest.fixture
def arguments(processes, tmp_path):
    """Of every recipe that samples; rewards tell tokens apart, so that a random model has something to learn from."""
    rows = [{"prompt": f"What is {a} + {a}?", "answer": str(2 * a)} for a in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    urls = [processes[name].url for name in ("first", "second")]
    model = ["--model_name_or_path", str(processes["first"].model), "--dataset", str(tmp_path / "rows.jsonl")]
    return [*model, "--engine", "vllm", "--vllm_servers", *urls, "--max_tokens", "16"]


def training(arguments, folder, *more):
    rewards = ["--rewards", "tests.test_vllm_recipes:vowels", "--learning_rate", "3e-3"]
    few = ["--prompts_per_step", "4", "--group_size", "4"]
    return [*arguments, *rewards, *few, "--output_dir", str(folder), *map(str, more)]


def vowels(prompts, completions, **columns):
    return [sum(c in "aeiou" for c in text) / 10 for text in completions]


def test_grpo_trains_on_servers_and_they_end_with_the_final_weights(processes, arguments, tmp_path):
    run = training(arguments, tmp_path / "run", "--curriculum", "random", "--max_steps", 3, "--top_k", 20)
    recipes.grpo.main([*run, "--mini_batches", "2"])
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl", "train")
    assert len(lines) == 3
    for line in lines:
        assert line["sampler_ratio/mean"] == pytest.approx(1, abs=1e-3) and line["sampler_ratio/outside"] == 0
    assert all(line["grad_norm"] > 0 for line in lines)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    fresh = AutoModelForCausalLM.from_pretrained(processes["first"].model).eval()
    assert weights_hash(model) != weights_hash(fresh)
    ours = make(processes, tmp_path, model).generate(prompts(), 1, GREEDY)
    assert_same(ours, TransformersEngine(model, TOKENIZER).generate(prompts(), 1, GREEDY))


def test_grpo_one_step_off_policy_goes_on_where_it_stopped(arguments, tmp_path):
    settings = ("--curriculum", "random", "--async_rollouts", 1, "--max_steps", 4, "--save_every", 1)
    recipes.grpo.main(training(arguments, tmp_path / "a", *settings))
    recipes.grpo.main(training(arguments, tmp_path / "b", *settings, "--keep_checkpoints", 9))
    lines = [read_metrics(tmp_path / x / "metrics.jsonl", "train") for x in "ab"]
    assert [line["policy_lag"] for line in lines[0]] == [0, 1, 1, 1]
    assert [x["loss"] for x in lines[0]] == pytest.approx([x["loss"] for x in lines[1]], abs=1e-4)
    resume = ("--resume", tmp_path / "b" / "checkpoints" / "step-00000002")
    recipes.grpo.main(training(arguments, tmp_path / "b", *settings, *resume))
    again = read_metrics(tmp_path / "b" / "metrics.jsonl", "train")
    assert [line["policy_lag"] for line in again] == [0, 1, 1, 1]
    for name in ("reward", "loss", "sampler_ratio/mean"):
        assert [x[name] for x in again] == pytest.approx([x[name] for x in lines[0]], abs=1e-4), name


def test_the_other_recipes_sample_on_servers_too(arguments, tmp_path):
    recipes.ppo.main(training(arguments, tmp_path / "ppo", "--max_steps", 2, "--value_warmup_steps", 0))
    recipes.online_dpo.main(training(arguments, tmp_path / "dpo", "--max_steps", 2))
    for name in ("ppo", "dpo"):
        assert len(read_metrics(tmp_path / name / "metrics.jsonl", "train")) == 2
    reward = ["--rewards", "tests.test_vllm_recipes:vowels"]
    recipes.generate.main([*arguments, *reward, "--samples", "2", "--responses", str(tmp_path / "r.jsonl")])
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) > 15
    figures = recipes.verify.main([*arguments, "--samples", "2", "--verifier", "math"])
    assert figures["samples"] == 16


@pytest.mark.skipif("VLLM_IN_PROCESS" not in os.environ, reason="VLLM_IN_PROCESS=1 runs it; another minute")
def test_vllm_in_the_trainers_own_process(processes, tmp_path):
    """In an environment that has both, one step of the recipe and the greedy samples of the embedded engine."""
    script = Path(__file__).with_name("vllm_colocated.py")
    command = [vllm_python(), str(script), str(processes["first"].model), str(tmp_path)]
    settings = {"PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"same": True, "steps": 2, "outside": [0.0, 0.0]}

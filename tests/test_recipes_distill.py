"""The distillation recipes as a user starts them, from their YAML with tiny models."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.algorithms.distill import DistillConfig
from alignment.errors import UserError
from alignment.metrics import read_metrics
from alignment.types import Prompt, Rollout, Sampling
from recipes.distill import DistillRecipe, load_prompts, make_on_policy
from recipes.quickstart.model import write_base_model
from recipes.rollouts import RolloutRecipe, in_modes, make_evaluation
from tests.teacher_server import teacher_server
from tests.test_recipes import ROOT, data, recipe  # noqa: F401  data is a fixture
from tests.tiny import tiny_tokenizer

TINY = ["--bf16", "false", "--gradient_checkpointing", "false", "--dtype", "float32", "--teacher_dtype", "float32"]


@pytest.fixture(scope="module")
def teacher(data):  # noqa: F811
    """Another model over the same tokens."""
    write_base_model(data / "teacher", AutoTokenizer.from_pretrained(data / "base"), "quickstart", 1)
    return data / "teacher"


def arguments(name, data, tmp_path, *more):  # noqa: F811
    start = ["--config", ROOT / "recipes" / "qwen3" / f"{name}.yaml", "--model_name_or_path", data / "base", *TINY]
    return [*start, "--batch_size", 8, "--max_steps", 2, "--output_dir", tmp_path, *more]


def steps(folder):
    lines = read_metrics(folder / "metrics.jsonl", "train")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["grad_norm"] > 0 for line in lines)
    return lines


@pytest.mark.slow
def test_off_policy_from_yaml(data, teacher, tmp_path):  # noqa: F811
    """The teacher is asked about all rows once; a second start asks nothing."""
    given = arguments("distill_off_policy", data, tmp_path, "--off_policy_dataset", data / "sft.jsonl")
    given += ["--teachers", teacher, "--teacher_top_k", 16, "--max_rows", 20, "--max_length", 256]
    out = recipe("distill", *given).stdout
    assert "soft targets: 20/20 rows" in out
    lines = steps(tmp_path)
    assert {"divergence", "nll", "entropy", "teacher_entropy"} <= lines[0].keys()
    assert lines[0]["loss"] == pytest.approx(lines[0]["divergence"] + lines[0]["nll"], rel=1e-4)
    assert (tmp_path / "soft_targets.bin").stat().st_size > 1000
    again = recipe("distill", *given).stdout
    assert "going on after step 2" in again
    assert "soft targets" not in again
    other = recipe("distill", *given, "--teachers", data / "base", code=2)
    assert "was made with teachers" in other.stderr


@pytest.mark.slow
def test_on_policy_from_yaml(data, teacher, tmp_path):  # noqa: F811
    """Both modes of every prompt; held-out pass rates beside."""
    given = arguments("distill_on_policy", data, tmp_path, "--dataset", data / "prompts.jsonl")
    given += ["--teachers", teacher, "--group_size", 2, "--max_tokens", 8, "--eval_dataset", data / "heldout.jsonl"]
    given += ["--eval_reward", "verifier:math", "--rewards", "verifier:math", "--eval_samples", 2]
    recipe("distill", *given)
    lines = steps(tmp_path)
    assert lines[0]["loss"] == pytest.approx(lines[0]["divergence"], rel=1e-4)
    assert {"reward", "completion_length/mean", "truncated"} <= lines[0].keys()
    assert "pass_rate" in read_metrics(tmp_path / "metrics.jsonl", "eval")[-1]
    assert (tmp_path / "model" / "config.json").is_file()
    assert "going on after step 2" in recipe("distill", *given).stdout


@pytest.mark.slow
def test_a_mixture_with_a_server_and_a_local_teacher_by_task(data, teacher, tmp_path):  # noqa: F811
    rows = [json.loads(line) for line in (data / "prompts.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["task"] = ("math", "chat", "code")[i % 3]
    (data / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    with teacher_server(model, root=str(teacher)) as server:
        given = arguments("distill_on_policy", data, tmp_path, "--dataset", data / "tasks.jsonl", "--modes", "row")
        given += ["--off_policy_dataset", data / "sft.jsonl", "--on_policy_share", 0.5, "--group_size", 2]
        given += ["--teachers", f"math={server.url}", data / "base", "--teacher_top_k", 4, "--max_tokens", 8]
        recipe("distill", *given)
        assert server.asked
    lines = steps(tmp_path)
    assert {"divergence/samples", "divergence/rows"} <= lines[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--teachers", "/no/teacher"], "/no/teacher"),
        (["--teachers", "math={teacher}"], "row 1: teachers: none for the task"),
        (["--teachers", "{teacher}", "{teacher}"], "is the second one for its task"),
        (["--teachers", "{teacher}", "--on_policy_share", "0.5", "--group_size", "4"], "off_policy_dataset is missing"),
        (["--teachers", "{teacher}", "--eval_dataset", "x.jsonl"], "eval_reward is missing"),
        (["--teachers", "http://127.0.0.1:9/v1", "--teacher_timeout_s", "2"], "teacher http://127.0.0.1:9/v1"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(data, teacher, tmp_path, more, message):  # noqa: F811
    given = arguments("distill_on_policy", data, tmp_path, "--dataset", data / "prompts.jsonl")
    result = recipe("distill", *given, *[a.format(teacher=teacher) for a in more], code=2)
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_thinking_budget_reaches_the_students_samples():
    recipe = DistillRecipe(dataset="rows.jsonl", thinking_budget=7)
    on_policy = make_on_policy(recipe, [Prompt("a", [], [5])], None, tiny_tokenizer(), seed=0)
    assert on_policy.sampling.thinking_budget == 7


def test_prompts_offer_the_tools_that_their_episodes_call(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "What is 2 + 3?"}) + "\n")
    recipe = DistillRecipe(dataset=str(tmp_path / "rows.jsonl"), tools=["calculator"])
    tokenizer = tiny_tokenizer()
    (prompt,) = load_prompts(recipe, DistillConfig(), tokenizer, None)
    assert [tool["function"]["name"] for tool in prompt.row["tools"]] == ["calculator"]
    assert '"calculator"' in tokenizer.decode(prompt.token_ids)


def test_rows_come_in_the_modes_that_are_asked_for():
    rows = [{"id": "a", "question": "q", "chat_template_kwargs": {"x": 1}}, {"question": "r"}]
    assert in_modes(rows, "row") == rows
    (one, _) = in_modes(rows, "no_think")
    assert one["chat_template_kwargs"] == {"x": 1, "enable_thinking": False}
    both = in_modes(rows, "both")
    assert [row["chat_template_kwargs"]["enable_thinking"] for row in both] == [True, False, True, False]
    assert [row["mode"] for row in both] == ["thinking", "no_think"] * 2
    assert [row.get("id") for row in both] == ["a/thinking", "a/no_think", None, None]
    assert rows[0]["chat_template_kwargs"] == {"x": 1}
    as_text = [{**rows[0], "chat_template_kwargs": '{"x": 1}'}]
    assert in_modes(as_text, "no_think") == [one]
    with pytest.raises(UserError, match="row 1: column chat_template_kwargs must hold a dict"):
        in_modes([{"chat_template_kwargs": "[1]"}], "thinking")


class Recorder:
    """An engine that answers 5 and keeps what it was asked."""

    def generate(self, prompts, n, sampling, step=0):
        self.prompts = prompts
        return [[Rollout(p, i, [7], [0.0], "5", "stop", 0) for i in range(n)] for p in prompts]

    def load_weights(self, model, step):
        pass


@pytest.mark.parametrize(
    ("modes", "asked"), [("row", [None]), ("no_think", ["no_think"]), ("both", ["thinking", "no_think"])]
)
def test_held_out_rows_are_asked_in_the_modes_of_training(tmp_path, modes, asked):
    (tmp_path / "heldout.jsonl").write_text('{"question": "2 + 3?", "answer": "5"}\n')
    recipe = RolloutRecipe(dataset="rows.jsonl", eval_dataset=str(tmp_path / "heldout.jsonl"), modes=modes)
    engine = Recorder()
    figures = make_evaluation(recipe, tiny_tokenizer(), engine, Sampling()).run()
    assert [prompt.row.get("mode") for prompt in engine.prompts] == asked
    assert figures["pass_rate"] == 1.0

"""The example of routing, whole, and routing in real runs of TRL's trainer and of ours."""

import json
import math
from pathlib import Path

import pytest

from alignment.metrics import read_json_lines, read_metrics
from recipes.quickstart.model import write_base_model
from recipes.quickstart.task import make_problems, prompt_rows
from recipes.quickstart.tokenizer import build_tokenizer
from rewards import RewardRunner, get_reward
from rewards.routing import check_tasks, read_tasks
from rewards.specs import nested_specs, read_spec
from tests.recipe_runs import run_recipe
from tests.test_rewards_runner import rollouts
from tests.tiny import tiny_model, tiny_tokenizer
from verifiers import list_verifiers

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "recipes" / "qwen3" / "rewards.yaml"


def test_the_example_has_over_twenty_tasks_and_reaches_every_kind_of_verifier():
    tasks = read_tasks(EXAMPLE)
    parts = {part.name for specs in tasks.values() for spec in specs for part in nested_specs(spec)}
    assert len(tasks) > 20
    assert {part.removeprefix("verifier:") for part in parts if part.startswith("verifier:")} >= {
        "math", "code", "ifeval", "choice", "json", "text", "tool_call", "citation", "format", "all_of"
    }  # fmt: skip
    assert parts >= {"qwen_math", "judge", "reward_model", "length", "overlong", "repetition", "language_consistency"}


CALL, CASE = {"name": "f", "arguments": {"x": 1}}, {"args": [1], "expected": 2}
GOOD = {
    "math": ("4", {"answer": "4"}),
    "science_choice": ("The answer is (B).", {"answer": "B"}),
    "format_no_think": ("4", {}),
    "format_answer_tags": ("<think>hm</think><answer>4</answer>", {}),
    "language": ("<think>hm</think>It is four.", {"answer_language": "en"}),
    "json_extraction": ('{"a": 1}', {"schema": {"required": ["a"]}}),
    "table_as_json": ('[{"a": 1}]', {"schema": {"type": "array"}}),
    "short_answer": ("paris", {"answer": "Paris"}),
    "translation": ("The cat sits on the mat.", {"answer": "The cat sits on the mat.", "answer_language": "en"}),
    "tool_call": (f"<tool_call>{json.dumps(CALL)}</tool_call>", {"tool_calls": [CALL]}),
    "retrieval": ("It was built in 1889 [1].", {"passages": ["It was built in 1889."], "answer": "1889"}),
    "instructions": ("no commas", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
    "code": ("```python\ndef f(x):\n    return x + 1\n```", {"entry_point": "f", "cases": [CASE]}),
}  # fmt: skip


def test_the_example_scores_a_mixed_batch_of_its_rule_tasks():
    """One batch over 13 tasks: right answers get the sum of the weights of their task's rules, empty ones less."""
    rows = [{"task": task, **row} for task, (_, row) in GOOD.items()]
    router = get_reward(f"routing:{EXAMPLE}")
    check_tasks([read_spec(f"routing:{EXAMPLE}")], rows, "rows")
    router.prepare(GOOD)
    good, empty = rollouts(*[text for text, _ in GOOD.values()], rows=rows), rollouts(*[""] * len(rows), rows=rows)
    runner = RewardRunner([("routing", router, 1.0)], 50.0)
    metrics = runner(good)
    runner(empty)
    assert all(metrics[f"unscored/tasks/{task}"] == 0 for task in GOOD)
    positive = {"language_consistency", "length"}
    for right, wrong in zip(good, empty):
        entries = router.tasks[right.prompt.row["task"]]
        best = sum(spec.weight for spec in entries if spec.verifier or spec.name in positive)
        assert right.reward == pytest.approx(best), right
        assert wrong.reward < right.reward, wrong


def test_every_verifier_in_the_example_exists():
    names = {part.verifier for specs in read_tasks(EXAMPLE).values() for s in specs for part in nested_specs(s)} - {""}
    assert names <= set(list_verifiers())


# --- a real run -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_router_is_a_reward_of_trls_trainer(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    path = tmp_path / "tasks.yaml"
    path.write_text("tasks:\n  sums: [verifier:math, {name: length, high: 9}]\n  lines: {name: repetition, ngram: 2}\n")
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} + 1?"}], "answer": str(i + 1), "task": ("sums", "lines")[i % 2]}
        for i in range(4)
    ]
    settings = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, use_cpu=True,
        max_completion_length=4, report_to="none", logging_steps=1, save_strategy="no", bf16=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=tiny_model("qwen3"), reward_funcs=[get_reward(f"routing:{path}")], args=settings,
        train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(),
    )  # fmt: skip
    trainer.train()
    logs = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert "rewards/routing/mean" in logs and not math.isnan(logs["rewards/routing/mean"])
    assert {key for key in logs if key.startswith("tasks/")} <= {
        "tasks/sums/reward", "tasks/sums/length", "tasks/sums/verifier:math", "tasks/lines/reward"
    }  # fmt: skip


@pytest.mark.slow
def test_a_grpo_run_with_a_routing_file(tmp_path):
    """Two steps of a tiny model on rows of two tasks, then a data set with a task that the file does not have."""
    problems = make_problems(60, seed=0, levels=(1, 2))
    texts = (message["content"] for row in problems for message in row["messages"])
    write_base_model(tmp_path / "base", build_tokenizer(texts, 512), "quickstart", 0)
    rows = [{**row, "task": ("sums", "lines")[i % 2]} for i, row in enumerate(prompt_rows(problems[:12]))]
    for name, extra in (("good", []), ("bad", [{**rows[0], "task": "linse", "id": "x"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + extra))
    (tmp_path / "tasks.yaml").write_text(
        "tasks:\n  sums:\n    - verifier:math\n    - {name: overlong, max_length: 12, buffer: 8, weight: 0.5}\n"
        "  lines: {name: length, low: 30, margin: 30, unit: characters}\n"
    )
    recipe = ["--config", str(ROOT / "recipes/quickstart/grpo.yaml"), "--model_name_or_path", str(tmp_path / "base")]
    recipe += ["--max_steps", "2", "--prompts_per_step", "4", "--group_size", "4", "--max_tokens", "12"]
    recipe_yaml = tmp_path / "grpo.yaml"
    recipe_yaml.write_text(
        (ROOT / "recipes/quickstart/grpo.yaml").read_text().replace(
            "rewards: [verifier:math, verifier:format]\nreward_weights: [1.0, 0.1]",
            f"rewards:\n  - routing:{tmp_path}/tasks.yaml\n  - {{name: repetition, ngram: 3, weight: 0.2}}",
        )
    )  # fmt: skip
    recipe[1] = str(recipe_yaml)

    def run(data, folder):
        return run_recipe("grpo", [*recipe, "--dataset", str(tmp_path / data), "--output_dir", str(tmp_path / folder)])

    done = run("good.jsonl", "run")
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl", "train")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["unscored/routing"] == line["unscored/repetition"] == 0 for line in lines)
    assert any(line["reward_std"] > 0 and line["grad_norm"] > 0 for line in lines)
    seen = {key for line in lines for key in line}
    assert {"tasks/sums/reward", "tasks/sums/overlong", "tasks/lines/reward", "rewards/routing"} <= seen
    samples = read_json_lines(tmp_path / "run" / "samples.jsonl")
    terms = samples[0]["reward_terms"]
    assert samples[0]["reward"] == pytest.approx(terms["routing"] + 0.2 * terms["repetition"])

    refused = run("bad.jsonl", "refused")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "bad.jsonl, row 13" in refused.stderr and "unknown task 'linse'; did you mean 'lines'?" in refused.stderr

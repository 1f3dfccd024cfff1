"""The four stages of Qwen3: their settings, the small tasks of the tiny run, and the tiny run itself."""

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

from alignment.algorithms.grpo import GrpoConfig
from alignment.config import TrainConfig, parse
from alignment.data.fusion import FusionConfig
from alignment.metrics import read_metrics
from alignment.pipeline import read_pipeline
from recipes.cold_start import ColdStartRecipe
from recipes.fusion import FusionRecipe
from recipes.generate import GenerateRecipe
from recipes.grpo import GrpoRecipe
from recipes.qwen3 import judge_server
from recipes.qwen3.rewards_at import replaced
from recipes.qwen3.tiny_tasks import TASKS, make_items, preference_pairs
from recipes.reward_model import RewardModelRecipe
from recipes.select_queries import SelectRecipe
from recipes.sft import SftRecipe
from recipes.tools import Tools
from recipes.verify import VerifyRecipe
from rewards.judge import make_judge
from rewards.routed_verifier import find_verifier
from rewards.routing import check_tasks, read_tasks
from rewards.specs import read_specs
from verifiers import verify

ROOT = Path(__file__).parent.parent
QWEN3 = ROOT / "recipes" / "qwen3"
REWARDS = f"routing:{QWEN3 / 'tiny_rewards.yaml'}"
TRAINED = (TrainConfig, ModelConfig)
KINDS = {
    "recipes.sft": (SftRecipe, *TRAINED),
    "recipes.grpo": (GrpoRecipe, GrpoConfig, *TRAINED),
    "recipes.reward_model": (RewardModelRecipe, *TRAINED),
    "recipes.generate": (GenerateRecipe, ModelConfig),
    "recipes.verify": (VerifyRecipe, ModelConfig),
    "recipes.fusion": (FusionRecipe, FusionConfig),
    "recipes.cold_start": (ColdStartRecipe,),
    "recipes.select_queries": (SelectRecipe,),
}

# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipeline", "pipeline_tiny"])
def test_every_stage_has_settings_that_its_recipe_takes(name, tmp_path):
    stages = read_pipeline(QWEN3 / f"{name}.yaml").stages
    for stage in stages:
        if stage.settings is None:
            assert stage.recipe in ("recipes.qwen3.tiny", "recipes.qwen3.rewards_at")
            continue
        path = tmp_path / f"{stage.name}.yaml"
        path.write_text(yaml.safe_dump(stage.settings))
        parse(*KINDS[stage.recipe], arguments=["--config", str(path)])
    assert [s.name for s in stages if s.recipe in ("recipes.sft", "recipes.grpo")][-4:] == [
        "1_cold_start",
        "2_reasoning_rl",
        "3_thinking_fusion",
        "4_general_rl",
    ]


@pytest.mark.parametrize("name", sorted(p.name for p in QWEN3.glob("[1-4]_*.yaml")))
def test_every_stage_file_stands_in_the_pipeline_and_names_its_source(name):
    text = (QWEN3 / name).read_text()
    assert "2505.09388, section 4." in text
    assert "published" in text
    assert f"config: {name}" in (QWEN3 / "pipeline.yaml").read_text()


def test_the_ranks_beside_the_judge_leave_it_a_gpu():
    (stage,) = [stage for stage in read_pipeline(QWEN3 / "pipeline.yaml").stages if stage.services]
    ranks = yaml.safe_load(Path(stage.launch).read_text())["num_processes"]
    assert f"CUDA_VISIBLE_DEVICES={ranks}" in stage.services[0].command


# --- the small tasks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_reply_of_a_task_passes_and_another_does_not(task):
    find_verifier(REWARDS)
    if not any(spec.verifier for spec in read_tasks(QWEN3 / "tiny_rewards.yaml")[task]):
        return  # judged by a model
    rng = random.Random(task)
    for _ in range(5):
        item = TASKS[task](rng)
        row = item.prompt_row("x")
        reply = f"<think>\nLet me see.\n</think>\n\n{item.reply}" if row.get("mode") == "thinking" else item.reply
        verdict = verify(REWARDS, reply, row)
        assert verdict.status == "pass", (task, item, verdict)
    assert verify(REWARDS, "nothing, really", row).status in ("fail", "unparsed") or task == "in_english"


def test_the_calls_of_agent_tasks_give_what_the_task_says():
    tools = Tools(["calculator", "python", "search"])
    from alignment.types import Prompt

    for item in make_items(12, 0, [name for name in TASKS if name.startswith("agent_")]):
        row = item.prompt_row("x")
        (tool,) = tools.of(Prompt("x", row["prompt"], [], row)).values()
        assert tool(item.call) == item.output


def test_general_rows_are_routed_to_rules_judge_and_reward_model():
    rows = [item.prompt_row(str(i)) for i, item in enumerate(make_items(5 * len(TASKS), 1))]
    check_tasks(read_specs([REWARDS]), rows, "rows")
    used = {row["task"] for row in rows}
    tasks = read_tasks(QWEN3 / "tiny_rewards.yaml")
    assert used == set(tasks) == set(TASKS)
    assert len(used) >= 20
    kinds = {spec.name.partition(":")[0] for specs in tasks.values() for spec in specs}
    assert {"verifier", "judge", "reward_model"} <= kinds
    assert {True, False} == {bool(row["tools"]) for row in rows}


def test_preference_pairs_differ():
    assert all(row["chosen"] != row["rejected"] for row in preference_pairs(100, 0))


# --- judge and rewards ------------------------------------------------------------------------------------------------


def test_the_stand_in_judge_is_asked_as_a_model_would_be():
    server = ThreadingHTTPServer(("127.0.0.1", 0), judge_server._Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    judge = make_judge(url=url, model="stand-in", cache_dir="")
    answers = ["The key is in the box.", "<think>hm</think>In the red box.", "No.", "<think>never ends"]
    scores = asyncio.run(judge(["Where?"] * 4, answers, answer=["The key is in the box."] * 4))
    server.shutdown()
    assert scores[0] == 1.0
    assert scores[1] == pytest.approx(0.6)  # in, the, box of 4 and 6 words
    assert scores[2] == scores[3] == 0.0
    assert judge_server.grade("no quotation") == "There is no reference to compare with."


@pytest.mark.parametrize("name", ["rewards", "tiny_rewards"])
def test_judge_and_reward_model_are_put_into_every_entry(name):
    content = yaml.safe_load((QWEN3 / f"{name}.yaml").read_text())
    at = {"judge": {"url": "http://there/v1", "model": "j"}, "reward_model": {"path": "here"}}
    text = json.dumps(replaced(content, at))
    assert "http://there/v1" in text
    assert "localhost" not in text
    assert '"path": "here"' in text
    assert "runs/qwen3/4_reward_model" not in text


# --- the tiny run -----------------------------------------------------------------------------------------------------

STEPS = ("pretrain", "cold_start", "rl", "fusion", "reward_model", "general")
LEFT_OUT = ("1_heldout", "2_heldout", "3_heldout", "3_modes_after", "4_heldout", "4_modes_after")


@pytest.mark.slow
def test_the_four_stages_run_one_after_another(tmp_path):
    """Two steps each, of everything but measurements that another stage makes likewise."""
    content = yaml.safe_load((QWEN3 / "pipeline_tiny.yaml").read_text())
    content["stages"] = [stage for stage in content["stages"] if stage["name"] not in LEFT_OUT]
    for stage in content["stages"]:
        if stage.get("config"):
            stage["config"] = str(QWEN3 / stage["config"])
    # a model of two steps solves nothing: no query is learnable, and stage 1's rows stand for those it would sample
    overrides = {stage["name"]: stage.get("overrides") for stage in content["stages"]}
    overrides["2_reasoning_rl_queries"]["pass_rate_band"] = [0.0, 1.0]
    overrides["3_thinking_fusion_rows"]["thinking"].append("{1_cold_start_rows.rows}")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    small = {"scale": 0.012, "rl_prompts": 4, "samples": 2, "judge_port": port} | {f"{name}_steps": 2 for name in STEPS}
    content["variables"] |= small
    (tmp_path / "tiny_rewards.yaml").write_text((QWEN3 / "tiny_rewards.yaml").read_text())
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**content, "folder": str(tmp_path / "run")}))
    command = [sys.executable, "-m", "alignment.cli", "pipeline", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    run = tmp_path / "run"
    report = json.loads((run / "1_cold_start_rows" / "report.json").read_text())
    assert {d["filter"] for d in report["dropped"]} >= {"not_verifiable", "several_questions"}
    assert (run / "2_reasoning_rl_queries" / "report.html").is_file()
    reasoning = read_metrics(run / "2_reasoning_rl" / "metrics.jsonl", "train")
    assert "entropy_coef" in reasoning[-1]
    general = read_metrics(run / "4_general_rl" / "metrics.jsonl")
    assert any(name.startswith("tasks/") for line in general for name in line)
    assert any(line["kind"] == "eval" for line in general)
    again = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert again.stdout.count("finished") >= len(content["stages"])

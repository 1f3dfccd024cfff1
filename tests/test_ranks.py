"""Training on several ranks, sharded or not, is the training of one process; one failing rank ends the run.

Real processes on gloo. All methods and configurations run in one group of processes, whose start costs more than they.
"""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment.memory_plan import ModelSizes, spread
from alignment.metrics import read_metrics
from benchmarks.scale import curve_difference, weight_difference
from tests.ranks import finish, start
from tests.sharded_runs import METHODS, as_launched

pytestmark = pytest.mark.slow

SHARES = {"ddp": (1, 1), "zero2": (1, 0.5), "zero3": (0.5, 0.5), "fsdp2": (0.5, 0.5)}
"""Of the parameters and of the optimizer state, on each of two ranks."""
UNEVEN = ("sft_uneven", "sft_moe_uneven", "distill_uneven")
"""Rank 1 has no data at all in some steps, so a collective that the ranks enter differently often would hang."""
TESTED = ("sft", "reward_model", "dpo", "online_dpo", "ppo", "grpo", "grpo_remote", "distill", *UNEVEN)
RESUMED = ("sft", "sft_half", "reward_model", "dpo", "online_dpo", "ppo", "grpo", "distill")
ONE_RANKS = ("distill_top_k", "distill_stored")
STEPS, SAVED = 8, 6


def run(folder: Path, configurations, methods) -> None:
    names = (",".join(configurations), ",".join(methods))
    finish(start("tests.sharded_runs", folder, *names, STEPS, SAVED, ranks=2), 900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Every method in one process, and on two ranks in every configuration. `grpo_remote` sends its weights."""
    folder = tmp_path_factory.mktemp("runs")
    as_launched("single")
    for method in (*TESTED, *ONE_RANKS):
        METHODS[method](str(folder / method / "single"), STEPS, 0)
    run(folder, SHARES, dict.fromkeys((*TESTED, *RESUMED)))
    run(folder, ["ddp"], ONE_RANKS)
    return folder


@pytest.mark.parametrize("method", TESTED)
@pytest.mark.parametrize("configuration", SHARES)
def test_every_method_follows_the_single_process_and_saves_the_same_model(runs, method, configuration):
    """Every metric of every step; shares of the memory as they are planned."""
    single, folder = runs / method / "single", runs / method / configuration
    assert len(read_metrics(folder / "metrics.jsonl", "train")) == STEPS
    assert curve_difference(single, folder) < 1e-5
    assert weight_difference(single, folder) < 2e-4  # Adam magnifies rounding
    held = json.loads((folder / "shares.json").read_text())
    parameters, updated = SHARES[configuration]
    assert held["parameters"] / held["all_parameters"] == pytest.approx(parameters, abs=0.02)
    assert held["updated"] / held["all_updated"] == pytest.approx(updated, abs=0.02)
    if method.startswith("sft"):  # the others hold references, teachers and samples as well
        sizes = ModelSizes(held["all_parameters"], held["all_updated"], 0, 0, 64)
        assert held["bytes"] == pytest.approx(spread(sizes, configuration, 2).between_steps, rel=0.01)


@pytest.mark.parametrize("method", ONE_RANKS)
def test_other_targets_of_distillation_follow_the_single_process(runs, method):
    assert curve_difference(runs / method / "single", runs / method / "ddp") < 1e-5


def test_every_method_goes_on_exactly_in_every_configuration(runs):
    """From the checkpoint of step 6 on, on as many ranks: bit for bit."""
    folders = [runs / method / configuration for method in RESUMED for configuration in SHARES]
    before = {}
    for folder in folders:
        before[folder] = {file: load_file(file) for file in folder.glob("*/model.safetensors")}
        assert before[folder]
        shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
    run(runs, SHARES, RESUMED)
    for folder in folders:
        lines = read_metrics(folder / "metrics.jsonl", "train")
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), folder
        for file, weights in before[folder].items():
            assert all(bool((value == weights[name]).all()) for name, value in load_file(file).items()), file


def test_sharded_runs_go_on_in_one_process(runs):
    for configuration in ("zero2", "zero3", "fsdp2"):
        folder = runs / "sft" / configuration
        as_launched("single")
        METHODS["sft"](str(folder), STEPS + 1, 0)
        lines = read_metrics(folder / "metrics.jsonl", "train")
        assert [line["step"] for line in lines] == list(range(1, STEPS + 2))
        assert abs(lines[-1]["loss"] - lines[-2]["loss"]) < 1  # a model that lost its weights is far off


def test_saved_models_are_plain_checkpoints(runs):
    for configuration in SHARES:
        model = AutoModelForCausalLM.from_pretrained(runs / "grpo" / configuration / "model")
        assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize("kind, message, code", [("input", "error on rank 1: row 7 is broken", 2),
                                                 ("crash", "ZeroDivisionError: row 7 divides by zero", 1)])  # fmt: skip
def test_one_failing_rank_ends_the_run_with_its_own_error(tmp_path, kind, message, code):
    process = start("tests.failing_rank", tmp_path, kind, ranks=2)
    output, _ = process.communicate(timeout=300)  # a collective would wait for 30 minutes
    assert process.returncode != 0
    assert message in output, output
    assert "rank 0 stops, since another failed. rank 1:" in output, output
    assert f"exitcode  : {code}" in output

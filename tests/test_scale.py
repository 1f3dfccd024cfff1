"""Sharded training is the training of one process; what was launched is what runs; one failing rank ends the run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from alignment.errors import UserError
from alignment.memory_plan import ModelSizes, spread
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.sharding import read_launch
from alignment.sharding.twin import split_off_twin, whole
from tests.sharded_runs import CONFIGURATIONS, METHODS, as_launched
from tests.tiny import tiny_model
from tests.training_ppo import tiny_actor_critic

ROOT = Path(__file__).parent.parent
LAUNCHER = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION", "MASTER_PORT",
            "WORLD_SIZE", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS", "ACCELERATE_DEEPSPEED_ZERO_STAGE")  # fmt: skip


def torchrun(*arguments: object, ranks: int = 2, timeout: int = 600) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += [str(a) for a in arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def launch(monkeypatch):
    """Read a launch from an environment with nothing but what is given."""

    def read(**environment: str):
        for name in LAUNCHER:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        read_launch.cache_clear()
        return read_launch()

    yield read
    monkeypatch.undo()
    read_launch.cache_clear()


def difference(one: Path, other: Path) -> float:
    """The largest relative difference of loss and gradient norm over all steps."""
    a, b = (read_metrics(folder / "metrics.jsonl", "train") for folder in (one, other))
    assert len(a) == len(b) > 0
    pairs = [(x[name], y[name]) for x, y in zip(a, b) for name in x if name == "loss" or name.startswith("grad_norm")]
    return max(abs(x - y) / max(1.0, abs(x)) for x, y in pairs)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


# --- what was launched ------------------------------------------------------------------------------------------------


def test_a_launch_that_lost_its_processes_is_refused_with_the_remedy(launch):
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process it starts."""
    with pytest.raises(UserError, match=r"started one.*torchrun --nproc_per_node 2"):
        launch(ACCELERATE_MIXED_PRECISION="no", MASTER_PORT="29500")


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "one process runs, so nothing would be sharded"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "WORLD_SIZE": "2"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true", "WORLD_SIZE": "2"}, "zero3_offload"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron"),
    ],
)
def test_launches_that_cannot_be_served_are_refused(launch, environment, message):
    with pytest.raises(UserError, match=message):
        launch(**environment)


def test_parameters_that_rest_are_refused_where_the_optimizer_is_on_the_cpu(launch, tmp_path):
    from alignment.config import TrainConfig
    from alignment.trainer import make_accelerator

    launch(
        ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_ZERO_STAGE="3",
        ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="cpu",
        WORLD_SIZE="2",
    )
    with pytest.raises(UserError, match=r"value_warmup_steps.*zero3\.yaml"):
        make_accelerator(TrainConfig(output_dir=str(tmp_path)), some_parameters_rest=True)


def test_separate_trainings_are_refused(launch, tmp_path):
    """Two processes that were started together and do not know of each other."""
    from alignment.config import TrainConfig
    from alignment.sharding import Launch, check_processes
    from alignment.trainer import make_accelerator

    accelerator = make_accelerator(TrainConfig(output_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"2 processes were started.*group of 1"):
        check_processes(Launch("plain", 2), accelerator)


def test_every_configuration_says_when_to_use_it():
    names = {path.stem for path in CONFIGURATIONS.glob("*.yaml")}
    assert names == {"cpu", "single_gpu", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload", "multi_node"}
    for path in CONFIGURATIONS.glob("*.yaml"):
        assert path.read_text().startswith("# "), path
        assert yaml.safe_load(path.read_text())["compute_environment"] == "LOCAL_MACHINE"


# --- a model in two ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_the_whole_model_is_its_twin_within_the_block_and_empty_after_it(shared):
    model = tiny_actor_critic(shared=shared)
    before = {name: p.clone() for name, p in model.named_parameters()}
    twin = split_off_twin(model)
    assert sum(p.numel() for p in model.parameters()) == 0
    assert list(before) == [name for name, _ in twin.named_parameters()]
    assert (twin.value.base.base_model is twin.policy.base.base_model) == shared
    twin.train()
    model.rest.policy = True
    assert twin.rest.policy  # settings are the same objects
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    with whole(model, twin, lambda p: p.detach().clone(), torch.device("cpu")):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
        assert all(m.training for m in model.modules())
    assert sum(p.numel() for p in model.parameters()) == 0


def test_tied_weights_stay_tied_in_both_of_the_two():
    model = Policy(tiny_model("qwen3", tie_word_embeddings=True))
    twin = split_off_twin(model)
    for policy in (model, twin):
        base = policy.base
        assert base.get_output_embeddings().weight is base.get_input_embeddings().weight


# --- two ranks --------------------------------------------------------------------------------------------------------

TESTED = ("sft", "sft_uneven", "sft_moe_uneven", "grpo", "grpo_remote")
SHARES = {"ddp": (1, 1), "zero2": (1, 0.5), "zero3": (0.5, 0.5), "fsdp2": (0.5, 0.5)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """12 steps of SFT and of GRPO (sampling, curriculum, old log-probabilities) in one process, and on two ranks in one
    group of processes for all configurations. Rank 1 has fewer micro-batches in some steps, and none at all in the
    uneven ones: a collective that the ranks enter differently often would hang. `grpo_remote` sends its weights."""
    folder = tmp_path_factory.mktemp("runs")
    for method in TESTED:
        as_launched("single")
        METHODS[method](str(folder / method / "single"), 12, 0)
    done = torchrun("tests.sharded_runs", folder, ",".join(SHARES), ",".join(TESTED), 12, 10)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", TESTED)
@pytest.mark.parametrize("configuration", SHARES)
def test_sharded_runs_follow_the_single_process_and_save_the_same_model(runs, method, configuration):
    single, folder = runs / method / "single", runs / method / configuration
    assert difference(single, folder) < 1e-5
    held = json.loads((folder / "shares.json").read_text())
    parameters, updated = SHARES[configuration]
    assert held["parameters"] / held["all_parameters"] == pytest.approx(parameters, abs=0.02)
    assert held["updated"] / held["all_updated"] == pytest.approx(updated, abs=0.02)
    sizes = ModelSizes(held["all_parameters"], held["all_updated"], 0, 0, 64)
    assert held["bytes"] == pytest.approx(spread(sizes, configuration, 2).between_steps, rel=0.15)  # as it is planned
    one, other = weights(single / "model"), weights(folder / "model")
    assert one.keys() == other.keys()
    assert max(float((one[n] - other[n]).abs().max()) for n in one) < 2e-4  # Adam magnifies rounding


@pytest.mark.slow
def test_sharded_runs_go_on_exactly_and_in_another_configuration(runs):
    """From the checkpoint of step 10 on, on as many ranks bit for bit; then in one process."""
    configurations, methods = ["zero2", "zero3", "fsdp2"], ["sft", "sft_half"]
    before = {}
    done = torchrun("tests.sharded_runs", runs, ",".join(configurations), "sft_half", 12, 10)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for folder in (runs / method / configuration for method in methods for configuration in configurations):
        before[folder] = weights(folder / "model")
        shutil.rmtree(folder / "checkpoints" / "step-00000012")
    done = torchrun("tests.sharded_runs", runs, ",".join(configurations), ",".join(methods), 12, 10)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for folder in before:
        after = weights(folder / "model")
        assert all(torch.equal(after[n], before[folder][n]) for n in after), folder
    for configuration in configurations:
        folder = runs / "sft" / configuration
        as_launched("single")
        METHODS["sft"](str(folder), 13, 0)
        lines = read_metrics(folder / "metrics.jsonl", "train")
        assert [line["step"] for line in lines] == list(range(1, 14))
        assert abs(lines[-1]["loss"] - lines[-2]["loss"]) < 1  # a model that lost its weights is far off


@pytest.mark.slow
@pytest.mark.parametrize("kind, message, code", [("input", "error on rank 1: row 7 is broken", 2),
                                                 ("crash", "ZeroDivisionError: row 7 divides by zero", 1)])  # fmt: skip
def test_one_failing_rank_ends_the_run_with_its_own_error(tmp_path, kind, message, code):
    done = torchrun("tests.failing_rank", tmp_path, kind, timeout=300)  # a collective would wait for 30 minutes
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in output, output[-3000:]
    assert "rank 0 stops, since another failed. rank 1:" in output, output[-3000:]
    assert f"exitcode  : {code}" in output

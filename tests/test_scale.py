"""What was launched is what runs, or is refused; a model in two."""

import pytest
import torch
import yaml

from alignment.errors import UserError
from alignment.models import Policy
from alignment.sharding import read_launch
from alignment.sharding.twin import split_off_twin, whole
from tests.sharded_runs import CONFIGURATIONS
from tests.tiny import tiny_model
from tests.training_ppo import tiny_actor_critic

LAUNCHER = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION", "MASTER_PORT",
            "WORLD_SIZE", "CROSS_SIZE", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE")  # fmt: skip


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


def test_deepspeeds_own_launcher_that_found_one_machine_is_refused(launch):
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "WORLD_SIZE": "2"}
    assert launch(**zero).kind == "zero"
    with pytest.raises(UserError, match="deepspeed_multinode_launcher: standard"):
        launch(**zero, CROSS_SIZE="1")


def test_parameters_that_rest_are_refused_where_the_optimizer_is_on_the_cpu(launch, tmp_path):
    from alignment.accelerator import make_accelerator
    from alignment.config import TrainConfig

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
    from alignment.accelerator import make_accelerator
    from alignment.config import TrainConfig
    from alignment.sharding import Launch, check_processes

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

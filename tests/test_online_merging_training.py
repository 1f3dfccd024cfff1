"""Online merging in real trainings: resume, other bases, adapters, policy and value, shards."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignment.accelerator import make_accelerator
from alignment.algorithms.sft import Sft
from alignment.checkpoint import checkpoints
from alignment.config import TrainConfig, parse
from alignment.errors import UserError
from alignment.models import Policy
from alignment.models.actor_critic import ActorCritic
from alignment.models.load_scalar import scalar_from_policy
from alignment.optim.adamw import make_optimizer
from alignment.optim.online_merging import OnlineMergingConfig, make_merging_optimizer
from alignment.trainer import Trainer
from tests.ranks import finish, start
from tests.test_online_merging import config
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import rows, weights_hash


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """A pretrained model's folder; the policy of these tests is another initialisation of it."""
    path = tmp_path_factory.mktemp("base")
    tiny_model("qwen3", seed=1).save_pretrained(path)
    return str(path)


def train_merged(folder, base_model, steps=6, policy=None, base_seed=None, **settings):
    names = {"merge_alpha", "merge_keep", "merge_every", "merge", "merge_device", "merge_dtype"}
    own = {"merge": "ondare", **{k: v for k, v in settings.items() if k in names}}
    rest = {k: v for k, v in settings.items() if k not in names}
    train = TrainConfig(
        output_dir=str(folder), **{"learning_rate": 1e-3, "weight_decay": 0.1, "lr_schedule": "cosine", **rest}
    )
    policy = policy or Policy(tiny_model("qwen3", attention_dropout=0.1))
    accelerator = make_accelerator(train)
    optimizer = make_merging_optimizer(policy, train, OnlineMergingConfig(merge_base_model=base_model, **own))
    algorithm = Sft(rows(), 5, seed=1)
    Trainer(accelerator, policy, tiny_tokenizer(), algorithm, train, steps, optimizer=optimizer).train()
    return policy


@pytest.mark.parametrize("merge", ["ondare", "onties"])
def test_the_trainer_resumes_within_a_cycle_bit_for_bit(tmp_path, base_model, merge):
    settings = {"merge": merge, "merge_alpha": 1e-3, "merge_keep": 0.05, "merge_every": 3}
    straight = weights_hash(train_merged(tmp_path / "a", base_model, **settings))
    train_merged(tmp_path / "b", base_model, save_every=2, **settings)
    for checkpoint in checkpoints(tmp_path / "b" / "checkpoints")[1:]:
        for path in sorted(checkpoint.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        checkpoint.rmdir()
    assert [p.name for p in checkpoints(tmp_path / "b" / "checkpoints")] == ["step-00000004"]
    assert weights_hash(train_merged(tmp_path / "b", base_model, **settings)) == straight


def test_the_trainer_refuses_to_go_on_with_another_base(tmp_path, base_model):
    settings = {"merge_alpha": 1e-3, "save_every": 1}
    train_merged(tmp_path / "run", base_model, steps=1, **settings)
    tiny_model("qwen3", seed=2).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="merge_base_model"):
        train_merged(tmp_path / "run", str(tmp_path / "other"), steps=2, **settings)


@pytest.mark.parametrize("merge", ["ondare", "onties"])
def test_drift_in_sfts_direction_grows_with_alpha(tmp_path, base_model, merge):
    """How far training goes along SFT - base, in units of its length."""
    start, base = tiny_model("qwen3"), tiny_model("qwen3", seed=1)
    tau = torch.cat([(p - q).flatten() for p, q in zip(start.parameters(), base.parameters(), strict=True)])
    drifts = []
    for alpha in (1e-7, 1e-3, 1e-2, 0.1):
        settings = {"merge": merge, "merge_alpha": alpha, "merge_keep": 0.5, "weight_decay": 0.0}
        policy = train_merged(tmp_path / str(alpha), base_model, **settings)
        moved = torch.cat([(p - q).flatten() for p, q in zip(policy.parameters(), start.parameters(), strict=True)])
        drifts.append((moved @ tau / (tau @ tau)).item())
    assert abs(drifts[0]) < 2e-3
    assert drifts[1] - drifts[0] > 2e-3
    assert drifts[2] > 5 * drifts[1] > 0
    # unbiased OnDARE adds alpha tau a step; OnTIES adds the larger half of it, which is longer than half of tau
    assert drifts[3] == pytest.approx(0.6, abs=0.03) if merge == "ondare" else 0.4 < drifts[3] < 0.6


@pytest.mark.parametrize("shared", [False, True])
def test_of_policy_and_value_the_policy_is_merged_and_the_value_gets_adamw(tmp_path, base_model, shared):
    train = TrainConfig(output_dir=str(tmp_path), learning_rate=1e-3, weight_decay=0.1)
    models = []
    for _ in range(2):
        policy = Policy(tiny_model("qwen3"))
        models.append(ActorCritic(policy, scalar_from_policy(policy, shared, "state")))
    rates, merged = {"value": 1e-2}, config(merge_alpha=0.1, merge_keep=0.5, merge_base_model=base_model)
    optimizers = [make_optimizer(models[0], train, rates), make_merging_optimizer(models[1], train, merged, rates)]
    assert sorted(g["peak"] for g in optimizers[1].param_groups if not g["merge"])[-1] == 1e-2
    for model, optimizer in zip(models, optimizers, strict=True):
        generator = torch.Generator().manual_seed(0)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    policy_parameters = set(models[0].policy.parameters())
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q) == (p not in policy_parameters), name


def test_adapters_are_refused_unless_there_is_no_pull(tmp_path, base_model):
    train = TrainConfig(output_dir=str(tmp_path))
    adapted = get_peft_model(tiny_model("qwen3"), LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(UserError, match=r"lora_A.*Adapters cannot be merged"):
        make_merging_optimizer(Policy(adapted), train, config(merge_alpha=0.1, merge_base_model=base_model))
    optimizer = make_merging_optimizer(Policy(adapted), train, config(merge_keep=0.1))
    assert all("lora" in name for group in optimizer.param_groups for name in group["param_names"])


def test_rows_added_to_the_embeddings_get_no_pull_and_other_shapes_are_refused(tmp_path, base_model):
    train = TrainConfig(output_dir=str(tmp_path), learning_rate=0.1)
    model = tiny_model("qwen3")
    size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size + 4)
    before = model.get_input_embeddings().weight.detach().clone()
    optimizer = make_merging_optimizer(
        Policy(model), train, config(merge_alpha=0.5, merge_keep=1.0, merge_base_model=base_model)
    )
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    base = tiny_model("qwen3", seed=1).get_input_embeddings().weight
    after = model.get_input_embeddings().weight
    assert torch.equal(after[size:], before[size:])
    assert torch.allclose(after[:size], before[:size] + 0.5 * (before[:size] - base), atol=1e-6)
    wider = Policy(tiny_model("qwen3", intermediate_size=256))
    with pytest.raises(UserError, match=r"down_proj.* shape \(64, 256\) in the policy and \(64, 128\)"):
        make_merging_optimizer(wider, train, config(merge_alpha=0.5, merge_base_model=base_model))


def test_none_is_the_plain_optimizer_and_wrong_settings_name_their_key(tmp_path):
    train = TrainConfig(output_dir=str(tmp_path))
    policy = Policy(tiny_model("qwen3"))
    assert type(make_merging_optimizer(policy, train, OnlineMergingConfig())) is torch.optim.AdamW
    for wrong, key in (
        ({"merge_alpha": 1.0}, "merge_alpha"),
        ({"merge_keep": 0.0}, "merge_keep"),
        ({"merge_every": 0}, "merge_every"),
        ({"merge": "ondare"}, "merge_base_model is missing"),
    ):
        with pytest.raises(UserError, match=key):
            OnlineMergingConfig(**wrong)
    with pytest.raises(UserError, match="nowhere could not be loaded"):
        missing = OnlineMergingConfig(merge="ondare", merge_base_model=str(tmp_path / "nowhere"))
        make_merging_optimizer(policy, train, missing)
    (parsed,) = parse(OnlineMergingConfig, arguments=["--merge", "onties", "--merge_base_model", "x"])
    assert (parsed.merge, parsed.merge_keep, parsed.merge_rescale) == ("onties", 0.01, "unbiased")


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shards_are_merged_like_whole_parameters_and_onties_refuses_them(base_model):
    """Of FSDP2 and of ZeRO-1, 2 and 3."""
    pytest.importorskip("deepspeed")
    output = finish(start("tests.merging_ranks", base_model, ranks=2))
    assert output.count("passed") == 2 * 4

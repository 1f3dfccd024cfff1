"""Reward and value models on disk: others load ours, ours load theirs, with a linear head or two layers, with LoRA."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from trl import ModelConfig, RewardConfig, RewardTrainer

from alignment.algorithms.reward_model import heldout_rewards
from alignment.cli import main as align
from alignment.data.preference_rows import encode_preference_rows
from alignment.errors import UserError
from alignment.models import Policy, ScalarModel
from alignment.models.load_scalar import has_head, load_scalar, scalar_from_policy
from alignment.models.reward_scoring import end_token_of
from alignment.models.scalar import END_TOKEN_KEY
from alignment.packing import pack
from tests import training_reward
from tests.parity import trl_settings
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer
from tests.training import train, weights_hash
from tests.training_reward import fresh_model, train_reward_model

ARCHITECTURES = ["qwen2", "qwen3", "llama", "qwen2_moe", "qwen3_moe"]
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}


@pytest.fixture
def base(tmp_path):
    """A language model on disk, with its tokenizer."""
    return save(tiny_model("qwen3"), tmp_path / "base")


def save(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def load(path, **settings):
    return load_scalar(ModelConfig(model_name_or_path=str(path), **settings))[0]


def rewards(model: ScalarModel) -> list[float]:
    with torch.no_grad():
        return model.eval()(pack(training_reward.comparisons(4))).tolist()


def logits(model) -> list[float]:
    """What any program gets from the model: padded branches, no knowledge of trees."""
    trees = training_reward.comparisons(4)
    ids = [tree.branch_token_ids(i) for tree in trees for i in range(1, len(tree.segments))]
    longest, pad = max(map(len, ids)), tiny_tokenizer().pad_token_id
    padded = torch.tensor([branch + [pad] * (longest - len(branch)) for branch in ids])
    mask = torch.tensor([[1] * len(branch) + [0] * (longest - len(branch)) for branch in ids])
    with torch.no_grad():
        return model.eval()(input_ids=padded, attention_mask=mask).logits[:, 0].tolist()


# --- others load ours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_transformers_gets_the_same_numbers_from_a_linear_head(tmp_path, arch):
    path = save(tiny_model(arch), tmp_path / "base")
    model = load(path)
    save(model.model, tmp_path / "reward")
    theirs, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.num_labels == 1
    assert logits(theirs) == pytest.approx(rewards(model), abs=1e-6)
    assert rewards(load(tmp_path / "reward")) == rewards(model)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3_moe"])
def test_transformers_gets_the_same_numbers_from_two_layers_with_the_code_saved_beside_them(tmp_path, arch):
    path = save(tiny_model(arch), tmp_path / "base")
    model, _ = load_scalar(ModelConfig(model_name_or_path=path), head_layers=2)
    save(model.model, tmp_path / "reward")
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward", trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert logits(theirs) == pytest.approx(rewards(model), abs=1e-6)
    assert rewards(load(tmp_path / "reward")) == rewards(model)
    names = load_file(tmp_path / "reward" / "model.safetensors")
    assert {name for name in names if "score" in name} == {
        "score.weight",
        *(f"score.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")),
    }


def test_without_its_code_transformers_refuses_a_two_layer_head_instead_of_making_a_random_one(tmp_path, base):
    model, _ = load_scalar(ModelConfig(model_name_or_path=base), head_layers=2)
    save(model.model, tmp_path / "reward")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")


def test_a_trained_part_of_a_run_is_such_a_checkpoint(tmp_path):
    model = train_reward_model(str(tmp_path), 3)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert logits(theirs) == pytest.approx(rewards(model), abs=1e-6)


# --- ours load theirs -------------------------------------------------------------------------------------------------


def test_a_model_of_trls_trainer_gives_the_same_rewards_here(tmp_path):
    """The rows' rewards as TRL's own evaluation sees them: at ChatML's last new line."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {i} + 3?"}],
            "chosen": [{"role": "assistant", "content": f"{i + 3}." * (1 + i % 3)}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for i in range(6)
    ]
    settings = trl_settings(tmp_path / "trl", 4) | {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 6}
    model = AutoModelForSequenceClassification.from_config(tiny_config("qwen3", num_labels=1), dtype=torch.float32)
    trainer = RewardTrainer(
        model,
        RewardConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    theirs = trainer.evaluate()
    trainer.save_model(str(tmp_path / "reward"))
    trees, _ = encode_preference_rows(rows, tiny_tokenizer(), 512, end_token="\n")
    ours = heldout_rewards(load(tmp_path / "reward"), trees, 16384)
    assert ours["log_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-4)
    assert ours["margin"] == pytest.approx(theirs["eval_margin"], rel=1e-4)
    assert ours["reward/mean"] == pytest.approx(theirs["eval_mean_reward"], rel=1e-4)
    assert ours["accuracy"] == theirs["eval_accuracy"]


def test_a_checkpoint_named_as_qwens_own_two_layer_reward_model_is_read(tmp_path):
    """Qwen2.5-Math-RM: architecture Qwen2ForRewardModel, weights score.0 and score.2, two labels in its config."""
    model, _ = load_scalar(ModelConfig(model_name_or_path=save(tiny_model("qwen2"), tmp_path / "base")), head_layers=2)
    folder = tmp_path / "qwen"
    save(model.model, folder)
    (folder / "two_layer.py").unlink()
    config = json.loads((folder / "config.json").read_text())
    config.pop("auto_map")
    config |= {"architectures": ["Qwen2ForRewardModel"], "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights.pop("score.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert rewards(load(folder)) == rewards(model)


# --- fresh heads ------------------------------------------------------------------------------------------------------


def test_a_fresh_head_is_small_and_follows_the_seed(base):
    a, b, c = (load_scalar(ModelConfig(model_name_or_path=base), seed=seed)[0] for seed in (1, 1, 2))
    assert weights_hash(a) == weights_hash(b) != weights_hash(c)
    assert 0 < max(map(abs, rewards(a))) < 1
    torch.manual_seed(99)  # the global random state plays no part
    assert weights_hash(load_scalar(ModelConfig(model_name_or_path=base), seed=1)[0]) == weights_hash(a)
    assert not has_head(base)


def test_the_backbone_of_a_language_model_is_taken_as_it_is(base):
    own = dict(tiny_model("qwen3").model.named_parameters())
    loaded = dict(load(base).base.base_model.named_parameters())
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[name], loaded[name]) for name in own)


@pytest.mark.parametrize("head_layers", [1, 2])
@pytest.mark.parametrize("arch", ["qwen2", "qwen3_moe"])
def test_a_head_on_a_policys_backbone_shares_it_or_copies_it(tmp_path, arch, head_layers):
    policy = Policy(tiny_model(arch))
    shared = scalar_from_policy(policy, shared=True, at="token", head_layers=head_layers)
    copied = scalar_from_policy(policy, shared=False, at="token", head_layers=head_layers)
    assert shared.base.base_model is policy.base.base_model
    before = rewards(shared)
    assert rewards(copied) == pytest.approx(before, abs=1e-6)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 1.1
    assert rewards(shared) != pytest.approx(before, abs=1e-3)
    assert rewards(copied) == pytest.approx(before, abs=1e-6)
    save(shared.model, tmp_path / "value")
    assert rewards(load(tmp_path / "value")) == pytest.approx(rewards(shared), abs=1e-6)


# --- LoRA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_layers", [1, 2])
def test_adapters_are_trained_and_saved_with_the_head_and_read_back_merged(tmp_path, base, head_layers):
    config = ModelConfig(model_name_or_path=base, lora_dropout=0.0, **LORA)
    model, _ = load_scalar(config, head_layers=head_layers)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "score" in name for name in trainable)
    assert any("score" in name for name in trainable)
    before = rewards(model)
    train_reward_model(str(tmp_path / "run"), 3, model=model)
    assert rewards(model) != pytest.approx(before, abs=1e-3)
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()
    assert rewards(load(tmp_path / "run" / "model")) == pytest.approx(rewards(model), abs=1e-5)


def test_what_a_second_stage_saves_holds_the_first_ones_adapters(tmp_path, base):
    first = train_reward_model(str(tmp_path / "first"), 3, model=load(base, **LORA))
    folder = tmp_path / "first" / "model"
    with pytest.raises(UserError, match=r"use_peft: .* holds adapters already.*align merge"):
        load(folder, **LORA)  # new adapters would be saved with the name of the base alone
    assert rewards(load(folder)) == pytest.approx(rewards(first), abs=1e-5)
    second = train_reward_model(str(tmp_path / "second"), 3, model=load(folder))
    assert rewards(load(tmp_path / "second" / "model")) == pytest.approx(rewards(second), abs=1e-5)
    assert align(["merge", str(folder), "--output", str(tmp_path / "merged")]) == 0
    third = train_reward_model(str(tmp_path / "third"), 3, model=load(tmp_path / "merged", **LORA))
    assert rewards(load(tmp_path / "third" / "model")) == pytest.approx(rewards(third), abs=1e-5)


def test_adapters_keep_the_token_at_which_the_reward_is_read(tmp_path, base):
    model = load(base, **LORA)
    setattr(model.base.config, END_TOKEN_KEY, "\n")
    train_reward_model(str(tmp_path / "run"), 1, model=model)
    folder = tmp_path / "run" / "model"
    assert end_token_of(load(folder), tiny_tokenizer()) == "\n"
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    assert logits(theirs) == pytest.approx(rewards(model), abs=1e-5)
    assert align(["merge", str(folder), "--output", str(tmp_path / "merged")]) == 0
    assert end_token_of(load(tmp_path / "merged"), tiny_tokenizer()) == "\n"


def test_a_run_with_adapters_resumes_bit_for_bit(tmp_path, base):
    def fresh():
        torch.manual_seed(0)
        return load(base, **LORA)

    straight = weights_hash(train_reward_model(str(tmp_path / "a"), 4, model=fresh()))
    train_reward_model(str(tmp_path / "b"), 2, model=fresh())
    assert weights_hash(train_reward_model(str(tmp_path / "b"), 4, model=fresh())) == straight


def test_a_copy_of_a_policy_with_adapters_has_its_own(base):
    from alignment.models.load import load_policy

    policy, _ = load_policy(ModelConfig(model_name_or_path=base, **LORA))
    value = scalar_from_policy(policy, shared=False)
    names = {name for name, p in value.named_parameters() if p.requires_grad}
    assert names and all("lora_" in name or "score" in name for name in names)
    with pytest.raises(UserError, match="does not go with LoRA"):
        scalar_from_policy(policy, shared=True)
    policy.base.is_quantized = True
    with pytest.raises(UserError, match="quantised policy has no copy that can be trained; name a model"):
        scalar_from_policy(policy, shared=False)


def test_adapters_of_a_reward_model_whose_tokenizer_grew_are_read_back(tmp_path, base):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    model = load(base, **LORA)
    model.model.resize_token_embeddings(len(tokenizer))
    model.model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.base.get_input_embeddings().num_embeddings == len(tokenizer)
    assert rewards(again) == pytest.approx(rewards(model), abs=1e-6)


def test_trained_adapters_of_a_policy_are_merged_before_its_copy_is_made(tmp_path, base):
    """The copy would be saved as new adapters on the base, without those of the policy."""
    from alignment.models.load import load_policy

    train(str(tmp_path / "run"), 2, policy=load_policy(ModelConfig(model_name_or_path=base, **LORA))[0])
    policy, _ = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "run" / "model")))
    with pytest.raises(UserError, match=r"value_model: the policy's adapters have been trained.*align merge"):
        scalar_from_policy(policy, shared=False)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_unfit_checkpoints_are_refused_with_the_remedy(tmp_path, base):
    with pytest.raises(UserError, match="model_name_or_path is missing"):
        load_scalar(ModelConfig())
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="head_layers: 3 is not valid"):
        load_scalar(ModelConfig(model_name_or_path=base), head_layers=3)
    three = AutoModelForSequenceClassification.from_config(tiny_config("qwen3", num_labels=3))
    with pytest.raises(UserError, match="classifies into 3 labels; a reward or value model has one"):
        load(save(three, tmp_path / "three"))
    reward = save(fresh_model().model, tmp_path / "reward")
    with pytest.raises(UserError, match="has a linear head already"):
        load_scalar(ModelConfig(model_name_or_path=reward), head_layers=2)


@pytest.mark.parametrize("name", ["score.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path, name):
    path = save(fresh_model().model, tmp_path / "reward")
    weights = load_file(f"{path}/model.safetensors")
    weights.pop(name)
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights, among them {name}"):
        load(path)


def test_padding_is_not_the_end_token_in_what_others_load(base):
    """Others read the reward at the last token that is not padding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    assert load(base).base.config.pad_token_id is None
    assert AutoConfig.from_pretrained(base).pad_token_id == tiny_tokenizer().pad_token_id

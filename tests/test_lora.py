"""LoRA and QLoRA in every trainer: adapters train and are saved alone, the base is the reference, merging is exact."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from alignment.algorithms.rollouts import add_ref_logprobs
from alignment.cli import main as align
from alignment.errors import UserError
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.models.load import load_policy
from alignment.models.score import add_logprobs
from tests.test_recipes import data  # noqa: F401  a fixture
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import rows, train, weights_hash

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "all-linear"}


@pytest.fixture
def base(tmp_path) -> Path:
    tiny_model("qwen3").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path, **settings) -> Policy:
    torch.manual_seed(0)  # as make_accelerator does before a recipe loads its model
    return load_policy(ModelConfig(model_name_or_path=str(base), dtype="float32", **{**LORA, **settings}))[0]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 45)[None]).logits


def test_adapters_are_saved_alone_load_as_trainable_ones_and_merge_into_a_plain_checkpoint(base, tmp_path):
    before = weights_hash(AutoModelForCausalLM.from_pretrained(base))
    policy = train(str(tmp_path / "run"), 3, policy=adapted(base))
    saved = tmp_path / "run" / "model"
    assert (saved / "adapter_model.safetensors").is_file() and not (saved / "model.safetensors").exists()
    assert weights_hash(AutoModelForCausalLM.from_pretrained(base)) == before

    again, _ = load_policy(ModelConfig(model_name_or_path=str(saved), dtype="float32"))
    assert isinstance(again.model, PeftModel)
    trainable = {n for n, p in again.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in policy.named_parameters() if p.requires_grad} != set()
    assert torch.equal(logits(again.model), logits(policy.model))
    train(str(tmp_path / "more"), 1, policy=again)

    assert align(["merge", str(saved), "--output", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert torch.allclose(logits(merged), logits(policy.model), atol=1e-5)
    assert align(["merge", str(saved), "--output", str(tmp_path / "merged")]) == 2
    assert align(["merge", str(base), "--output", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_whose_tokenizer_grew_are_loaded_and_merged(tmp_path, tied):
    """As when a base without a chat template gets ChatML's tokens, and has no spare rows for them."""
    tiny_model("qwen3", tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    policy = adapted(tmp_path / "base")
    tokenizer.add_tokens(["<new>"])
    policy.model.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "saved")
    policy.model.save_pretrained(tmp_path / "saved")

    again, found = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "saved"), dtype="float32"))
    assert len(found) == len(tokenizer)
    assert logits(again.model).shape[-1] == len(tokenizer)
    assert torch.equal(logits(again.model), logits(policy.model))
    assert align(["merge", str(tmp_path / "saved"), "--output", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(policy.model), atol=1e-5)


def test_new_adapters_on_a_folder_of_adapters_are_refused(base, tmp_path):
    train(str(tmp_path / "run"), 1, policy=adapted(base))
    with pytest.raises(UserError, match=r"holds adapters already.*align merge"):
        adapted(tmp_path / "run" / "model")


def test_resume_with_adapters_is_exact(base, tmp_path):
    straight = weights_hash(train(str(tmp_path / "a"), 4, policy=adapted(base), lr_schedule="constant"))
    train(str(tmp_path / "b"), 2, policy=adapted(base), lr_schedule="constant")
    again = train(str(tmp_path / "b"), 4, policy=adapted(base), lr_schedule="constant")
    assert weights_hash(again) == straight


def test_the_reference_of_adapters_is_the_base_however_far_they_are(base):
    policy = Policy(get_peft_model(tiny_model("qwen3"), LoraConfig(r=4, target_modules=["v_proj"],
                                                                   init_lora_weights=False)))  # fmt: skip
    trees, others = rows(4), rows(4)
    add_ref_logprobs(policy, None, trees, 4096, 1.0)
    add_logprobs(Policy(tiny_model("qwen3")), others, "ref_logprobs", 4096)
    add_logprobs(policy, others, "logprobs", 4096)
    for tree, other in zip(trees, others, strict=True):
        columns = other.segments[0].columns
        assert tree.segments[0].columns["ref_logprobs"] == pytest.approx(columns["ref_logprobs"], abs=1e-6)
        assert abs(columns["logprobs"] - columns["ref_logprobs"]).max() > 1e-3


def test_full_rank_with_orthogonal_a_is_full_training(tmp_path):
    """W + B A with A A^T = A^T A = I and A at rest: the gradient of B is dW A^T, so a gradient step moves B A by
    -lr dW A^T A = -lr dW, what it does to W itself. One layer of the model is trained, with SGD and clipping."""
    name, finals = "model.layers.1.mlp.down_proj", []
    for rank in (0, 64):
        model = tiny_model("qwen3").requires_grad_(False)
        layer = model.get_submodule(name)
        if rank:
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=[name], lora_dropout=0.0)
            adapter = get_peft_model(model, config)
            module = model.get_submodule(name)
            a = module.lora_A["default"].weight  # [64, 128]: rank 64 is full, since the layer has 64 outputs
            # rows of B A span all of W only along A's rows: train W on the same half
            with torch.no_grad():
                a.copy_(torch.eye(64, 128))
            a.requires_grad_(False)
            policy = Policy(adapter)
            parameters = [module.lora_B["default"].weight]
        else:
            layer.weight.requires_grad_(True)
            layer.weight.register_hook(lambda g: torch.cat([g[:, :64], torch.zeros_like(g[:, 64:])], 1))
            policy, parameters = Policy(model), [layer.weight]
        optimizer = torch.optim.SGD(parameters, lr=0.5)
        train_with(policy, optimizer, str(tmp_path / str(rank)))
        if rank:
            layer = policy.model.merge_and_unload().get_submodule(name)
        finals.append(layer.weight.detach().clone())
    start = tiny_model("qwen3").get_submodule(name).weight
    assert (finals[0] - start).abs().max() > 1e-3
    assert torch.allclose(finals[0], finals[1], atol=1e-6)


def train_with(policy: Policy, optimizer: torch.optim.Optimizer, folder: str) -> None:
    from alignment.accelerator import make_accelerator
    from alignment.algorithms.sft import Sft
    from alignment.config import TrainConfig
    from alignment.trainer import Trainer

    config = TrainConfig(output_dir=folder, learning_rate=0.5)
    accelerator = make_accelerator(config)
    Trainer(accelerator, policy, tiny_tokenizer(), Sft(rows(), 5, seed=1), config, 4, optimizer=optimizer).train()


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_train_on_a_quantised_base(base, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    load = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8, "bnb_4bit_quant_type": "nf4"}
    policy = adapted(base, **load)
    frozen = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    assert any(p.dtype in (torch.uint8, torch.int8) for p in frozen.values())
    policy = train(str(tmp_path / "run"), 8, policy=policy, lr_schedule="constant", learning_rate=2e-2)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl", "train")]
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in policy.named_parameters() if n in frozen)
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()


def test_gradients_pass_through_a_quantised_base_that_has_been_scored_with(base):
    pytest.importorskip("bitsandbytes")
    found = []
    for scored_before in (False, True):
        policy = adapted(base, load_in_4bit=True, lora_dropout=0.0)
        if scored_before:
            logits(policy.model)
        policy.train()
        policy.model(input_ids=torch.arange(5, 45)[None]).logits.float().logsumexp(-1).sum().backward()
        found.append({n: p.grad for n, p in policy.named_parameters() if p.requires_grad})
    assert any(bool(g.any()) for g in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_quantised_weights_are_not_cut(base):
    from alignment.sharding.fsdp import refuse_quantised

    pytest.importorskip("bitsandbytes")
    with pytest.raises(UserError, match="zero2"):
        refuse_quantised(adapted(base, load_in_4bit=True), "FSDP2")


# --- every recipe -----------------------------------------------------------------------------------------------------


def recipe_arguments(name: str, data: Path, folder: Path) -> list[str]:  # noqa: F811
    pairs = [
        {"prompt": [{"role": "user", "content": f"{i} + 1?"}], "chosen": [{"role": "assistant", "content": f"{i + 1}"}],
         "rejected": [{"role": "assistant", "content": "no"}]} for i in range(8)
    ]  # fmt: skip
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    prompts = ["--dataset", data / "prompts.jsonl", "--max_tokens", 6]
    episode = [*prompts, "--rewards", "verifier:math", "--prompts_per_step", 4, "--group_size", 2]
    own = {
        "sft": ["--dataset", data / "sft.jsonl", "--batch_size", 4],
        "reward_model": ["--dataset", data / "pairs.jsonl", "--batch_size", 4],
        "dpo": ["--dataset", data / "pairs.jsonl", "--batch_size", 4, "--reference", "on_the_fly"],
        "ppo": [*episode, "--value_warmup_steps", 1],
        "grpo": [*episode, "--curriculum", "random", "--beta", 0.1],
        "distill": [*prompts, "--batch_size", 4, "--teachers", data / "base", "--teacher_dtype", "float32"],
    }
    lora = ["--use_peft", "true", "--lora_r", 4, "--lora_target_modules", "all-linear"]
    common = ["--model_name_or_path", data / "base", "--dtype", "float32", "--output_dir", folder, "--max_steps", 2]
    return [str(a) for a in (*own[name], *lora, *common, "--learning_rate", "1e-3")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "ppo", "grpo", "distill"])
def test_every_recipe_trains_adapters(data, tmp_path, name):  # noqa: F811
    arguments = recipe_arguments(name, data, tmp_path)
    importlib.import_module(f"recipes.{name}").main(arguments)
    lines = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert [line["step"] for line in lines] == [1, 2]
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model" / "model.safetensors").exists()
    if name == "ppo":
        assert (tmp_path / "value" / "adapter_model.safetensors").is_file()
    if name == "grpo":
        assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert align(["merge", str(tmp_path / "model"), "--output", str(tmp_path / "merged")]) == 0
    importlib.import_module(f"recipes.{name}").main(arguments)  # goes on after the last step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "ppo", "grpo", "distill"])
def test_every_recipe_trains_adapters_on_a_quantised_base(data, tmp_path, name):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    arguments = [*recipe_arguments(name, data, tmp_path), "--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4"]
    if name == "ppo":  # a quantised policy has no copy that can be trained
        arguments += ["--value_model", str(data / "base")]
    importlib.import_module(f"recipes.{name}").main(arguments)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", "train")] == [1, 2]
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()

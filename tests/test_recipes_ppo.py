"""The PPO recipes as a user starts them, from their YAML with a tiny model."""

import json

import pytest
from trl import ModelConfig

from alignment.errors import UserError
from alignment.metrics import read_metrics
from alignment.models import ScalarModel
from alignment.models.load import load_policy
from recipes import ppo
from recipes.ppo import PpoRecipe, load_value
from tests.test_load_scalar import save
from tests.test_recipes import ROOT, data, recipe  # noqa: F401  data is a fixture
from tests.test_recipes_dpo import base_of
from tests.tiny import tiny_model, tiny_tokenizer


def test_a_value_model_of_another_tokenizer_is_refused_with_the_first_token_that_differs(tmp_path):
    policy, tokenizer = load_policy(ModelConfig(model_name_or_path=save(tiny_model("qwen3"), tmp_path / "policy")))
    path = save(tiny_model("qwen3", num_labels=1), tmp_path / "value")
    settings = PpoRecipe(value_model=path), ModelConfig(), policy
    assert isinstance(load_value(*settings, tokenizer), ScalarModel)
    other = json.loads((tmp_path / "value" / "tokenizer.json").read_text())
    added = next(token for token in other["added_tokens"] if token["content"] == "<think>")
    added["content"] = "<thought>"
    (tmp_path / "value" / "tokenizer.json").write_text(json.dumps(other))
    (tmp_path / "value" / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"value_model: .* '<think>' for the policy, '<thought>' for the value model"):
        load_value(*settings, tokenizer)


def test_a_named_value_model_is_not_looked_up_at_the_policys_revision(monkeypatch):
    asked = []

    def load(config, at):
        asked.append((config.model_name_or_path, config.model_revision, at))
        return None, tiny_tokenizer()

    monkeypatch.setattr(ppo, "load_scalar", load)
    model = ModelConfig(model_name_or_path="policy", model_revision="v2")
    load_value(PpoRecipe(value_model="rewards"), model, None, tiny_tokenizer())
    assert asked == [("rewards", "main", "state")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [("qwen1", {"value_model": "policy"}), ("qwen1.5", {"value_model": "head", "old_logprobs": "recompute"})],
)
def test_two_steps_from_yaml(data, tmp_path, family, settings):  # noqa: F811
    """The second on a mixture of experts."""
    texts = [json.loads(line)["messages"][-1]["content"] for line in (data / "sft.jsonl").read_text().splitlines()]
    (data / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["--config", ROOT / "recipes" / family / "ppo.yaml", "--model_name_or_path", base_of(family, data)]
    arguments += ["--dataset", data / "prompts.jsonl", "--rewards", "verifier:math", "--output_dir", tmp_path]
    arguments += ["--eval_dataset", data / "heldout.jsonl", *(f"--{key}={value}" for key, value in settings.items())]
    arguments += ["--prompts_per_step", 4, "--max_tokens", 8, "--value_warmup_steps", 1, "--max_steps", 2]
    arguments += ["--bf16", "false", "--gradient_checkpointing", "false", "--dtype", "float32"]
    if family == "qwen1":
        arguments += ["--ptx_dataset", data / "text.jsonl"]
    recipe("ppo", *arguments)
    warm_up, step = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert warm_up["grad_norm"] == 0 < warm_up["grad_norm/value"]
    assert step["ratio/mean"] == pytest.approx(1, abs=1e-4)
    assert ("ptx_loss" in step) == (family == "qwen1") == ("router_aux_loss" not in step)
    needed = {"explained_variance", "value_loss", "value_clip_fraction", "clip_fraction/low", "clip_fraction/high"}
    assert step.keys() >= needed | {"kl", "entropy", "reward", "completion_length/mean"}
    assert (tmp_path / "model" / "config.json").is_file() and (tmp_path / "value" / "config.json").is_file()
    assert "pass_rate" in read_metrics(tmp_path / "metrics.jsonl", "eval")[-1]
    assert "going on after step 2" in recipe("ppo", *arguments).stdout

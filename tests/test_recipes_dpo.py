"""The recipes around DPO as a user starts them, from their YAML with tiny models and real files."""

import itertools
import json
import math

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignment.data.load import load_rows
from alignment.errors import UserError
from alignment.metrics import read_json_lines, read_metrics
from recipes import dpo
from tests.test_recipes import ROOT, data, recipe  # noqa: F401  data is a fixture
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_recipes import arguments, settings, write_material

SMALL = ["--bf16", "false", "--gradient_checkpointing", "false", "--max_steps", 2, "--warmup_steps", 0]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(data):  # noqa: F811
    """Worked solutions, chosen over those of other problems."""
    solved = [row["messages"] for row in load_rows(str(data / "sft.jsonl"))]
    rows = [
        {"prompt": right[:-1], "chosen": right[-1:], "rejected": wrong[-1:]}
        for right, wrong in itertools.pairwise(solved)
    ]
    return write_rows(data / "pairs.jsonl", rows)


def base_of(family, data):  # noqa: F811
    """A mixture of experts for the recipe of one, the quickstart's model for others."""
    if family != "qwen1.5":
        return data / "base"
    tiny_model("qwen2_moe").save_pretrained(data / "moe")
    tiny_tokenizer().save_pretrained(data / "moe")
    return data / "moe"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen1.5", "qwen2", "qwen2.5"])
def test_two_offline_steps_from_yaml(data, pairs, tmp_path, family):  # noqa: F811
    base = base_of(family, data)
    arguments = ["--config", ROOT / "recipes" / family / "dpo.yaml", "--model_name_or_path", base, *SMALL]
    arguments += ["--dataset", pairs, "--dataset_split", "train", "--eval_dataset", pairs, "--eval_split", "train"]
    arguments += ["--batch_size", 8, "--learning_rate", "1e-3", "--max_rows", 24, "--output_dir", tmp_path]
    if family != "qwen1.5":
        arguments += ["--merge_base_model", base]
    out = recipe("dpo", *arguments).stdout
    assert "24 of 24 rows" in out
    assert "reference log-probabilities: 24/24 pairs" in out
    first, second = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert second["rewards/margins"] != 0
    assert ("router_aux_loss" in first) == (family == "qwen1.5")
    assert read_metrics(tmp_path / "metrics.jsonl", "eval")[-1].keys() >= {"loss", "rewards/accuracies"}
    assert (tmp_path / "best" / "config.json").is_file()
    again = recipe("dpo", *arguments).stdout
    assert "going on after step 2" in again
    assert "reference log-probabilities" not in again  # read from the file


@pytest.mark.slow
def test_lora_with_the_reference_on_the_fly(data, pairs, tmp_path):  # noqa: F811
    arguments = ["--model_name_or_path", data / "base", "--dataset", pairs, "--eval_dataset", pairs, *SMALL]
    arguments += ["--use_peft", "--lora_r", 4, "--reference", "on_the_fly", "--loss", "cdpo", "--label_smoothing", 0.1]
    arguments += ["--batch_size", 8, "--learning_rate", "1e-2", "--output_dir", tmp_path]
    recipe("dpo", *arguments)
    first, second = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert first["rewards/margins"] == 0
    assert second["rewards/margins"] != 0
    assert not (tmp_path / "reference_logprobs.jsonl").exists()
    assert (tmp_path / "model" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_a_reference_file_of_another_model_is_refused(data, pairs, tmp_path):  # noqa: F811
    tiny_model().save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(data / "base").save_pretrained(tmp_path / "other")
    common = ["--dataset", pairs, *SMALL, "--batch_size", 8, "--reference_file", tmp_path / "reference.jsonl"]
    recipe("dpo", "--model_name_or_path", data / "base", "--output_dir", tmp_path / "a", *common)
    told = recipe("dpo", "--model_name_or_path", tmp_path / "other", "--output_dir", tmp_path / "b", *common, code=2)
    assert told.stderr.strip().startswith("error: ")
    assert "was made with another reference" in told.stderr
    assert "Traceback" not in told.stderr


def test_adapters_that_the_reference_has_count_in_its_file_and_new_ones_do_not(tmp_path):
    material = write_material(tmp_path / "material")
    tiny_tokenizer().save_pretrained(material / "adapter")
    file = tmp_path / "reference.jsonl"

    def run(output, model, *more):
        given = settings("dpo", material, tmp_path / output) | {"max_steps": 1, "reference_file": str(file)}
        dpo.main([*arguments(given | {"model_name_or_path": str(material / model)}), *more])

    run("adapters", "adapter")
    weights = load_file(material / "adapter" / "adapter_model.safetensors")
    trained = {name: weight + 0.1 for name, weight in weights.items()}
    save_file(trained, material / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="was made with another reference"):
        run("others", "adapter")
    file.unlink()
    run("new", "model", "--use_peft", "--lora_target_modules", "all-linear")
    run("more", "model", "--use_peft", "--lora_target_modules", "all-linear", "--seed", "5")


@pytest.mark.slow
def test_two_online_steps_from_yaml_with_a_reward_model(data, tmp_path):  # noqa: F811
    model = AutoModelForSequenceClassification.from_pretrained(data / "base", num_labels=1)
    model.save_pretrained(tmp_path / "rewards")
    AutoTokenizer.from_pretrained(data / "base").save_pretrained(tmp_path / "rewards")
    yaml = ROOT / "recipes" / "qwen2" / "online_dpo.yaml"
    arguments = ["--config", yaml, "--model_name_or_path", data / "base", "--merge_base_model", data / "base", *SMALL]
    arguments += ["--dataset", data / "prompts.jsonl", "--rewards", f"reward_model:{tmp_path / 'rewards'}"]
    arguments += ["--eval_dataset", data / "heldout.jsonl", "--eval_samples", 1, "--max_tokens", 8]
    arguments += ["--prompts_per_step", 4, "--group_size", 3, "--output_dir", tmp_path / "run"]
    recipe("online_dpo", *arguments)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl", "train")
    assert lines[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    for line in lines:
        assert line["pairs"] == 4
        assert line["reward/best"] > line["reward"] > line["reward/worst"]
        assert line["grad_norm"] > 0
    assert "reward" in read_metrics(tmp_path / "run" / "metrics.jsonl", "eval")[-1]
    samples = read_json_lines(tmp_path / "run" / "samples.jsonl")
    assert all(math.isfinite(sample["reward"]) for sample in samples)
    assert "going on after step 2" in recipe("online_dpo", *arguments).stdout


REWARD = '''
def even(prompts, completions, **columns):
    """1 for a text with an even number of letters, 0 for an odd one, None for an empty one."""
    texts = [c[0]["content"] for c in completions]
    return [1.0 - sum(map(str.isalpha, t)) % 2 if t else None for t in texts]
'''


@pytest.mark.slow
def test_generated_pairs_and_accepted_rows_are_trained_on(data, tmp_path):  # noqa: F811
    """recipes/qwen2.5/generate.yaml: responses, pairs, a rerun that goes on, then DPO and SFT on what came out."""
    (tmp_path / "my_rewards.py").write_text(REWARD)
    files = {name: tmp_path / f"{name}.jsonl" for name in ("responses", "pairs", "accepted")}
    base = ["--config", ROOT / "recipes" / "qwen2.5" / "generate.yaml", "--model_name_or_path", data / "base"]
    base += ["--dataset", data / "prompts.jsonl", "--rewards", "my_rewards:even", "--samples", 6]
    base += ["--dtype", "float32"]
    base += ["--max_tokens", 12, "--stop", "a", "e", "o", "--responses", files["responses"]]

    def generate(*arguments, code=0):
        return recipe("generate", *base, "--pairs", files["pairs"], *arguments, code=code, cwd=tmp_path)

    out = generate("--per_prompt", 3).stdout
    assert "prompts 12, responses 72" in out
    rows = read_json_lines(files["pairs"])
    assert f"{len(rows)} pairs in" in out
    assert len(rows) >= 12
    assert all(row["chosen_score"] == 1 and row["rejected_score"] == 0 for row in rows)

    whole = files["responses"].read_text()
    lines = whole.splitlines(keepends=True)
    files["responses"].write_text("".join(lines[:27]) + lines[27][:40])  # a kill in the middle of the fifth prompt
    again = generate("--per_prompt", 3, "--accepted", files["accepted"])
    assert "holds 4 of 12 prompts" in again.stdout
    assert sorted(files["responses"].read_text().splitlines()) == sorted(whole.splitlines())
    assert read_json_lines(files["pairs"]) == rows
    told = generate("--temperature", 0.5, code=2).stderr
    assert "was made with temperature 1.0, this run has 0.5" in told
    told = generate("--pass_score", 2, code=2).stderr
    assert "pairs: " in told
    assert "would be empty" in told

    run = ["--model_name_or_path", data / "base", *SMALL, "--batch_size", 4]
    recipe("dpo", *run, "--dataset", files["pairs"], "--output_dir", tmp_path / "dpo")
    recipe("sft", *run, "--dataset", files["accepted"], "--output_dir", tmp_path / "sft")
    assert len(read_metrics(tmp_path / "dpo" / "metrics.jsonl", "train")) == 2
    assert len(read_metrics(tmp_path / "sft" / "metrics.jsonl", "train")) == 2

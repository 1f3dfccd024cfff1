"""The stages that `make quickstart FULL=1` adds: pairs by rejection sampling, reward model, DPO, PPO."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

import recipes.dpo
import recipes.generate
import recipes.ppo
import recipes.reward_model
from alignment.data.load import write_rows

HERE = Path(__file__).parent
SAMPLES, HELDOUT_SHARE = 8, 0.1


def make_pairs(folder: Path, seed: int) -> None:
    """Samples of the SFT model to the training prompts, as pairs of one that passes and one that fails; a tenth of the
    prompts with pairs is held out."""
    made = folder / "pairs"
    made.mkdir(exist_ok=True)
    arguments = ["--model_name_or_path", str(folder / "sft" / "model")]
    arguments += ["--dataset", str(folder / "data" / "grpo.jsonl")]
    arguments += ["--samples", str(SAMPLES), "--per_prompt", "3", "--max_tokens", "96"]
    arguments += ["--responses", str(made / "responses.jsonl"), "--pairs", str(made / "all.jsonl")]
    recipes.generate.main([*arguments, "--seed", str(seed), "--max_rows_in_flight", "256"])
    rows = [json.loads(line) for line in (made / "all.jsonl").read_text().splitlines()]
    ids = sorted({row["prompt_id"] for row in rows})
    heldout = set(ids[:: round(1 / HELDOUT_SHARE)])
    for name, part in (
        ("train", [row for row in rows if row["prompt_id"] not in heldout]),
        ("heldout", [row for row in rows if row["prompt_id"] in heldout]),
    ):
        write_rows(made / f"{name}.jsonl", part)


def train_reward_model(folder: Path, seed: int) -> None:
    """The backbone is the SFT model's."""
    paths = ["--model_name_or_path", str(folder / "sft" / "model"), "--output_dir", str(folder / "reward_model")]
    recipes.reward_model.main(
        ["--config", str(HERE / "reward_model.yaml"), *paths, *_pairs(folder), "--seed", str(seed)]
    )


def train_dpo(folder: Path, seed: int) -> None:
    arguments = ["--config", str(HERE / "dpo.yaml"), "--output_dir", str(folder / "dpo")]
    arguments += ["--model_name_or_path", str(folder / "sft" / "model"), *_pairs(folder), "--seed", str(seed)]
    recipes.dpo.main(arguments)


def train_ppo(folder: Path, seed: int) -> None:
    """Policy and reference are the DPO model, the value's start is the reward model."""
    reward_model = str(folder / "reward_model" / "model")
    judged = {"name": "qwen_math", "model_reward": f"reward_model:{reward_model}", "verifier_reward": "verifier:math"}
    settings = yaml.safe_load((HERE / "ppo.yaml").read_text()) | {"rewards": [judged], "value_model": reward_model}
    config = folder / "ppo.yaml"  # with this run's paths; the command line cannot write a reward's parameters
    config.write_text(yaml.safe_dump(settings))
    paths = ["--model_name_or_path", str(folder / "dpo" / "model"), "--output_dir", str(folder / "ppo")]
    paths += ["--dataset", str(folder / "data" / "grpo.jsonl")]
    recipes.ppo.main(["--config", str(config), *paths, "--seed", str(seed)])


def _pairs(folder: Path) -> list[str]:
    made = folder / "pairs"
    return ["--dataset", str(made / "train.jsonl"), "--eval_dataset", str(made / "heldout.jsonl")]

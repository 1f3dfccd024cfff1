"""The last stages of the quickstart: a smaller student learns from the GRPO model.

The student is the teacher without one of its layers. It is trained twice from there, for as many steps: by SFT on the
demonstrations that the teacher began with, and by distillation, off-policy on the teacher's right responses and then
on-policy on its own. home: where the students are; data: the rows of the quickstart.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import recipes.distill
import recipes.generate
import recipes.sft

HERE = Path(__file__).parent
SAMPLES = 2
LAYERS = (0, 1, 3)  # of the teacher's four


def write_student(teacher: Path, path: Path) -> None:
    """The teacher's LAYERS and embeddings, as a transformers checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in LAYERS])
    model.config.num_hidden_layers = len(LAYERS)
    model.config.layer_types = [model.config.layer_types[i] for i in LAYERS]
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(path)


def train_sft(home: Path, data: Path, seed: int) -> None:
    """On demonstrations only: what distillation is compared with."""
    paths = ["--model_name_or_path", str(home / "student"), "--dataset", str(data / "sft.jsonl")]
    paths += ["--output_dir", str(home / "student_sft")]
    recipes.sft.main(["--config", str(HERE / "student_sft.yaml"), *paths, "--seed", str(seed)])


def train_off_policy(home: Path, data: Path, teacher: Path, seed: int) -> None:
    """On the teacher's responses that pass."""
    made = home / "student_off_policy"
    arguments = ["--model_name_or_path", str(teacher), "--dataset", str(data / "grpo.jsonl")]
    arguments += ["--samples", str(SAMPLES), "--per_prompt", str(SAMPLES), "--max_tokens", "96"]
    arguments += ["--responses", str(made / "responses.jsonl"), "--accepted", str(made / "accepted.jsonl")]
    recipes.generate.main([*arguments, "--seed", str(seed), "--max_rows_in_flight", "256"])
    paths = ["--model_name_or_path", str(home / "student"), "--teachers", str(teacher)]
    paths += ["--off_policy_dataset", str(made / "accepted.jsonl"), "--output_dir", str(made)]
    recipes.distill.main(["--config", str(HERE / "distill_off_policy.yaml"), *paths, "--seed", str(seed)])


def train_on_policy(home: Path, data: Path, teacher: Path, seed: int) -> None:
    """On the student's own samples, with the teacher's distribution at their tokens."""
    paths = ["--model_name_or_path", str(home / "student_off_policy" / "model"), "--teachers", str(teacher)]
    paths += ["--dataset", str(data / "grpo.jsonl"), "--output_dir", str(home / "student_on_policy")]
    recipes.distill.main(["--config", str(HERE / "distill_on_policy.yaml"), *paths, "--seed", str(seed)])

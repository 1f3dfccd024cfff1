"""The quickstart's student: a teacher without one of its layers, and the stages that train it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import recipes.distill
import recipes.sft
from recipes.quickstart import student
from recipes.quickstart.model import write_base_model
from recipes.quickstart.run import headline
from recipes.quickstart.task import make_problems, prompt_rows
from recipes.quickstart.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows and a teacher with random weights, as the stages before would leave them."""
    folder = tmp_path_factory.mktemp("quickstart")
    rows = make_problems(40, seed=0, levels=(1, 2))
    (folder / "data").mkdir()
    for name, part in (("sft", rows), ("grpo", prompt_rows(rows))):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    texts = (message["content"] for row in rows for message in row["messages"])
    write_base_model(folder / "teacher", build_tokenizer(texts, 400), "quickstart", 0)
    student.write_student(folder / "teacher", folder / "student")
    return folder


def test_the_student_is_the_teacher_without_a_layer(folder):
    teacher, small = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("teacher", "student"))
    assert small.config.num_hidden_layers == len(small.model.layers) == 3 < len(teacher.model.layers)
    for mine, place in zip(small.model.layers, student.LAYERS, strict=True):
        theirs = teacher.model.layers[place].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.state_dict().items())
    assert torch.equal(small.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "2+3?"}], return_tensors="pt", return_dict=True)
    assert small(**ids).logits.isfinite().all()


@pytest.mark.slow
def test_the_stages_follow_one_another(folder, monkeypatch):
    """Two steps of each; a random teacher has no right response, so one is put in the place of its rows."""
    short = ["--max_steps", "2", "--batch_size", "4"]
    for module in (recipes.sft, recipes.distill):
        whole = module.main
        monkeypatch.setattr(module, "main", lambda arguments, whole=whole: whole([*arguments, *short]))
    rows = [json.loads(line) for line in (folder / "data" / "sft.jsonl").read_text().splitlines()]

    def generate(arguments):
        path = arguments[arguments.index("--accepted") + 1]
        with open(path, "w") as file:
            file.writelines(json.dumps({"messages": row["messages"]}) + "\n" for row in rows)

    monkeypatch.setattr(student.recipes.generate, "main", generate)
    (folder / "student_off_policy").mkdir()
    student.train_sft(folder, folder / "data", 0)
    student.train_off_policy(folder, folder / "data", folder / "teacher", 0)
    student.train_on_policy(folder, folder / "data", folder / "teacher", 0)
    for name in ("student_sft", "student_off_policy", "student_on_policy"):
        assert AutoModelForCausalLM.from_pretrained(folder / name / "model").config.num_hidden_layers == 3


def test_the_headline_names_grpo_and_both_students():
    rates = {"base": 0.0, "GRPO": 0.41, "Student SFT": 0.2, "Off-policy": 0.3, "On-policy": 0.35}
    found = headline([{"name": name, "pass_rate": rate} for name, rate in rates.items()])
    assert found["headline"] == "41.0%"
    assert "35.0% distilled, 20.0% by SFT" in found["headline_label"]

"""The quickstart's data, tokenizer and models: correct solutions, disjoint splits, determinism, round trips."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.quickstart import gsm8k, task
from recipes.quickstart.model import build_model, write_base_model
from recipes.quickstart.tokenizer import build_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
LINE = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@pytest.fixture(scope="module")
def rows():
    return task.make_problems(1800, seed=0)


@pytest.fixture(scope="module")
def tokenizer(rows):
    return build_tokenizer([m["content"] for r in rows for m in r["messages"]], 512)


def thinking(row):
    reply = row["messages"][1]["content"]
    found = re.fullmatch(r"<think>\n(.*)\n</think>\n\nThe answer is \\boxed\{(\d+)\}\.", reply, re.S)
    assert found, reply
    return found[1].split("\n"), found[2]


def steps(row):
    """(a, operator, b, value) of each line."""
    found = [m for line in thinking(row)[0] if (m := LINE.fullmatch(line))]
    assert len(found) == len(thinking(row)[0]), row
    return [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in found]


def test_every_step_of_every_solution_is_right(rows):
    for row in rows:
        for a, op, b, value in steps(row):
            assert APPLY[op](a, b) == value, row
        assert str(steps(row)[-1][3]) == thinking(row)[1] == row["answer"]


def test_every_operand_of_a_step_comes_from_the_question_or_an_earlier_step(rows):
    for row in rows:
        known = {int(x) for x in re.findall(r"\d+", row["expression"])}
        for a, _, b, value in steps(row):
            parts = known | {part for x in known for part in (x - x % 10, x % 10)}
            # A remainder's quotient is the one number that is found rather than read off.
            assert b in parts and (a in parts or "%" in row["expression"]), row
            known.add(value)


def test_answer_equals_python_evaluation_of_the_expression(rows):
    for row in rows:
        assert re.fullmatch(r"[\d+*%()-]+", row["expression"])
        assert str(eval(row["expression"])) == row["answer"]


def test_questions_ask_for_the_expression(rows):
    for row in rows:
        if row["domain"] != "story":
            assert row["question"] == f"Compute {row['expression'].replace('%', ' mod ')}."
        else:
            # Every number of a story is a number of its calculation.
            assert sorted(re.findall(r"\d+", row["question"])) == sorted(re.findall(r"\d+", row["expression"]))


def test_numbers_stay_in_range_and_levels_are_balanced(rows):
    for row in rows:
        numbers = re.findall(r"\d+", " ".join([row["expression"], *thinking(row)[0]]))
        assert max(map(int, numbers)) <= task.LARGEST
    assert {level: sum(r["level"] == level for r in rows) for level in task.LEVELS} == dict.fromkeys(task.LEVELS, 300)


def test_solutions_grow_with_the_level(rows):
    means = []
    for level in task.LEVELS:
        lengths = [len(thinking(r)[0]) for r in rows if r["level"] == level]
        means.append(sum(lengths) / len(lengths))
    assert means[0] == 1 and means[1] == means[2] == 2
    assert means[3] > 3 and means[3] < max(means[4:])


@pytest.mark.parametrize(
    ("expr", "lines", "value"),
    [
        (("-", 12, 5), ["12-5=7"], 7),
        (("+", 4, ("*", 3, 6)), ["3*6=18", "4+18=22"], 22),
        (("*", 14, 6), ["10*6=60", "4*6=24", "60+24=84"], 84),
        (("*", 6, 14), ["10*6=60", "4*6=24", "60+24=84"], 84),
        (("*", 20, 6), ["20*6=120"], 120),
        (("%", 47, 6), ["7*6=42", "47-42=5"], 5),
        (("*", ("-", 9, 4), ("+", 1, 1)), ["9-4=5", "1+1=2", "5*2=10"], 10),
    ],
)
def test_solve_matches_hand_worked_chains(expr, lines, value):
    assert task.solve(expr) == (value, lines)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (("-", ("-", 9, 4), 2), "9-4-2"),
        (("-", 9, ("-", 4, 2)), "9-(4-2)"),
        (("*", ("+", 1, 2), 3), "(1+2)*3"),
        (("+", 1, ("*", 2, 3)), "1+2*3"),
        (("*", ("%", 7, 4), 3), "(7%4)*3"),
        (("%", ("*", 7, 4), 3), "(7*4)%3"),
    ],
)
def test_render_brackets_exactly_where_needed(expr, text):
    assert task.render(expr) == text


def test_canonical_form_ignores_the_order_of_sums_and_products_only():
    assert task.canonical(("+", 3, ("*", 4, 5))) == task.canonical(("+", ("*", 5, 4), 3))
    assert task.canonical(("-", 3, 4)) != task.canonical(("-", 4, 3))
    assert task.canonical(("+", ("+", 1, 2), 3)) != task.canonical(("+", 1, ("*", 2, 3)))


def test_heldout_and_training_problems_are_disjoint(rows):
    heldout = task.make_problems(600, seed=0, split="heldout")
    assert not {r["id"] for r in rows} & {r["id"] for r in heldout}
    # Not by luck of the draw: the reordered problem falls into the same split.
    for expr in [("+", a, b) for a in range(2, 40) for b in range(2, 40)]:
        assert task.split_of(expr) == task.split_of((expr[0], expr[2], expr[1]))
    share = sum(task.split_of(("+", a, ("*", b, 7))) == "heldout" for a in range(100) for b in range(100)) / 10_000
    assert 0.08 < share < 0.12


def test_problems_are_deterministic_by_seed_and_unique(rows):
    assert task.make_problems(1800, seed=0) == rows
    assert task.make_problems(1800, seed=1) != rows
    assert len({r["id"] for r in rows}) == len(rows)


def test_terse_solutions_state_the_whole_calculation_and_change_nothing_else(rows):
    mixed = task.make_problems(1800, seed=0, terse_share=0.5)
    assert [r["question"] for r in mixed] == [r["question"] for r in rows]
    terse = [r for r in mixed if r["style"] == "terse"]
    assert 800 < len(terse) < 1000
    for row in terse:
        lines, boxed = thinking(row)
        assert len(lines) == 1 and lines[0].split("=")[1] == boxed == row["answer"]
        assert lines[0].split("=")[0].replace(" mod ", "%") == row["expression"]
    assert [r["messages"] for r in mixed if r["style"] == "worked"] == [
        r["messages"] for r, m in zip(rows, mixed, strict=True) if m["style"] == "worked"
    ]


def test_excluded_problems_do_not_appear():
    first = task.make_problems(300, seed=0, levels=[1])
    again = task.make_problems(300, seed=0, levels=[1], exclude={r["id"] for r in first})
    assert len(again) == 300 and not {r["id"] for r in first} & {r["id"] for r in again}


def test_impossible_requests_say_why():
    with pytest.raises(ValueError, match="level 1 has no unused heldout problem"):
        task.make_problems(5000, seed=0, levels=[1], split="heldout")
    with pytest.raises(ValueError, match="levels"):
        task.make_problems(5, seed=0, levels=[7])
    with pytest.raises(ValueError, match="levels"):
        task.make_problems(5, seed=0, levels=[])


def test_prompt_rows_hide_the_solution(rows):
    row = task.prompt_rows(rows[:1])[0]
    assert row["prompt"] == [{"role": "user", "content": rows[0]["question"]}]
    assert "messages" not in row and "style" not in row and row["answer"] == rows[0]["answer"]


# --- tokenizer and model ----------------------------------------------------------------------------------------------


def test_tokenizer_splits_digits_and_operators_and_keeps_thinking_marks(tokenizer):
    assert len(tokenizer) <= 512
    assert tokenizer.tokenize("12+345=(6*7)") == list("12+345=(6*7)")
    text = "<think>\n1+2=3\n</think>\n\nThe answer is \\boxed{3}. é€ 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.convert_tokens_to_ids("<think>")
    assert tokenizer.decode(tokenizer("<|im_start|>a<|im_end|>")["input_ids"], skip_special_tokens=True) == "a"
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_tokenizer_is_deterministic(rows, tokenizer):
    again = build_tokenizer([m["content"] for r in rows for m in r["messages"]], 512)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_tokenizer_refuses_a_vocabulary_without_room_for_bytes():
    with pytest.raises(ValueError, match="vocab_size"):
        build_tokenizer(["a"], 100)


def test_chat_template_marks_exactly_the_assistant_turn(rows, tokenizer):
    messages = rows[0]["messages"]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    trained = [t for t, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(trained).rstrip("\n") == messages[1]["content"] + "<|im_end|>"
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert out["input_ids"][: len(prompt)] == prompt


def test_model_is_deterministic_by_seed_and_leaves_the_random_state_alone(tokenizer):
    before = torch.get_rng_state()
    first, second, other = (build_model(tokenizer, "quickstart", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(ValueError, match="size"):
        build_model(tokenizer, "huge", 0)  # type: ignore[arg-type]


def test_base_model_round_trips_through_the_ordinary_loading_code(tmp_path, tokenizer):
    path = write_base_model(tmp_path / "base", tokenizer, "quickstart", seed=3)
    model, loaded = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    made = build_model(tokenizer, "quickstart", 3)
    assert model.config.model_type == "qwen3" and model.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), made.parameters(), strict=True))
    assert 0.5e6 < model.num_parameters() < 3e6
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded("<think>\n12+3=15\n</think>")["input_ids"] == tokenizer("<think>\n12+3=15\n</think>")["input_ids"]
    assert model.generation_config.eos_token_id == loaded.eos_token_id


# --- GSM8K ------------------------------------------------------------------------------------------------------------


def gsm8k_rows(n):
    return [
        {
            "question": f"Ann has {i} boxes of 1,200 pens. How many pens?",
            "answer": f"She has {i}*1,200=<<{i}*1200={i * 1200}>>{i * 1200:,} pens.\n#### {i * 1200:,}",
        }
        for i in range(1, n + 1)
    ]


def test_gsm8k_row_loses_calculator_marks_and_gains_a_box():
    row = gsm8k.sft_row(gsm8k_rows(3)[2])
    assert row["answer"] == "3600"
    assert row["messages"][1]["content"] == (
        "<think>\nShe has 3*1,200=3,600 pens.\n</think>\n\nThe answer is \\boxed{3600}."
    )
    assert gsm8k.grpo_row(gsm8k_rows(3)[2])["prompt"] == row["messages"][:1]


@pytest.mark.parametrize(("tail", "number"), [("#### -5", "-5"), ("#### 0.5", "0.5"), ("#### 1,234,567 ", "1234567")])
def test_gsm8k_final_numbers(tail, number):
    assert gsm8k.split_answer({"question": "q", "answer": f"So.\n{tail}"}) == ("So.", number)


def test_gsm8k_bad_rows_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(gsm8k_rows(1)[0]) + "\n" + json.dumps({"question": "q", "answer": "no number"}) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: .*####"):
        gsm8k.read_rows(path)
    path.write_text(json.dumps({"prompt": "q"}) + "\n")
    with pytest.raises(ValueError, match=r"line 1: column 'question'"):
        gsm8k.read_rows(path)


def test_gsm8k_split_depends_on_the_question_alone():
    rows = gsm8k_rows(400)
    sets, backwards = gsm8k.convert(rows), gsm8k.convert(rows[::-1])
    for name in ("sft_heldout", "grpo_heldout"):
        assert {r["id"] for r in sets[name]} == {r["id"] for r in backwards[name]}
    assert not {r["id"] for r in sets["sft_train"]} & {r["id"] for r in sets["sft_heldout"]}
    assert {r["id"] for r in sets["sft_heldout"]} == {r["id"] for r in sets["grpo_heldout"]}
    assert gsm8k.is_heldout("How many  PENS?") == gsm8k.is_heldout("how many pens?")
    assert 5 < len(sets["sft_heldout"]) < 40


def test_gsm8k_prepare_writes_rows_tokenizer_and_checkpoint(tmp_path):
    source = tmp_path / "rows.jsonl.gz"
    with gzip.open(source, "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in gsm8k_rows(200))
    sizes = gsm8k.prepare(source, tmp_path / "out", vocab_size=320)
    for name in ("sft_train", "sft_heldout", "grpo_train", "grpo_heldout"):
        assert len((tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()) == sizes[name] > 0
    assert sizes["sft_train"] + sizes["sft_heldout"] == 200
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base")
    assert (
        model.config.vocab_size == sizes["vocabulary"] == len(AutoTokenizer.from_pretrained(tmp_path / "out" / "base"))
    )


# --- the packages' names ----------------------------------------------------------------------------------------------


def import_recipes(first_on_path):
    code = f"import sys; sys.path[:0] = {[str(p) for p in first_on_path]!r}; import recipes; print(sorted(sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.parametrize("name", ["alignment", "rewards", "verifiers"])
def test_a_foreign_package_of_the_same_name_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('the foreign package was imported')")
    done = import_recipes([tmp_path, REPOSITORY])
    assert done.returncode == 1 and "ImportError" in done.stderr
    assert str(tmp_path / name) in done.stderr and str(REPOSITORY / name) in done.stderr and "Remedy" in done.stderr


def test_own_packages_are_accepted_and_not_imported():
    done = import_recipes([REPOSITORY])
    assert done.returncode == 0, done.stderr
    assert "'alignment'" not in done.stdout and "'verifiers'" not in done.stdout

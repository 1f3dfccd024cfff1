"""The filters of the cold start and of the queries for reasoning RL, and the recipes around them."""

import json
import math

import pytest

from alignment.data.funnel import Funnel, FunnelReport, share_out
from alignment.data.load import load_rows
from alignment.errors import UserError
from recipes import cold_start, select_queries
from recipes import cold_start_filters as f
from recipes.decontaminate import ValidationTexts
from rewards.routed_verifier import find_verifier

ROW = {"question": "What is 12 + 30?", "answer": "42"}
GOOD = (
    "<think>\nFirst 12 + 30.\nThat is 10 + 30 = 40 and 2 more, so 40 + 2 = 42\n</think>\n\nThe answer is \\boxed{42}."
)

# --- filters ----------------------------------------------------------------------------------------------------------


def test_queries_whose_gold_answer_does_not_pass_are_not_verifiable():
    assert f.not_verifiable(ROW, "math") == ""
    assert "needs the column 'answer'" in f.not_verifiable({"question": "Write a poem."}, "math")
    assert "needs the column 'answer'" in f.not_verifiable({"question": "Write a poem.", "answer": None}, "math")
    assert f.not_verifiable({**ROW, "answer": ""}, "math")
    assert f.not_verifiable({**ROW, "answer": "A", "choices": ["x"]}, "choice") == ""
    assert "its own answer: error" in f.not_verifiable({**ROW, "answer": "D", "choices": ["x"]}, "choice")


def test_a_query_without_a_gold_answer_is_verifiable_when_its_verifier_can_judge_it(tmp_path):
    for columns in (
        {"tests": ["assert add(1, 2) == 3"]},
        {"entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]},
        {"stdio": [{"stdin": "1 2", "stdout": "3"}], "answer": None},
    ):
        assert f.not_verifiable({"question": "Add.", **columns}, "code") == ""
    assert "exactly one of" in f.not_verifiable({"question": "Add."}, "code")
    # a format that the empty response breaks does not hide that `math` has nothing to compare with
    assert "needs the column 'answer'" in f.not_verifiable({"verifiers": ["format", "math"]}, "all_of")
    (tmp_path / "rewards.yaml").write_text(
        "tasks:\n  code: verifier:code\n  sums: {name: verifier:all_of, verifiers: [math, format]}\n"
    )
    routing = f"routing:{tmp_path / 'rewards.yaml'}"
    find_verifier(routing)
    assert f.not_verifiable({"task": "code", "tests": ["assert add(1, 2) == 3"]}, routing) == ""
    assert "needs the column 'answer'" in f.not_verifiable({"task": "sums"}, routing)
    assert f.not_verifiable({"task": "sums", "answer": "42"}, routing) == ""


def test_a_thinking_block_that_the_prompt_opened_does_not_swallow_the_gold_answer():
    assert f.not_verifiable({**ROW, "think_opened": True}, "math") == ""
    assert f.not_verifiable({**ROW, "think_opened": True, "verifiers": ["math", "format"]}, "all_of") == ""


@pytest.mark.parametrize(
    ("question", "several"),
    [
        ("What is 12 + 30?", False),
        ("Ann has 3 pens, Ben 4. How many in all?", False),
        ("Find x. What is y? And z?", True),
        ("Let f(x) = x^2. (a) Find f(1). (b) Find f(2).", True),
        ("Answer both:\n1. What is 2 + 2\n2. What is 3 + 3", True),
        ("There are 2. Which 1.5 is larger?", False),
        ("Compute (a) + b for a = 1.", False),
        ("一共有多少？", False),
        ("多少？还有呢？", True),
    ],
)
def test_several_questions(question, several):
    assert bool(f.several_questions(question)) == several


def test_solved_without_thinking_counts_scored_answers_only():
    assert f.solved_without_thinking([1.0, 1.0, 0.0, None], 0.5) == "67% of 3 answers without thinking are right"
    assert f.solved_without_thinking([1.0, 0.0, None], 0.5) == ""
    assert f.solved_without_thinking([None], 0.0) == f.solved_without_thinking([], 0.0) == ""


def test_domains():
    assert f.domain_of({"domain": "geometry"}, "x") == "geometry"
    assert f.domain_of({}, "Write a Python function that adds.") == "code"
    assert f.domain_of({}, "Ann has 3 pens. How many are left?") == "math"
    assert f.domain_of({}, "Name a colour.") == "other"


def test_a_good_response_passes_every_filter():
    nothing = ValidationTexts([])
    assert not any(
        [
            f.unfinished("stop"),
            f.wrong_answer(GOOD, ROW, "math"),
            f.heavy_repetition(GOOD, 5, 0.1),
            f.guess_without_reasoning(GOOD, 10),
            f.thinking_disagrees(GOOD, ROW, "math"),
            f.mixes_languages(GOOD, ROW, ROW["question"]),
            f.near_validation(ROW["question"], GOOD, nothing),
        ]
    )


def test_each_filter_finds_its_fault():
    assert f.unfinished("length") == "it ended by 'length'"
    assert f.wrong_answer(GOOD.replace("{42}", "{41}"), ROW, "math").startswith("fail")
    assert f.wrong_answer("<think>\nhm", ROW, "math").startswith("unparsed")
    assert f.heavy_repetition("a b c d e f " * 10, 5, 0.2) == "89% of its 5-word passages repeat an earlier one"
    assert f.guess_without_reasoning("<think>\n42\n</think>\n\n42", 5) == "its thinking has 1 words"
    assert "guess" in f.guess_without_reasoning(GOOD.replace("First", "I will just guess"), 5)
    assert f.mixes_languages(GOOD.replace("more", "更多"), ROW, ROW["question"]).startswith("thinking: ")
    assert f.mixes_languages(GOOD.replace("answer", "答案"), ROW, ROW["question"]).startswith("answer: ")


@pytest.mark.parametrize(
    ("thinking", "disagrees"),
    [
        ("12 + 30 = 42", False),
        ("12 + 30 = 41", True),
        ("So the answer is 41.", True),
        ("The answer is 41? No, 12 + 30 = 42, the answer is 42.", False),
        ("I add the two.", False),  # states nothing
        ("12 + 30 = 42, as asked", False),
        ("\\boxed{40}", True),
    ],
)
def test_thinking_that_ends_with_another_answer_disagrees(thinking, disagrees):
    text = f"<think>\n{thinking}\n</think>\n\nThe answer is \\boxed{{42}}."
    assert bool(f.thinking_disagrees(text, ROW, "math")) == disagrees
    assert f.thinking_disagrees(text, ROW, "format") == ""  # a verifier that reads no answers


def test_near_validation_looks_at_the_question_and_at_copied_passages():
    item = "A baker makes 48 cakes on Monday and sells half of them before noon; how many are left at night?"
    validation = ValidationTexts(["Something else.", item])
    assert "validation item 2" in f.near_validation(item.replace("48", "56"), "", validation)
    assert "validation item 2" in f.near_validation("What is left?", f"<think>{item}</think>", validation)
    assert f.near_validation("How many cakes are left?", GOOD, validation) == ""


# --- sharing out and reports ------------------------------------------------------------------------------------------


def test_what_a_small_group_cannot_fill_goes_to_the_others():
    assert share_out({"a": 2, "b": 50, "c": 50}, 20) == {"a": 2, "b": 9, "c": 9}
    assert share_out({"a": 3, "b": 4}, 100) == {"a": 3, "b": 4}
    assert share_out({"a": 10, "b": 10}, 9, {"a": 2}) == {"a": 6, "b": 3}
    assert share_out({}, 5) == {}


def test_a_domain_of_weight_0_gives_nothing():
    assert share_out({"a": 10, "b": 10}, 15, {"a": 0}) == {"a": 0, "b": 10}
    assert share_out({"a": 10}, 5, {"a": 0.0}) == {"a": 0}


def test_the_report_says_which_row_fell_to_which_filter(tmp_path, capsys):
    funnel = Funnel("things", lambda n: (f"id{n}", f"thing <{n}>"))
    kept = funnel.keep(range(10), "odd", lambda n: f"{n} is odd" if n % 2 else "")
    assert funnel.keep(kept, "large", lambda n: "too large" if n > 6 else "") == [0, 2, 4, 6]
    report = FunnelReport("Test", [funnel], ("domain", "n", "rate"), [("all", 4, 0.25)])
    report.show()
    report.write(str(tmp_path / "report"))
    assert "odd" in capsys.readouterr().out
    content = json.loads((tmp_path / "report.json").read_text())
    assert [(c["filter"], c["before"], c["dropped"]) for c in content["filters"]] == [("odd", 10, 5), ("large", 5, 1)]
    assert content["dropped"][-1] == {
        "of": "things",
        "filter": "large",
        "id": "id8",
        "why": "too large",
        "text": "thing <8>",
    }
    assert content["domains"] == [{"domain": "all", "n": 4, "rate": 0.25}]
    page = (tmp_path / "report.html").read_text()
    assert "thing &lt;8&gt;" in page
    assert "3 is odd" in page


# --- the recipes ------------------------------------------------------------------------------------------------------


def records(n, domain="math", **columns):
    """A query with four responses each: right, wrong, guessed, right."""
    out = []
    for i in range(n):
        for sample in range(4):
            text = GOOD.replace("42", "41" if sample == 1 else "42").replace(
                "so", "I guess so" if sample == 2 else "so"
            )
            row = {
                "prompt_id": f"{domain}{i}",
                "prompt": [{"role": "user", "content": f"{domain} {i}: what is 12 + 30?"}],
            }
            own = {"sample": sample, "response": text, "score": float(sample != 1), "finish_reason": "stop"}
            out.append({**row, "answer": "42", "domain": domain, **own, **columns})
    return out


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_cold_start_rows_from_candidates(tmp_path, capsys):
    easy = [{"prompt_id": "math0", "response": "42", "score": 1.0}]
    rows = records(6) + records(2, "logic") + records(1, "poem", answer=None)
    report = cold_start.main(
        [
            "--candidates",
            write(tmp_path / "c.jsonl", rows),
            "--without_thinking",
            write(tmp_path / "e.jsonl", easy),
            "--output",
            str(tmp_path / "rows.jsonl"),
            "--output_queries",
            str(tmp_path / "queries.jsonl"),
            "--rows",
            "5",
            "--min_thinking_words",
            "10",
        ]
    )
    found = {c["filter"]: (c["before"], c["dropped"]) for c in report["filters"]}
    assert found["not_verifiable"] == (9, 1)
    assert found["several_questions"] == (8, 0)
    assert found["solved_without_thinking"] == (8, 1)
    assert found["wrong_answer"] == (28, 7)
    assert found["guess_without_reasoning"] == (21, 7)
    chosen = load_rows(str(tmp_path / "rows.jsonl"))
    assert sorted(row["domain"] for row in chosen) == ["logic"] * 2 + ["math"] * 3
    assert len({row["id"] for row in chosen}) == 5
    assert all(row["messages"][-1]["content"] == GOOD for row in chosen)
    (query, *_) = load_rows(str(tmp_path / "queries.jsonl"))
    assert {"id", "prompt", "answer", "domain"} == set(query)
    assert json.loads((tmp_path / "rows.jsonl.report.json").read_text()) == report
    with pytest.raises(UserError, match="no row is left"):
        cold_start.main(["--candidates", str(tmp_path / "c.jsonl"), "--output", str(tmp_path / "none.jsonl"),
                         "--min_thinking_words", "1000"])  # fmt: skip


def opened(rows):
    """As a model with a template that opens the thinking block would have answered."""
    return [{**row, "response": row["response"].removeprefix("<think>\n"), "think_opened": True} for row in rows]


@pytest.mark.parametrize("verifier", ["math", "routing"])
def test_responses_that_begin_inside_a_thinking_block_fall_for_their_own_faults_only(tmp_path, capsys, verifier):
    (tmp_path / "rewards.yaml").write_text("tasks:\n  sums: {name: verifier:all_of, verifiers: [math, format]}\n")
    candidates = write(tmp_path / "c.jsonl", opened(records(3, task="sums")))
    arguments = ["--candidates", candidates, "--output", str(tmp_path / "rows.jsonl"), "--min_thinking_words", "10"]
    arguments += ["--output_queries", str(tmp_path / "queries.jsonl"), "--verifier"]
    report = cold_start.main([*arguments, f"routing:{tmp_path / 'rewards.yaml'}" if verifier == "routing" else "math"])
    found = {c["filter"]: (c["before"], c["dropped"]) for c in report["filters"]}
    assert found["not_verifiable"] == (3, 0)
    assert found["wrong_answer"] == (12, 3)
    assert all(row["messages"][-1]["content"] == GOOD for row in load_rows(str(tmp_path / "rows.jsonl")))
    assert "think_opened" not in load_rows(str(tmp_path / "queries.jsonl"))[0]


def scored(rates, domain):
    """Ten scored responses to each query, as many right as the rate says."""
    rows = []
    for i, rate in enumerate(rates):
        row = {
            "prompt_id": f"{domain}{i}",
            "question": f"{domain} {i}: what is 12 + 30?",
            "answer": "42",
            "domain": domain,
        }
        rows += [{**row, "response": "r", "score": float(s < 10 * rate), "sample": s} for s in range(10)]
    return rows


def test_queries_are_new_learnable_hard_and_broad(tmp_path, capsys):
    rows = scored([0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 0.2], "math") + scored([0.4, 0.6], "logic")
    rows += [{"prompt_id": "x", "question": "open?", "response": "r", "score": None}]
    used = [{"id": "math6"}, {"id": "z", "question": "Logic 1: what is 12 + 30?"}]
    for row in used:
        row.setdefault("question", "q")
    report = select_queries.main(
        [
            "--responses",
            write(tmp_path / "r.jsonl", rows),
            "--used",
            write(tmp_path / "u.jsonl", used),
            "--output",
            str(tmp_path / "out.jsonl"),
            "--pass_rate_band",
            "0.1",
            "0.9",
            "--queries",
            "3",
        ]
    )
    found = {c["filter"]: (c["before"], c["dropped"]) for c in report["filters"]}
    assert found == {"not_verifiable": (10, 1), "used_before": (9, 2), "repeated": (7, 0), "near_validation": (7, 0),
                     "not_learnable": (7, 2)}  # fmt: skip
    chosen = load_rows(str(tmp_path / "out.jsonl"))
    assert sorted((row["id"], row["pass_rate"]) for row in chosen) == [("logic0", 0.4), ("math1", 0.1), ("math2", 0.3)]
    assert not {"response", "score", "sample", "prompt_id"} & set(chosen[0])
    assert report["domains"][0] == {"domain": "logic", "queries": 2, "eligible": 1, "chosen": 1,
                                    "pass rate eligible": 0.4, "pass rate chosen": 0.4}  # fmt: skip


def test_queries_that_were_answered_inside_an_opened_block_are_verifiable(tmp_path, capsys):
    arguments = ["--responses", write(tmp_path / "r.jsonl", opened(scored([0.5], "math")))]
    report = select_queries.main([*arguments, "--output", str(tmp_path / "out.jsonl")])
    assert report["filters"][0]["dropped"] == 0
    assert "think_opened" not in load_rows(str(tmp_path / "out.jsonl"))[0]


def test_bad_settings_name_the_key(tmp_path):
    for recipe, arguments, message in (
        (cold_start, [], "candidates is missing"),
        (cold_start, ["--candidates", "c", "--output", "o", "--max_repetition", "2"], "max_repetition"),
        (cold_start, ["--candidates", "c.jsonl", "--output", "o", "--verifier", "mth"], "did you mean 'math'"),
        (select_queries, ["--responses", "r", "--output", "o", "--pass_rate_band", "0.9", "0.1"], "pass_rate_band"),
        (cold_start, ["--candidates", "c", "--output", "o", "--rows", "-1"], "rows: -1 is not valid"),
        (select_queries, ["--responses", "r", "--output", "o", "--queries", "-2"], "queries: -2 is not valid"),
        (select_queries, ["--responses", "r", "--output", "o", "--querys", "1"], "did you mean `queries`"),
    ):
        with pytest.raises(UserError, match=message):
            recipe.main(arguments)
    for kind, files in ((cold_start.ColdStartRecipe, "candidates"), (select_queries.SelectRecipe, "responses")):
        for weight in (-1, "x", math.nan):
            with pytest.raises(UserError, match=f"domain_weights: code: {weight!r} is not valid"):
                kind(**{files: ["f"]}, output="o", domain_weights={"math": 0, "code": weight})

"""`align verify`: votes, paired differences, audits, the page. (tests/test_cli.py has the rest of the command.)"""

import json
import re
import tomllib
from pathlib import Path

import pytest

from alignment.cli import main
from alignment.commands.verify.page import choose_evenly
from alignment.evaluate import paired_difference
from tests.browser import Browser, find_browser
from verifiers import Verdict

HOSTILE = "</p><script>window.hacked = 1</script><img src=x onerror=alert(1)>"
calls: list[str] = []


def counting(response, row):
    calls.append(response)
    return Verdict(1.0, "pass")


def fragile(response, row):
    """A verifier that breaks on some responses."""
    if response == "broken":
        raise RuntimeError("the grader broke")
    return Verdict(1.0, "pass") if response == row["answer"] else Verdict(0.0, "fail")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    calls.clear()


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def figures(tmp_path, *arguments, code=0):
    """The JSON that the command writes."""
    path = tmp_path / "figures.json"
    assert main(["verify", *arguments, "--json", str(path)]) == code
    return json.loads(path.read_text())


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def error(capsys, *arguments):
    assert main(["verify", *arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and message.count("\n") == 1
    return message


# --- votes ------------------------------------------------------------------------------------------------------------


def test_the_majority_counts_equal_answers_as_one(tmp_path):
    rows = [
        {"id": "a", "answer": "1/2", "responses": ["0.5", r"\boxed{\frac{2}{4}}", "3"]},  # 2 votes for a half: right
        {"id": "b", "answer": "7", "responses": ["8", "8.0", "7"]},  # wrong
        {"id": "c", "answer": "7", "responses": ["7", "<think>", "<think>"]},  # what cannot be read has no vote: right
        {"id": "d", "answer": "7", "responses": ["7", "8", "9"]},  # a tie of three: a third
    ]
    path = write(tmp_path / "a.jsonl", rows)
    line = figures(tmp_path, path, "--verifier", "math", "--majority-at", "3", "--pass-at", "3")["domains"]["all"]
    assert line["majority_at"]["3"]["value"] == pytest.approx((1 + 0 + 1 + 1 / 3) / 4)
    assert line["pass_at"]["3"]["value"] == 1.0
    assert line["pass_rate"]["value"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3 + 1 / 3) / 4)


def test_a_verifier_without_answers_is_refused_before_anything_is_verified(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"id": 1, "responses": ["x", "y"]}])
    message = error(capsys, path, "--verifier", f"{__name__}:counting", "--majority-at", "2")
    assert "--majority-at" in message and "answer_of" in message and calls == []


def test_a_k_beyond_the_responses_names_the_row_before_anything_is_verified(tmp_path, capsys):
    rows = [{"id": 1, "responses": ["x", "y"]}, {"id": 2, "responses": ["x"]}]
    path = write(tmp_path / "a.jsonl", rows)
    message = error(capsys, path, "--verifier", f"{__name__}:counting", "--pass-at", "2")
    assert "row 2 has 1 response;" in message and calls == []
    assert "from 1 on" in error(capsys, path, "--verifier", f"{__name__}:counting", "--pass-at", "0")


def test_problems_that_errors_leave_with_too_few_are_left_out_and_counted(tmp_path, capsys):
    rows = [
        {"id": 1, "answer": "x", "responses": ["x", "y", "broken"]},
        {"id": 2, "answer": "x", "responses": ["x", "broken", "broken"]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    line = figures(tmp_path, path, "--verifier", f"{__name__}:fragile", "--pass-at", "1", "2")["domains"]["all"]
    assert line["pass_at"]["2"] | {"low": 0, "high": 0} == {
        "value": 1.0, "low": 0, "high": 0, "problems": 1, "samples": 2}  # fmt: skip
    assert line["pass_at"]["1"]["value"] == 0.75 and line["error"] == 0.5
    assert "@2: 1 problem left out" in capsys.readouterr().out


def test_tables_are_not_cut_off_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = write(tmp_path / "a.jsonl", [{"id": 1, "answer": "7", "responses": ["7", "8"] * 4}])
    assert main(["verify", path, "--verifier", "math", "--pass-at", "1", "2", "4", "8", "--majority-at", "8"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out and len(re.findall(r"\d \(\d|% \(\d", out)) == 5


# --- two files --------------------------------------------------------------------------------------------------------


BEFORE = [
    {"question": "p1", "domain": "sums", "answer": "1", "response": "1"},
    {"question": "p2", "domain": "sums", "answer": "2", "response": "0"},
    {"question": "p3", "domain": "words", "answer": "3", "response": "0"},
    {"question": "p3", "domain": "words", "answer": "3", "response": "3"},
    {"question": "gone", "domain": "words", "answer": "3", "response": "3"},
    {"question": "p4", "domain": "words", "answer": [], "response": "3"},  # cannot be scored
]
AFTER = [
    {"question": "p4", "domain": "words", "answer": "3", "response": "3"},
    {"question": "p3", "domain": "words", "answer": "3", "response": "3"},
    {"question": "p2", "domain": "sums", "answer": "2", "response": "2"},
    {"question": "p1", "domain": "sums", "answer": "1", "response": "0"},
    {"question": "new", "domain": "words", "answer": "3", "response": "3"},
]


def test_paired_differences_join_problems_whatever_their_order(tmp_path, capsys):
    before, after = write(tmp_path / "before.jsonl", BEFORE), write(tmp_path / "after.jsonl", AFTER)
    audit = tmp_path / "audit.jsonl"
    found = figures(tmp_path, after, "--verifier", "math", "--against", before, "--audit", str(audit))["comparison"]
    lines = found["domains"]
    assert list(lines) == ["sums", "words", "all"]
    assert (lines["sums"]["compared"], lines["sums"]["estimate"]["value"]) == (2, 0.0)
    assert (lines["sums"]["only_first"], lines["sums"]["only_second"]) == (1, 1)
    assert (lines["words"]["compared"], lines["words"]["estimate"]["value"]) == (1, 0.5)
    expected = paired_difference([[1.0], [0.0], [0.0, 1.0]], [[0.0], [1.0], [1.0]])
    assert lines["all"]["estimate"]["value"] == pytest.approx((1 - 1 + 0.5) / 3)
    assert lines["all"]["estimate"]["low"] == pytest.approx(expected.low)
    assert (lines["all"]["first"]["value"], lines["all"]["second"]["value"]) == (0.5, pytest.approx(2 / 3))
    assert list(found["missing"].values()) == [1, 1, 1]

    sizes = [(r["problem"], r["kind"], r["first"]["passed"], r["second"]["passed"]) for r in lines_of(audit)]
    better, worse = "after.jsonl better", "before.jsonl better"
    assert sizes == [("p2", better, 0, 1), ("p1", worse, 1, 0), ("p3", better, 0.5, 1)]
    p3 = lines_of(audit)[2]
    assert (p3["first"]["row"], p3["first"]["response"], p3["first"]["status"]) == (3, "0", "fail")
    assert (p3["second"]["row"], p3["second"]["response"], p3["second"]["status"]) == (2, "3", "pass")

    out = capsys.readouterr().out
    assert "after.jsonl minus before.jsonl" in out and "+16.7" in out and "3 disagreements" in out
    assert "1 problems stand in before.jsonl only" in out and "1/2 pass" in out


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    before, after = write(tmp_path / "x" / "r.jsonl", BEFORE), write(tmp_path / "y" / "r.jsonl", AFTER)
    assert main(["verify", after, "--verifier", "math", "--against", before]) == 0
    assert "y/r.jsonl minus x/r.jsonl" in capsys.readouterr().out
    assert main(["verify", after, "--verifier", "math", "--against", after]) == 0
    assert "no disagreements" in capsys.readouterr().out


def test_files_without_a_common_problem_column_are_refused(tmp_path, capsys):
    before = write(tmp_path / "a.jsonl", [{"key": 1, "id": 5, "answer": "1", "response": "1"}])
    after = write(tmp_path / "b.jsonl", [{"key": 1, "question": "q", "answer": "1", "response": "2"}])
    common = (after, "--verifier", "math", "--against", before)
    assert "share none of the columns" in error(capsys, *common)
    assert "row 1: no column 'question'" in error(capsys, *common, "--problem", "question")
    lines = figures(tmp_path, *common, "--problem", "key")["comparison"]["domains"]
    assert lines["all"]["estimate"]["value"] == -1.0


def test_files_without_a_common_problem_are_said_to_be_so(tmp_path, capsys):
    before = write(tmp_path / "a.jsonl", [{"id": 1, "answer": "1", "response": "1"}])
    after = write(tmp_path / "b.jsonl", [{"id": 2, "answer": "1", "response": "1"}])
    found = figures(tmp_path, after, "--verifier", "math", "--against", before)["comparison"]
    assert found["domains"]["all"]["compared"] == 0 and found["domains"]["all"]["estimate"] is None
    assert "1 problems stand in a.jsonl only" in capsys.readouterr().out


# --- a second opinion -------------------------------------------------------------------------------------------------


def test_two_verifiers_are_held_against_each_other(tmp_path, capsys):
    rows = [
        {"id": 1, "answer": "72", "response": "72"},
        {"id": 2, "answer": "72", "response": "72.0"},  # equal as a number, not as a text
        {"id": 3, "answer": "72", "response": "It is 71."},
        {"id": 4, "answer": [], "response": "1"},  # neither can score it
    ]
    audit = tmp_path / "audit.jsonl"
    arguments = (write(tmp_path / "a.jsonl", rows), "--verifier", "math", "--audit-against", "text")
    line = figures(tmp_path, *arguments, "--audit", str(audit))["comparison"]["domains"]["all"]
    assert (line["compared"], line["only_first"], line["only_second"]) == (3, 1, 0)
    assert line["estimate"]["value"] == pytest.approx(2 / 3)
    (only,) = lines_of(audit)
    assert only["kind"] == "only math passes" and only["first"]["response"] == "72.0"
    assert (only["first"]["status"], only["second"]["status"], only["second"]["row"]) == ("pass", "fail", 2)
    assert "1 responses have no verdict by text" in capsys.readouterr().out


def test_labels_are_read_from_a_column_also_one_per_response(tmp_path):
    rows = [
        {"id": 1, "answer": "7", "responses": ["7", "8", "7"], "human": [True, "incorrect", 0.5]},
        {"id": 2, "answer": "7", "response": "7", "responses": "8", "human": "Correct"},
        {"id": 3, "answer": "7", "responses": "8", "human": None},
        {"id": 4, "answer": "7", "responses": "8"},
    ]
    arguments = (write(tmp_path / "a.jsonl", rows), "--verifier", "math", "--response", "responses")
    found = figures(tmp_path, *arguments, "--audit-against", "human")["comparison"]
    line = found["domains"]["all"]
    assert (line["compared"], line["only_first"], line["only_second"]) == (4, 1, 1)
    assert line["estimate"]["value"] == pytest.approx((2 / 3 + 0) / 2)  # the mean over problems
    assert found["missing"]["responses have no verdict by column human"] == 2


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        ([{"answer": "1", "response": "1", "human": "rather"}], "human", "row 1, column 'human': 'rather' is no label"),
        ([{"answer": "1", "responses": ["1", "2"], "human": [1]}], "human", "1 labels are too few"),
        ([{"answer": "1", "response": "1"}], "choise", "did you mean 'choice'"),
        ([{"answer": "1", "response": "1"}], "human", "nor is it a column"),
    ],
)
def test_what_is_no_second_opinion_is_refused(tmp_path, capsys, rows, name, message):
    path = write(tmp_path / "a.jsonl", rows)
    assert message in error(capsys, path, "--verifier", "math", "--audit-against", name)


def test_options_that_contradict_each_other_are_refused_before_anything_is_verified(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"id": 1, "response": "x"}])
    common = (path, "--verifier", f"{__name__}:counting")
    assert "leave out --gold" in error(capsys, *common, "--gold", "response", "--against", path)
    assert "say with whom" in error(capsys, *common, "--audit", str(tmp_path / "audit.jsonl"))
    for option in ("--output", "--json", "--html"):
        assert "cannot write" in error(capsys, *common, option, str(tmp_path / "none" / "file"))
        assert "cannot write" in error(capsys, *common, option, str(tmp_path))
    assert calls == []


def test_gold_answers_can_be_audited_too(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"answer": "1,000"}, {"answer": "x"}])
    found = figures(tmp_path, path, "--verifier", "math", "--gold", "answer", "--audit-against", "text")["comparison"]
    assert found["domains"]["all"]["estimate"]["value"] == 1.0 and found["disagreements"] == 0


def test_gold_answers_of_prompts_that_open_the_thinking_are_answers(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"answer": "42", "think_opened": True}])
    figures(tmp_path, path, "--verifier", "math", "--gold", "answer", code=0)  # 1 when one fails


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    long = "<think>" + "thinking about it\n" * 20 + "</think>"
    first = [
        {"question": f"<b>q{i}</b>", "domain": "ab"[i % 2], "answer": str(i), "response": f"{i}"} for i in range(6)
    ]
    second = [{**row, "response": f"{long}{HOSTILE} so it is {i % 4}"} for i, row in enumerate(first)]
    before, after = write(folder / "before.jsonl", first), write(folder / "after.jsonl", second)
    common = ["verify", after, "--verifier", "math"]
    assert main([*common, "--html", str(folder / "responses.html")]) == 0
    assert main([*common, "--against", before, "--html", str(folder / "against.html")]) == 0
    assert main([*common, "--audit-against", "text", "--html", str(folder / "audit.html")]) == 0
    return folder


@pytest.mark.parametrize("name", ["responses", "against", "audit"])
def test_the_page_refers_to_nothing_outside_and_text_stays_text(pages, name):
    html = (pages / f"{name}.html").read_text()
    assert not re.search(r"https?://|url\(\s*[^#)]|@import|\ssrc=\"", html)
    assert html.count("<script") == 1 and HOSTILE not in html and "<b>q" not in html
    assert "&lt;script&gt;window.hacked" in html and "&lt;b&gt;q" in html


def test_the_page_of_two_files_shows_both_responses_of_a_disagreement(pages):
    html = (pages / "against.html").read_text()
    assert "Paired difference: after.jsonl minus before.jsonl" in html
    assert html.count('class="pair"') == 2 and "before.jsonl, row 5" in html and "after.jsonl, row 6" in html


def test_a_long_list_keeps_every_domain_and_status(tmp_path):
    path = tmp_path / "page.html"
    rows = [{"id": i, "domain": "big", "answer": "1", "response": "1"} for i in range(1000)]
    rows[500:500] = [{"id": -1, "domain": "small", "answer": "1", "response": "2"}]
    data = write(tmp_path / "a.jsonl", rows)
    assert main(["verify", data, "--verifier", "math", "--html", str(path)]) == 0
    html = path.read_text()
    assert html.count("<li ") == 400 and "400 of 1,001 responses" in html
    assert "<option>small</option>" in html and "<option>fail</option>" in html


def test_an_even_choice_takes_in_turn_and_keeps_the_order():
    class One:
        def __init__(self, domain, status):
            self.item, self.verdict = self, self
            self.domain, self.status = domain, status

    found = [One("a", "pass") for _ in range(5)] + [One("a", "fail"), One("b", "pass")]
    assert [found.index(one) for one in choose_evenly(found, 4)] == [0, 1, 5, 6]
    assert choose_evenly(found, 100) == found


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_filters_work_in_a_real_browser(pages, tmp_path, width, scheme):
    binary = find_browser()
    if binary is None:
        pytest.skip("no Chromium found; install the package chromium")
    address = (pages / "responses.html").as_uri()
    with Browser(binary, tmp_path / "profile") as browser:
        browser.open(address, width, 900, scheme)
        run = browser.run
        shown = "[...document.querySelectorAll('.verdicts li')].filter((row) => row.offsetHeight > 0).length"
        choose = (
            "((name, value) => {{ const field = document.querySelector(name); field.value = value;"
            " field.dispatchEvent(new Event('input')); }})({!r}, {!r})"
        )
        assert run(shown) == 6 and run("document.getElementById('shown').textContent") == "6"
        run(choose.format("[data-filter=status]", "fail"))
        assert run(shown) == 2
        run(choose.format("[data-filter=domain]", "b"))
        assert run(shown) == 1 and run("document.getElementById('shown').textContent") == "1"
        run(choose.format(".tools input", "no such text"))
        assert run(shown) == 0 and run("document.querySelector('.empty').hidden") is False
        run(choose.format(".tools input", "Q5"))
        assert run(shown) == 1
        assert run("document.querySelector('.verdicts li:not([hidden]) .completion .more').textContent") == "Show all"
        assert run("document.documentElement.scrollWidth") == width
        assert run("typeof window.hacked") == "undefined"
        assert browser.problems == [] and browser.requests == [address]


def test_the_page_is_part_of_the_package():
    """Templates and scripts beside the code are listed as package data."""
    root = Path(__file__).parent.parent
    with (root / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["alignment"]
    for path in (root / "alignment").rglob("*.*"):
        if path.suffix in (".jinja", ".js", ".css"):
            assert any(path.relative_to(root / "alignment").match(pattern) for pattern in patterns), path

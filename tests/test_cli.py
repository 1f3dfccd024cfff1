"""The `align` command: verify, list, errors and exit codes."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.cli import COMMANDS, main

GOOD = [{"question": "1+1?", "answer": "so 2\n#### 2"}, {"question": "big?", "answer": "#### 1,000"}]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def write(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def cells(output, first):
    """The words of the table line that starts with `first`."""
    line = next(line for line in output.splitlines() if line.split()[:1] == [first])
    return line.split()


def test_gold_answers_that_pass_give_exit_code_0(tmp_path, capsys):
    assert main(["verify", write(tmp_path / "a.jsonl.gz", GOOD), "--verifier", "math", "--gold", "answer"]) == 0
    assert cells(capsys.readouterr().out, "all")[1:4] == ["2", "2", "100.0%"]


def test_a_failing_gold_answer_is_listed_with_its_row_number_and_exit_code_1(tmp_path, capsys):
    rows = [*GOOD, {"question": "?", "answer": "#### "}, {"question": "?", "answer": "#### 3"}]
    assert main(["verify", write(tmp_path / "a.jsonl", rows), "--verifier", "math", "--gold", "answer"]) == 1
    out = capsys.readouterr().out
    assert cells(out, "3")[1] == "error" and "holds no answer" in out
    assert "1 to look at" in out


def test_responses_are_grouped_by_problem_and_reported_per_domain(tmp_path, capsys):
    rows = [
        {"prompt": "a", "domain": "sums", "answer": "2", "response": r"\boxed{2}"},
        {"prompt": "a", "domain": "sums", "answer": "2", "response": "3"},
        {
            "prompt": "b",
            "domain": "words",
            "answer": "x",
            "responses": None,
            "response": [{"role": "assistant", "content": "x"}],
        },
        {"prompt": "b", "domain": "words", "answer": [], "response": "x"},
        {"prompt": "b", "domain": "words", "answer": "x", "response": "<think>"},
    ]
    output = tmp_path / "verdicts.jsonl"
    assert (
        main(
            [
                "verify",
                write(tmp_path / "a.jsonl", rows),
                "--verifier",
                "math",
                "--output",
                str(output),
                "--pass-at",
                "2",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert cells(out, "sums")[1:4] == ["1", "2", "50.0%"]
    assert cells(out, "words")[1:4] == ["1", "3", "50.0%"] and cells(out, "words")[-3:] == ["33.3%", "0.0%", "33.3%"]
    assert cells(out, "all")[1:4] == ["2", "5", "50.0%"] and "100.0% (" in out
    statuses = [json.loads(line)["status"] for line in output.read_text().splitlines()]
    assert statuses == ["pass", "fail", "pass", "error", "unparsed"]


def test_several_responses_in_one_row_are_samples_of_one_problem(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"answer": "2", "responses": ["2", "3", "4", "2"]}])
    assert main(["verify", path, "--verifier", "math"]) == 0
    assert cells(capsys.readouterr().out, "all")[1:4] == ["1", "4", "50.0%"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verifier", "maths"], "did you mean 'math'"),
        (["--verifier", "math", "--gold", "solution"], "row 1: no column 'solution'"),
        (["--verifier", "math"], "none of the columns response"),
        (["--verifier", "math", "--gold", "answer", "--import", "no_such_module"], "no_such_module"),
        (["--verifier", "math", "--gold", "answer", "--pass-at", "2"], "--pass-at"),
    ],
)
def test_bad_input_gives_one_message_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert main(["verify", write(tmp_path / "a.jsonl", GOOD), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.err.count("\n") == 1


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "none.jsonl"), "--verifier", "math"]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    from alignment.errors import UserError

    with pytest.raises(UserError):
        main(["verify", str(tmp_path / "none.jsonl"), "--verifier", "math", "--debug"])


def test_list_shows_names_columns_and_purpose(capsys, monkeypatch):
    from rewards import registry

    monkeypatch.setattr(registry, "_registered", {"mine": lambda prompts, completions, limit, **columns: []})
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert cells(out, "math")[:3] == ["math", "answer", "Exact"]
    assert cells(out, "verifier:math")[1] == "answer" and cells(out, "mine")[1] == "limit"


def test_modules_in_the_current_folder_are_found(tmp_path, capsys, monkeypatch):
    (tmp_path / "beside_her.py").write_text(
        "from verifiers import Verdict\n\n\ndef says_2(response, row):\n"
        "    return Verdict(1.0, 'pass') if response == '2' else Verdict(0.0, 'fail')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert main(["list", "--import", "beside_her"]) == 0
    path = write(tmp_path / "a.jsonl", [{"responses": ["2", "3"]}])
    assert main(["verify", path, "--verifier", "beside_her:says_2"]) == 0
    assert cells(capsys.readouterr().out, "all")[1:4] == ["1", "2", "50.0%"]


def test_every_command_has_help_and_loads_no_torch():
    root = Path(__file__).parent.parent
    for name in COMMANDS:
        code = f"""if True:
            import contextlib, sys
            from alignment.cli import main
            with contextlib.suppress(SystemExit):
                main([{name!r}, "--help"])
            print("torch" in sys.modules)"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
        assert f"usage: align {name}" in done.stdout and done.stdout.strip().endswith("False"), done

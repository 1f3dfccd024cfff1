"""The run log: what is written, what survives a kill, what is printed."""

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.console import format_seconds, format_value
from alignment.metrics import RunLog, read_json_lines, read_metrics


def write_run(directory: Path, steps: range, total: int = 10, resume_step: int | None = None) -> None:
    with RunLog(directory, total, resume_step=resume_step, console=False) as log:
        for step in steps:
            log.train(step, {"loss": 1.0 / step}, tokens=100)
            log.samples(step, [{"prompt": "1+1", "completion": "2", "reward": 1.0, "finish_reason": "stop"}])


def test_each_line_is_strict_json_with_step_time_and_kind(tmp_path):
    with RunLog(tmp_path, 2, console=False) as log:
        log.train(1, {"loss": math.nan, "kl": math.inf, "advantage": -math.inf, "entropy": 0.5}, tokens=7)
        log.eval(1, {"pass_rate": 0.25})
    refuse = lambda name: pytest.fail(f"{name} is not JSON")
    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train", "eval"]
    assert (lines[0]["loss"], lines[0]["kl"], lines[0]["advantage"], lines[0]["tokens"]) == ("nan", "inf", "-inf", 7.0)
    assert lines[0]["tokens_per_second"] > 0 and lines[0]["time"] <= lines[1]["time"]
    train, evaluation = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(train["loss"]) and train["kl"] == math.inf and train["advantage"] == -math.inf
    assert read_metrics(tmp_path / "metrics.jsonl", "eval") == [evaluation] and evaluation["pass_rate"] == 0.25


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
    log = RunLog(tmp_path, 5, console=False)
    log.train(1, {"loss": 1.0}, tokens=1)
    log.samples(1, [{"prompt": "p", "completion": "c"}])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == len(read_json_lines(tmp_path / "samples.jsonl")) == 1
    log.close()
    log.close()


def test_resumed_run_has_one_line_per_step(tmp_path):
    write_run(tmp_path, range(1, 8))
    write_run(tmp_path, range(5, 11), resume_step=4)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 11))
    assert [line["step"] for line in read_json_lines(tmp_path / "samples.jsonl")] == list(range(1, 11))


def test_resume_drops_a_torn_last_line_and_keeps_a_whole_one_without_newline(tmp_path):
    write_run(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + '{"step": 4, "kind": "train", "note": "ä'.encode()[:-1])
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    write_run(tmp_path, range(4, 6), resume_step=3)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5]
    path.write_bytes(whole.rstrip(b"\n"))
    write_run(tmp_path, range(4, 5), resume_step=3)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]


def test_damage_before_the_last_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


def test_a_fresh_run_keeps_the_older_log_aside(tmp_path):
    write_run(tmp_path, range(1, 4))
    write_run(tmp_path, range(1, 2))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert len(read_metrics(tmp_path / "metrics.previous.jsonl")) == 3


def test_log_of_a_killed_process_resumes(tmp_path):
    script = (
        "import sys; from pathlib import Path; from alignment.metrics import RunLog\n"
        "log = RunLog(Path(sys.argv[1]), 10**9, console=False)\n"
        "for step in range(1, 10**9):\n"
        "    log.train(step, {f'metric_{i}': step / 7 for i in range(200)}, tokens=1)\n"
        "    if step == 50: print('started', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"started\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 50
    write_run(tmp_path, range(41, 44), resume_step=40)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 44))


def test_other_ranks_write_and_print_nothing(tmp_path, capsys):
    with RunLog(tmp_path / "run", 2, is_main=False, tracker=lambda *_: pytest.fail("tracked")) as log:
        log.train(1, {"loss": 1.0}, tokens=1)
        log.eval(1, {"loss": 1.0})
        log.samples(1, [{"prompt": "p"}])
        log.message("hello")
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_tracker_gets_train_and_prefixed_eval_metrics(tmp_path):
    calls = []
    with RunLog(tmp_path, 2, tracker=lambda metrics, step: calls.append((step, metrics)), console=False) as log:
        log.train(1, {"loss": 2.0}, tokens=3)
        log.eval(1, {"loss": 4.0})
    assert [step for step, _ in calls] == [1, 1]
    assert calls[0][1]["loss"] == 2.0 and calls[0][1]["tokens"] == 3.0 and calls[1][1] == {"eval/loss": 4.0}


def test_bad_metrics_are_named(tmp_path):
    with RunLog(tmp_path, 2, console=False) as log:
        with pytest.raises(TypeError, match="'reward' at step 3 is not a number: None"):
            log.train(3, {"reward": None}, tokens=1)  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="'time' is taken"):
            log.eval(3, {"time": 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_plain_output_is_short_lines_and_a_table_over_the_whole_run(tmp_path, capsys):
    write_run(tmp_path, range(1, 5), total=8)
    with RunLog(tmp_path, 8, resume_step=4) as log:
        log.message("resumed [bold]here")
        for step in range(5, 9):
            log.train(step, {"loss": 1.0 / step, "learning_rate": 1e-4}, tokens=100)
        log.eval(8, {"pass_rate": 0.5})
    out = capsys.readouterr().out
    assert "resumed [bold]here" in out and "\x1b" not in out
    assert [int(step) for step in re.findall(r"^step (\d+)/8 .*tokens/s .*ETA .*loss", out, re.M)] == [5, 8]
    assert "eval at step 8: pass_rate 0.5" in out
    (row,) = (line for line in out.splitlines() if re.search(r"\bloss\b.*│|│ loss", line))
    assert re.findall(r"[\d.]+", row) == ["1", "0.125", "0.125", "8"]
    (row,) = (line for line in out.splitlines() if "learning_rate" in line and "│" in line)
    assert "–" in row


def test_terminal_shows_a_progress_bar(tmp_path):
    script = (
        "import sys; from pathlib import Path; from alignment.metrics import RunLog\n"
        "with RunLog(Path(sys.argv[1]), 3) as log:\n"
        "    for step in (1, 2, 3): log.train(step, {'loss': 0.5}, tokens=10)\n"
    )
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=child, env=environment)
    os.close(child)
    chunks = []
    try:
        while chunk := os.read(parent, 65536):
            chunks.append(chunk)
    except OSError:  # Linux reports the end of a pseudo-terminal as an input/output error
        pass
    os.close(parent)
    out = b"".join(chunks).decode()
    assert process.wait() == 0 and "━" in out and "step 3/3" in out and "ETA" in out and "tokens/s" in out


def test_numbers_and_durations_read_well():
    values = (0.8125, 12345.6, 2e-5, 3_100_000, 0.0, -15_000)
    assert [format_value(v) for v in values] == ["0.8125", "12.35k", "2e-05", "3.1M", "0", "-15k"]
    assert [format_seconds(s) for s in (4.4, 185, 8040)] == ["4s", "3m 05s", "2h 14m"]

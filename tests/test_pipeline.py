"""`align pipeline`: what is run, what is not run again, and why; real processes that do little."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import alignment.fingerprint
from alignment import pipeline_run
from alignment.cli import main
from alignment.errors import UserError
from alignment.fingerprint import content_fingerprint
from alignment.pipeline import read_pipeline
from alignment.pipeline_process import group_is_alive

ROOT = Path(__file__).parent.parent

# A stage that counts to `count`, a file for each number, going on where it stopped; it keeps a note of every start.
COUNTER = """
import signal, sys, time, yaml
from pathlib import Path
config = yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))
here = Path(config["here"])
with (here / "starts").open("a") as file:
    file.write(f"{len(list(here.glob('n-*')))}\\n")
def stop(number, frame):
    (here / "asked-to-stop").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if config.get("fail"):
    sys.exit("this stage cannot work")
for number in range(config.get("count", 1)):
    if not (here / f"n-{number}").exists():
        time.sleep(config.get("seconds", 0))
        (here / f"n-{number}").touch()
print("counted, read", config.get("source"))
text = Path(config["source"]).read_text() if config.get("source") else "start"
if config.get("write", True):
    Path(config["result"]).write_text(f"{text} {config.get('word', '')}")
"""


def counting(name, **overrides):
    return {
        "name": name,
        "recipe": "counter",
        "overrides": {"here": "{here}", "result": "{here}/result", **overrides},
        "outputs": {"result": "{here}/result"},
    }


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes a pipeline of these stages and returns its path."""
    (tmp_path / "counter.py").write_text(COUNTER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)

    def write(*stages, **more):
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump({"folder": "out", "stages": list(stages), **more}))
        return str(path)

    return write


def align(*arguments, code=0):
    assert main(["pipeline", *map(str, arguments)]) == code


def starts(name, folder="out"):
    """How far the stage was at each of its starts in this folder."""
    return [int(line) for line in Path(folder, name, "starts").read_text().split()]


def lines(capsys):
    """By stage the last thing said about it."""
    out = capsys.readouterr()
    said = {}
    for line in (out.out + out.err).splitlines():
        head, colon, rest = line.partition(": ")
        if colon:
            said[head.split()[-1]] = rest.strip(" ─")
    return said


def test_stages_run_in_turn_and_finished_ones_not_again(made, capsys):
    path = made(counting("a", word="one"), counting("b", source="{a.result}", word="two"))
    align(path)
    assert Path("out/b/result").read_text() == "start one two"
    assert "counted, read out/a/result" in Path("out/pipeline/b.log").read_text()
    assert lines(capsys)["b"].startswith("run (not run yet)")
    align(path)
    assert starts("a") == starts("b") == [0]
    assert lines(capsys)["b"].startswith("finished")
    record = json.loads(Path("out/pipeline/b.json").read_text())
    assert record["status"] == "finished"
    assert list(record["inputs"]) == ["out/a/result"]


def test_a_changed_setting_runs_its_stage_anew_and_what_reads_from_it(made, capsys):
    align(made(counting("a", word="one"), counting("b", source="{a.result}"), counting("c")))
    path = made(counting("a", word="other"), counting("b", source="{a.result}"), counting("c"))
    align(path, "--dry_run")
    said = lines(capsys)
    assert said["a"] == "anew (settings changed: config.word)"
    assert said["b"].startswith("waits")
    assert said["c"].startswith("finished")
    assert Path("out/a/result").read_text() == "start one"
    align(path)
    assert Path("out/b/result").read_text() == "start other "
    assert lines(capsys)["b"].startswith("anew (inputs changed: out/a/result)")
    assert starts("c") == [0]
    (aside,) = Path("out/superseded").glob("a-*")
    assert (aside / "result").read_text() == "start one"


def test_what_reads_from_a_stage_stays_when_it_writes_the_same_again(made, capsys):
    align(made(counting("a", word="one"), counting("b", source="{a.result}")))
    align(made(counting("a", word="one", count=2), counting("b", source="{a.result}")))
    said = lines(capsys)
    assert said["a"].startswith("anew")
    assert said["b"].startswith("finished")


def test_a_changed_input_file_runs_its_stage_anew(made, capsys):
    Path("rows.jsonl").write_text("x" * 100_000)
    path = made({**counting("a"), "inputs": ["{rows}"]}, variables={"rows": "rows.jsonl"})
    align(path)
    with open("rows.jsonl", "r+b") as file:
        file.seek(70_000)
        file.write(b"y")
    align(path)
    assert lines(capsys)["a"].startswith("anew (inputs changed: rows.jsonl)")


def test_fingerprints_follow_the_content(tmp_path, monkeypatch):
    """Of files read whole, of folders, and of files too large for that."""
    for whole in (1 << 28, 0):
        monkeypatch.setattr(alignment.fingerprint, "_WHOLE", whole)
        folder = tmp_path / str(whole) / "model"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(200_000))
        before = content_fingerprint(folder)
        assert content_fingerprint(folder) == before
        (folder / "weights").write_bytes(b"\1" * 200_000)
        changed = content_fingerprint(folder)
        (folder / "more").touch()
        assert len({before, changed, content_fingerprint(folder)}) == 3


def test_from_runs_a_stage_anew_and_leaves_those_before_it(made, capsys):
    align(made(counting("a", word="one"), counting("b", source="{a.result}")))
    align(made(counting("a", word="other"), counting("b", source="{a.result}")), "--from", "b")
    assert Path("out/b/result").read_text() == "start one "
    assert lines(capsys)["b"].startswith("anew (asked for by --from)")
    assert len(list(Path("out/superseded").iterdir())) == 1


def test_a_failing_stage_is_named_with_the_end_of_its_log_and_goes_on_later(made, capsys):
    align(made(counting("a"), counting("b", fail=True)), code=2)
    message = capsys.readouterr().err
    assert "stage 'b' failed with exit code 1" in message
    assert "out/pipeline/b.log" in message
    assert "this stage cannot work" in message
    align(made(counting("a"), counting("b")))
    assert starts("a") == [0]


def test_an_output_that_is_not_written_is_an_error(made, capsys):
    align(made(counting("a", write=False)), code=2)
    assert "did not write out/a/result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": ["no/rows.jsonl"]}, "stage 'a': the input no/rows.jsonl is missing; put it there, or name another"),
        ({"overide": {}}, "unknown key `overide`; did you mean `overrides`"),
        ({"config": "none.yaml"}, "none.yaml"),
        ({"arguments": ["{b.result}"]}, "{b.result}: no stage before it writes this"),
        ({"arguments": ["{rowz}"]}, "there is no such variable; did you mean `rows`"),
        ({"services": ["judg"]}, "there is no service 'judg'; did you mean `judge`"),
        ({"name": "../a"}, "`name` has to be letters"),
        ({"recipe": None}, "`recipe` is missing"),
    ],
)
def test_mistakes_are_told_before_anything_runs(made, capsys, change, message):
    services = {"judge": {"command": ["true"], "ready": "127.0.0.1:1"}}
    path = made({**counting("a"), **change}, counting("b"), variables={"rows": "r"}, services=services)
    align(path, code=2)
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_more_mistakes(made, capsys):
    align(made(counting("a"), counting("a")), code=2)
    assert "two stages of this name" in capsys.readouterr().err
    align(made(counting("a")), "--set", "foldr=x", code=2)
    assert "did you mean `folder`" in capsys.readouterr().err
    align(made(counting("a")), "--from", "x", code=2)
    assert "the stages are a" in capsys.readouterr().err
    align("none.yaml", code=2)
    assert "there is no file none.yaml" in capsys.readouterr().err


def test_references_and_given_values(made):
    stage = counting("a", word="{n}", text="is {n}", listed=[{"path": "{folder}/x"}])
    path = made(stage, counting("b", source="{a.result}"), variables={"n": 3})
    a, b = read_pipeline(path, {"folder": "elsewhere"}).stages
    assert a.settings["word"] == 3
    assert (a.settings["text"], a.settings["listed"]) == ("is 3", [{"path": "elsewhere/x"}])
    assert b.inputs == ["elsewhere/a/result"]
    with pytest.raises(UserError, match="no such variable"):
        read_pipeline(path, {"m": "1"})


def started(path):
    code = "import sys; from alignment.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, "pipeline", path], stdout=subprocess.PIPE, text=True)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_pipeline_goes_on_in_the_stage_it_was_in(made, how):
    path = made(counting("a"), counting("b", count=40, seconds=0.05))
    process = started(path)
    wait_for(lambda: len(list(Path("out/b").glob("n-*"))) > 2)
    group = json.loads(Path("out/pipeline/b.json").read_text())["group"]
    process.send_signal(how)
    out = process.communicate()[0]
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "stopped in stage 'b'" in out
    wait_for(lambda: not group_is_alive(group, time.time()))  # no stage outlives its pipeline
    assert Path("out/b/asked-to-stop").exists()
    assert not Path("out/b/result").exists()
    path = made(counting("a"), counting("b", count=40, seconds=0.05))
    align(path)
    assert starts("a") == [0]
    first, second = starts("b")
    assert first == 0
    assert second > 2
    assert Path("out/b/result").exists()


def test_two_pipelines_do_not_share_a_folder(made, capsys):
    path = made(counting("a", count=40, seconds=0.05))
    process = started(path)
    wait_for(lambda: Path("out/a/n-1").exists())
    align(path, code=2)
    assert "another `align pipeline` runs in out" in capsys.readouterr().err
    process.terminate()
    process.communicate()


def test_a_service_runs_beside_its_stage_only(made, capsys):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    judge = {"command": ["python", "-c", script], "ready": f"127.0.0.1:{port}"}
    Path("ask.py").write_text(f"import socket; socket.create_connection(('127.0.0.1', {port})); print('answered')")
    ask = {"name": "ask", "recipe": "ask", "services": ["judge"]}
    align(made(ask, services={"judge": judge}))
    assert "answered" in Path("out/pipeline/ask.log").read_text()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)
    align(
        made({**ask, "name": "again"}, services={"judge": {**judge, "command": [sys.executable, "-c", "1/0"]}}), code=2
    )
    assert "service 'judge' ended with exit code 1; see out/pipeline/service-judge.log" in capsys.readouterr().err


def test_a_stage_can_be_launched_by_accelerate(made):
    stage = {**counting("a"), "launch": "accelerate.yaml"}
    Path("accelerate.yaml").write_text("num_processes: 1\n")
    pipeline = read_pipeline(made(stage))
    command = pipeline_run.command_of(pipeline, pipeline.stages[0])
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml", "--module"]
    assert command[1:] == [*launcher, "counter", "--config", "out/pipeline/a.yaml"]
    assert pipeline.stages[0].inputs == ["accelerate.yaml"]

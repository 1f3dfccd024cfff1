"""Routing: each row's task picks its rewards; a broken task costs no other one its scores."""

import asyncio
import json
import logging
import threading
from pathlib import Path

import pytest

from alignment.cli import main
from rewards import RewardRunner, get_reward, register_reward, reward_info
from rewards import registry as registry_module
from rewards.routed_verifier import find_verifier
from rewards.routing import check_tasks
from rewards.specs import read_spec
from tests.test_rewards_runner import rollouts
from verifiers import list_verifiers, verifier_info, verify
from verifiers import registry as verifier_registry
from verifiers.registry import answer_key

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "recipes" / "qwen3" / "rewards.yaml"


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Copies; what is built in has to be registered before, because a module registers its names once."""
    for name in list_verifiers():
        verifier_info(name)
    for name in ("length", "qwen_math", "routing"):
        reward_info(name)
    for name in ("_registered", "_factories"):
        monkeypatch.setattr(registry_module, name, dict(getattr(registry_module, name)))
    monkeypatch.setattr(verifier_registry, "_registered", dict(verifier_registry._registered))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "tasks.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def calls():
    """A reward `spy` that scores the length of each completion and records the columns of every call."""
    seen = []

    def spy(prompts, completions, **columns):
        seen.append({"prompts": prompts, "completions": completions, **columns})
        return [float(len(c)) for c in completions]

    register_reward("spy")(spy)
    return seen


def route(path, tasks, texts, **columns):
    return get_reward(f"routing:{path}")(["p"] * len(texts), texts, task=tasks, **columns)


def test_each_row_gets_its_tasks_reward(write):
    path = write("tasks: {sums: verifier:math, words: {name: verifier:text, match: exact}}\n")
    values = route(path, ["sums", "words", "sums", "words"], ["2", "2.0", "2.0", "2"], answer=["2"] * 4)
    assert values == [1.0, 0.0, 1.0, 1.0]


def test_a_reward_is_called_once_with_the_rows_of_all_tasks_that_share_it(write, calls):
    path = write("tasks:\n  a: spy\n  b: [spy, {name: length, high: 1, unit: characters}]\n  c: verifier:math\n")
    prompts = ["p0", "p1", "p2", "p3"]
    values = get_reward(f"routing:{path}")(
        prompts=prompts, completions=["x", "xx", "2", "xxx"], completion_ids=[[1], [2], [3], [4]],
        task=["a", "b", "c", "a"], answer=[None, None, "2", None], trainer_state="state",
    )  # fmt: skip
    assert values == [1.0, 2.0, 1.0, 3.0]
    assert len(calls) == 1
    assert calls[0] == {
        "prompts": ["p0", "p1", "p3"], "completions": ["x", "xx", "xxx"], "completion_ids": [[1], [2], [4]],
        "task": ["a", "b", "a"], "answer": [None] * 3, "trainer_state": "state",
    }  # fmt: skip


def test_neither_the_order_nor_the_neighbours_of_a_row_change_its_reward(write, calls):
    path = write("tasks:\n  a: [spy, {name: length, low: 2, unit: characters, weight: -0.5}]\n  b: spy\n")
    rows = [("a", "x"), ("b", "xx"), ("a", "xxx"), ("b", ""), ("a", "")]
    alone = [route(path, [task], [text])[0] for task, text in rows]
    together = route(path, [t for t, _ in rows[::-1]], [text for _, text in rows[::-1]])
    assert together[::-1] == alone == [1.0, 2.0, 2.5, 0.0, 0.0]


def test_a_weighted_sum_with_a_missing_term_is_missing(write):
    path = write("tasks:\n  a: [{name: verifier:math, weight: 2}, {name: length, high: 1, unit: characters}]\n")
    assert route(path, ["a"] * 3, ["2", "2", "33"], answer=["2", None, "2"]) == [3.0, None, 0.0]


def test_an_unknown_task_is_unscored_named_once_and_counted(write, caplog):
    path = write("tasks: {sums: verifier:math}\n")
    batch = rollouts("2", "2", "2", rows=[{"answer": "2", "task": task} for task in ("sums", "sum", None)])
    runner = RewardRunner([("routing", get_reward(f"routing:{path}"), 1.0)], 20.0)
    with caplog.at_level(logging.WARNING, logger="rewards"):
        metrics = runner(batch)
        runner(batch)
    assert [r.reward for r in batch] == [1.0, None, None]
    assert caplog.text.count("unknown task 'sum'; did you mean 'sums'?") == 1
    assert metrics["unscored/tasks/sums"] == 0 and metrics["unscored/routing"] == 2
    assert metrics["unscored/tasks/unknown"] == 1  # the mean of one for each of the two unknown tasks


def test_one_broken_reward_leaves_the_other_tasks_alone(write, caplog):
    register_reward("raising")(lambda prompts, completions, **columns: 1 / 0)
    register_reward("short")(lambda prompts, completions, **columns: [1.0])
    register_reward("nan")(lambda prompts, completions, **columns: [float("nan")] * len(completions))
    tasks = ["raising", "short", "nan", "absent", "incomplete", "sums"]
    path = write(
        "tasks: {raising: raising, short: short, nan: nan, absent: reward_that_is_not_there,"
        " incomplete: {name: overlong, buffer: 3}, sums: verifier:math}\n"
    )
    with caplog.at_level(logging.WARNING, logger="rewards"):
        values = route(path, tasks * 2, ["2"] * 12, answer=["2"] * 12)
    assert values == [None, None, None, None, None, 1.0] * 2
    for text in ("ZeroDivisionError", "'short' invalid: it returned 1 values", "'nan' not finite", "needs 'max_length'",
                 "unknown reward 'reward_that_is_not_there'", "completions of absent are unscored"):  # fmt: skip
        assert caplog.text.count(text) == 1, text


def test_a_hanging_reward_costs_only_its_own_task(write, caplog):
    release = threading.Event()
    register_reward("hangs")(lambda prompts, completions, **columns: release.wait(60))

    async def blocks(prompts, completions, **columns):
        release.wait(60)

    register_reward("blocks")(blocks)
    path = write("tasks: {slow: hangs, blocked: blocks, sums: verifier:math}\n")
    router = get_reward("routing", {"path": path, "timeout_s": 0.5})
    batch = rollouts("2", "2", "2", rows=[{"answer": "2", "task": t} for t in ("slow", "sums", "blocked")])
    RewardRunner([("routing", router, 1.0)], 20.0)(batch)
    release.set()
    assert [r.reward for r in batch] == [None, 1.0, None]
    assert caplog.text.count("no answer within 0.5 s") == 2


def test_async_rewards_of_different_tasks_run_at_the_same_time(write):
    waiting = {}

    def meets(me, other):
        async def reward(prompts, completions, **columns):
            waiting[me] = True
            while other not in waiting:
                await asyncio.sleep(0.001)
            return [1.0] * len(completions)

        return reward

    register_reward("one")(meets("one", "two"))
    register_reward("two")(meets("two", "one"))
    assert route(write("tasks: {a: one, b: two}\n"), ["a", "b"], ["", ""]) == [1.0, 1.0]


def test_means_per_task_and_reward_are_reported(write):
    path = write(
        "tasks:\n  a: [verifier:math, {name: length, high: 1, unit: characters, weight: 0.5}]\n  b: verifier:math\n"
    )
    rows = [{"answer": "2", "task": task} for task in "aab"]
    metrics = RewardRunner([("routing", get_reward(f"routing:{path}"), 1.0)], 20.0)(rollouts("2", "33", "2", rows=rows))
    assert metrics["tasks/a/reward"] == 0.75 and metrics["tasks/a/length"] == metrics["tasks/a/verifier:math"] == 0.5
    assert metrics["tasks/b/reward"] == 1.0 and "tasks/b/verifier:math" not in metrics
    assert metrics["rewards/routing"] == pytest.approx(2.5 / 3)


def test_what_rewards_log_per_row_becomes_one_column_of_the_batch(write):
    def logs(prompts, completions, log_extra, **columns):
        log_extra("seen", [f"{c}!" for c in completions])
        return [0.0] * len(completions)

    register_reward("logs")(logs)
    register_reward("logs_too")(lambda prompts, completions, **columns: logs(prompts, completions, **columns))
    logged = []
    path = write("tasks: {a: logs, b: verifier:math, c: logs_too}\n")
    route(path, list("bacb"), list("wxyz"), answer=["1"] * 4, log_extra=lambda *column: logged.append(column))
    assert logged == [("seen", [None, "x!", "y!", None])]


def test_rows_without_the_column_are_an_error_of_the_reward(write):
    with pytest.raises(ValueError, match="no column 'task'"):
        get_reward(f"routing:{write('tasks: {a: verifier:math}')}")([""], [""], answer=["1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {a: {weight: 2}}", "task 'a': an entry needs a name"),
        ("tasks: {a: []}", "task 'a': no reward"),
        ("tasks: {a: [verifier:math, verifier:math]}", "task 'a': 'verifier:math' is named twice"),
        ("tasks: {a: verifier:math, a: verifier:text}", "'a' stands twice"),
        ("tasks: {1: verifier:math}", "the task 1 is no text"),
        ("a: verifier:math", "expected one key `tasks`"),
        ("tasks: {a: verifier:math}\ntask: {}", "expected one key `tasks`"),
        ("tasks: {a: [", "not valid YAML"),
        ("", "expected one key `tasks`"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(write, text, message):
    path = write(text)
    with pytest.raises(ValueError) as caught:
        get_reward(f"routing:{path}")
    assert message in str(caught.value) and path in str(caught.value)


def test_a_missing_file_and_a_bad_time_are_refused(write):
    with pytest.raises(ValueError, match=r"there is no file none\.yaml"):
        get_reward("routing:none.yaml")
    with pytest.raises(ValueError, match="timeout_s"):
        get_reward("routing", {"path": write("tasks: {a: verifier:math}"), "timeout_s": 0})


# --- before the run -------------------------------------------------------------------------------------------------


TASKS = """tasks:
  sums: verifier:math
  fixed: {name: verifier:choice, answer: B}
  both: {name: qwen_math, model_reward: not_there, verifier_reward: verifier:math}
"""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"task": "sum", "answer": "1"},
            "row 2: {path}: unknown task 'sum'; did you mean 'sums'? The file has sums, fixed",
        ),
        ({"answer": "1"}, "row 2: no column 'task', by which {path} routes"),
        ({"task": "sums"}, "row 2: no column 'answer', which verifier:math of task 'sums' needs"),
        ({"task": "sums", "answer": None}, "row 2: no column 'answer'"),
        ({"task": "both"}, "row 2: no column 'answer', which verifier:math of task 'both' needs"),
    ],
)
def test_rows_that_no_task_could_score_are_refused_before_the_run(write, row, message):
    path = write(TASKS)
    with pytest.raises(ValueError) as caught:
        check_tasks([read_spec(f"routing:{path}")], [{"task": "sums", "answer": "1"}, row], "d.jsonl")
    assert str(caught.value).startswith("d.jsonl, " + message.format(path=path))
    check_tasks([read_spec(f"routing:{path}")], [{"task": "fixed"}], "d.jsonl")
    check_tasks([read_spec("verifier:math")], [{}], "d.jsonl")


def test_only_rewards_of_the_given_tasks_are_made(write):
    router = get_reward(f"routing:{write(TASKS)}")
    router.prepare(["sums", "fixed", "unknown"])
    with pytest.raises(ValueError, match=r"tasks\.yaml, task 'both': reward 'qwen_math': unknown reward 'not_there'"):
        router.prepare(["both"])


# --- pass rates and lists -------------------------------------------------------------------------------------------


def test_the_files_verifiers_as_one_verifier(write):
    path = write(
        "tasks:\n  sums: [verifier:math, {name: verifier:format, mode: no_think}, {name: length, high: 5}]\n"
        "  model: {name: qwen_math, model_reward: not_there, verifier_reward: verifier:math}\n  judged: not_there\n"
    )
    name = f"routing:{path}"
    find_verifier(name)
    find_verifier(name)
    assert verify(name, "2", {"task": "sums", "answer": "2"}).passed
    verdict = verify(name, "<think>hm</think>2", {"task": "sums", "answer": "2"})
    assert verdict.status == "fail" and verdict.detail.startswith("format: ")
    assert verify(name, "<think>hm</think>2", {"task": "sums", "answer": "2", "mode": "thinking"}).passed
    assert verify(name, "3", {"task": "model", "answer": "2"}).status == "fail"
    assert verify(name, "2", {"task": "sums"}).status == "error"
    assert "has no verifier among its rewards" in verify(name, "2", {"task": "judged"}).detail
    assert "did you mean 'sums'" in verify(name, "2", {"task": "sum"}).detail
    row = {"task": "sums", "answer": "2"}
    assert answer_key(name, "so 2.0", row) == answer_key(name, r"\boxed{2}", row) != answer_key(name, "3", row)
    with pytest.raises(ValueError, match="task 'a': unknown verifier 'mth'"):
        find_verifier(f"routing:{write('tasks: {a: verifier:mth}')}")


def test_align_verify_reports_the_pass_rate_of_a_routing_file(write, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = write("tasks: {sums: verifier:math, cities: {name: verifier:text, match: exact}}\n")
    rows = [
        {"task": "sums", "domain": "sums", "answer": "2", "response": "2.0"},
        {"task": "cities", "domain": "cities", "answer": "Rome", "response": "rome"},
        {"task": "rivers", "domain": "rivers", "answer": "Po", "response": "Po"},
    ]
    data = tmp_path / "responses.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["verify", str(data), "--verifier", f"routing:{path}"]) == 0
    out = capsys.readouterr().out
    rates = {
        line.split()[0]: line.split()[3] for line in out.splitlines() if line.split()[:1] and len(line.split()) > 6
    }
    assert (rates["sums"], rates["cities"], rates["all"]) == ("100.0%", "0.0%", "50.0%")
    assert "unknown task 'rivers'" in out
    assert main(["verify", str(data), "--verifier", "routing:none.yaml"]) == 2
    assert "there is no file none.yaml" in capsys.readouterr().err


def test_align_list_shows_the_tasks_and_names_what_is_wrong(write, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    sound = write("tasks: {sums: {name: overlong, max_length: 4, buffer: 2, weight: 0.5}}\n")
    assert main(["list", "--routing", sound]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["sums"])
    assert line.split() == ["sums", "overlong", "0.5", "max_length:", "4,", "buffer:", "2"]
    wrong = write(
        "tasks: {a: overlng, b: {name: qwen_math, model_reward: {name: nope}, verifier_reward: verifier:math}}"
    )
    assert main(["list", "--routing", wrong]) == 1
    out = capsys.readouterr().out
    assert "a: unknown reward 'overlng'; did you mean 'overlong'" in out and "b: unknown reward 'nope'" in out
    assert main(["list", "--routing", "none.yaml"]) == 2

"""The judge's concurrency and its cache: overlapping requests, shared and damaged entries, a crash."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewards.judge import make_judge
from rewards.judge.cache import ReplyCache
from rewards.judge.prompt import WITH_REFERENCE
from tests.judge_server import completion, grade, hang, one_server, quoted, reasons, server

__all__ = ["one_server", "server"]  # fixtures

ROOT = Path(__file__).parent.parent


def test_requests_overlap_up_to_the_bound(server):
    full = asyncio.Event()

    async def gather(body):
        """Nobody is answered before four are in flight."""
        if server.at_once >= 4:
            full.set()
        await full.wait()
        return completion(f"Score: {quoted(body)}")

    server.answer = gather
    got = grade(server, [str(i % 11) for i in range(11)], concurrency=4)
    assert got == [i / 10 for i in range(11)]  # in the order of the batch
    assert server.most_at_once == 4 and len(server.asked) == 11


def test_equal_cases_are_asked_once(server):
    reward = make_judge(url=server.url, model="m", cache_dir="")
    assert asyncio.run(reward(["q"] * 8, ["a"] * 7 + ["b"])) == [0.5] * 8
    assert len(server.asked) == 2


def test_a_kept_reply_is_not_asked_for_again(server, tmp_path):
    server.answer = lambda body: completion("Score: 8")
    settings = {"cache_dir": str(tmp_path), "columns": {"answer": ["x", "y"]}}
    assert reasons(server, ["a", "b"], **settings) == ([0.8, 0.8], {})
    assert reasons(server, ["a", "b"], **settings) == ([0.8, 0.8], {"cached": 1.0})
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"}, {"template": WITH_REFERENCE + " "}, {"temperature": 0.5}, {"max_tokens": 7},
        {"score_range": (0, 9)}, {"extra_body": {"seed": 1}}, {"columns": {"answer": ["z"]}},
        {"columns": {"answer": ["x"], "rubric": ["r"]}},
    ],
)  # fmt: skip
def test_whatever_the_reply_depends_on_is_part_of_the_key(server, tmp_path, change):
    settings = {"cache_dir": str(tmp_path), "columns": {"answer": ["x"]}}
    grade(server, ["a"], **settings)
    grade(server, ["a"], **{**settings, **change})
    assert len(server.asked) == 2


def test_failures_are_not_kept(server, tmp_path):
    server.script(lambda body: completion("No."), lambda body: completion("Score: 10"))
    assert grade(server, ["a"], cache_dir=str(tmp_path)) == [None]
    assert grade(server, ["a"], cache_dir=str(tmp_path)) == [1.0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda old: b"", lambda old: old[: len(old) // 2], lambda old: b"\xff" * 20, lambda old: b"[]",
        lambda old: b"null", lambda old: b'{"reply": 3, "sha256": ""}',
        lambda old: old.replace(b"Score: 5", b"Score: 9"), lambda old: b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_entry_is_ignored_and_written_anew(server, tmp_path, damage):
    grade(server, ["a"], cache_dir=str(tmp_path))
    (entry,) = tmp_path.rglob("*.json")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert grade(server, ["a"], cache_dir=str(tmp_path)) == [0.5]
    assert len(server.asked) == 2 and entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_no_score(server, tmp_path, caplog):
    reward = make_judge(url=server.url, model="m", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file in the way")
    assert asyncio.run(reward(["q", "q"], ["a", "b"])) == [0.5, 0.5]
    assert caplog.text.count("cannot be kept") == 1
    with pytest.raises(ValueError, match="cache_dir"):
        make_judge(url=server.url, model="m", cache_dir=str(tmp_path / "cache" / "deeper"))


HAMMER = """
import sys
from rewards.judge.cache import ReplyCache
cache, me = ReplyCache(sys.argv[1]), int(sys.argv[2])
for turn in range(60):
    request = b"%d" % (turn * (me + 1) % 7)
    seen = cache.get(request)
    assert seen in (None, request.decode() * 50_000), "half a reply"
    cache.put(request, request.decode() * 50_000)
"""


def test_processes_share_the_cache(tmp_path):
    run = [sys.executable, "-c", HAMMER, str(tmp_path)]
    processes = [subprocess.Popen([*run, str(i)], cwd=ROOT, stderr=subprocess.PIPE) for i in range(4)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0
    cache = ReplyCache(tmp_path)
    assert [cache.get(b"%d" % i) for i in range(7)] == [str(i) * 50_000 for i in range(7)]
    assert not list(tmp_path.rglob("*.tmp"))


CRASH = """
import asyncio, json, sys
from rewards.judge import make_judge
settings = json.loads(sys.argv[1])
asyncio.run(make_judge(**settings)(["q"] * 9, [str(i) for i in range(9)]))
"""


def test_after_a_crash_only_what_was_not_graded_is_asked(server, tmp_path):
    server.answer = lambda body: completion("Score: 10") if int(quoted(body)) < 5 else hang(body)
    settings = {"url": server.url, "model": "m", "cache_dir": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", CRASH, json.dumps(settings)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.json"))) < 5 or len(server.asked) < 9:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    server.asked.clear()
    server.answer = lambda body: completion("Score: 5")
    got = asyncio.run(make_judge(**settings)(["q"] * 9, [str(i) for i in range(9)]))
    assert got == [1.0] * 5 + [0.5] * 4
    assert sorted(quoted(body) for body in server.asked) == ["5", "6", "7", "8"]

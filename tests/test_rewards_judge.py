"""The judge against a real server on this machine: scores, failures of every kind, time-outs, retries, the runner."""

import asyncio
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from rewards import RewardRunner, get_reward
from rewards.judge.endpoint import retry_after_s, retry_delay
from tests.judge_server import (
    broken_off,
    completion,
    drip,
    grade,
    hang,
    judge_server,
    one_server,
    quoted,
    reasons,
    server,
)

__all__ = ["one_server", "server"]  # fixtures

ROOT = Path(__file__).parent.parent


def test_a_score_is_mapped_from_its_range_to_0_and_1(server):
    scores = iter(["1", "2", "4.5", "5"])
    server.answer = lambda body: completion(f"Score: {next(scores)}")
    got = grade(server, ["a", "b", "c", "d"], score_range=[1, 5], concurrency=1)
    assert got == [0.0, 0.25, 0.875, 1.0]
    assert "a number from 1 (worst) to 5 (best)" in server.asked[0]["messages"][0]["content"]


# --- failures


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda body: completion("Hm."), "no_score"),
        (lambda body: completion("Right.\nScore: 1", "length"), "cut_off"),  # of a 10, perhaps
        (lambda body: completion("Score: 5", "content_filter"), "cut_off"),
        (lambda body: completion(None), "bad_reply"),
        (lambda body: JSONResponse({"error": {"message": "Score: 5", "code": 400}}), "bad_reply"),
        (lambda body: JSONResponse({"choices": []}), "bad_reply"),
        (lambda body: JSONResponse({"choices": [None]}), "bad_reply"),
        (lambda body: JSONResponse({"choices": [{"message": "Score: 5", "finish_reason": "stop"}]}), "bad_reply"),
        (lambda body: JSONResponse(["Score: 5"]), "bad_reply"),
        (lambda body: Response(b'{"choices": [{"mess', media_type="application/json"), "bad_reply"),
        (lambda body: Response(b"\xff\xfe\x00", media_type="application/json"), "bad_reply"),
        (lambda body: Response(b"[" * 100_000, media_type="application/json"), "bad_reply"),
        (lambda body: Response(b"", media_type="application/json"), "bad_reply"),
        (lambda body: Response("<html>Score: 5</html>", media_type="text/html"), "bad_reply"),
        (lambda body: PlainTextResponse("Score: 5"), "bad_reply"),
        (lambda body: Response("data: {}\n\ndata: [DONE]\n\n", media_type="text/event-stream"), "bad_reply"),
        (lambda body: Response(b"no gzip", headers={"content-encoding": "gzip"}), "unreachable"),
        (broken_off, "unreachable"),
        (lambda body: JSONResponse({"detail": "no such model"}, 404), "http_error"),
        (lambda body: JSONResponse({"error": "Score: 5"}, 429), "http_error"),
        (lambda body: PlainTextResponse("Score: 5", 500), "http_error"),
        (lambda body: RedirectResponse("http://127.0.0.1:9/elsewhere"), "http_error"),
    ],
)  # fmt: skip
def test_a_reply_that_fails_leaves_the_completion_unscored(server, answer, reason):
    server.answer = answer
    assert reasons(server, max_retries=1) == ([None], {reason: 1.0})


def test_json_of_another_content_type_is_still_a_reply(server):
    server.answer = lambda body: Response(completion("Score: 5").body, media_type="text/plain")
    assert grade(server, ["r"]) == [0.5]


def test_a_reply_without_end_is_not_read_to_its_end(server):
    sent = []

    async def pieces():
        for _ in range(1024):
            sent.append(1)
            yield b" " * 2**20
            await asyncio.sleep(0)  # where the server notices that nobody listens

    server.answer = lambda body: StreamingResponse(pieces(), media_type="application/json")
    assert reasons(server) == ([None], {"bad_reply": 1.0})
    assert len(sent) < 100 and len(server.asked) == 1


@pytest.mark.parametrize("answer", [hang, drip])
def test_a_server_that_does_not_finish_is_left_after_the_time_out(server, answer):
    server.script(answer, lambda body: completion("Score: 5"))
    assert grade(server, ["r"], request_timeout_s=0.3, max_retries=1) == [0.5]
    server.answer = answer
    assert reasons(server, request_timeout_s=0.3, max_retries=0) == ([None], {"timeout": 1.0})


def test_the_batch_time_out_keeps_what_is_graded(server, caplog):
    server.answer = lambda body: hang(body) if quoted(body) == "slow" else completion("Score: 10")
    scores, shares = reasons(server, ["a", "slow", "b", "c"], batch_timeout_s=2.0, concurrency=2)
    assert scores == [1.0, None, 1.0, 1.0] and shares == {"timeout": 0.25}
    assert "batch_timeout_s" in caplog.text and len(server.asked) == 4


def test_an_address_where_nobody_listens(server):
    with judge_server() as gone:
        url = gone.url
    assert reasons(server, url=url, max_retries=1) == ([None], {"unreachable": 1.0})


def test_failures_are_logged_once_per_reason_and_without_the_key(server, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    server.answer = lambda body: JSONResponse({"error": "bad key sk-secret"}, 401)
    assert grade(server, ["a", "b"], api_key_env="JUDGE_KEY") == [None, None]
    assert server.headers[0]["authorization"] == "Bearer sk-secret" and len(server.asked) == 2
    assert len(caplog.records) == 1 and "status 401" in caplog.text and "sk-secret" not in caplog.text


# --- retries


def busy(status, header=None):
    return lambda body: Response(status_code=status, headers={"retry-after": header} if header else {})


@pytest.mark.parametrize("failure", [busy(429), busy(500), busy(502), busy(503), busy(529), busy(408), broken_off])
def test_failures_that_may_pass_are_tried_again(server, failure):
    server.script(failure, failure, lambda body: completion("Score: 5"))
    assert grade(server, ["r"], max_retries=2) == [0.5]
    assert len(server.asked) == 3 and server.asked[0] == server.asked[2]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refusals_are_not_tried_again(server, status):
    server.answer = busy(status)
    assert reasons(server) == ([None], {"http_error": 1.0})
    assert len(server.asked) == 1


def test_retries_end_at_their_number(server):
    server.answer = busy(503)
    assert reasons(server, max_retries=3) == ([None], {"http_error": 1.0})
    assert len(server.asked) == 4


def test_retry_after_is_honoured(server):
    first = []

    def limited(body):
        """Lets nobody in who comes back before the second is over."""
        first.append(time.monotonic())
        return completion("Score: 5") if first[-1] - first[0] >= 1 else busy(429, "1")(body)

    server.answer = limited
    assert grade(server, ["r"], max_retries=1) == [0.5]


def test_a_wait_longer_than_the_batch_has_left_is_not_begun(server):
    server.answer = busy(429, "3600")
    assert reasons(server) == ([None], {"http_error": 1.0})
    assert len(server.asked) == 1


def test_the_delay_doubles_to_its_bound_and_is_never_below_retry_after(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert [retry_delay(n, 0) for n in (0, 1, 2, 10)] == [0.75, 1.5, 3.0, 45.0]
    assert retry_delay(0, 60) == 60.25 and retry_delay(3, 1) == 6.0
    monkeypatch.undo()
    assert all(60 <= retry_delay(0, 60) <= 60.25 for _ in range(100))


def test_retry_after_is_read_as_seconds_and_as_a_date():
    assert [retry_after_s(text) for text in ("7", " 0.5 ", "", "-3", "inf", "nan", "later", "1" * 400)] == [
        7, 0.5, 0, 0, 0, 0, 0, 0,
    ]  # fmt: skip
    assert 3500 < retry_after_s(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)) <= 3600
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0


# --- in the runner


@dataclass
class P:
    messages: list
    row: dict


@dataclass
class R:
    prompt: P
    text: str
    token_ids: list = field(default_factory=list)
    reward: float | None = None
    reward_terms: dict = field(default_factory=dict)


def test_the_runner_runs_it_and_an_unscored_completion_has_no_reward(server):
    server.answer = lambda body: completion("Score: 6" if quoted(body) == "good" else "Well.")
    reward = get_reward("judge", {"url": server.url, "model": "m", "cache_dir": ""})
    batch = [R(P([{"role": "user", "content": "q"}], {"answer": "x"}), text) for text in ("good", "bad")]
    runner = RewardRunner([("judge", reward, 2.0)], 60.0)
    for _ in range(2):  # a second batch on the runner's own event loop
        metrics = runner(batch)
        assert [r.reward for r in batch] == [1.2, None]
        assert metrics["unscored/judge"] == 1.0 and metrics["verdicts/judge/no_score"] == 0.5
        assert metrics["verdicts/judge/timeout"] == 0.0


def test_rewards_load_neither_torch_nor_the_http_client():
    code = "import sys, rewards; print([m for m in ('torch', 'httpx2', 'rewards.judge') if m in sys.modules]); "
    code += "import rewards.judge; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.split() == ["[]", "False"]

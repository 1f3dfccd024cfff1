"""A chat-completion server on this machine that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rewards.judge import make_judge
from tests.serving import serving

Answer = Callable[[dict[str, Any]], Awaitable[Response] | Response]


def completion(text: str | None, finish_reason: str = "stop") -> JSONResponse:
    message = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 201, "completion_tokens": 14, "total_tokens": 215}
    return JSONResponse({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage})


def quoted(body: dict[str, Any], name: str = "response") -> str:
    """What the judge's prompt quotes under this name."""
    message = body["messages"][0]["content"]
    found = re.search(rf"<({name}-[0-9a-f]{{16}})>\n(.*)\n</\1>", message, re.DOTALL)
    assert found, message
    return found[2]


async def hang(body: dict[str, Any]) -> Response:
    await asyncio.sleep(3600)
    return completion("Score: 1")


def drip(body: dict[str, Any]) -> Response:
    """A body that never ends, a byte at a time."""

    async def pieces():
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    return StreamingResponse(pieces(), media_type="application/json")


def broken_off(body: dict[str, Any]) -> Response:
    """Announces more bytes than it sends."""
    return Response(b'{"choices": [', headers={"content-length": "1000"}, media_type="application/json")


def grade(
    server: JudgeServer, responses: list[str], *, log_metric=None, columns=None, **settings
) -> list[float | None]:
    """Scores of the responses to `question 0`, `question 1`, ... by a judge at the server, without a cache."""
    given = {"url": server.url, "model": "m", "cache_dir": "", "request_timeout_s": 20.0, **settings}
    prompts = [f"question {i}" for i in range(len(responses))]
    return asyncio.run(make_judge(**given)(prompts, responses, log_metric=log_metric, **(columns or {})))


def reasons(server: JudgeServer, responses=("r",), **settings) -> tuple[list[float | None], dict[str, float]]:
    """The scores, and the reasons with their shares of the batch."""
    seen: dict[str, float] = {}
    scores = grade(server, list(responses), log_metric=seen.__setitem__, **settings)
    shares = {name.removeprefix("verdicts/judge/"): share for name, share in seen.items()}
    return scores, {name: share for name, share in shares.items() if share and name != "without_reference"}


class JudgeServer:
    """`answer` maps a request's body to a response. `asked`: the bodies so far. `most_at_once`: requests in flight."""

    url = ""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.answer: Answer = lambda body: completion("Fine.\nScore: 5")
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0

    def script(self, *answers: Answer) -> None:
        """One answer per request, in order; the last one stays."""
        left = list(answers)
        self.answer = lambda body: (left.pop(0) if len(left) > 1 else left[0])(body)

    async def reply(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            response = self.answer(body)
            return response if isinstance(response, Response) else await response
        finally:
            self.at_once -= 1


@contextlib.contextmanager
def judge_server() -> Iterator[JudgeServer]:
    judge = JudgeServer()
    app = Starlette(routes=[Route("/v1/chat/completions", judge.reply, methods=["POST"])])
    with serving(app) as url:
        judge.url = f"{url}/v1"
        yield judge


@pytest.fixture(scope="module")
def one_server() -> Iterator[JudgeServer]:
    with judge_server() as running:
        yield running


@pytest.fixture
def server(one_server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> JudgeServer:
    """As new for each test, and asked again at once where the judge would wait."""
    monkeypatch.setattr("rewards.judge.endpoint._FIRST_DELAY_S", 0.01)
    one_server.reset()
    return one_server

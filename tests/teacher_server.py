"""A server on this machine that answers completions with `prompt_logprobs` as vLLM does, from a real tiny model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.serving import serving
from tests.tiny import tiny_tokenizer

MAX_LOGPROBS = 20


class TeacherServer:
    """`script`: answers for the first requests in place of the model's. `asked`: the bodies so far."""

    url = ""

    def __init__(self, model, served: tuple[str, ...] = ("teacher",), root: str = ""):
        self.model, self.served, self.root = model, served, root
        self.tokenizer = tiny_tokenizer()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: list[Callable[[dict[str, Any]], Response]] = []

    def models(self, request: Request) -> Response:
        listed = [{"id": name, "object": "model", "root": self.root or name} for name in self.served]
        return JSONResponse({"object": "list", "data": listed})

    async def complete(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        if self.script:
            return self.script.pop(0)(body)
        if body["prompt_logprobs"] > MAX_LOGPROBS:
            message = f"Requested prompt logprobs of {body['prompt_logprobs']}, which is greater than max allowed: 20"
            return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
        return self.answer(body)

    def answer(self, body: dict[str, Any]) -> Response:
        scored = self.prompt_logprobs(body["prompt"], body["prompt_logprobs"])
        choice = {"index": 0, "text": " x", "logprobs": None, "finish_reason": "length", "prompt_logprobs": scored}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        return JSONResponse({"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage})

    @torch.no_grad()
    def prompt_logprobs(self, prompt: list[int], k: int) -> list[dict[str, dict[str, Any]] | None]:
        """Nothing for the first token; then the k most probable tokens and the one that is there, with their ranks."""
        log_p = self.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        out: list[dict[str, dict[str, Any]] | None] = [None]
        for row, actual in zip(log_p, prompt[1:], strict=False):
            top = row.topk(k)
            ranked = [(actual, int((row > row[actual]).sum()) + 1), *zip(top.indices.tolist(), range(1, k + 1))]
            out.append({str(i): {"logprob": row[i].item(), "rank": rank, "decoded_token": self.tokenizer.decode([i])}
                        for i, rank in ranked})  # fmt: skip
        return out


@contextlib.contextmanager
def teacher_server(model, **settings) -> Iterator[TeacherServer]:
    teacher = TeacherServer(model, **settings)
    routes = [Route("/v1/completions", teacher.complete, methods=["POST"]), Route("/v1/models", teacher.models)]
    with serving(Starlette(routes=routes)) as url:
        teacher.url = f"{url}/v1"
        yield teacher

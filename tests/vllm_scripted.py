"""What a vLLM server would be sent and would say, without vLLM: samples, replies and a server that a test scripts."""

import contextlib
import json

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from alignment.rollout.thinking import ThinkingTokens
from alignment.rollout.vllm_sample import make_samples
from alignment.types import Prompt
from tests.serving import serving
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
THINKING = ThinkingTokens(TOKENIZER)
MINUS = -9999.0


def samples(sampling, ids=(5, 6), n=1, most=64, step=0):
    return make_samples([Prompt("p", [], list(ids))], n, sampling, step, THINKING, 512, len(TOKENIZER), most)[0]


def reply(version="v1", ids=(20, 21), logprob=-0.5, **changed):
    content = [{"token_id": i, "logprob": logprob, "top_logprobs": [{"token_id": i, "logprob": logprob}]} for i in ids]
    choice = {"token_ids": list(ids), "logprobs": {"content": content}, "finish_reason": "length"}
    spans = [{"version": version, "start": 0, "end": len(ids)}]
    return {"choices": [{**choice, "weight_versions": spans, **changed}]}


@contextlib.contextmanager
def scripted(handler):
    """A server on this machine; handler(path, body) gives (status, reply)."""

    async def serve_one(request):
        body = await request.body()
        status, content = handler(request.url.path, json.loads(body) if body else None)
        return JSONResponse(content, status)

    with serving(Starlette(routes=[Route("/{path:path}", serve_one, methods=["GET", "POST"])])) as url:
        yield url

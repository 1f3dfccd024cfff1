"""`align sandbox-server`: a sandbox behind HTTP, so that verification can run on other machines than training.

    ALIGN_SANDBOX_TOKEN=... align sandbox-server --host 0.0.0.0 --port 8900

Needs the `sandbox-server` extra (starlette, uvicorn). Every request carries `Authorization: Bearer <token>`. The token
and the code travel in clear unless a certificate is given or a proxy adds TLS. Who holds the token can run code in the
sandbox, up to the limits below, and nothing else.

    GET  /info  -> {"tier", "workers", "tools": {name: path}}
    POST /run   {"jobs": [job] or [serve, tests]} -> {"outcomes": [...]}
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from .job import Backend, Job, Limits, SandboxError

TOOLS = ("python3", "node", "gcc", "g++", "java", "bash")
MAX_BODY = 64 << 20
# No request may ask for more than this, whoever sends it.
CEILING = Limits(
    wall_s=120,
    cpu_s=120,
    memory_mb=8192,
    processes=256,
    open_files=1024,
    file_mb=256,
    disk_mb=1024,
    files=4096,
    output_mb=64,
)


def parse_request(body: bytes) -> list[Job]:
    """Raises ValueError with the reason when `body` is not one job, or a pair of `serve` and `tests`."""
    try:
        jobs = [Job.from_json(data) for data in json.loads(body)["jobs"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a list of jobs: {type(error).__name__}: {error}") from None
    kinds = [job.kind for job in jobs]
    if len(jobs) != 1 and kinds != ["serve", "tests"]:
        raise ValueError(f"expected one job, or 'serve' and 'tests'; got {kinds}")
    for job in jobs:
        for name, ceiling in asdict(CEILING).items():
            value = getattr(job.limits, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= ceiling:
                raise ValueError(f"limit {name!r} must be above 0 and at most {ceiling}, got {value!r}")
    return jobs


def create_app(backend: Backend, token: str, workers: int = 1) -> Any:
    """The ASGI application. Raises ValueError without a token."""
    if not token:
        raise ValueError("the sandbox server needs a token: set ALIGN_SANDBOX_TOKEN to a long random string")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    expected = f"Bearer {token}".encode()

    def refusal(request: Request) -> Response | None:
        given = request.headers.get("authorization", "").encode()
        if hmac.compare_digest(given, expected):
            return None
        return JSONResponse({"error": "missing or wrong token"}, 401)

    async def info(request: Request) -> Response:
        tools = {tool: path for tool in TOOLS if (path := backend.find(tool))}
        return refusal(request) or JSONResponse({"tier": backend.tier, "workers": workers, "tools": tools})

    async def run(request: Request) -> Response:
        if refused := refusal(request):
            return refused
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return JSONResponse({"error": f"a request may hold {MAX_BODY} bytes"}, 413)
        try:
            jobs = parse_request(bytes(body))
            outcomes = await run_in_threadpool(_run, backend, jobs)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        except SandboxError as error:
            return JSONResponse({"error": str(error)}, 503)
        return JSONResponse({"outcomes": outcomes})

    return Starlette(routes=[Route("/info", info), Route("/run", run, methods=["POST"])])


def _run(backend: Backend, jobs: list[Job]) -> list[dict[str, Any]]:
    outcomes = [backend.run(jobs[0])] if len(jobs) == 1 else backend.run_pair(jobs[0], jobs[1])
    return [outcome.to_json() for outcome in outcomes]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8900, help="port to listen on (default %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="jobs at a time (default: one per core)")
    parser.add_argument("--tier", choices=("namespaces", "flat"), default=None, help="default: the best that works")
    parser.add_argument("--certificate", default=None, help="PEM file of a TLS certificate")
    parser.add_argument("--key", default=None, help="PEM file of the certificate's key")


def serve(options: argparse.Namespace) -> int:
    """Until it is interrupted. Returns 1, with the reason on standard error, when it cannot start."""
    try:
        import uvicorn

        from .local import Sandbox

        with Sandbox(options.tier, options.workers) as sandbox:
            app = create_app(sandbox, os.environ.pop("ALIGN_SANDBOX_TOKEN", ""), sandbox.workers)
            print(f"sandbox tier {sandbox.tier}, {sandbox.workers} workers", file=sys.stderr)
            tls = {"ssl_certfile": options.certificate, "ssl_keyfile": options.key}
            uvicorn.run(app, host=options.host, port=options.port, log_level="warning", **tls)
    except ImportError as error:
        print(f"{error.name} is missing: pip install -e '.[sandbox-server]'", file=sys.stderr)
        return 1
    except (SandboxError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0

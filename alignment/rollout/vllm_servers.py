"""Any number of vLLM servers: requests go to the one with the least to do, and to another when one dies or stalls.

A server counts as live when it has answered and holds the right weights. One that fails is left alone until it answers
again, and is given the weights anew before it gets requests: a restarted server has those it was started with. Every
answer names the version of the weights that made it, so one from others is noticed and asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx2

from alignment.errors import EngineLost, UserError
from alignment.rollout.vllm_sample import CUT, Answer, Request, Sample

GENERATE = "/inference/v1/generate"
START = "start it with alignment/rollout/vllm_server/serve.py (docs/vllm.md)"
TRIES = 6
SHORT_S = 10.0  # for questions that need no model
PAUSE_S = 0.5


class ServerDown(Exception):
    """A server did not answer, or not as it should; another may."""


class Server:
    """One server. `problem`: why it gets no requests, empty while it is live."""

    def __init__(self, url: str):
        self.url, self.busy, self.problem = url, 0, "not asked yet"

    async def ask(
        self, client: httpx2.AsyncClient, path: str, body: dict[str, Any] | None = None, timeout_s: float = SHORT_S
    ) -> Any:
        """The reply to a POST of `body`, or to a GET. Raises ServerDown, and UserError when the request is refused."""
        method = "GET" if body is None else "POST"
        try:
            response = await client.request(method, self.url + path, json=body, timeout=timeout_s)
            if response.status_code == 200:
                return response.json() if "json" in response.headers.get("content-type", "") else response.text
        except (httpx2.RequestError, ValueError) as error:
            raise ServerDown(f"{type(error).__name__} {error}".strip()) from error
        problem = f"status {response.status_code} to {path}: {response.text[:300]}"
        if response.status_code in (404, 408, 429) or response.status_code >= 500:
            raise ServerDown(problem)
        raise UserError(f"vLLM server {self.url}: {problem}{_remedy(response.text)}")


Refresh = Callable[[httpx2.AsyncClient, Server], Awaitable[None]]
"""Gives a server the current weights unless it has them, and proves it. Raises ServerDown."""


class Servers:
    """urls: http://host:port each. key_env: environment variable that holds their key, empty for none. timeout_s: of
    one request. wait_s: how long to wait while no server is live. rows: requests to one server at a time.

    Raises UserError for malformed addresses.
    """

    def __init__(self, urls: Sequence[str], key_env: str, timeout_s: float, wait_s: float, rows: int):
        if not urls:
            raise UserError("vllm_servers is empty: give the servers' addresses, for instance [http://127.0.0.1:8001]")
        for url in urls:
            if not url.startswith(("http://", "https://")) or httpx2.URL(url).host == "":
                raise UserError(f"vllm_servers: {url!r} is no address such as http://127.0.0.1:8001")
        self.servers = [Server(url.rstrip("/").removesuffix("/v1")) for url in dict.fromkeys(urls)]
        self.timeout_s, self.wait_s, self.rows = timeout_s, wait_s, rows
        self.key_env = key_env
        self.seen: set[str] = set()
        self.fatal: UserError | None = None
        if key_env and not os.environ.get(key_env, "").strip():
            raise UserError("vllm_api_key_env: there is no such environment variable, or it is empty")

    # --- from code that is not asynchronous -------------------------------------------------------------------------

    def refresh_all(self, refresh: Refresh) -> None:
        """Refresh every server that can be reached. Raises EngineLost when for wait_s none is."""

        async def run() -> None:
            async with self._client() as client:
                await asyncio.gather(*(self._refresh(client, server, refresh) for server in self.servers))
                if not self._live():
                    async with self._reviving(client, refresh):
                        await self._pick()

        asyncio.run(run())

    def finish(self, samples: Sequence[Sample], refresh: Refresh, model: str | None, version: str) -> None:
        """Make all samples. What has been sampled stays when a server fails; only its open requests are repeated.

        Raises EngineLost when no server is live for wait_s, and UserError for requests that are refused.
        """

        async def run() -> None:
            async with self._client() as client, self._reviving(client, refresh):
                gate = asyncio.Semaphore(self.rows * len(self.servers))
                tasks = [asyncio.create_task(self._finish_one(client, s, gate, model, version)) for s in samples]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        if samples:
            asyncio.run(run())

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _finish_one(
        self, client: httpx2.AsyncClient, sample: Sample, gate: asyncio.Semaphore, model: str | None, version: str
    ) -> None:
        async with gate:
            while not sample.row.finish_reason:
                sample.take(await self._answer(client, sample.next_request(), model, version))

    async def _answer(self, client: httpx2.AsyncClient, request: Request, model: str | None, version: str) -> Answer:
        body = {"token_ids": request.token_ids, "sampling_params": request.params, "model": model}
        for _ in range(TRIES):
            server = await self._pick()
            server.busy += 1
            try:
                reply = await server.ask(client, GENERATE, body, self.timeout_s)
                return read_answer(reply, version)
            except ServerDown as error:
                self._lose(server, str(error))
            finally:
                server.busy -= 1
        raise EngineLost(
            f"a request to vLLM failed {TRIES} times, the last time at {server.url}: {server.problem}. See the "
            "server's log; a longer vllm_timeout_s helps where it was too slow"
        )

    async def _pick(self) -> Server:
        """The live server with the fewest requests; waits for one."""
        deadline = time.monotonic() + self.wait_s
        while not (live := self._live()) or self.fatal:
            if self.fatal:
                raise self.fatal
            if time.monotonic() > deadline:
                problems = "; ".join(f"{server.url}: {server.problem}" for server in self.servers)
                raise EngineLost(
                    f"no vLLM server has answered for {self.wait_s:g} s ({problems}). Restart one, {START}, and give "
                    "the same command again"
                )
            await asyncio.sleep(PAUSE_S / 5)
        return min(live, key=lambda server: server.busy)

    def _live(self) -> list[Server]:
        return [server for server in self.servers if not server.problem]

    def _lose(self, server: Server, problem: str) -> None:
        if not server.problem:
            print(f"vLLM server {server.url} is out: {problem}; its requests go elsewhere", flush=True)
        server.problem = problem

    # --- servers that are out ---------------------------------------------------------------------------------------

    async def _refresh(self, client: httpx2.AsyncClient, server: Server, refresh: Refresh) -> None:
        try:
            await server.ask(client, "/health")
            await refresh(client, server)
        except ServerDown as error:
            self._lose(server, str(error))
            return
        if server.problem and server.url in self.seen:
            print(f"vLLM server {server.url} is back, with the current weights", flush=True)
        self.seen.add(server.url)
        server.problem = ""

    @contextlib.asynccontextmanager
    async def _reviving(self, client: httpx2.AsyncClient, refresh: Refresh) -> AsyncIterator[None]:
        """Meanwhile, servers that are out are asked again and again. What makes the run stop stops this too."""

        async def revive(server: Server) -> None:
            try:
                while True:
                    if server.problem:
                        await self._refresh(client, server, refresh)
                    await asyncio.sleep(PAUSE_S)
            except UserError as error:
                self.fatal = error

        tasks = [asyncio.create_task(revive(server)) for server in self.servers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {os.environ[self.key_env].strip()}"} if self.key_env else {}
        return httpx2.AsyncClient(headers=headers, limits=httpx2.Limits(max_connections=None), trust_env=False)


def read_answer(reply: dict[str, Any], version: str) -> Answer:
    """Raises ServerDown when other weights made the answer, or when it is none."""
    try:
        choice = reply["choices"][0]
        ids, entries = choice["token_ids"], choice["logprobs"]["content"]
        made_by = {span["version"] for span in choice.get("weight_versions") or ()}
        if made_by != {version}:
            raise ServerDown(f"its weights are {', '.join(sorted(made_by)) or 'unnamed'}, not {version}")
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerDown(f"it ended a request with {choice['finish_reason']}")
        if len(entries) != len(ids) or min((e["logprob"] for e in entries), default=CUT) <= CUT:
            raise ServerDown(f"it gave {len(entries)} log-probabilities, or bad ones, for its tokens")
        return Answer(
            ids,
            [entry["logprob"] for entry in entries],
            [[(top["token_id"], top["logprob"]) for top in entry["top_logprobs"]] for entry in entries],
            choice.get("sampling_mask"),
            choice["finish_reason"] == "stop",
        )
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"the answer is not one of vLLM 0.32 to {GENERATE} ({error!r}): {str(reply)[:200]}") from error


def _remedy(text: str) -> str:
    if "scale-out" in text.lower():
        return f". To serve training, {START}"
    if "max allowed" in text:
        return ". Start it with a larger --max-logprobs"
    return ""

"""`RemoteSandbox`: jobs on a pool of `align sandbox-server` machines, over HTTP with a token."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

from .job import Job, Outcome, SandboxError

_QUEUE_S = 300.0  # how long a job may wait for its turn at a busy server
_REST_S = 30.0  # how long a server that failed is left alone while others work


class _Server:
    """One address, with a connection per thread."""

    def __init__(self, url: str, token: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a sandbox server's address looks like http://host:8900, got {url!r}")
        self.url, self.parts, self.token = url, parts, token
        self.local = threading.local()
        self.active, self.resting_until, self.workers = 0, 0.0, 1

    def ask(self, method: str, path: str, body: bytes | None, timeout: float) -> dict[str, Any]:
        """Raises SandboxError for a refusal (which another server would repeat) and OSError for a broken line."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection = getattr(self.local, "connection", None) or self._connect(timeout)
        self.local.connection = None
        try:
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            connection.request(method, self.parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise OSError(f"{self.url}: {type(error).__name__}: {error}") from error
        self.local.connection = connection
        try:
            answer = json.loads(content)
        except ValueError:
            raise OSError(f"{self.url}: status {response.status} without JSON") from None
        if response.status == 503:
            raise OSError(f"{self.url}: {answer.get('error')}")
        if response.status != 200:
            raise SandboxError(f"{self.url} refused the job ({response.status}): {answer.get('error')}")
        return answer

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        host, port = self.parts.hostname or "", self.parts.port
        if self.parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=timeout)


class RemoteSandbox:
    """Each job goes to the least loaded server; one that does not answer is left alone for a while and the job goes to
    the next. Raises SandboxError when none answers, ValueError for an address that is none."""

    def __init__(self, urls: Sequence[str], token: str) -> None:
        if not urls:
            raise ValueError("RemoteSandbox needs at least one server address")
        self._servers = [_Server(url, token) for url in urls]
        self._lock = threading.Lock()
        infos = []
        for server in self._servers:
            try:
                infos.append(server.ask("GET", "/info", None, 30.0))
            except OSError as error:
                raise SandboxError(f"a sandbox server does not answer: {error}") from error
            server.workers = int(infos[-1]["workers"])
        self._tier = "flat" if any(info["tier"] == "flat" for info in infos) else "namespaces"
        shared = set.intersection(*(set(info["tools"]) for info in infos))
        self._tools = {tool: infos[0]["tools"][tool] for tool in shared}

    @property
    def tier(self) -> str:
        """The weakest tier of the pool."""
        return self._tier

    @property
    def workers(self) -> int:
        """Jobs that the pool runs at a time."""
        return sum(server.workers for server in self._servers)

    def find(self, tool: str) -> str | None:
        return self._tools.get(tool)

    def run(self, job: Job) -> Outcome:
        return self._run([job])[0]

    def run_pair(self, serve: Job, tests: Job) -> tuple[Outcome, Outcome]:
        first, second = self._run([serve, tests])
        return first, second

    def close(self) -> None:
        """Nothing is held but connections, which end with their threads."""

    def _run(self, jobs: list[Job]) -> list[Outcome]:
        body = json.dumps({"jobs": [job.to_json() for job in jobs]}).encode()
        timeout = max(job.limits.wall_s for job in jobs) + _QUEUE_S
        problems = []
        for _ in self._servers:
            server = self._pick()
            try:
                answer = server.ask("POST", "/run", body, timeout)
                outcomes = [Outcome.from_json(data) for data in answer["outcomes"]]
                if len(outcomes) == len(jobs):
                    return outcomes
                problems.append(f"{server.url}: {len(outcomes)} outcomes for {len(jobs)} jobs")
            except (OSError, KeyError, TypeError, ValueError) as error:
                problems.append(str(error))
            finally:
                with self._lock:
                    server.active -= 1
            server.resting_until = time.monotonic() + _REST_S
        raise SandboxError("no sandbox server ran the job: " + "; ".join(problems))

    def _pick(self) -> _Server:
        with self._lock:
            now = time.monotonic()
            server = min(self._servers, key=lambda s: (s.resting_until > now, s.active / s.workers, s.resting_until))
            server.active += 1
            return server

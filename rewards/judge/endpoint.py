"""One question to an OpenAI-compatible server, asked again when the server is busy or out of reach."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from rewards.judge.score import Unscored, shown

MAX_BODY = 4 << 20  # bytes of one reply
_FIRST_DELAY_S, _MAX_DELAY_S = 0.5, 30.0
_PATH = "/chat/completions"
_OURS = ("messages", "model", "n", "stream")


class _Busy(Exception):
    """A failure that may pass. retry_after_s: what the server asks to wait."""

    def __init__(self, problem: Unscored, retry_after_s: float = 0.0) -> None:
        super().__init__(str(problem))
        self.problem, self.retry_after_s = problem, retry_after_s


class Endpoint:
    """A model behind `{url}/chat/completions`.

    sampling: fields of the request besides model and messages; those that are None are left out. api_key_env: name of
    the environment variable with the key, empty for none. Time-outs cover a whole request, its body included.
    Raises ValueError for an address that is none, a key that is not there and fields that are set here.
    """

    def __init__(
        self, url: str, model: str, api_key_env: str, sampling: Mapping[str, Any], max_retries: int, timeout_s: float
    ) -> None:
        self.url = _address(url)
        if not isinstance(model, str) or not model:
            raise ValueError(f"model has to be the name that the server knows the model by, got {model!r}")
        taken = next((name for name in _OURS if name in sampling), None)
        if taken:
            raise ValueError(f"extra_body cannot set {taken!r}")
        self.max_retries, self.timeout_s = max_retries, timeout_s
        self._fields = {"model": model} | {name: value for name, value in sampling.items() if value is not None}
        self._key = _api_key(api_key_env)
        try:
            self.request("")
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body cannot be written as JSON: {error}") from error

    def request(self, message: str) -> bytes:
        """The request's body: all that the reply depends on, the same bytes for the same question."""
        messages = [{"role": "user", "content": message}]
        return json.dumps({**self._fields, "messages": messages}, sort_keys=True, allow_nan=False).encode()

    def connect(self, connections: int) -> httpx2.AsyncClient:
        """A client for `ask`, of the running event loop. Redirects are not followed: they could carry the key away."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, follow_redirects=False)

    async def ask(self, client: httpx2.AsyncClient, request: bytes, deadline: float) -> str:
        """The reply's text.

        Repeats after time-outs, connection errors and statuses 408, 429 and 5xx, after the time that `Retry-After` asks
        for and at least 0.5 s, doubled each time; not when that would end after `deadline` (`time.monotonic`).
        Raises Unscored with the last problem.
        """
        for attempt in range(self.max_retries + 1):
            try:
                return await self._ask_once(client, request)
            except _Busy as busy:
                delay = retry_delay(attempt, busy.retry_after_s)
                if attempt == self.max_retries or time.monotonic() + delay > deadline:
                    problem = busy.problem
                    raise Unscored(problem.reason, f"{problem.detail} (asked {attempt + 1} times)") from None
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def _ask_once(self, client: httpx2.AsyncClient, request: bytes) -> str:
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                client.stream("POST", self.url, content=request) as response,
            ):
                content = await _body(response)
        except TimeoutError:
            raise _Busy(Unscored("timeout", f"{self.url}: no reply within {self.timeout_s:g} s")) from None
        except httpx2.RequestError as error:
            raise _Busy(Unscored("unreachable", f"{self.url}: {type(error).__name__}: {error}")) from error
        if response.status_code != 200:
            problem = Unscored("http_error", f"{self.url}: status {response.status_code}: {self._excerpt(content)}")
            if response.status_code in (408, 429) or response.status_code >= 500:
                raise _Busy(problem, retry_after_s(response.headers.get("retry-after", "")))
            raise problem
        try:
            return reply_text(content)
        except _NoReply as error:
            kind = response.headers.get("content-type", "no content type")
            raise Unscored("bad_reply", f"{self.url}: {error} ({kind}): {self._excerpt(content)}") from None

    def _excerpt(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        return shown(text.replace(self._key, "***") if self._key else text)


class _NoReply(Exception):
    """A body that is no chat completion."""


def reply_text(content: bytes) -> str:
    """The text of a chat completion's first choice. Raises Unscored (`cut_off`) when it did not end by itself."""
    try:
        choice = json.loads(content)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, RecursionError):
        raise _NoReply("the reply is not JSON") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _NoReply("the reply is no chat completion") from None
    if finish != "stop":
        raise Unscored("cut_off", f"the reply ended by {shown(str(finish))} instead of 'stop'; see max_tokens")
    if not isinstance(text, str):
        raise _NoReply("the reply has no text")
    return text


def retry_delay(attempt: int, retry_after_s: float) -> float:
    """Seconds to wait after attempt 0, 1, ...; a random part keeps clients that failed together from coming back so."""
    delay = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2**attempt)
    return max(delay, retry_after_s) + random.uniform(0, delay / 2)


def retry_after_s(header: str) -> float:
    """Seconds that a `Retry-After` header asks for, given as seconds or as a date; 0 when it says neither.

    >>> retry_after_s("2.5"), retry_after_s("soon")
    (2.5, 0.0)
    """
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", header.strip()):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


async def _body(response: httpx2.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_BODY:
            raise Unscored("bad_reply", f"{response.url}: a reply of more than {MAX_BODY} bytes")
    return bytes(content)


def _address(url: object) -> str:
    try:
        parsed = httpx2.URL(url if isinstance(url, str) else "")
    except httpx2.InvalidURL as error:
        raise ValueError(f"url: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"url has to look like http://host:8000/v1, got {url!r}")
    if parsed.userinfo or parsed.query:
        raise ValueError("url holds credentials or a query; name the key's environment variable with api_key_env")
    address = str(parsed.copy_with(fragment=None)).rstrip("/")
    return address if address.endswith(_PATH) else address + _PATH


def _api_key(variable: object) -> str:
    """The key itself may stand here by mistake, so no message repeats what is given."""
    if variable == "":
        return ""
    if not isinstance(variable, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ValueError("api_key_env has to be the name of an environment variable, not the key itself")
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("the environment variable that api_key_env names is not set, or holds no usable key")
    return key

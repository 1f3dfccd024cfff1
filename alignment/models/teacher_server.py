"""A teacher behind a vLLM server: its OpenAI-compatible completions with `prompt_logprobs`.

Each branch of a tree is one request for the log-probabilities of its tokens; the server shares no prompt between them.
Shapes: K most probable tokens.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from alignment.errors import EngineLost, UserError
from alignment.losses.divergence import FLOOR, with_rest
from alignment.models.load import load_tokenizer
from alignment.models.score import at_scored
from alignment.models.teacher import IDS, LOG_P, check_same_tokenizer, vocabulary_of
from alignment.types import Segment, Tree

_MAX_DELAY_S = 30.0
_START_S = 15.0  # before training nothing is lost, and an address may be wrong


class VllmTeacher:
    """The model that a server at `url` (http://host:8000/v1) serves.

    vocabulary: the student's real tokens. model: its name there, needed when it serves several. api_key_env: name of
    the environment variable that holds the key, empty for none. timeout_s: of one request. wait_s: how long requests
    are repeated when the server is busy, restarting or out of reach. connections: requests at a time.
    Raises UserError when the server cannot be asked.
    """

    def __init__(
        self,
        url: str,
        vocabulary: int,
        model: str = "",
        api_key_env: str = "",
        timeout_s: float = 600.0,
        wait_s: float = 600.0,
        connections: int = 16,
    ):
        self.url, self.vocabulary, self.wait_s = url.rstrip("/"), vocabulary, wait_s
        self._silent_since = math.inf  # no request has been answered from then on
        headers = {"Authorization": f"Bearer {_key(api_key_env)}"} if api_key_env else {}
        limits = httpx2.Limits(max_connections=connections)
        self._client = httpx2.Client(headers=headers, timeout=timeout_s, limits=limits)
        self._pool = ThreadPoolExecutor(max_workers=connections)
        served = self._served()
        if not model and len(served) > 1:
            raise UserError(
                f"teacher {self.url}: it serves {', '.join(served)}; say which one with teacher_served_name"
            )
        if model and model not in served:
            raise UserError(f"teacher {self.url}: it serves {', '.join(served)}, not {model!r}")
        self.model = model or next(iter(served))
        self.root = served[self.model]
        self.name, self.identity = self.url, f"{self.model} {self.root}"

    def add_top_k(self, trees: Sequence[Tree], k: int, temperature: float) -> None:
        """Write the columns IDS and LOG_P at every scored token.

        Raises EngineLost when for wait_s the server does not answer, UserError when it refuses or answers something
        else, and for a temperature other than 1: what is left out of its answer cannot be tempered.
        """
        if temperature != 1:
            raise UserError(
                f"divergence_temperature: {temperature} needs all of the teacher's logits, a server gives only some: "
                "set it to 1, or load the teacher in this process"
            )
        asked: list[tuple[Segment, list[int]]] = []
        for tree in trees:
            for i, segment in enumerate(tree.segments):
                if segment.scored is not None and segment.scored.any():
                    asked.append((segment, tree.branch_token_ids(i)))
        answers = self._pool.map(lambda item: self._top_k(item[1], item[0], k), asked)
        for (segment, _), (ids, log_p) in zip(asked, answers, strict=True):
            segment.columns[IDS] = at_scored(segment, ids)
            segment.columns[LOG_P] = at_scored(segment, with_rest(torch.from_numpy(log_p)).numpy())

    # --- one sequence -----------------------------------------------------------------------------------------------

    def _top_k(self, token_ids: list[int], segment: Segment, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities at the scored tokens of the segment, the last of the sequence: [n, k] each."""
        request = {
            "model": self.model,
            "prompt": [int(i) for i in token_ids],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": k,
        }
        reply = self._ask("POST", "/completions", request, self.wait_s)
        try:
            positions = reply["choices"][0]["prompt_logprobs"]
            assert segment.scored is not None
            places = len(token_ids) - len(segment.token_ids) + np.flatnonzero(segment.scored)
            if len(positions) != len(token_ids):
                raise UserError(
                    f"teacher {self.url}: log-probabilities of {len(positions)} tokens came back for {len(token_ids)}"
                )
            found = [self._position(positions[place], k) for place in places]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"teacher {self.url}: its answer has no prompt_logprobs as vLLM gives them ({error!r}); is it vLLM?"
            ) from error
        ids, log_p = (np.array(column) for column in zip(*found, strict=True))
        return ids.astype(np.int32), log_p.astype(np.float32)

    def _position(self, tokens: Mapping[str, Mapping[str, Any]], k: int) -> tuple[list[int], list[float]]:
        """The k most probable tokens; the one that stands there is among the answer also when it is none of them.
        Padding is taken out of the distribution, and its places are left empty."""
        ranked = sorted((entry["rank"], -entry["logprob"], int(i)) for i, entry in tokens.items())[:k]
        if len(ranked) < k:
            raise UserError(f"teacher {self.url}: {len(ranked)} tokens came back where {k} were asked for")
        real = [(i, -minus) for _, minus, i in ranked if 0 <= i < self.vocabulary]
        if not real:
            raise UserError(
                f"teacher {self.url}: its most probable tokens, {ranked[0][2]} among them, are none of the "
                f"{self.vocabulary} of the student's tokenizer: the two do not belong together"
            )
        padding = sum(math.exp(-minus) for _, minus, i in ranked if not 0 <= i < self.vocabulary)
        kept = math.log1p(-padding) if padding < 1 else 0.0
        empty = k - len(real)
        return [i for i, _ in real] + [0] * empty, [max(FLOOR, p - kept) for _, p in real] + [FLOOR] * empty

    # --- the server -------------------------------------------------------------------------------------------------

    def _served(self) -> dict[str, str]:
        """Names of the models it serves, and where each was loaded from."""
        reply = self._ask("GET", "/models", None, min(self.wait_s, _START_S))
        try:
            return {model["id"]: model.get("root") or model["id"] for model in reply["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"teacher {self.url}: {self.url}/models does not list models: {error!r}") from error

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, wait_s: float) -> dict[str, Any]:
        """The reply. Repeated after time-outs, connection errors and statuses 408, 429 and 5xx until for wait_s no
        request was answered, or this one was not. So all that wait give up at the same time."""
        delay_s, failing_since = 0.5, math.inf
        while True:
            try:
                response = self._client.request(method, self.url + path, json=body)
            except httpx2.InvalidURL as error:
                raise UserError(f"teacher {self.url}: {error}") from error
            except httpx2.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    self._silent_since = math.inf
                    return _json(response, self.url)
                problem = f"status {response.status_code}: {response.text[:500]}"
                if response.status_code not in (408, 429) and response.status_code < 500:
                    raise UserError(f"teacher {self.url}: {problem}{_remedy(response.text)}")
            now = time.monotonic()
            failing_since = min(failing_since, now)
            self._silent_since = min(self._silent_since, now)
            left_s = wait_s - (now - min(failing_since, self._silent_since))
            if left_s <= 0:
                raise EngineLost(
                    f"teacher {self.url}: {problem}; no answer for {wait_s:g} s. Start it again, then the same command"
                )
            time.sleep(min(delay_s * random.uniform(1, 1.5), left_s))
            delay_s = min(_MAX_DELAY_S, 2 * delay_s)


def _json(response: httpx2.Response, url: str) -> dict[str, Any]:
    try:
        content = response.json()
    except json.JSONDecodeError as error:
        raise UserError(f"teacher {url}: its answer is not JSON: {response.text[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"teacher {url}: its answer is no JSON object: {response.text[:200]}")
    return content


def _remedy(text: str) -> str:
    if "logprobs" in text:
        return ". Start the server with --max-logprobs of at least teacher_top_k"
    if "context length" in text or "max_model_len" in text:
        return ". Start the server with a --max-model-len of at least the longest sequence and one more token"
    return ""


def _key(variable: str) -> str:
    """The key itself may stand here by mistake, so no message repeats what is given."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError("teacher_api_key_env: there is no such environment variable, or it is empty")
    return key


def load_server_teacher(
    url: str,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_path: str = "",
    model: str = "",
    api_key_env: str = "",
    timeout_s: float = 600.0,
    wait_s: float = 600.0,
    connections: int = 16,
) -> VllmTeacher:
    """The teacher behind a server. tokenizer: the student's. tokenizer_path: where the teacher's is; empty = where the
    server says that it loaded the model from.

    Raises UserError for another tokenizer, for one that is not found, and as VllmTeacher does.
    """
    teacher = VllmTeacher(url, vocabulary_of(tokenizer), model, api_key_env, timeout_s, wait_s, connections)
    where = tokenizer_path or teacher.root
    try:
        own = load_tokenizer(where)
    except UserError as error:
        raise UserError(
            f"teacher {teacher.url}: its tokenizer is not at {where}; name it with teacher_tokenizer, a hub name or a "
            "folder"
        ) from error
    check_same_tokenizer(tokenizer, own, teacher.url)
    return teacher

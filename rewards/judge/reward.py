"""`make_judge`: the reward function, and the grading of one batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from rewards.completions import Completion, completion_text
from rewards.from_verifier import RewardFn, rows_of_columns
from rewards.judge.cache import ReplyCache
from rewards.judge.endpoint import Endpoint
from rewards.judge.prompt import WITH_REFERENCE, WITHOUT_REFERENCE, JudgePrompt, column_text, question_text
from rewards.judge.score import REASONS, Unscored, read_score
from rewards.judge.settings import number, score_bounds, seconds
from rewards.registry import register_reward_factory
from verifiers.response import outside_thinking, with_open_block

log = logging.getLogger("rewards")


@dataclass(frozen=True, slots=True)
class Grade:
    """score: 0..1, None with one of `REASONS`. reply: the judge's text, where there is one."""

    score: float | None
    reason: str = ""
    detail: str = ""
    reply: str | None = None
    cached: bool = False


NO_ANSWER = Grade(0.0, "no_answer")


class Grader:
    """Requests -> grades: a bounded number at a time, each question once, replies with a score kept on disk."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: ReplyCache | None,
        bounds: tuple[float, float],
        concurrency: int,
        timeout_s: float,
    ) -> None:
        self.endpoint, self.cache, self.concurrency, self.timeout_s = endpoint, cache, concurrency, timeout_s
        self.lowest, self.highest = bounds

    async def grade(self, requests: Sequence[bytes]) -> dict[bytes, Grade]:
        """Takes at most `timeout_s`; what is not graded by then is unscored, what is graded counts."""
        deadline = time.monotonic() + self.timeout_s
        slots = asyncio.Semaphore(self.concurrency)
        different = list(dict.fromkeys(requests))
        async with self.endpoint.connect(self.concurrency) as client:
            grades = await asyncio.gather(*(self._grade(client, slots, one, deadline) for one in different))
        return dict(zip(different, grades))

    async def _grade(
        self, client: httpx2.AsyncClient, slots: asyncio.Semaphore, request: bytes, deadline: float
    ) -> Grade:
        reply = None
        try:
            async with asyncio.timeout(deadline - time.monotonic()), slots:
                kept = await self._kept(request)
                if kept is not None:
                    return kept
                reply = await self.endpoint.ask(client, request, deadline)
            score = self._score(reply)
        except Unscored as problem:
            return Grade(None, problem.reason, problem.detail, reply)
        except TimeoutError:
            return Grade(None, "timeout", f"not graded within the batch's {self.timeout_s:g} s (batch_timeout_s)")
        except Exception as error:  # one case that breaks must not cost the others their grades
            return Grade(None, "failed", f"{type(error).__name__}: {error}", reply)
        if self.cache:
            await asyncio.to_thread(self.cache.put, request, reply)
        return Grade(score, reply=reply)

    async def _kept(self, request: bytes) -> Grade | None:
        reply = await asyncio.to_thread(self.cache.get, request) if self.cache else None
        try:
            return None if reply is None else Grade(self._score(reply), reply=reply, cached=True)
        except Unscored:
            return None

    def _score(self, reply: str) -> float:
        return (read_score(reply, self.lowest, self.highest) - self.lowest) / (self.highest - self.lowest)


@register_reward_factory("judge", optional=("answer", "rubric"))
def make_judge(
    *,
    url: str,
    model: str,
    api_key_env: str = "",
    template: str = WITH_REFERENCE,
    template_without_reference: str = WITHOUT_REFERENCE,
    reference_column: str = "answer",
    rubric_column: str = "rubric",
    score_range: Sequence[float] = (0, 10),
    temperature: float | None = 0.0,
    max_tokens: int | None = 1024,
    extra_body: Mapping[str, Any] | None = None,
    concurrency: int = 16,
    max_retries: int = 4,
    request_timeout_s: float = 30.0,
    batch_timeout_s: float = 50.0,
    cache_dir: str = "runs/judge_cache",
) -> RewardFn:
    """A model's score of the answer, compared with the row's reference if it has one; unscored when the judge fails.

    url: of the server, with `/v1`. model: as the server calls it. api_key_env: name of the environment variable with
    the key. template, template_without_reference: see `prompt.py`. reference_column, rubric_column: columns that are
    read where a row has them; an empty name reads none. score_range: worst and best score, mapped to 0 and 1.
    temperature, max_tokens, extra_body: fields of the request; None leaves one out. concurrency: requests in flight per
    call. request_timeout_s: per request. batch_timeout_s: per call, retries included; what is graded by then counts, so
    it belongs below the runner's time-out. cache_dir: replies that held a score, empty for none.

    The judge sees the answer outside the thinking block. A response that has none gets 0 without a request. Through
    `log_metric` the reward reports, as shares of the batch, `verdicts/NAME/` no_answer, cached, without_reference and
    each of `score.REASONS`; through `log_extra` the replies. The first case of each reason is logged with its detail.
    Raises ValueError, naming the setting, for bad ones.
    """
    bounds = score_bounds(score_range)
    prompt = JudgePrompt(template, template_without_reference, *bounds)
    endpoint = Endpoint(
        url, model, api_key_env, _sampling(temperature, max_tokens, extra_body),
        int(number("max_retries", max_retries, 0, whole=True)),
        seconds("request_timeout_s", request_timeout_s),
    )  # fmt: skip
    grader = Grader(
        endpoint, ReplyCache(cache_dir) if cache_dir else None, bounds,
        int(number("concurrency", concurrency, 1, whole=True)),
        seconds("batch_timeout_s", batch_timeout_s),
    )  # fmt: skip
    warned: set[str] = set()

    async def judge(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        rows = rows_of_columns(columns, len(completions))
        requests: list[bytes | None] = []
        for question, completion, row in zip(prompts, completions, rows, strict=True):
            answer = outside_thinking(with_open_block(completion_text(completion), row))
            if not answer or not answer.strip():
                requests.append(None)
                continue
            reference, rubric = column_text(row, reference_column), column_text(row, rubric_column)
            requests.append(endpoint.request(prompt.render(question_text(question), answer, reference, rubric)))
        graded = await grader.grade([request for request in requests if request is not None])
        grades = [NO_ANSWER if request is None else graded[request] for request in requests]
        without_reference = sum(column_text(row, reference_column) is None for row in rows)
        _report(judge.__name__, grades, without_reference, columns)
        _warn_once(judge.__name__, grades, warned)
        return [grade.score for grade in grades]

    judge.__doc__ = f"Score by the judge {model} at {endpoint.url}."
    return judge


def _sampling(temperature: float | None, max_tokens: int | None, extra_body: object) -> dict[str, Any]:
    if extra_body is not None and not isinstance(extra_body, Mapping):
        raise ValueError(f"extra_body has to be a mapping of request fields, got {extra_body!r}")
    return {
        "temperature": None if temperature is None else number("temperature", temperature, 0),
        "max_tokens": None if max_tokens is None else int(number("max_tokens", max_tokens, 1, whole=True)),
        **(extra_body or {}),
    }


def _report(name: str, grades: Sequence[Grade], without_reference: int, columns: Mapping[str, Any]) -> None:
    log_metric, log_extra = columns.get("log_metric"), columns.get("log_extra")
    if log_metric is not None and grades:
        times = Counter(grade.reason for grade in grades)
        times |= {"cached": sum(grade.cached for grade in grades), "without_reference": without_reference}
        for reason in ("no_answer", "cached", "without_reference", *REASONS):
            log_metric(f"verdicts/{name}/{reason}", times[reason] / len(grades))
    if log_extra is not None:
        log_extra(f"{name}_reply", [grade.reply or grade.detail for grade in grades])


def _warn_once(name: str, grades: Sequence[Grade], warned: set[str]) -> None:
    for grade in grades:
        if grade.score is None and grade.reason not in warned:
            warned.add(grade.reason)
            log.warning("judge %r: %s; such completions are unscored. %s", name, grade.reason, grade.detail)

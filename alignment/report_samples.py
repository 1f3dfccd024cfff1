"""Which sampled completions a report shows, and in which form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from alignment.page import shorten

VIEW_SIZE = 24
MAX_SAMPLES = 120
KNOWN_KEYS = ("step", "prompt", "completion", "reward", "reward_terms", "finish_reason", "verdict", "verdicts")


@dataclass(slots=True)
class SampleView:
    """One completion ready for the page. views: which of "latest", "best", "worst" it belongs to. share: where its
    reward lies between the lowest (0) and the highest (100) of the stage, None when unscored."""

    step: int
    prompt: str
    parts: list[tuple[str, str]]
    reward: float | None
    share: float | None
    terms: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    views: list[str]


def select_samples(records: list[dict[str, Any]]) -> list[SampleView]:
    """The latest step, the best, the worst, and an even choice of the rest; newest first, at most MAX_SAMPLES. Raises
    ValueError for a record without a step."""
    if not records:
        return []
    rewards = [_finite(record.get("reward")) for record in records]
    if odd := next((n for n, record in enumerate(records, 1) if not isinstance(record.get("step"), int)), None):
        raise ValueError(f"samples.jsonl, line {odd}: a sample has a step")
    newest = max(record["step"] for record in records)
    scored = sorted((i for i, reward in enumerate(rewards) if reward is not None), key=lambda i: (rewards[i], -i))
    views: dict[int, list[str]] = {}
    latest = [i for i, record in enumerate(records) if record["step"] == newest][:VIEW_SIZE]
    # Among equal rewards the later sample comes first on both ends.
    worst = sorted(scored, key=lambda i: (rewards[i], -i))[:VIEW_SIZE]
    best = sorted(scored, key=lambda i: (-(rewards[i] or 0.0), -i))[:VIEW_SIZE]
    for name, chosen in (("latest", latest), ("best", best), ("worst", worst)):
        for index in chosen:
            views.setdefault(index, []).append(name)
    rest = [index for index in range(len(records)) if index not in views]
    room = MAX_SAMPLES - len(views)
    for place in range(min(room, len(rest))):
        views[rest[place * len(rest) // min(room, len(rest))]] = []
    low, high = (rewards[scored[0]], rewards[scored[-1]]) if scored else (None, None)
    order = sorted(views, key=lambda index: (-records[index]["step"], index))
    return [_view(records[index], rewards[index], low, high, views[index]) for index in order]


def split_thinking(text: str) -> list[tuple[str, str]]:
    """("thinking" | "text", piece) in order; an unclosed <think> runs to the end."""
    pieces = re.split(r"(<think>.*?(?:</think>|\Z))", text, flags=re.DOTALL)
    return [("thinking" if piece.startswith("<think>") else "text", piece) for piece in pieces if piece]


def _view(
    record: dict[str, Any], reward: float | None, low: float | None, high: float | None, views: list[str]
) -> SampleView:
    share = None
    if reward is not None and low is not None and high is not None:
        share = 100.0 if high == low else round(100 * (reward - low) / (high - low), 1)
    prompt, completion = text_of(record.get("prompt", "")), text_of(record.get("completion", ""))
    terms = [(name, _number(value)) for name, value in _mapping(record.get("reward_terms")).items()]
    verdicts = _mapping(record.get("verdicts")) or ({"verdict": record["verdict"]} if record.get("verdict") else {})
    facts = [(name, str(value)) for name, value in verdicts.items()]
    if record.get("finish_reason"):
        facts.append(("finish", str(record["finish_reason"])))
    others = ((name, value) for name, value in record.items() if name not in KNOWN_KEYS)
    facts += [(name, shorten(str(value), 80)) for name, value in others if isinstance(value, str | int | float)]
    parts = split_thinking(shorten(completion))
    return SampleView(record["step"], shorten(prompt), parts, reward, share, terms, facts, views)


def text_of(value: Any) -> str:
    """A string as it is; a list of messages as "role: content" blocks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return str(value)
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


def _number(value: Any) -> str:
    finite = _finite(value)
    return "unscored" if finite is None else f"{finite:.3g}"

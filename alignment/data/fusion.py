"""The mixture that teaches one model both modes: thinking and non-thinking conversations with flags.

Qwen3 (arXiv 2505.09388, section 4.3): thinking rows are sampled from the model of the stage before and filtered by
verifiers, non-thinking rows come from many tasks. Flags stand in user or system turns; some thinking rows carry none,
because thinking is the default; dialogues of several turns hold several flags, and every answer follows the last one.
How often each of these happens is not published: the defaults are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from alignment.chat.messages import check_messages, template_variables, thinking_of, turn_weights
from alignment.chat.thinking import CLOSE, FLAGS, OPEN, Mode, last_flag, mode_of, parse_response
from alignment.data.sampled import (
    KEPT_COLUMNS,
    Response,
    accepted_rows,
    check_response,
    sort_responses,
    whole_response,
)
from alignment.errors import UserError
from alignment.types import Prompt

Row = dict[str, Any]
START_SHARE = 0.1  # of the flags in user turns stand before the text, the others behind it


@dataclass(frozen=True)
class FusionConfig:
    """Shares are probabilities between 0 and 1."""

    thinking_share: float | None = field(
        default=None, metadata={"help": "Of the conversations; the larger pool is cut. Default: all rows of both."}
    )
    unflagged_share: float = field(
        default=0.3, metadata={"help": "Of the turns whose mode holds without a flag: how many carry none."}
    )
    system_share: float = field(default=0.2, metadata={"help": "Of first flags: how many stand in the system turn."})
    contrary_share: float = field(
        default=0.1, metadata={"help": "Of the flags: how many come behind one that asks for the opposite."}
    )
    multi_turn_share: float = field(default=0.3, metadata={"help": "Of the single questions: how many are joined."})
    max_turns: int = field(default=4, metadata={"help": "Most questions of a joined dialogue."})
    seed: int = 0

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_share") and value is not None and not 0 <= value <= 1:
                raise UserError(f"{item.name}: {value} is not valid, it has to be between 0 and 1")
        if self.max_turns < 2:
            raise UserError(f"max_turns: {self.max_turns} is not valid, it has to be 2 or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: {self.seed} is not valid, it has to be between 0 and 4294967295")


def thinking_rows(rows: Sequence[Row], counts: Counter[str], pass_score: float = 1.0, per_prompt: int = 1) -> list[Row]:
    """Rows with `messages` whose trained answers all think, from rows with `messages`, from those with `prompt` and
    `completion`, or by rejection sampling from records with `response` and `score` (recipes/generate.py writes both).

    An answer needs one thinking block that closes, something in it, and an answer behind it; its tags are written anew.
    `counts` takes what was left out. Raises UserError for a row of none of these forms.
    """
    if rows and rows[0].get("response") is not None:
        rows = _accepted(rows, counts, pass_score, per_prompt)
    return _rows_of_mode(rows, "thinking", counts)


def non_thinking_rows(rows: Sequence[Row], counts: Counter[str]) -> list[Row]:
    """Likewise rows whose trained answers do not think; an empty block before an answer is taken off."""
    return _rows_of_mode(rows, "no_think", counts)


def _accepted(records: Sequence[Row], counts: Counter[str], pass_score: float, per_prompt: int) -> list[Row]:
    groups: dict[str, list[Row]] = {}
    for number, record in enumerate(records, 1):
        check_response(record, number)
        groups.setdefault(str(record["prompt_id"]), []).append(record)
    found: list[Row] = []
    for prompt_id, group in groups.items():
        content = next((group[0][k] for k in ("messages", "prompt", "question") if group[0].get(k) is not None), None)
        if content is None:
            raise UserError(f"the responses to prompt {prompt_id!r} have no column `messages`, `prompt` or `question`")
        messages = check_messages([{"role": "user", "content": content}] if isinstance(content, str) else content)
        responses = [Response(whole_response(r), r.get("score"), r.get("finish_reason") == "stop") for r in group]
        by_verdict = sort_responses(Prompt(prompt_id, messages, [], group[0]), responses, pass_score, 0, counts)
        found += accepted_rows(by_verdict, per_prompt)
    return found


def _rows_of_mode(rows: Sequence[Row], mode: Mode, counts: Counter[str]) -> list[Row]:
    out = []
    for number, row in enumerate(rows, 1):
        try:
            messages, kept = _conversation(row), _kept(row)
        except UserError as error:
            raise UserError(f"row {number} of the {mode} rows: {error}") from error
        trained = _trained(messages)
        rewritten = [_rewrite(m, mode) if i in trained else m for i, m in enumerate(messages)]
        reason = next((m for m in rewritten if isinstance(m, str)), "")
        if not reason and last_flag(messages) and any(mode_of(messages[:i]) != mode for i in trained):
            reason = "a flag of its own asks for the other mode"
        counts[f"{mode}: {reason}" if reason else mode] += 1
        if not reason:
            out.append({"messages": rewritten, **kept})
    return out


def _kept(row: Row) -> Row:
    """Its other columns, without `enable_thinking`: the tokens are the same, and the mode is what flags ask for."""
    kept = {name: row[name] for name in KEPT_COLUMNS if row.get(name) is not None}
    kept.pop("chat_template_kwargs", None)
    variables = {name: value for name, value in template_variables(row).items() if name != "enable_thinking"}
    return {**kept, "chat_template_kwargs": variables} if variables else kept


def _conversation(row: Row) -> list[dict[str, Any]]:
    """The row as messages; assistant turns of a prompt are not trained."""
    if row.get("messages") is not None:
        messages = check_messages(row["messages"])
    elif row.get("prompt") is not None and row.get("completion") is not None:
        prompt, completion = row["prompt"], row["completion"]
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        context = [{**m, "train": False} if m["role"] == "assistant" else m for m in check_messages(prompt)]
        messages = [*context, *check_messages(completion)]
    else:
        raise UserError(f"needs `messages`, or `prompt` and `completion`; its columns are {sorted(row)}")
    if messages[-1]["role"] != "assistant" or all(m["role"] != "user" for m in messages):
        raise UserError("the conversation needs a question of the user and has to end with the assistant's answer")
    return messages


def _rewrite(message: dict[str, Any], mode: Mode) -> dict[str, Any] | str:
    """The message with its tags in order, or why it does not fit."""
    parsed = parse_response(message["content"])
    thinking = message.get("reasoning_content") or parsed.thinking
    calls = message.get("tool_calls")
    if parsed.answer is None or message["content"].count(CLOSE) > 1 or message["content"].count(OPEN) > 1:
        return "thinking that never ends, or tags twice"
    if not parsed.answer and not calls:
        return "no answer"
    if mode == "thinking" and not thinking.strip():
        return "no thinking"
    if mode == "no_think" and thinking.strip():
        return "an answer that thinks"
    block = f"{OPEN}\n{thinking.strip()}\n{CLOSE}\n\n" if mode == "thinking" else ""
    bare = {key: value for key, value in message.items() if key != "reasoning_content"}
    return {**bare, "content": block + parsed.answer}


# --- the mixture ------------------------------------------------------------------------------------------------------


def fuse(thinking: Sequence[Row], non_thinking: Sequence[Row], config: FusionConfig) -> list[Row]:
    """The mixture: rows with `messages`, shuffled, the same for the same rows and seed.

    Raises UserError when a pool is empty.
    """
    for name, pool in (("thinking", thinking), ("non-thinking", non_thinking)):
        if not pool:
            raise UserError(f"there is no {name} row: the mixture needs both modes")
    rng = np.random.default_rng(config.seed)
    rows = [*_drawn(thinking, non_thinking, config, rng)]
    single = [i for i, row in enumerate(rows) if _is_single(row)]
    joined = [i for i in single if rng.random() < config.multi_turn_share]
    alone = [row for i, row in enumerate(rows) if i not in {*joined}]
    by_task: dict[Any, list[Row]] = {}
    for i in joined:
        by_task.setdefault(rows[i].get("task"), []).append(rows[i])
    dialogues = [dialogue for same in by_task.values() for dialogue in _joined(same, config.max_turns, rng)]
    mixture = [_with_flags(row, config, rng) for row in [*alone, *dialogues]]
    return [mixture[i] for i in rng.permutation(len(mixture))]


def _drawn(thinking: Sequence[Row], non_thinking: Sequence[Row], config: FusionConfig, rng) -> list[Row]:
    """Both pools in random order, cut to the share of thinking rows."""
    t, n = len(thinking), len(non_thinking)
    share = config.thinking_share
    if share is not None:
        total = min(t / share if share else np.inf, n / (1 - share) if share < 1 else np.inf)
        t, n = round(total * share), round(total * (1 - share))
    chosen = [thinking[i] for i in rng.permutation(len(thinking))[:t]]
    chosen += [non_thinking[i] for i in rng.permutation(len(non_thinking))[:n]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _is_single(row: Row) -> bool:
    """One question and its answer, without anything that other questions could not share."""
    roles = [message["role"] for message in row["messages"]]
    plain = not any(row.get(name) for name in ("tools", "chat_template_kwargs"))
    return roles == ["user", "assistant"] and plain and last_flag(row["messages"]) is None


def _joined(rows: Sequence[Row], max_turns: int, rng) -> list[Row]:
    """Dialogues of 2 to max_turns questions, which have their other columns in common; a last one that is left over
    stays alone."""
    dialogues, start = [], 0
    while start < len(rows):
        size = int(rng.integers(2, max(2, min(max_turns, len(rows))) + 1))
        messages = [m for row in rows[start : start + size] for m in row["messages"]]
        dialogues.append({**rows[start], "messages": messages})
        start += size
    return dialogues


def _with_flags(row: Row, config: FusionConfig, rng) -> Row:
    """The row with flags before its answers: always where the mode changes, mostly where it stays. Conversations that
    have flags of their own keep them as they are."""
    messages = [dict(message) for message in row["messages"]]
    if last_flag(messages) is not None:
        return {**row, "messages": messages}
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    in_force: Mode = "thinking"
    shift = 0
    for place, question in enumerate(questions):
        end = questions[place + 1] if place + 1 < len(questions) else len(row["messages"])
        answers = [i for i in _trained(row["messages"]) if question < i < end]
        if not answers:
            continue
        mode: Mode = "thinking" if any(thinking_of(row["messages"][i]) for i in answers) else "no_think"
        if mode != in_force or rng.random() >= config.unflagged_share:
            shift += _insert_flag(messages, question + shift, mode, config, rng, first=place == 0)
        in_force = mode
    return {**row, "messages": messages}


def _insert_flag(messages: list[dict], question: int, mode: Mode, config: FusionConfig, rng, first: bool) -> int:
    """Put a flag before an answer, sometimes behind its opposite; returns how many messages that added."""
    other: Mode = "no_think" if mode == "thinking" else "thinking"
    contrary = rng.random() < config.contrary_share
    in_system = first and rng.random() < config.system_share
    at_start = rng.random() < START_SHARE
    added = 0
    if in_system:
        text = f"{FLAGS[other]} {FLAGS[mode]}" if contrary else FLAGS[mode]
        return _flag_system(messages, text)
    if contrary and first:
        added = _flag_system(messages, FLAGS[other])
        question += added
    message, flag = messages[question], FLAGS[mode]
    if contrary and not first:
        flag = f"{FLAGS[other]} {flag}"
    message["content"] = f"{flag} {message['content']}" if at_start else f"{message['content']} {flag}"
    return added


def _flag_system(messages: list[dict], text: str) -> int:
    if messages[0]["role"] == "system":
        messages[0]["content"] = f"{messages[0]['content']}\n{text}".strip()
        return 0
    messages.insert(0, {"role": "system", "content": text})
    return 1


def answer_modes(messages: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Mode, bool]]:
    """By the place of each trained answer its mode, and whether a flag stands between it and the one before."""
    found: dict[int, tuple[Mode, bool]] = {}
    since = 0
    for i in _trained(messages):
        mode: Mode = "thinking" if thinking_of(messages[i]) else "no_think"
        found[i] = mode, last_flag(messages[since:i]) is not None
        since = i
    return found


def _trained(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    return [i for i, weight in enumerate(turn_weights(messages, "all_assistant")) if weight > 0]

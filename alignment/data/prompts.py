"""Rows as prompts for generation.

- `messages`: a conversation that ends before an assistant turn.
- `prompt`: messages likewise, or text, which is continued as it is (TRL's two formats).
- `question`: one user turn.

The first of these columns that a row has counts. `tools` and `chat_template_kwargs` go to the chat template. Where the
template opens a thinking block, the prompt's row has `think_opened: true`, so that rewards can tell where a response
begins. `thinking_budget` (tokens) limits the thinking in this prompt's samples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.chat.masks import encode_prompt
from alignment.chat.messages import check_messages, template_arguments
from alignment.chat.thinking import opens_thinking
from alignment.chat.tokens import bos_ids, tokenize_text
from alignment.errors import UserError
from alignment.types import Prompt

logger = logging.getLogger(__name__)


def build_prompts(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    enable_thinking: bool | None = None,
    source: str = "",
) -> list[Prompt]:
    """One prompt per row that fits into `max_prompt_length` tokens; longer ones are left out with a logged warning.

    The id is the row's column `id`, else a hash of the row's content, so that it does not depend on the row's place.
    A prompt made from text has no messages. enable_thinking is handed to the template unless the row decides itself.
    Raises UserError for malformed rows, for equal ids (naming the rows, counted from 1) and when no prompt is left.
    """
    place = f"{source}, row" if source else "row"
    prompts: list[Prompt] = []
    row_of_id: dict[str, int] = {}
    too_long: list[int] = []
    for number, row in enumerate(rows, 1):
        try:
            prompt = _prompt(row, tokenizer, enable_thinking)
        except UserError as error:
            raise UserError(f"{place} {number}: {error}") from error
        if prompt.id in row_of_id:
            raise UserError(_same_id(place, row_of_id[prompt.id], number, row, prompt.id))
        row_of_id[prompt.id] = number
        if len(prompt.token_ids) > max_prompt_length:
            too_long.append(number)
        else:
            prompts.append(prompt)
    if too_long:
        logger.warning(_left_out(too_long, len(rows), max_prompt_length, place))
    if not prompts:
        reason = "all are too long" if too_long else "there are no rows"
        raise UserError(f"{source or 'the data set'}: no prompt is left, {reason} (max_prompt_length)")
    return prompts


def _prompt(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, enable_thinking: bool | None) -> Prompt:
    content = next((row[name] for name in ("messages", "prompt", "question") if row.get(name) is not None), None)
    if content is None:
        raise UserError(f"needs the column `messages`, `prompt` or `question`; its columns are {sorted(row)}")
    if isinstance(content, str) and row.get("messages") is None and row.get("prompt") is not None:
        token_ids = [*bos_ids(tokenizer), *tokenize_text(tokenizer, content)]
        return Prompt(_row_id(row), [], token_ids, row, _thinking_budget(row))
    messages = check_messages([{"role": "user", "content": content}] if isinstance(content, str) else content)
    if messages[-1]["role"] == "assistant":
        raise UserError("the conversation ends with an assistant turn, so there is nothing to generate: remove it")
    arguments = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    arguments |= template_arguments(row)
    token_ids = encode_prompt(tokenizer, messages, template_arguments=arguments)
    seen = {**row, "think_opened": True} if opens_thinking(tokenizer, token_ids) else row
    return Prompt(_row_id(row), messages, token_ids, seen, _thinking_budget(row))


def _thinking_budget(row: Mapping[str, Any]) -> int | None:
    budget = row.get("thinking_budget")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
        raise UserError(f"thinking_budget must be a number of tokens, 0 or more, got {budget!r}")
    return budget


def _row_id(row: Mapping[str, Any]) -> str:
    if row.get("id") is not None:
        return str(row["id"])
    content = json.dumps(dict(row), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _same_id(place: str, first: int, second: int, row: Mapping[str, Any], prompt_id: str) -> str:
    if row.get("id") is not None:
        return f"{place} {second} has the same id as row {first}: {prompt_id!r}. Ids must be unique"
    return f"{place} {second} is the same as row {first}. Remove one, or give the rows a column `id`"


def _left_out(numbers: Sequence[int], rows: int, max_prompt_length: int, place: str) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"{len(numbers)} of {rows} prompts are longer than {max_prompt_length} tokens and left out ({place} {shown})"

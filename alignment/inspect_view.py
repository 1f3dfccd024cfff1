"""Printing what a recipe would train on: rows by mask, lengths, steps, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from alignment.chat.masks import EmptyThinking
from alignment.chat.messages import TrainOn
from alignment.chat.template import stop_token_ids
from alignment.data.sft_rows import Overflow, SftReport, encode_sft_rows
from alignment.inspect import (
    estimate_memory,
    length_histogram,
    memory_table,
    plan_steps,
    plan_table,
    rows_table,
    token_view,
)
from alignment.types import Prompt, Segment, Tree

LEGEND = "[green]scored[/green]  [dim]masked[/dim]  [bold black on green]end of a trained turn[/bold black on green]"


def inspect_sft(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    model_config: PreTrainedConfig,
    *,
    max_length: int,
    batch_size: int,
    max_tokens: int,
    epochs: float = 1,
    overflow: Overflow = "truncate",
    train_on: TrainOn = "all_assistant",
    empty_thinking: EmptyThinking = "flagged",
    world_size: int = 1,
    parameter_bytes: int = 4,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    trainable_parameters: int | None = None,
    samples: int = 3,
    console: Console | None = None,
) -> SftReport:
    """Print the first `samples` rows coloured by mask, the lengths, the counts, the steps and the memory of SFT.

    batch_size: rows per optimizer step over all processes. max_tokens: of one packed row. Raises UserError as
    encode_sft_rows does.
    """
    console = console or Console()
    trees, report = encode_sft_rows(rows, tokenizer, max_length, overflow, train_on, empty_thinking)
    console.print(LEGEND)
    for tree, index in zip(trees[:samples], report.kept_rows_K, strict=False):
        title = f"row {index + 1}: {tree.tokens:,} tokens, {tree.scored_tokens:,} scored"
        console.print(Panel(token_view(tree, tokenizer), title=title, title_align="left"))
    _print_lengths(console, report.lengths_R, max_length)
    console.print(rows_table(report))
    _print_stops(console, tokenizer)
    plan = plan_steps(trees, batch_size, max_tokens, epochs, world_size)
    console.print(plan_table(plan, max_tokens))
    memory = estimate_memory(
        model_config,
        plan.largest_micro_batch,
        plan.most_scored,
        parameter_bytes=parameter_bytes,
        trainable_parameters=trainable_parameters,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
    )
    console.print(memory_table(memory))
    return report


def inspect_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    samples: int = 3,
    console: Console | None = None,
) -> None:
    """Print the first `samples` prompts as the model sees them, their lengths and where generation stops."""
    console = console or Console()
    for prompt in prompts[:samples]:
        text = token_view(Tree([Segment(prompt.token_ids)]), tokenizer)
        console.print(Panel(text, title=f"prompt {prompt.id}: {len(prompt.token_ids):,} tokens", title_align="left"))
    _print_lengths(console, [len(prompt.token_ids) for prompt in prompts], max_prompt_length)
    console.print(f"{len(prompts):,} prompts")
    _print_stops(console, tokenizer)


def _print_lengths(console: Console, lengths: Any, max_length: int) -> None:
    console.print("[bold]Lengths[/bold] (tokens)")
    console.print(length_histogram(lengths, max_length))


def _print_stops(console: Console, tokenizer: PreTrainedTokenizerBase) -> None:
    names = ", ".join(str(token) for token in tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer))))
    console.print(f"Generation stops at: {names}", markup=False)

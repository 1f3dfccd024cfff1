"""Printing what a recipe would train on: rows by mask, lengths, steps, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from transformers import PreTrainedTokenizerBase

from alignment.chat.template import stop_token_ids
from alignment.data.preference_rows import PreferenceReport
from alignment.data.sft_rows import SftReport
from alignment.inspect import (
    MemoryEstimate,
    StepPlan,
    episodes_table,
    length_histogram,
    memory_table,
    pairs_table,
    plan_steps,
    plan_table,
    rows_table,
    token_view,
)
from alignment.types import Prompt, Segment, Tree

LEGEND = "[green]scored[/green]  [dim]masked[/dim]  [bold black on green]end of a trained turn[/bold black on green]"
Memory = Callable[[int, int], MemoryEstimate]
"""The estimate for the tokens of the largest packed row and the most scored positions in one."""


def inspect_rows(
    trees: Sequence[Tree],
    report: SftReport | PreferenceReport,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    *,
    max_length: int,
    batch_size: int,
    max_tokens: int,
    epochs: float = 1,
    max_steps: int = 0,
    samples: int = 3,
    console: Console | None = None,
) -> StepPlan:
    """Print the first `samples` rows coloured by mask, each branch of a pair or group on lines of its own, then the
    lengths, the counts, the steps (returned) and the memory.

    batch_size: rows per optimizer step over all processes. max_tokens: of one packed row.
    """
    console = console or Console()
    console.print(LEGEND)
    for tree, index in zip(trees[:samples], report.kept_rows_K, strict=False):
        title = f"row {index + 1}: {tree.tokens:,} tokens, {tree.scored_tokens:,} scored"
        console.print(Panel(token_view(tree, tokenizer, branch_names(tree)), title=title, title_align="left"))
    _print_lengths(console, report.lengths_R, max_length)
    console.print(rows_table(report) if isinstance(report, SftReport) else pairs_table(report))
    _print_stops(console, tokenizer)
    plan = plan_steps(trees, batch_size, max_tokens, epochs, max_steps=max_steps)
    console.print(plan_table(plan, max_tokens))
    console.print(memory_table(memory(plan.largest_micro_batch, plan.most_scored)))
    return plan


def branch_names(tree: Tree) -> list[str]:
    """Of a pair `chosen` and `rejected`, of a group its labels, of a conversation none."""
    branches = [segment for segment in tree.segments if segment.scored is not None and segment.scored.any()]
    if len(tree.segments) == 1:
        return []
    if len(branches) == 2:
        margin = float(branches[0].columns["margins"][-1]) if "margins" in branches[0].columns else 0.0
        return ["chosen" + f" (margin {margin:g})" * bool(margin), "rejected"]
    return [f"label {float(branch.columns['labels'][-1]):g}" for branch in branches]


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


def inspect_episodes(
    steps: int,
    prompts_per_step: int,
    group_size: int,
    max_tokens: int,
    rewards: Sequence[str] = (),
    memory: MemoryEstimate | None = None,
    console: Console | None = None,
) -> None:
    """Print what a step samples, the rewards with their weights, and the memory."""
    console = console or Console()
    console.print(episodes_table(steps, prompts_per_step, group_size, max_tokens, rewards))
    if memory is not None:
        console.print(memory_table(memory))


def _print_lengths(console: Console, lengths: Any, max_length: int) -> None:
    console.print("[bold]Lengths[/bold] (tokens)")
    console.print(length_histogram(lengths, max_length))


def _print_stops(console: Console, tokenizer: PreTrainedTokenizerBase) -> None:
    names = ", ".join(str(token) for token in tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer))))
    console.print(f"Generation stops at: {names}", markup=False)

"""What will be trained, before anything trains: masks, lengths, steps and memory, for the console (rich)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from peft import get_peft_model
from rich.table import Table
from rich.text import Text
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_peft_config

from alignment.chat.template import end_token_ids
from alignment.data.preference_rows import PreferenceReport
from alignment.data.sft_rows import SftReport
from alignment.models.head import MAX_LOGIT_BYTES
from alignment.packing import cut
from alignment.types import Tree

SCORED, MASKED, END = "green", "dim", "bold black on green"
BAR = "█"


@dataclass(frozen=True)
class StepPlan:
    """Optimizer steps and their size; means over a sample of steps."""

    steps_per_epoch: int
    steps: int
    tokens_per_step: float
    scored_per_step: float
    micro_batches_per_step: float  # of one rank
    largest_micro_batch: int  # tokens
    most_scored: int  # scored tokens of one micro-batch


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of one training process, by what holds them. host: beside a GPU in the CPU's memory, so not in the
    total; without a GPU of the same memory."""

    parameters: int
    gradients: int
    optimizer: int
    autocast_copies: int
    activations: int
    head: int
    frozen_copies: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self)) - self.host

    def __add__(self, other: MemoryEstimate) -> MemoryEstimate:
        """Of two models that are trained in one step, one after the other."""
        return MemoryEstimate(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def token_view(tree: Tree, tokenizer: PreTrainedTokenizerBase, names: Sequence[str] = ()) -> Text:
    """The tokens of a tree as text: scored ones green, masked ones dim, a scored end of a turn highlighted. names: of
    its branches, each written before it on a line of its own."""
    ends, text = end_token_ids(tokenizer), Text()
    parents = {segment.parent for segment in tree.segments}
    leaves = [i for i, segment in enumerate(tree.segments) if i not in parents]
    titles = dict(zip(leaves, names, strict=False))
    for place, segment in enumerate(tree.segments):
        if place in titles:
            text.append(f"\n── {titles[place]}: ", style="bold")
        ids = [int(i) for i in segment.token_ids]
        scored = np.zeros(len(ids), bool) if segment.scored is None else segment.scored
        styles = [(END if i in ends else SCORED) if s else MASKED for i, s in zip(ids, scored, strict=True)]
        # Runs are decoded together, since one character may be several tokens.
        borders = [0, *(i for i in range(1, len(ids)) if styles[i] != styles[i - 1]), len(ids)]
        for start, end in pairwise(borders):
            text.append(str(tokenizer.decode(ids[start:end])).replace("\n", "↵\n"), style=styles[start])
    return text


def length_histogram(lengths: Sequence[int] | np.ndarray, max_length: int | None = None, bins: int = 12) -> Text:
    """One line per bin: token range, bar, count. Bins that lie beyond max_length are red."""
    values = np.asarray(lengths)
    bins = max(1, min(bins, int(values.max() - values.min()) + 1))
    edges = np.linspace(values.min(), values.max() + 1, bins + 1).astype(int)
    counts, _ = np.histogram(values, edges)
    text = Text()
    for low, high, count in zip(edges, edges[1:], counts):
        bar = BAR * (round(40 * count / counts.max()) or int(count > 0))
        beyond = max_length is not None and low > max_length
        text.append(f"{low:>8,} - {high - 1:<8,} {bar:<40} {count:,}\n", style="red" if beyond else "")
    middle, late = np.percentile(values, [50, 95])
    text.append(f"mean {values.mean():,.0f}, median {middle:,.0f}, 95 % {late:,.0f}, longest {values.max():,} tokens")
    return text


def plan_steps(
    trees: Sequence[Tree],
    batch_size: int,
    max_tokens: int,
    epochs: float = 1,
    world_size: int = 1,
    sampled_steps: int = 20,
    seed: int = 0,
    max_steps: int = 0,
) -> StepPlan:
    """Steps of `batch_size` rows over all ranks, each cut into packed rows of at most `max_tokens`. max_steps: as many,
    whatever the epochs say; 0 = none.

    Sizes are measured on `sampled_steps` random steps.
    """
    per_epoch = max(1, len(trees) // batch_size)
    order = np.random.default_rng(seed).permutation(len(trees))
    batches = [order[i * batch_size : (i + 1) * batch_size] for i in range(min(per_epoch, sampled_steps))]
    micro = [
        cut([trees[i] for i in batch[rank::world_size]], max_tokens) for batch in batches for rank in range(world_size)
    ]
    rows = [row for ranks in micro for row in ranks]
    scored = [row.score_index_N.numel() for row in rows]
    return StepPlan(
        per_epoch,
        max_steps or max(1, round(per_epoch * epochs)),
        sum(row.tokens for row in rows) / len(batches),
        sum(scored) / len(batches),
        float(np.mean([len(ranks) for ranks in micro])),
        max(row.tokens for row in rows),
        max(scored),
    )


def count_parameters(config: PreTrainedConfig, scalar: bool = False) -> int:
    """Parameters of the causal language model of this configuration, or of a reward or value model; tied ones count
    once. Allocates nothing."""
    return sum(p.numel() for p in _empty_model(config, scalar).parameters())


def count_adapters(config: PreTrainedConfig, model: ModelConfig, scalar: bool = False) -> int | None:
    """Parameters that LoRA trains, the head of a reward or value model among them; None without LoRA."""
    peft_config = get_peft_config(model)
    if peft_config is None:
        return None
    if scalar:
        peft_config.task_type = "SEQ_CLS"  # type: ignore[assignment]
    adapted = get_peft_model(_empty_model(config, scalar), peft_config)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def _empty_model(config: PreTrainedConfig, scalar: bool):
    with torch.device("meta"):
        if not scalar:
            return AutoModelForCausalLM.from_config(config)
        own = type(config).from_dict(config.to_dict())
        own.num_labels = 1
        return AutoModelForSequenceClassification.from_config(own)


def layer_activations(config: PreTrainedConfig) -> int:
    """Elements that one decoder layer keeps per token for its backward pass: 6 d + 4 (a + k) + 4 f.

    d: width. a, k: widths of all query heads and of all key heads. f: active width of the feed-forward part. The 6 d
    are two residual inputs and, twice, a norm's normalised and scaled output; 4 (a + k) hold queries, keys, values,
    the attention's output and what norms and rotation of queries and keys need (2 (a + k) in models without such
    norms); 4 f hold gate, activation, up and their product. A mixture of experts with e active experts of width m
    and shared ones of width s has f = e m + s and keeps 2 e d more: the input and output of every expert.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or d // heads
    attention = head_dim * (heads + (getattr(config, "num_key_value_heads", None) or heads))
    experts = getattr(config, "num_experts_per_tok", None) or 0
    width = config.intermediate_size
    if experts:
        width = experts * config.moe_intermediate_size + (getattr(config, "shared_expert_intermediate_size", None) or 0)
    return 6 * d + 4 * attention + 4 * width + 2 * experts * d


def estimate_memory(
    config: PreTrainedConfig,
    micro_batch_tokens: int,
    scored_tokens: int,
    *,
    parameter_bytes: int = 4,
    trainable_parameters: int | None = None,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    activation_offload: bool = False,
    scalar: bool = False,
    frozen_copies: int = 0,
) -> MemoryEstimate:
    """Peak of a step with AdamW on one process, without sharding or allocator overhead.

    parameters P x their bytes; gradients and both Adam moments for the trainable ones, in the same type; with autocast
    a bfloat16 copy of float32 weights; activations = T x (L x layer_activations + 4 d) elements, with gradient
    checkpointing T x (L d + layer_activations + 4 d), of which activation offload moves T L d to the host; head = two
    buffers of the largest chunk of logits, float32.

    micro_batch_tokens: T, tokens of the largest packed row. scored_tokens: the most scored positions in one.
    scalar: a reward or value model, whose head gives one number. frozen_copies: of the weights, for a reference.
    """
    parameters = count_parameters(config, scalar)
    trainable = parameters if trainable_parameters is None else trainable_parameters
    layers, d = config.num_hidden_layers, config.hidden_size
    computed, inputs = layers * layer_activations(config), 0
    if gradient_checkpointing or activation_offload:
        computed, inputs = layer_activations(config), layers * d
    bytes_each = 2 if bf16 or parameter_bytes == 2 else 4
    logits = 4 * scored_tokens * (1 if scalar else config.vocab_size)
    chunk = logits if logits <= MAX_LOGIT_BYTES else MAX_LOGIT_BYTES // 2
    return MemoryEstimate(
        parameters=parameters * parameter_bytes,
        gradients=trainable * parameter_bytes,
        optimizer=2 * trainable * parameter_bytes,
        autocast_copies=2 * parameters if bf16 and parameter_bytes == 4 else 0,
        activations=micro_batch_tokens * bytes_each * (computed + 4 * d + (0 if activation_offload else inputs)),
        head=2 * chunk,
        frozen_copies=frozen_copies * parameters * parameter_bytes,
        host=micro_batch_tokens * bytes_each * inputs if activation_offload else 0,
    )


def rows_table(report: SftReport) -> Table:
    """Counts of kept, truncated and dropped rows and the end-of-turn check."""
    table = _table("Rows")
    table.add_row("read", f"{report.rows:,}")
    table.add_row("trained", f"{report.kept:,}")
    for label, count in (
        (f"truncated to {report.max_length:,} tokens", report.truncated),
        (f"dropped, longer than {report.max_length:,} tokens", report.dropped),
        ("left out, nothing in them is trained", report.without_scored),
    ):
        table.add_row(label, f"{count:,}", style="yellow" if count else "")
    share = report.scored_tokens / report.tokens
    table.add_row("tokens", f"{report.tokens:,}")
    table.add_row("scored tokens", f"{report.scored_tokens:,} ({share:.1%})")
    if report.without_end:
        table.add_row("trained turns without an end token in", f"{report.without_end:,} rows", style="bold red")
    else:
        table.add_row("end token", "at the end of every trained turn", style="green")
    return table


def pairs_table(report: PreferenceReport) -> Table:
    """Counts of kept and dropped pairs and groups, and what sharing their prompts saves."""
    table = _table("Rows")
    table.add_row("read", f"{report.rows:,}")
    table.add_row("trained", f"{report.kept:,} with {report.branches:,} branches")
    for label, count in (
        (f"truncated to {report.max_length:,} tokens", report.truncated),
        (f"dropped, longer than {report.max_length:,} tokens", report.dropped),
        ("dropped, branches are the same", report.identical),
        ("dropped, labels are all equal", report.ties),
    ):
        table.add_row(label, f"{count:,}", style="yellow" if count else "")
    saved = 1 - report.tokens / report.separate_tokens
    table.add_row("tokens", f"{report.tokens:,} ({saved:.0%} saved by sharing)")
    return table


def plan_table(plan: StepPlan, max_tokens: int) -> Table:
    table = _table("Steps")
    table.add_row("optimizer steps", f"{plan.steps:,} ({plan.steps_per_epoch:,} per epoch)")
    table.add_row("tokens per step", f"{plan.tokens_per_step:,.0f} ({plan.scored_per_step:,.0f} scored)")
    table.add_row(
        "micro-batches per step and process", f"{plan.micro_batches_per_step:,.1f} of <= {max_tokens:,} tokens"
    )
    if plan.largest_micro_batch > max_tokens:
        table.add_row("longest row exceeds the budget", f"{plan.largest_micro_batch:,} tokens", style="yellow")
    return table


def episodes_table(
    steps: int, prompts_per_step: int, group_size: int, max_tokens: int, rewards: Sequence[str]
) -> Table:
    table = _table("Steps")
    table.add_row("episodes", f"{steps:,}")
    completions = prompts_per_step * group_size
    table.add_row("completions per episode", f"{completions:,} = {prompts_per_step:,} prompts x {group_size}")
    table.add_row("longest completion", f"{max_tokens:,} tokens")
    for reward in rewards:
        table.add_row("reward", reward)
    return table


def memory_table(memory: MemoryEstimate) -> Table:
    table = _table("Memory per process (estimate)")
    for f in fields(memory):
        value = getattr(memory, f.name)
        if value and f.name != "host":
            table.add_row(f.name.replace("_", " "), _size(value))
    table.add_row("total", _size(memory.total), style="bold")
    if memory.host:
        table.add_row("host, offloaded activations", _size(memory.host))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left", title_style="bold", box=None, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    return table


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"

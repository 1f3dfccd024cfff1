"""Memory and traffic per GPU under each configuration of accelerate_configs/, from the estimate for one process.

P parameters, T trainable ones, b bytes of one (4: float32 weights; with `bf16` they are cast for products), W ranks,
m micro-batches per step, f = (W - 1) / W. DeepSpeed keeps moments and master copies in float32, whatever the weights.
Bytes per rank:

  configuration   weights     gradient        moments       master copy  gathered for a moment
  ddp             P b         2 T b (a)       2 T b         –            casts (b)
  zero1           P b         T b + T b / W   2 x 4 T / W   4 T / W      casts (b), the reduction's bucket
  zero2           P b         T b / W         2 x 4 T / W   4 T / W      casts (b), the reduction's bucket
  zero3           P b / W     T b / W         2 x 4 T / W   4 T / W      at most LIVE parameters, and the bucket
  zero3_offload   P b / W     –               –             –            the same; on the CPU see (d)
  fsdp2           P b / W     T b / W         2 T b / W     –            embeddings and head, and two layers (c)

(a) the gradients, and the buckets in which DDP sums them up. (b) with `bf16` and b = 4, 2 P: autocast's copies; under
zero3 they come and go with the layers, as long as activations are checkpointed. (c) weights in bfloat16 with `bf16`,
and as much again for their gradient. (d) 12 T / W of moments and master copy, the gradient in float32 and as it was
reduced, (4 + b) T / W. Sent by each rank per optimizer step:

  ddp 2 f T b;   zero1 2 f T b;   zero2 (m + 1) f T b;   zero3 m f (2 P b + T b);   fsdp2 m f (2 P g + T b), g = 2 with
  `bf16`, else b

A method that samples with the embedded engine under zero3 or fsdp2 has all weights on every rank while it samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedConfig

Configuration = Literal["ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
CONFIGURATIONS: tuple[Configuration, ...] = ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
LIVE = 10**9
"""Parameters that DeepSpeed keeps gathered at most (stage3_max_live_parameters, its default)."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Numbers of parameters. outer: of what no decoder layer holds (embeddings, head, last norm). width: of the hidden
    states; under ZeRO as many numbers squared are reduced at a time."""

    parameters: int
    trainable: int
    layer: int
    outer: int
    width: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Bytes of one rank. cpu: in its share of the host's memory. sent: per optimizer step. kept: of gradients and
    gathered, what stays between two steps, as zero3's partition and bucket do."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    cpu: float
    sent: float
    kept: float = 0.0

    @property
    def state(self) -> float:
        return self.weights + self.optimizer

    @property
    def between_steps(self) -> float:
        """What can be counted in its memory and the host's when no step runs."""
        return self.state + self.kept + self.cpu

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered


def model_sizes(config: PreTrainedConfig, trainable: int | None = None) -> ModelSizes:
    """Of the causal language model of a configuration. Allocates nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    names = set(model._no_split_modules or ())
    layers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if type(m).__name__ in names]
    width = config.get_text_config().hidden_size
    return ModelSizes(total, total if trainable is None else trainable, max(layers), total - sum(layers), width)


def spread(
    sizes: ModelSizes,
    configuration: Configuration,
    ranks: int,
    bf16: bool = False,
    parameter_bytes: int = 4,
    micro_batches: float = 1,
) -> Spread:
    """The table above, without activations and the head's buffers, which are each rank's own."""
    b, w, f = parameter_bytes, ranks, (ranks - 1) / ranks
    whole, trained = sizes.parameters * b, sizes.trainable * b
    casts = 2 * sizes.parameters if bf16 and b == 4 else 0
    if configuration == "ddp":
        return Spread(whole, 2 * trained if ranks > 1 else trained, 2 * trained, casts, 0, 2 * f * trained)
    bucket, masters = sizes.width**2 * b, 4 * sizes.trainable / w
    if configuration == "zero1":
        return Spread(whole, trained + trained / w, 3 * masters, casts + bucket, 0, 2 * f * trained)
    if configuration == "zero2":
        sent = (micro_batches + 1) * f * trained
        return Spread(whole, trained / w, 3 * masters, casts + bucket, 0, sent)
    if configuration == "fsdp2":
        g = 2 if bf16 else b
        unit = 2 * g * (sizes.outer + 2 * sizes.layer)
        sent = micro_batches * f * (2 * sizes.parameters * g + trained)
        return Spread(whole / w, trained / w, 2 * trained / w, unit, 0, sent)
    live = min(LIVE, sizes.parameters) * b + bucket
    sent = micro_batches * f * (2 * whole + trained)
    if configuration == "zero3":
        return Spread(whole / w, trained / w, 3 * masters, live, 0, sent, trained / w + bucket)
    return Spread(whole / w, 0, 0, live, 4 * masters + trained / w, sent, bucket)


def spread_table(
    sizes: ModelSizes,
    own: float,
    bf16: bool,
    parameter_bytes: int,
    micro_batches: float = 1,
    host: float = 0,
    ranks: Sequence[int] = (8, 64),
) -> Table:
    """GiB per GPU with activations and the head's buffers (`own` bytes, and `host` bytes of them in the CPU's memory),
    and GiB that each sends per step. micro_batches: of a step in one process, which the ranks share."""
    title = f"Memory per GPU and traffic per step (estimate), GiB; {sizes.parameters / 1e9:.2f} billion parameters"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2))
    for column in ("configuration", "GPUs", "state", "gradients", "gathered", "activations", "total", "host", "sent"):
        table.add_column(column, justify="left" if column == "configuration" else "right")
    for count in ranks:
        for name in CONFIGURATIONS:
            s = spread(sizes, name, count, bf16, parameter_bytes, max(1, micro_batches / count))
            values = (s.state, s.gradients, s.gathered, own, s.total + own, s.cpu + host, s.sent)
            table.add_row(name, str(count), *(f"{v / 2**30:,.1f}" for v in values))
    return table

"""Whether a model computes on packed rows what it computes on each sequence alone."""

from __future__ import annotations

import numpy as np
import torch

from alignment.errors import UserError
from alignment.models.policy import Policy
from alignment.models.score import add_logprobs
from alignment.packing import conversation, group, use_tree_attention
from alignment.types import Segment

EXACT, HALF = 1e-3, 0.3
"""Differences of log-probabilities that rounding explains, in float32 and in half precision."""


@torch.no_grad()
def check_packing(policy: Policy) -> None:
    """Raises UserError for an architecture that scales, caps or mixes what packed rows leave out: logits of Granite,
    Cohere or Gemma 2, attention sinks, convolutions and states along the row. Two passes over a few tokens."""
    base = policy.base
    if getattr(base, "is_quantized", False):  # its numbers are too coarse to compare, and its kernels may need a GPU
        return
    ids = (7 * np.arange(1, 25) % min(97, base.config.get_text_config().vocab_size)).tolist()
    dialogue, answers = conversation(ids[:9], np.arange(9) > 0), [Segment(ids[14:18]), Segment(ids[18:24])]
    compared = [*dialogue.segments, *answers]
    alone = [ids[:9], ids[9:18], [*ids[9:14], *ids[18:24]]]
    training = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        add_logprobs(policy, [dialogue, group(ids[9:14], answers)], "packed", 100)
        found = np.concatenate([segment.columns["packed"][segment.scored] for segment in compared])
        base.set_attn_implementation("eager")
        wanted = torch.cat([_plain(policy, row)[start:] for row, start in zip(alone, (0, 4, 4), strict=True)]).numpy()
    finally:
        use_tree_attention(base)
        for module, was in training.items():
            module.training = was
    difference = float(np.abs(found - wanted).max())
    if not difference <= (EXACT if base.dtype == torch.float32 else HALF):
        raise UserError(
            f"{type(base).__name__} computes something else on packed rows than on each sequence alone (log-"
            f"probabilities differ by {difference:.2g}), so training on them would be wrong. Use a Qwen2, Qwen3, Llama "
            "or another model whose layers attend through transformers' AttentionInterface and nothing else."
        )


def _plain(policy: Policy, ids: list[int]) -> torch.Tensor:
    """Log-probability of every token but the first, by the model as transformers runs it."""
    row_1T = torch.tensor([ids], device=policy.device)
    logits_TV = policy.model(input_ids=row_1T, use_cache=False).logits[0].float().cpu()
    return logits_TV[:-1].log_softmax(-1).gather(1, row_1T[0, 1:, None].cpu())[:, 0]

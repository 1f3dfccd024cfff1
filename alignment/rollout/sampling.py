"""Drawing one token per row, each from its own random stream.

Shapes: R rows, V vocabulary, K candidates. A uniform number per token is turned into a token by the inverse of the
cumulative distribution, so a sample needs no more randomness than that and depends on no other row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from alignment.types import Sampling

BLOCK = 256
FIRST_CANDIDATES = 256


def random_stream(seed: int, step: int, prompt_id: str, index: int) -> np.random.Generator:
    """The stream of one sample."""
    digest = hashlib.sha256(f"{seed}/{step}/{prompt_id}/{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(slots=True)
class Drawn:
    """tokens_R, logprobs_R (nats, of the distribution drawn from), kept: per row the token ids that were left to choose
    from, or None when nothing was cut off."""

    tokens_R: list[int]
    logprobs_R: list[float]
    kept: list[np.ndarray] | None


def draw(logits_RV: torch.Tensor, uniforms_R: list[float], sampling: Sampling) -> Drawn:
    """One token per row. The logits are overwritten. Greedy rows (temperature 0) report the log-probability under the
    untempered softmax."""
    logits_RV = logits_RV.float()
    if sampling.temperature == 0:
        tokens = logits_RV.argmax(-1)
        return _drawn(tokens, logits_RV.log_softmax(-1), None)
    if sampling.temperature != 1:
        logits_RV = logits_RV.div_(sampling.temperature)
    uniforms = torch.tensor(uniforms_R, dtype=torch.float32, device=logits_RV.device)
    if truncates(sampling):
        return _draw_truncated(logits_RV, uniforms, sampling)
    weights = logits_RV.sub_(logits_RV.amax(-1, keepdim=True)).exp_()
    tokens, totals = _invert(weights, uniforms)
    logprobs = (weights.gather(1, tokens[:, None])[:, 0] / totals).log()
    return Drawn(tokens.tolist(), logprobs.tolist(), None)


def truncates(sampling: Sampling) -> bool:
    """Whether any filter can cut tokens off."""
    return sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0)


def _drawn(tokens: torch.Tensor, log_softmax: torch.Tensor, kept) -> Drawn:
    return Drawn(tokens.tolist(), log_softmax.gather(1, tokens[:, None])[:, 0].tolist(), kept)


def _invert(weights_RV: torch.Tensor, uniforms_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first token whose cumulative weight exceeds u * total; and the totals.

    Two levels, blocks and then one block's tokens: no cumulative sum over the vocabulary.
    """
    rows, vocabulary = weights_RV.shape
    whole = vocabulary // BLOCK * BLOCK
    sums = weights_RV[:, :whole].view(rows, -1, BLOCK).sum(-1)
    if whole < vocabulary:
        sums = torch.cat([sums, weights_RV[:, whole:].sum(-1, keepdim=True)], dim=1)
    cumulative = sums.cumsum(-1)
    totals = cumulative[:, -1].clone()
    target = (uniforms_R * totals)[:, None]
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp_min(0)), 0.0)
    columns = block * BLOCK + torch.arange(BLOCK, device=weights_RV.device)
    inside = weights_RV.gather(1, columns.clamp(max=vocabulary - 1)) * (columns < vocabulary)
    place = torch.searchsorted(inside.cumsum(-1), target - before, right=True)
    # rounding can point behind the last token with weight: the heaviest of the block stands in
    beyond = (place >= BLOCK) | (inside.gather(1, place.clamp(max=BLOCK - 1)) == 0)
    place = torch.where(beyond, inside.argmax(-1, keepdim=True), place)
    return (block * BLOCK + place)[:, 0], totals


def _draw_truncated(logits_RV: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> Drawn:
    values, ids, keep = kept_candidates(logits_RV, sampling)
    log_softmax = values.masked_fill(~keep, float("-inf")).log_softmax(-1)
    cumulative = log_softmax.exp().cumsum(-1)
    # the candidates are sorted, so what is kept comes first and the last kept one catches rounding
    last = keep.sum(-1, keepdim=True) - 1
    place = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).minimum(last)
    tokens = ids.gather(1, place)[:, 0]
    logprobs = log_softmax.gather(1, place)[:, 0]
    ids_list, counts = ids.to(torch.int32).cpu().numpy(), (last[:, 0] + 1).tolist()
    return Drawn(tokens.tolist(), logprobs.tolist(), [ids_list[r, :n].copy() for r, n in enumerate(counts)])


def kept_candidates(logits_RV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sorted candidate logits [R, K], their token ids, and which are kept (always a non-empty head of each row).

    top_k keeps the k largest; top_p, over what is left renormalised, the fewest whose probabilities reach p; min_p
    tokens with at least that share of the largest probability. The head of the vocabulary is sorted first, all of it
    only when the head does not decide.
    """
    vocabulary = logits_RV.shape[1]
    count = min(vocabulary, sampling.top_k or FIRST_CANDIDATES)
    values, ids = logits_RV.topk(count)
    keep, decided = _filter(values, logits_RV, sampling)
    if count < vocabulary and not sampling.top_k and not decided:
        values, ids = logits_RV.sort(-1, descending=True)
        keep, _ = _filter(values, logits_RV, sampling)
    return values, ids, keep


def _filter(values: torch.Tensor, logits_RV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, bool]:
    """Which of the sorted candidates stay, and whether further ones would certainly be cut off."""
    pool = values if sampling.top_k else logits_RV
    probabilities = (values - pool.logsumexp(-1, keepdim=True)).exp()
    keep = torch.ones_like(values, dtype=torch.bool)
    last_cut = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    if sampling.top_p < 1:
        cumulative = probabilities.cumsum(-1)
        keep &= cumulative - probabilities < sampling.top_p
        last_cut |= cumulative[:, -1] >= sampling.top_p
    if sampling.min_p > 0:
        enough = probabilities >= sampling.min_p * probabilities[:, :1]
        keep &= enough
        last_cut |= ~enough[:, -1]
    keep[:, 0] = True
    return keep, bool(last_cut.all())

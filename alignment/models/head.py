"""The language-model head at scored positions: log-probabilities and entropies without [positions, vocabulary].

Shapes: N scored positions, H hidden width, V vocabulary, C rows of one chunk, K kept tokens in all.

The logits of C positions at a time live in one buffer, forward and backward. When all N of them fit into it they are
kept for the backward pass, which then saves one of four products; otherwise they are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MAX_LOGIT_BYTES = 256 * 2**20
"""Upper bound of the float32 logits alive at one time."""
_FLOOR = -1e4
"""A token that is cut off has probability 0 and log-probability -inf; clamped, p log p is 0 and not NaN."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What to compute at N positions. kept_*: see PackedBatch; the softmax then runs over the kept tokens only."""

    targets_N: torch.Tensor
    temperature: float = 1.0
    entropy: bool = False
    kept_offsets_N1: torch.Tensor | None = None
    kept_ids_K: torch.Tensor | None = None


@dataclass
class Scores:
    """logprobs_N: log-probability of each target, nats. entropy_N: entropy of the distribution it came from, nats."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor | None = None


class ScoringHead(nn.Linear):
    """A linear head that also answers requests: for scores, or any function of (hidden, weight, bias). Being called as
    a module it works with sharded parameters; requests are answered by tuples, since hooks look for tensors in these
    alone."""

    def forward(self, hidden: torch.Tensor, request: ScoreRequest | Callable[..., Any] | None = None):
        if request is None:
            return super().forward(hidden)
        if isinstance(request, ScoreRequest):
            scores = chunked_scores(hidden, self.weight, self.bias, request)
            return scores.logprobs_N, scores.entropy_N
        return request(hidden, self.weight, self.bias)


def install_scoring_head(head: nn.Module) -> None:
    """Turn a plain nn.Linear into a ScoringHead in place: same parameters, same names, same checkpoints."""
    if type(head) is nn.Linear:
        head.__class__ = ScoringHead


def score(head: nn.Module, hidden_NH: torch.Tensor, request: ScoreRequest) -> Scores:
    """Scores from any head: fused for a ScoringHead, else (LoRA, quantised) chunk by chunk with recomputation."""
    if isinstance(head, ScoringHead):
        return Scores(*head(hidden_NH, request))
    weight = getattr(head, "weight", None)
    vocabulary = weight.shape[0] if weight is not None and weight.dim() == 2 else head(hidden_NH[:1]).shape[-1]
    parts = []
    for rows in _chunks(hidden_NH.shape[0], vocabulary):
        kept = _kept_mask(request, rows, vocabulary, hidden_NH.device)
        parts.append(
            checkpoint(_dense_scores, head, hidden_NH[rows], request, rows, kept, use_reentrant=False)
            if torch.is_grad_enabled()
            else _dense_scores(head, hidden_NH[rows], request, rows, kept)
        )
    logprobs, entropies = zip(*parts, strict=True)
    return Scores(torch.cat(logprobs), torch.cat(entropies) if request.entropy else None)


def _dense_scores(head, hidden_CH, request: ScoreRequest, rows: slice, kept):
    logits = head(hidden_CH).float() / request.temperature
    if kept is not None:
        logits = logits.masked_fill(~kept, float("-inf"))
    log_softmax = logits.log_softmax(-1)
    logprobs = log_softmax.gather(1, request.targets_N[rows, None])[:, 0]
    if not request.entropy:
        return logprobs, None
    return logprobs, -(log_softmax.exp() * log_softmax.clamp_min(_FLOOR)).sum(-1)


def chunked_scores(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, request: ScoreRequest
) -> Scores:
    """log softmax(W h + b)/temperature at the targets [and entropy], differentiable in hidden, weight and bias."""
    # products run in the autocast type where autocast is on, softmax always in float32
    device = hidden_NH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VH.dtype
    logprobs, entropy = _ChunkedScores.apply(hidden_NH, weight_VH, bias_V, request, dtype)
    return Scores(logprobs, entropy if request.entropy else None)


class _ChunkedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, request: ScoreRequest, dtype: torch.dtype):
        ctx.set_materialize_grads(False)  # an entropy that is only logged has no gradient
        n, vocabulary = hidden.shape[0], weight.shape[0]
        scaled, weight_c = (hidden / request.temperature).to(dtype), weight.to(dtype)
        bias_c = None if bias is None else (bias / request.temperature).float()
        logprobs = torch.empty(n, device=hidden.device)
        entropy = torch.empty(n if request.entropy else 0, device=hidden.device)
        chunks = _chunks(n, vocabulary)
        buffer = _buffer(chunks, vocabulary, hidden.device)
        for rows in chunks:
            log_softmax = _log_softmax(scaled[rows], weight_c, bias_c, request, rows, buffer)
            logprobs[rows] = log_softmax.gather(1, request.targets_N[rows, None])[:, 0]
            if request.entropy:
                entropy[rows] = _entropy(log_softmax, request.kept_offsets_N1 is not None)
        ctx.save_for_backward(hidden, weight, bias, entropy)
        ctx.request, ctx.dtype, ctx.chunks = request, dtype, chunks
        keep = len(chunks) == 1 and (hidden.requires_grad or weight.requires_grad)
        ctx.log_softmax = log_softmax if keep else None
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, bias, entropy = ctx.saved_tensors
        request, dtype = ctx.request, ctx.dtype
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        if grad_logprobs is None:
            grad_logprobs = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        scaled, weight_c = (hidden / request.temperature).to(dtype), weight.to(dtype)
        bias_c = None if bias is None else (bias / request.temperature).float()
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        kept, ctx.log_softmax = ctx.log_softmax, None  # the gradient overwrites it: a second backward recomputes
        buffer = _buffer(ctx.chunks, weight.shape[0], hidden.device) if kept is None else kept
        for rows in ctx.chunks:
            log_softmax = (
                kept if kept is not None else _log_softmax(scaled[rows], weight_c, bias_c, request, rows, buffer)
            )
            d_entropy = None if grad_entropy is None else grad_entropy[rows]
            grad = _logit_gradient(log_softmax, request.targets_N[rows], grad_logprobs[rows], d_entropy, entropy[rows])
            grad_c = grad.to(dtype)
            if d_hidden is not None:
                d_hidden[rows] = (grad_c @ weight_c) / request.temperature
            if d_weight is not None:
                d_weight.addmm_(grad_c.t(), scaled[rows])
            if d_bias is not None:
                d_bias += grad.sum(0) / request.temperature
        d_weight = d_weight if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, d_bias, None, None


def _chunks(n: int, vocabulary: int) -> list[slice]:
    """Even chunks of rows whose float32 logits fit into MAX_LOGIT_BYTES; several chunks share half of it, since
    elementwise passes need a second buffer."""
    limit = MAX_LOGIT_BYTES // (4 * vocabulary)
    if n <= limit:
        return [slice(0, n)]
    size = max(1, limit // 2)
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def _buffer(chunks: list[slice], vocabulary: int, device: torch.device) -> torch.Tensor:
    return torch.empty(max(rows.stop - rows.start for rows in chunks), vocabulary, device=device)


def _log_softmax(
    scaled_CH, weight_VH, bias_V, request: ScoreRequest, rows: slice, buffer: torch.Tensor
) -> torch.Tensor:
    """Fill the first rows of the buffer with the log-softmax of a chunk."""
    logits = buffer[: scaled_CH.shape[0]]
    if weight_VH.dtype == logits.dtype:
        torch.mm(scaled_CH, weight_VH.t(), out=logits)
    else:
        logits.copy_(scaled_CH @ weight_VH.t())
    if bias_V is not None:
        logits += bias_V
    kept = _kept_mask(request, rows, logits.shape[1], logits.device)
    if kept is not None:
        logits.masked_fill_(~kept, float("-inf"))
    return torch.log_softmax(logits, -1, out=logits)


def _kept_mask(request: ScoreRequest, rows: slice, vocabulary: int, device: torch.device) -> torch.Tensor | None:
    """Boolean [C, V], True at kept tokens; a row without kept tokens keeps all."""
    if request.kept_offsets_N1 is None or request.kept_ids_K is None:
        return None
    offsets = request.kept_offsets_N1[rows.start : rows.stop + 1]
    counts = offsets.diff()
    mask = (counts == 0)[:, None].repeat(1, vocabulary)
    row = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    mask[row, request.kept_ids_K[offsets[0] : offsets[-1]]] = True
    return mask


def _entropy(log_softmax_CV: torch.Tensor, has_cut_off: bool) -> torch.Tensor:
    p = log_softmax_CV.exp()
    return -torch.linalg.vecdot(p, log_softmax_CV.clamp_min(_FLOOR) if has_cut_off else log_softmax_CV)


def _logit_gradient(log_softmax_CV, targets_C, grad_logprobs_C, grad_entropy_C, entropy_C) -> torch.Tensor:
    """d/dlogits of sum(g logprob + e entropy), written over log_softmax:
    g (onehot - p) - e p (log p + entropy)."""
    if grad_entropy_C is None:
        gradient = log_softmax_CV.exp_().mul_(-grad_logprobs_C[:, None])
    else:
        slope = log_softmax_CV.clamp_min(_FLOOR)
        slope = slope.add_(entropy_C[:, None]).mul_(grad_entropy_C[:, None]).add_(grad_logprobs_C[:, None])
        gradient = log_softmax_CV.exp_().mul_(slope).neg_()
    return gradient.scatter_add_(1, targets_C[:, None], grad_logprobs_C[:, None])

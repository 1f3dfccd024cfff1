"""The language-model head at scored positions: log-probabilities and entropies without [positions, vocabulary].

Shapes: N scored positions, H hidden width, V vocabulary, C rows of one chunk, K kept tokens in all.

The logits of C positions at a time live in one buffer, forward and backward. When all N of them fit into it they are
kept for the backward pass, which then saves one of four products; otherwise they are recomputed. Where the loss is
known beforehand and no position's term depends on another position (SFT, GRPO, PPO), the gradient is made in the
forward pass: three products, nothing kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MAX_LOGIT_BYTES = 256 * 2**20
"""Upper bound of the float32 logits alive at one time."""
BLOCK = {"cpu": 2**20, "cuda": 2**24}
"""Logits that the elementwise passes take at a time: few enough for a CPU's cache, enough to keep a GPU busy."""
BUFFERS_PER_BLOCK = 6
"""Of the size of a block, at most, which those passes need."""
_FLOOR = -1e4
"""A token that is cut off has probability 0 and log-probability -inf; clamped, p log p is 0 and not NaN."""


PositionLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logprobs_N, entropy_N, empty where none was asked for) -> a scalar, the sum of terms that each depend on one
position. It is evaluated several times, at first with zeros in the place of what is not known yet."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What to compute at N positions. kept_*: see PackedBatch; the softmax then runs over the kept tokens only.

    loss: a sum over positions of a function of log-probability and entropy there; given beforehand, its gradient takes
    three products instead of four.
    """

    targets_N: torch.Tensor
    temperature: float = 1.0
    entropy: bool = False
    kept_offsets_N1: torch.Tensor | None = None
    kept_ids_K: torch.Tensor | None = None
    loss: PositionLoss | None = None


@dataclass
class Scores:
    """logprobs_N: log-probability of each target, nats. entropy_N: entropy of the distribution it came from, nats.
    total: the loss of a request that has one, then the only differentiable of the three."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor | None = None
    total: torch.Tensor | None = None


class ScoringHead(nn.Linear):
    """A linear head that also answers requests: for scores, or any function of (hidden, weight, bias). Being called as
    a module it works with sharded parameters; requests are answered by tuples, since hooks look for tensors in these
    alone."""

    def forward(self, hidden: torch.Tensor, request: ScoreRequest | Callable[..., Any] | None = None):
        if request is None:
            return super().forward(hidden)
        if isinstance(request, ScoreRequest):
            scores = chunked_scores(hidden, self.weight, self.bias, request)
            return scores.logprobs_N, scores.entropy_N, scores.total
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
    scores = Scores(torch.cat(logprobs), torch.cat(entropies) if request.entropy else None)
    if request.loss is None:
        return scores
    empty_N = scores.logprobs_N.new_empty(0)
    total = request.loss(scores.logprobs_N, empty_N if scores.entropy_N is None else scores.entropy_N)
    return Scores(scores.logprobs_N.detach(), None if scores.entropy_N is None else scores.entropy_N.detach(), total)


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
    if request.loss is not None:
        total, logprobs, entropy = _PositionLoss.apply(hidden_NH, weight_VH, bias_V, request, dtype)
    else:
        total = None
        logprobs, entropy = _ChunkedScores.apply(hidden_NH, weight_VH, bias_V, request, dtype)
    return Scores(logprobs, entropy if request.entropy else None, total)


class _ChunkedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, request: ScoreRequest, dtype: torch.dtype):
        ctx.set_materialize_grads(False)  # an entropy that is only logged has no gradient
        n, vocabulary = hidden.shape[0], weight.shape[0]
        operands = _operands(hidden, weight, bias, request, dtype)
        logprobs = torch.empty(n, device=hidden.device)
        entropy = torch.empty(n if request.entropy else 0, device=hidden.device)
        chunks = _chunks(n, vocabulary)
        buffer = _buffer(chunks, vocabulary, hidden.device)
        for rows in chunks:
            log_softmax = _log_softmax(operands, request, rows, buffer)
            logprobs[rows] = log_softmax.gather(1, request.targets_N[rows, None])[:, 0]
            if request.entropy:
                _write_entropy(log_softmax, request.kept_offsets_N1 is not None, entropy[rows])
        ctx.save_for_backward(hidden, weight, bias, entropy)
        ctx.request, ctx.dtype, ctx.chunks = request, dtype, chunks
        keep = len(chunks) == 1 and (hidden.requires_grad or weight.requires_grad)
        ctx.log_softmax = log_softmax if keep else None
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, bias, entropy = ctx.saved_tensors
        request = ctx.request
        if grad_logprobs is None:
            grad_logprobs = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        operands = _operands(hidden, weight, bias, request, ctx.dtype)
        gradients = _Gradients(ctx.needs_input_grad, hidden, weight, bias, ctx.dtype)
        kept, ctx.log_softmax = ctx.log_softmax, None  # the gradient overwrites it: a second backward recomputes
        buffer = _buffer(ctx.chunks, weight.shape[0], hidden.device) if kept is None else kept
        for rows in ctx.chunks:
            log_softmax = kept if kept is not None else _log_softmax(operands, request, rows, buffer)
            d_entropy = None if grad_entropy is None else grad_entropy[rows]
            _to_logit_gradient(log_softmax, request.targets_N[rows], grad_logprobs[rows], d_entropy, entropy[rows])
            gradients.add(log_softmax, rows, operands, request.temperature)
        return *gradients.all(weight.dtype), None, None


class _PositionLoss(torch.autograd.Function):
    """The loss is known, so the gradient is made in the forward pass from the logits at hand: three products and
    nothing kept, where asking for it later takes a fourth product or the logits."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, request: ScoreRequest, dtype: torch.dtype):
        assert request.loss is not None
        operands = _operands(hidden, weight, bias, request, dtype)
        gradients = _Gradients(ctx.needs_input_grad, hidden, weight, bias, dtype)
        logprobs = torch.zeros(hidden.shape[0], device=hidden.device)
        entropy = torch.zeros(hidden.shape[0] if request.entropy else 0, device=hidden.device)
        chunks = _chunks(hidden.shape[0], weight.shape[0])
        buffer = _buffer(chunks, weight.shape[0], hidden.device)
        for rows in chunks:
            log_softmax = _log_softmax(operands, request, rows, buffer)
            logprobs[rows] = log_softmax.gather(1, request.targets_N[rows, None])[:, 0]
            if request.entropy:
                _write_entropy(log_softmax, request.kept_offsets_N1 is not None, entropy[rows])
            if any(ctx.needs_input_grad):
                d_logprobs, d_entropy = _slopes(request.loss, logprobs, entropy, rows)
                _to_logit_gradient(log_softmax, request.targets_N[rows], d_logprobs, d_entropy, entropy[rows])
                gradients.add(log_softmax, rows, operands, request.temperature)
        ctx.gradients = gradients.all(weight.dtype)
        ctx.mark_non_differentiable(logprobs, entropy)
        return request.loss(logprobs, entropy), logprobs, entropy

    @staticmethod
    def backward(ctx, grad_total, *_):
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a known loss can be taken once only: it was made in the forward pass")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if g is None else g.mul_(grad_total) for g in gradients), None, None


def _slopes(loss: PositionLoss, logprobs_N, entropy_N, rows: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Derivatives of the loss by log-probability and entropy at `rows`; no other position matters for them."""
    with torch.enable_grad():
        inputs = [logprobs_N.clone().requires_grad_(), entropy_N.clone().requires_grad_()]
        d_logprobs, d_entropy = torch.autograd.grad(loss(*inputs), inputs, allow_unused=True)
    zero_C = torch.zeros_like(logprobs_N[rows])
    return zero_C if d_logprobs is None else d_logprobs[rows], None if d_entropy is None else d_entropy[rows]


class _Operands(NamedTuple):
    """Of the logits' product, after temperature."""

    scaled_NH: torch.Tensor
    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None


def _operands(hidden, weight, bias, request: ScoreRequest, dtype: torch.dtype) -> _Operands:
    scaled_bias = None if bias is None else (bias / request.temperature).float()
    return _Operands((hidden / request.temperature).to(dtype), weight.to(dtype), scaled_bias)


class _Gradients:
    """Of hidden, weight and bias, from those of the logits, chunk by chunk; what needs none stays None."""

    def __init__(self, needed, hidden, weight, bias, dtype: torch.dtype):
        need_hidden, need_weight, need_bias = needed[:3]
        self.dtype = dtype
        self.hidden = torch.empty_like(hidden) if need_hidden else None
        # summed over the chunks in float32, or their number would show in half precision
        self.weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None

    def add(self, gradient_CV: torch.Tensor, rows: slice, operands: _Operands, temperature: float) -> None:
        product_type = gradient_CV.to(self.dtype)
        if self.hidden is not None:
            self.hidden[rows] = (product_type @ operands.weight_VH) / temperature
        if self.weight is not None:
            if self.dtype == torch.float32:
                self.weight.addmm_(product_type.t(), operands.scaled_NH[rows])
            else:
                self.weight += product_type.t() @ operands.scaled_NH[rows]
        if self.bias is not None:
            self.bias += gradient_CV.sum(0) / temperature

    def all(self, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
        return self.hidden, None if self.weight is None else self.weight.to(dtype), self.bias


def even_chunks(n: int, size: int) -> list[slice]:
    """As few runs of at most `size` as there can be, of about the same length."""
    parts = -(-n // size)
    ends = [n * i // parts for i in range(parts + 1)] if parts else [0]
    return [slice(a, b) for a, b in pairwise(ends)]


def block_size(device: str) -> int:
    """Logits that the elementwise passes take at a time."""
    return min(BLOCK.get(device, BLOCK["cuda"]), MAX_LOGIT_BYTES // (8 * BUFFERS_PER_BLOCK))


def _blocks(logits_CV: torch.Tensor) -> list[slice]:
    return even_chunks(logits_CV.shape[0], max(1, block_size(logits_CV.device.type) // logits_CV.shape[1]))


def _chunks(n: int, vocabulary: int) -> list[slice]:
    """Even chunks of rows whose float32 logits fit into MAX_LOGIT_BYTES; several chunks share half of it, so that the
    memory of one is free while the next is made."""
    limit = MAX_LOGIT_BYTES // (4 * vocabulary)
    return [slice(0, n)] if n <= limit else even_chunks(n, max(1, limit // 2))


def _buffer(chunks: list[slice], vocabulary: int, device: torch.device) -> torch.Tensor:
    return torch.empty(max(rows.stop - rows.start for rows in chunks), vocabulary, device=device)


def _log_softmax(operands: _Operands, request: ScoreRequest, rows: slice, buffer: torch.Tensor) -> torch.Tensor:
    """Fill the first rows of the buffer with the log-softmax of a chunk."""
    scaled_NH, weight_VH, bias_V = operands
    logits = buffer[: rows.stop - rows.start]
    if weight_VH.dtype == logits.dtype:
        torch.mm(scaled_NH[rows], weight_VH.t(), out=logits)
    else:
        logits.copy_(scaled_NH[rows] @ weight_VH.t())
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


def _write_entropy(log_softmax_CV: torch.Tensor, has_cut_off: bool, out_C: torch.Tensor) -> None:
    for block in _blocks(log_softmax_CV):
        log_p = log_softmax_CV[block]
        torch.linalg.vecdot(log_p.exp(), log_p.clamp_min(_FLOOR) if has_cut_off else log_p, out=out_C[block])
    out_C.neg_()


def _to_logit_gradient(log_softmax_CV, targets_C, grad_logprobs_C, grad_entropy_C, entropy_C) -> None:
    """Overwrite log_softmax with d/dlogits of sum(g logprob + e entropy): g (onehot - p) - e p (log p + entropy)."""
    for block in _blocks(log_softmax_CV):
        log_p, g_B1 = log_softmax_CV[block], grad_logprobs_C[block, None]
        if grad_entropy_C is None:
            log_p.exp_().mul_(-g_B1)
        else:
            e_B1 = grad_entropy_C[block, None]
            slope = log_p.clamp_min(_FLOOR).mul_(-e_B1).sub_(e_B1 * entropy_C[block, None] + g_B1)
            log_p.exp_().mul_(slope)
    log_softmax_CV.scatter_add_(1, targets_C[:, None], grad_logprobs_C[:, None])

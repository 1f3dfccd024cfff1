"""The student's head against a teacher's distributions: value and gradient of a divergence, [positions, vocabulary]
never existing.

Shapes: N scored positions, H hidden width of the student, V real tokens (heads may have more rows, as padding), C
positions of one chunk, B of one block, K the teacher's most probable tokens.

The logits of C positions live in one buffer per model. The gradient is made right there, in the forward pass, so the
products are not made again in the backward pass: that only multiplies by one number. So the result is a sum, and the
weights of its terms are given before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from alignment.losses.divergence import Compared, Divergence, compare_full, compare_top_k, top_k_of
from alignment.models import head as limits
from alignment.models.head import ScoringHead, even_chunks


class Targets(Protocol):
    """What a teacher says at N positions."""

    buffers: int
    """One for the student's logits of a chunk, and those of `open`."""

    def chunks(self, size: int) -> list[slice]:
        """Runs of at most `size` positions, in order."""
        ...

    def open(self, rows: slice, vocabulary: int, temperature: float) -> None:
        """Get ready for a chunk."""
        ...

    def compare(self, student_logits_BV: torch.Tensor, rows: slice, block: slice, divergence: Divergence) -> Compared:
        """With the student's logits (after temperature) at a block, counted within the chunk."""
        ...


@dataclass(slots=True)
class TeacherHead:
    """A teacher's head and its hidden states at M positions."""

    head: nn.Module
    hidden_MH: torch.Tensor


@dataclass(slots=True)
class FullTargets:
    """All tokens. parts: one per teacher, their positions one after the other."""

    parts: list[TeacherHead]
    buffers: int = 2
    _logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def chunks(self, size: int) -> list[slice]:
        out, start = [], 0
        for part in self.parts:
            m = part.hidden_MH.shape[0]
            out += [slice(start + rows.start, start + rows.stop) for rows in even_chunks(m, size)]
            start += m
        return out

    def open(self, rows: slice, vocabulary: int, temperature: float) -> None:
        first = 0
        for part in self.parts:
            m = part.hidden_MH.shape[0]
            if rows.start < first + m:
                break
            first += m
        hidden_CH = part.hidden_MH[rows.start - first : rows.stop - first].float() / temperature
        if self._logits.shape[0] < len(hidden_CH) or self._logits.shape[1] != vocabulary:
            self._logits = hidden_CH.new_empty(len(hidden_CH), vocabulary, dtype=torch.float32)
        write_logits(part.head, hidden_CH, temperature, self._logits[: len(hidden_CH)])

    def compare(self, student_logits_BV, rows: slice, block: slice, divergence: Divergence) -> Compared:
        return compare_full(student_logits_BV, self._logits[block], divergence)


@dataclass(slots=True)
class TopKTargets:
    """The K most probable tokens (int64), and the log-probabilities of these and of all others together."""

    ids_NK: torch.Tensor
    log_p_NK1: torch.Tensor
    buffers: int = 1

    def chunks(self, size: int) -> list[slice]:
        return even_chunks(self.ids_NK.shape[0], size)

    def open(self, rows: slice, vocabulary: int, temperature: float) -> None:
        pass

    def compare(self, student_logits_BV, rows: slice, block: slice, divergence: Divergence) -> Compared:
        return compare_top_k(student_logits_BV, self.ids_NK[rows][block], self.log_p_NK1[rows][block], divergence)


@dataclass(frozen=True, slots=True)
class SoftRequest:
    """What to compute at N positions: sum(soft_weight * divergence - hard_weight * log q(target)).

    temperature: of both distributions in the divergence (its square is not multiplied in); log q(target) is at 1.
    vocabulary: the real tokens, the first rows of both heads. soft_weights_N, hard_weights_N: None = all 1, all 0.
    """

    divergence: Divergence
    targets: Targets
    vocabulary: int
    target_ids_N: torch.Tensor
    temperature: float = 1.0
    soft_weights_N: torch.Tensor | None = None
    hard_weights_N: torch.Tensor | None = None

    def __call__(self, hidden_NH: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple:
        """Called by a ScoringHead with its parameters. Returns the fields of SoftScores."""
        return _SoftScores.apply(hidden_NH, weight, bias, self)


@dataclass
class SoftScores:
    """total: the differentiable sum. Without gradient, nats per position: the divergence, the entropies of both
    distributions (the teacher's over its outcomes), and log q of the target (0 without hard weights).
    """

    total: torch.Tensor
    divergence_N: torch.Tensor
    entropy_N: torch.Tensor
    teacher_entropy_N: torch.Tensor
    logprobs_N: torch.Tensor


def soft_score(head: nn.Module, hidden_NH: torch.Tensor, request: SoftRequest) -> SoftScores:
    """From any head: fused for a ScoringHead, else (LoRA, quantised) chunk by chunk with recomputation."""
    if isinstance(head, ScoringHead):
        return SoftScores(*head(hidden_NH, request))
    total = hidden_NH.sum().float() * 0.0  # so that it depends on the model also without any position
    columns = _Columns(hidden_NH)
    for rows in _chunks(request, hidden_NH.device.type):
        part = (head, hidden_NH[rows], request, rows)
        if torch.is_grad_enabled():
            loss, *values = checkpoint(_of_chunk, *part, use_reentrant=False)
        else:
            loss, *values = _of_chunk(*part)
        total = total + loss
        columns.set(rows, values)
    return SoftScores(total, *columns.values)


@torch.no_grad()
def teacher_top_k(
    head: nn.Module, hidden_NH: torch.Tensor, k: int, vocabulary: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most probable real tokens at N positions, [N, k], and the log-probabilities of these and of all others
    together, [N, k + 1]."""
    ids: list[torch.Tensor] = []
    log_p: list[torch.Tensor] = []
    for rows in even_chunks(hidden_NH.shape[0], _positions_per_chunk(vocabulary, 1, hidden_NH.device.type)):
        logits = hidden_NH.new_empty(rows.stop - rows.start, vocabulary, dtype=torch.float32)
        write_logits(head, hidden_NH[rows] / temperature, temperature, logits)
        for part, values in zip((ids, log_p), top_k_of(logits, k), strict=True):
            part.append(values)
    if not ids:
        return hidden_NH.new_empty(0, k, dtype=torch.int64), hidden_NH.new_empty(0, k + 1, dtype=torch.float32)
    return torch.cat(ids), torch.cat(log_p)


# --- chunks -----------------------------------------------------------------------------------------------------------


def _positions_per_chunk(vocabulary: int, logits_per_position: int, device: str) -> int:
    """As many as leave room for a block within MAX_LOGIT_BYTES."""
    room = limits.MAX_LOGIT_BYTES - 4 * limits.BUFFERS_PER_BLOCK * limits.block_size(device)
    return max(1, room // (4 * vocabulary * logits_per_position))


def _chunks(request: SoftRequest, device: str) -> list[slice]:
    return request.targets.chunks(_positions_per_chunk(request.vocabulary, request.targets.buffers, device))


class _Columns:
    """The four values per position of SoftScores."""

    def __init__(self, like: torch.Tensor):
        self.values = [like.new_empty(like.shape[0], dtype=torch.float32) for _ in range(4)]

    def set(self, rows: slice, values) -> None:
        for column, value in zip(self.values, values, strict=True):
            column[rows] = value


# --- one chunk --------------------------------------------------------------------------------------------------------


def _compare_chunk(logits_CV: torch.Tensor, request: SoftRequest, rows: slice, columns: _Columns, within: slice):
    """Sum over a chunk. The student's logits (after temperature) are overwritten by the gradient of the sum."""
    total = logits_CV.new_zeros(())
    targets_C = request.target_ids_N[rows]
    soft_C, hard_C = (None if w is None else w[rows] for w in (request.soft_weights_N, request.hard_weights_N))
    request.targets.open(rows, request.vocabulary, request.temperature)
    size = max(1, limits.block_size(logits_CV.device.type) // request.vocabulary)
    for block in even_chunks(logits_CV.shape[0], size):
        logits_BV, ids_B1 = logits_CV[block], targets_C[block, None]
        found = request.targets.compare(logits_BV, rows, block, request.divergence)
        gradient, value_B = found.gradient_BV, found.divergence_B
        if soft_C is not None:
            gradient.mul_(soft_C[block, None])
            value_B = value_B * soft_C[block]
        total += value_B.sum()
        logprobs_B = torch.zeros_like(value_B)
        if hard_C is not None:
            log_q = (logits_BV * request.temperature).log_softmax(-1)
            logprobs_B = log_q.gather(1, ids_B1)[:, 0]
            total -= (logprobs_B * hard_C[block]).sum()
            weight_B1 = hard_C[block, None] * request.temperature
            gradient.addcmul_(log_q.exp_(), weight_B1).scatter_add_(1, ids_B1, -weight_B1)
        place = slice(within.start + block.start, within.start + block.stop)
        columns.set(place, (found.divergence_B, found.entropy_B, found.teacher_entropy_B, logprobs_B))
        logits_BV.copy_(gradient)
    return total


class _OfLogits(torch.autograd.Function):
    """_compare_chunk for a head whose own backward takes the gradient of its logits."""

    @staticmethod
    def forward(ctx, logits, request: SoftRequest, rows: slice):
        gradient = logits / request.temperature
        columns = _Columns(logits)
        total = _compare_chunk(gradient, request, rows, columns, slice(0, logits.shape[0]))
        ctx.save_for_backward(gradient)
        ctx.temperature = request.temperature
        ctx.mark_non_differentiable(*columns.values)
        return total, *columns.values

    @staticmethod
    def backward(ctx, grad_total, *_):
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_total / ctx.temperature), None, None


def _of_chunk(head, hidden_CH, request: SoftRequest, rows: slice):
    return _OfLogits.apply(head(hidden_CH)[:, : request.vocabulary].float(), request, rows)


class _SoftScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, request: SoftRequest):
        need_hidden, need_weight, need_bias, _ = ctx.needs_input_grad
        dtype = compute_dtype(weight)
        scaled = (hidden / request.temperature).to(dtype)
        real = weight[: request.vocabulary].to(dtype)
        real_bias = None if bias is None else bias[: request.vocabulary].float() / request.temperature
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        total, columns = hidden.new_zeros((), dtype=torch.float32), _Columns(hidden)
        chunks = _chunks(request, hidden.device.type)
        longest = max((rows.stop - rows.start for rows in chunks), default=0)
        buffer = torch.empty(longest, request.vocabulary, device=hidden.device)
        for rows in chunks:
            logits = product(scaled[rows], real, buffer[: rows.stop - rows.start])
            if real_bias is not None:
                logits += real_bias
            total += _compare_chunk(logits, request, rows, columns, rows)
            gradient = logits.to(dtype)
            if d_hidden is not None:
                d_hidden[rows] = (gradient @ real) / request.temperature
            if d_weight is not None:
                _add_product(d_weight[: request.vocabulary], gradient.t(), scaled[rows])
            if d_bias is not None:
                d_bias[: request.vocabulary] += logits.sum(0) / request.temperature
        ctx.gradients = d_hidden, None if d_weight is None else d_weight.to(weight.dtype), d_bias
        ctx.mark_non_differentiable(*columns.values)
        return total, *columns.values

    @staticmethod
    def backward(ctx, grad_total, *_):
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a soft score can be taken once only: it was made in the forward pass")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if g is None else g.mul_(grad_total) for g in gradients), None


# --- products ---------------------------------------------------------------------------------------------------------


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """In which products are taken: autocast's where it is on, else the weight's."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


@dataclass(frozen=True, slots=True)
class _WriteLogits:
    """A request to a ScoringHead: the logits of hidden states that are divided by the temperature already."""

    temperature: float
    out_CV: torch.Tensor

    def __call__(self, hidden_CH: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        real, dtype = weight[: self.out_CV.shape[1]], compute_dtype(weight)
        product(hidden_CH.to(dtype), real.to(dtype), self.out_CV)
        if bias is not None:
            self.out_CV.add_(bias[: self.out_CV.shape[1]].float() / self.temperature)
        return self.out_CV


@torch.no_grad()
def write_logits(head: nn.Module, hidden_CH: torch.Tensor, temperature: float, out_CV: torch.Tensor) -> None:
    """Fill `out` with the first V logits of any head, after temperature; hidden states divided by it already."""
    if isinstance(head, ScoringHead):
        head(hidden_CH, _WriteLogits(temperature, out_CV))
        return
    weight = getattr(head, "weight", None)
    dtype = weight.dtype if weight is not None and weight.is_floating_point() else hidden_CH.dtype
    out_CV.copy_(head((hidden_CH * temperature).to(dtype))[:, : out_CV.shape[1]])
    out_CV.div_(temperature)


def product(a_CH: torch.Tensor, b_VH: torch.Tensor, out_CV: torch.Tensor) -> torch.Tensor:
    """a b^T into a float32 `out`; on a GPU half-precision operands are not rounded to before."""
    if a_CH.dtype == out_CV.dtype:
        return torch.mm(a_CH, b_VH.t(), out=out_CV)
    if a_CH.is_cuda:
        return torch.mm(a_CH, b_VH.t(), out_dtype=torch.float32, out=out_CV)
    return out_CV.copy_(a_CH @ b_VH.t())


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b, summed in float32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b

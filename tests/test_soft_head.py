"""Distillation at the head: value and gradient of every divergence equal the dense computation, within its memory."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignment.losses.divergence import (
    FLOOR,
    Pair,
    compare_full,
    compare_top_k,
    forward_kl,
    generalised_jsd,
    reverse_kl,
    top_k_of,
    with_rest,
)
from alignment.models import head as limits
from alignment.models.head import install_scoring_head
from alignment.models.soft_head import (
    FullTargets,
    SoftRequest,
    TeacherHead,
    TopKTargets,
    even_chunks,
    soft_score,
    teacher_top_k,
)

N, H, HT, V, K = 37, 16, 24, 301, 7
DIVERGENCES = {"forward": forward_kl, "reverse": reverse_kl, "jsd": generalised_jsd(0.3)}
SMALL = 100 * V * 4  # bytes: a few positions at a time


# --- the divergences on distributions ---------------------------------------------------------------------------------


def pair(p: list[float], q: list[float]) -> Pair:
    p_, q_ = torch.tensor([p]), torch.tensor([q])
    return Pair(p_.log(), q_.log(), p_, q_)


def test_divergences_of_a_hand_computed_pair():
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): both KLs are ln 2 / 4; with beta 1/2, m = (3/8, 1/4, 3/8)."""
    both = pair([0.5, 0.25, 0.25], [0.25, 0.25, 0.5])
    assert forward_kl(both)[0].item() == pytest.approx(math.log(2) / 4)
    assert reverse_kl(both)[0].item() == pytest.approx(math.log(2) / 4)
    jsd = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)  # KL(p || m), and KL(q || m) by symmetry
    assert generalised_jsd(0.5)(both)[0].item() == pytest.approx(jsd)
    asymmetric = pair([0.5, 0.5], [0.25, 0.75])
    assert forward_kl(asymmetric)[0].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert reverse_kl(asymmetric)[0].item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_distributions_have_no_divergence_and_no_gradient(name):
    logits = torch.randn(5, V)
    found = compare_full(logits, logits + 3.0, DIVERGENCES[name])
    assert found.divergence_B.abs().max() < 1e-5
    assert found.gradient_BV.abs().max() < 1e-6
    assert torch.allclose(found.entropy_B, found.teacher_entropy_B)


def test_jsd_approaches_the_two_kls_at_its_ends():
    """beta KL(p || q) towards 0, (1 - beta) KL(q || p) towards 1."""
    student, teacher = torch.randn(2, 4, V, dtype=torch.float64)
    for beta, kl, factor in ((1e-4, forward_kl, 1e-4), (1 - 1e-4, reverse_kl, 1e-4)):
        jsd, limit = compare_full(student, teacher, generalised_jsd(beta)), compare_full(student, teacher, kl)
        assert torch.allclose(jsd.divergence_B / factor, limit.divergence_B, rtol=1e-2)
        assert torch.allclose(jsd.gradient_BV / factor, limit.gradient_BV, atol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1])
def test_jsd_without_a_mixture_is_refused(beta):
    with pytest.raises(ValueError, match="between 0 and 1"):
        generalised_jsd(beta)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_stay_finite(name):
    student, teacher = torch.zeros(3, V), torch.zeros(3, V)
    student[0, 3], teacher[0, 4] = 300.0, 300.0
    student[1] = torch.linspace(-5e4, 5e4, V)
    teacher[2] = torch.linspace(5e4, -5e4, V)
    for found in (
        compare_full(student, teacher, DIVERGENCES[name]),
        compare_top_k(student, *top_k_of(teacher.clone(), K), DIVERGENCES[name]),
    ):
        assert all(torch.isfinite(x).all() for x in (found.divergence_B, found.gradient_BV, found.entropy_B))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(name):
    """The bucket is then empty."""
    student, teacher = torch.randn(2, 6, V)
    full = compare_full(student, teacher, DIVERGENCES[name])
    top = compare_top_k(student, *top_k_of(teacher.clone(), V), DIVERGENCES[name])
    assert torch.allclose(full.divergence_B, top.divergence_B, atol=1e-5)
    assert torch.allclose(full.gradient_BV, top.gradient_BV, atol=1e-6)
    assert torch.allclose(full.entropy_B, top.entropy_B, atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_coarser_view_never_sees_a_larger_divergence(name):
    """Putting outcomes together cannot increase any of the three."""
    student, teacher = torch.randn(2, 50, V) * 3
    full = compare_full(student, teacher, DIVERGENCES[name]).divergence_B
    top = [compare_top_k(student, *top_k_of(teacher.clone(), k), DIVERGENCES[name]).divergence_B for k in (1, 8, 64)]
    for coarse, fine in zip(top, [*top[1:], full], strict=True):
        assert (coarse <= fine + 1e-5).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_empty_places_change_nothing(name):
    """Impossible tokens, whatever their ids, are part of the bucket."""
    student, teacher = torch.randn(2, 6, V)
    ids, log_p = top_k_of(teacher.clone(), 3)
    expected = compare_top_k(student, ids, log_p, DIVERGENCES[name])
    more_ids = torch.cat([ids, torch.zeros(6, 1, dtype=torch.int64), ids[:, 1:2]], -1)
    more = torch.cat([log_p[:, :3], torch.full((6, 2), FLOOR), log_p[:, 3:]], -1)
    found = compare_top_k(student, more_ids, more, DIVERGENCES[name])
    for a, b in ((expected.divergence_B, found.divergence_B), (expected.gradient_BV, found.gradient_BV),
                 (expected.entropy_B, found.entropy_B)):  # fmt: skip
        assert torch.allclose(a, b, atol=1e-6)


def test_the_rest_of_the_top_k_is_all_other_tokens_together():
    logits = torch.randn(9, V)
    probabilities = logits.softmax(-1)
    ids, log_p = top_k_of(logits.clone(), K)
    assert torch.equal(ids, probabilities.topk(K).indices)
    assert torch.allclose(log_p[:, :K].exp(), probabilities.gather(1, ids), atol=1e-6)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(9))
    assert torch.allclose(with_rest(log_p[:, :K]), log_p, atol=1e-5)


def test_rounded_probabilities_of_more_than_one_leave_almost_nothing_to_the_rest():
    log_p = with_rest(torch.tensor([[0.7, 0.3001]]).log())
    assert log_p.exp().sum().item() == pytest.approx(1)
    assert FLOOR <= log_p[0, 2].item() < -70


# --- the head ---------------------------------------------------------------------------------------------------------


class Problem:
    """Heads with different padding behind the V real tokens, and the dense computation by automatic differentiation."""

    def __init__(self, bias: bool, temperature: float, teachers: int = 1):
        torch.manual_seed(0)
        self.hidden = torch.randn(N, H, requires_grad=True)
        self.head = nn.Linear(H, V + 5, bias=bias)
        self.teachers = [nn.Linear(HT + 8 * i, V + 9, bias=bias).requires_grad_(False) for i in range(teachers)]
        for teacher in self.teachers:
            teacher.weight *= 4
        sizes = [N] if teachers == 1 else [N - 11, 11]
        self.teacher_hidden = [torch.randn(n, t.in_features) for n, t in zip(sizes, self.teachers, strict=True)]
        self.targets = torch.randint(0, V, (N,))
        self.soft, self.hard = torch.rand(N), torch.rand(N)
        self.temperature = temperature

    def teacher_log_p(self) -> torch.Tensor:
        logits = [t(h)[:, :V] for t, h in zip(self.teachers, self.teacher_hidden, strict=True)]
        return (torch.cat(logits) / self.temperature).log_softmax(-1)

    def request(self, name: str, top_k: bool = False, hard: bool = True) -> SoftRequest:
        if top_k:
            found = teacher_top_k(self.teachers[0], self.teacher_hidden[0], K, V, self.temperature)
            targets = TopKTargets(*found)
        else:
            heads = [TeacherHead(t, h) for t, h in zip(self.teachers, self.teacher_hidden, strict=True)]
            targets = FullTargets(heads)
        weights = (self.soft, self.hard if hard else None)
        return SoftRequest(DIVERGENCES[name], targets, V, self.targets, self.temperature, *weights)

    def dense(self, name: str, top_k: bool = False, hard: bool = True) -> torch.Tensor:
        """The loss as the definitions have it, on whole [N, V]."""
        logits, log_p = self.head(self.hidden)[:, :V], self.teacher_log_p()
        log_q = (logits / self.temperature).log_softmax(-1)
        if top_k:
            ids = log_p.topk(K).indices
            others = torch.ones(N, V, dtype=torch.bool).scatter(1, ids, False)
            log_p, log_q = (
                torch.cat([x.gather(1, ids), x.exp().mul(others).sum(-1, keepdim=True).log()], -1)
                for x in (log_p, log_q)
            )
        p, q = log_p.exp(), log_q.exp()
        m = 0.3 * p + 0.7 * q
        divergence = {
            "forward": (p * (log_p - log_q)).sum(-1),
            "reverse": (q * (log_q - log_p)).sum(-1),
            "jsd": 0.3 * (p * (log_p - m.log())).sum(-1) + 0.7 * (q * (log_q - m.log())).sum(-1),
        }[name]
        loss = (self.soft * divergence).sum()
        if hard:
            loss = loss - (self.hard * logits.log_softmax(-1).gather(1, self.targets[:, None])[:, 0]).sum()
        return loss

    def parameters(self) -> list[torch.Tensor]:
        return [self.hidden, *self.head.parameters()]


@pytest.mark.parametrize("limit", [SMALL, 2**30])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("top_k", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("module", ["fused", "opaque"])
def test_value_and_gradients_equal_the_dense_computation(
    monkeypatch, module, name, hard, bias, top_k, temperature, limit
):
    monkeypatch.setattr(limits, "MAX_LOGIT_BYTES", limit)
    problem = Problem(bias, temperature)
    expected = problem.dense(name, top_k, hard)
    expected_gradients = torch.autograd.grad(3 * expected, problem.parameters())
    if module == "fused":
        for linear in (problem.head, *problem.teachers):
            install_scoring_head(linear)
    found = soft_score(problem.head, problem.hidden, problem.request(name, top_k, hard))
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(3 * found.total, problem.parameters())
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert all(g.abs().max() > 1e-3 for g in gradients)


@pytest.mark.parametrize("limit", [SMALL, 2**30])
def test_statistics_are_those_of_the_distributions(monkeypatch, limit):
    monkeypatch.setattr(limits, "MAX_LOGIT_BYTES", limit)
    problem = Problem(True, 1.3)
    install_scoring_head(problem.head)
    log_p = problem.teacher_log_p()
    logits = problem.head(problem.hidden)[:, :V].detach()
    log_q = (logits / 1.3).log_softmax(-1)
    for top_k in (False, True):
        found = soft_score(problem.head, problem.hidden, problem.request("forward", top_k))
        assert torch.allclose(found.entropy_N, -(log_q.exp() * log_q).sum(-1), atol=1e-4)
        expected = logits.log_softmax(-1).gather(1, problem.targets[:, None])[:, 0]
        assert torch.allclose(found.logprobs_N, expected, atol=1e-5)
        if not top_k:
            assert torch.allclose(found.divergence_N, (log_p.exp() * (log_p - log_q)).sum(-1), atol=1e-5)
            assert torch.allclose(found.teacher_entropy_N, -(log_p.exp() * log_p).sum(-1), atol=1e-4)
        assert not found.divergence_N.requires_grad


@pytest.mark.parametrize("limit", [SMALL, 2**30])
def test_each_position_is_compared_with_its_own_teacher(monkeypatch, limit):
    """Two teachers of different width."""
    monkeypatch.setattr(limits, "MAX_LOGIT_BYTES", limit)
    problem = Problem(False, 1.0, teachers=2)
    expected = problem.dense("reverse")
    expected_gradients = torch.autograd.grad(expected, problem.parameters())
    for linear in (problem.head, *problem.teachers):
        install_scoring_head(linear)
    found = soft_score(problem.head, problem.hidden, problem.request("reverse"))
    for ours, theirs in zip(torch.autograd.grad(found.total, problem.parameters()), expected_gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_padding_rows_of_either_head_change_nothing():
    """The rows behind the real tokens are in no softmax and get no gradient."""
    problem = Problem(False, 1.0)
    for linear in (problem.head, *problem.teachers):
        install_scoring_head(linear)
    before = soft_score(problem.head, problem.hidden, problem.request("jsd"))
    before.total.backward()
    assert problem.head.weight.grad[V:].abs().max() == 0
    with torch.no_grad():
        problem.head.weight[V:] = 50.0
        problem.teachers[0].weight[V:] = 50.0
    after = soft_score(problem.head, problem.hidden, problem.request("jsd"))
    assert torch.equal(before.total, after.total)


@pytest.mark.parametrize("top_k", [False, True])
@pytest.mark.parametrize("module", ["fused", "opaque"])
def test_the_logits_of_all_positions_never_exist(monkeypatch, module, top_k):
    """No tensor made in forward and backward is larger than half of the budget."""
    budget = 30 * V * 4
    monkeypatch.setattr(limits, "MAX_LOGIT_BYTES", budget)
    problem = Problem(False, 1.0)
    if module == "fused":
        for linear in (problem.head, *problem.teachers):
            install_scoring_head(linear)
    request = problem.request("jsd", top_k)
    largest = 0
    weights = {V * H, (V + 5) * H, V * HT, (V + 9) * HT}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor) and x.numel() not in weights:
                    largest = max(largest, x.numel() * x.element_size())
            return out

    with Watch():
        soft_score(problem.head, problem.hidden, request).total.backward()
    assert 0 < largest <= budget * 0.51 < N * V * 4  # the opaque head also makes its padding rows


def test_a_second_backward_is_refused_instead_of_wrong():
    problem = Problem(False, 1.0)
    install_scoring_head(problem.head)
    found = soft_score(problem.head, problem.hidden, problem.request("forward"))
    found.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        found.total.backward()


@pytest.mark.parametrize("module", ["fused", "opaque"])
def test_no_position_needs_no_special_case(module):
    head = nn.Linear(H, V, bias=False)
    if module == "fused":
        install_scoring_head(head)
    hidden = torch.zeros(0, H, requires_grad=True)
    targets = FullTargets([TeacherHead(nn.Linear(HT, V), torch.zeros(0, HT))])
    found = soft_score(head, hidden, SoftRequest(forward_kl, targets, V, torch.zeros(0, dtype=torch.int64)))
    found.total.backward()
    assert found.total.item() == 0
    assert found.divergence_N.shape == (0,)
    assert hidden.grad.shape == (0, H)


def test_without_gradients_nothing_is_kept():
    problem = Problem(False, 1.0)
    install_scoring_head(problem.head)
    with torch.no_grad():
        found = soft_score(problem.head, problem.hidden, problem.request("reverse"))
    assert not found.total.requires_grad
    assert found.total.item() == pytest.approx(problem.dense("reverse").item(), rel=1e-5)


def test_autocast_takes_products_in_bfloat16_and_the_rest_in_float32():
    problem = Problem(False, 1.0)
    expected = problem.dense("forward")
    for linear in (problem.head, *problem.teachers):
        install_scoring_head(linear)
    with torch.autocast("cpu", torch.bfloat16):
        found = soft_score(problem.head, problem.hidden, problem.request("forward"))
    found.total.backward()
    assert found.total.dtype == problem.head.weight.grad.dtype == torch.float32
    assert found.total.item() == pytest.approx(expected.item(), rel=0.02)
    assert found.total.item() != pytest.approx(expected.item(), rel=1e-7)


def test_a_head_with_adapters_trains_them():
    """LoRA on the head: no gradient for the frozen weight, exact ones for the adapters."""
    problem = Problem(False, 1.0)

    class Holder(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.lm_head = head

    holder = get_peft_model(Holder(problem.head), LoraConfig(target_modules=["lm_head"], r=4, init_lora_weights=False))
    problem.head = holder.base_model.model.lm_head
    adapters = [p for p in holder.parameters() if p.requires_grad]
    assert len(adapters) == 2
    expected = torch.autograd.grad(problem.dense("jsd"), adapters)
    found = soft_score(problem.head, problem.hidden, problem.request("jsd"))
    for ours, theirs in zip(torch.autograd.grad(found.total, adapters), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("n", "size"), [(0, 4), (1, 4), (4, 4), (5, 4), (37, 5), (37, 100)])
def test_chunks_are_even_and_cover_everything(n, size):
    chunks = even_chunks(n, size)
    lengths = [c.stop - c.start for c in chunks]
    assert sum(lengths) == n
    assert len(chunks) == math.ceil(n / size)
    assert all(length <= size for length in lengths)
    assert [c.start for c in chunks] == [sum(lengths[:i]) for i in range(len(lengths))]
    assert not lengths or max(lengths) - min(lengths) <= 1

"""The chunked head computes what a dense log-softmax computes, forward and backward."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignment.models import Policy, head
from alignment.models.head import ScoreRequest, install_scoring_head, score
from alignment.packing import conversation, pack
from tests.tiny import tiny_model

N, H, V = 37, 16, 301


def problem(bias=False, kept=False, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(N, H, requires_grad=True)
    linear = nn.Linear(H, V, bias=bias).to(dtype)
    targets = torch.randint(0, V, (N,))
    if not kept:
        return hidden, linear, ScoreRequest(targets, 0.7, True)
    sets = [sorted({int(t), *range(i % 5)}) if i % 3 else [] for i, t in enumerate(targets)]
    offsets = torch.tensor(np.cumsum([0, *map(len, sets)]))
    return hidden, linear, ScoreRequest(targets, 0.7, True, offsets, torch.tensor([t for s in sets for t in s]))


def dense(hidden, linear, request):
    logits = linear(hidden) / request.temperature
    if request.kept_offsets_N1 is not None:
        for i in range(N):
            ids = request.kept_ids_K[request.kept_offsets_N1[i] : request.kept_offsets_N1[i + 1]]
            if len(ids):
                mask = torch.ones(V, dtype=torch.bool)
                mask[ids] = False
                logits = logits.masked_fill(mask & (torch.arange(N) == i)[:, None], -1e30)
    logp = logits.log_softmax(-1)
    return logp.gather(1, request.targets_N[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def loss_of(logprobs, entropy):
    weight = torch.linspace(-1, 2, N)
    return (logprobs * weight).sum() + (entropy * weight.flip(0)).sum()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("limit", [10 * V * 4, 2**30])  # five rows a chunk, and all at once
@pytest.mark.parametrize("module", ["fused", "opaque"])
def test_scores_and_gradients_equal_the_dense_computation(monkeypatch, limit, bias, kept, module):
    monkeypatch.setattr(head, "MAX_LOGIT_BYTES", limit)
    hidden, linear, request = problem(bias, kept)
    expected = dense(hidden, linear, request)
    expected_grads = torch.autograd.grad(loss_of(*expected), [hidden, *linear.parameters()])
    if module == "fused":
        install_scoring_head(linear)
    scores = score(linear, hidden, request)
    grads = torch.autograd.grad(loss_of(scores.logprobs_N, scores.entropy_N), [hidden, *linear.parameters()])
    assert torch.allclose(scores.logprobs_N, expected[0], atol=1e-5)
    assert torch.allclose(scores.entropy_N, expected[1], atol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("limit", [10 * V * 4, 2**30])
@pytest.mark.parametrize("module", ["fused", "opaque"])
def test_a_loss_known_beforehand_gives_the_same_sum_and_gradient(monkeypatch, limit, kept, module):
    monkeypatch.setattr(head, "MAX_LOGIT_BYTES", limit)
    hidden, linear, request = problem(bias=True, kept=kept)

    def loss(logprobs, entropy):  # not linear, so every chunk needs its own slopes
        return loss_of((0.1 * logprobs).exp(), entropy.square())

    expected = loss(*dense(hidden, linear, request))
    expected_grads = torch.autograd.grad(3 * expected, [hidden, *linear.parameters()])
    if module == "fused":
        install_scoring_head(linear)
    scores = score(linear, hidden, replace(request, loss=loss))
    grads = torch.autograd.grad(3 * scores.total, [hidden, *linear.parameters()])
    assert torch.allclose(scores.total, expected, rtol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("known", "products"), [(True, 3), (False, 4)])
def test_a_loss_known_beforehand_saves_a_product_of_four(monkeypatch, known, products):
    monkeypatch.setattr(head, "MAX_LOGIT_BYTES", 20 * V * 4)
    hidden, linear, request = problem()
    install_scoring_head(linear)
    request = replace(request, entropy=False, loss=(lambda logprobs, _: logprobs.sum()) if known else None)
    calls = 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal calls
            calls += func._schema.name in ("aten::mm", "aten::addmm_", "aten::addmm")
            return func(*args, **(kwargs or {}))

    with Count():
        scores = score(linear, hidden, request)
        (scores.total if known else scores.logprobs_N.sum()).backward()
    assert calls == products * 4  # chunks
    if known:
        with pytest.raises(RuntimeError, match="once only"):
            scores.total.backward()


def test_kept_logits_are_recomputed_for_a_second_backward():
    hidden, linear, request = problem()
    install_scoring_head(linear)
    loss = score(linear, hidden, request).logprobs_N.sum()
    first = torch.autograd.grad(loss, linear.weight, retain_graph=True)[0]
    second = torch.autograd.grad(loss, linear.weight)[0]
    assert torch.allclose(first, second, atol=1e-6)


def test_no_position_needs_no_special_case():
    _, linear, _ = problem()
    install_scoring_head(linear)
    hidden = torch.zeros(0, H, requires_grad=True)
    scores = score(linear, hidden, ScoreRequest(torch.zeros(0, dtype=torch.int64)))
    scores.logprobs_N.sum().backward()
    assert scores.logprobs_N.shape == (0,)
    assert linear.weight.grad.abs().sum() == 0


def test_autocast_takes_products_in_bfloat16_and_softmax_in_float32():
    hidden, linear, request = problem()
    expected = dense(hidden, linear, request)[0]
    install_scoring_head(linear)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs = score(linear, hidden, request).logprobs_N
    logprobs.sum().backward()
    assert logprobs.dtype == torch.float32
    assert linear.weight.grad.dtype == torch.float32
    assert torch.allclose(logprobs, expected, atol=0.05)
    assert not torch.allclose(logprobs, expected, atol=1e-6)


def test_the_weights_gradient_in_half_precision_does_not_depend_on_the_number_of_chunks(monkeypatch):
    torch.manual_seed(0)
    hidden, linear = torch.randn(512, H).bfloat16(), nn.Linear(H, V, bias=False).bfloat16()
    install_scoring_head(linear)
    request = ScoreRequest(torch.randint(0, V, (512,)), 1.0, False)
    gradients = []
    for limit in (2 * V * 4, 2**30):  # a row a chunk, and all at once
        monkeypatch.setattr(head, "MAX_LOGIT_BYTES", limit)
        (gradient,) = torch.autograd.grad(score(linear, hidden, request).logprobs_N.sum(), [linear.weight])
        gradients.append(gradient.float())
    assert (gradients[0] - gradients[1]).norm() < 5e-3 * gradients[1].norm()


def test_the_logits_of_all_positions_never_exist(monkeypatch):
    """No tensor made during forward and backward is larger than the budget allows."""
    limit = 20 * V * 4
    monkeypatch.setattr(head, "MAX_LOGIT_BYTES", limit)
    hidden, linear, request = problem()
    install_scoring_head(linear)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor) and x.numel() != linear.weight.numel():
                    largest = max(largest, x.numel() * x.element_size())
            return out

    with Watch():
        scores = score(linear, hidden, request)
        (scores.logprobs_N.sum() + scores.entropy_N.sum()).backward()
    assert 0 < largest <= limit // 2 < N * V * 4


def row():
    return pack([conversation(list(range(5, 25)), [False] * 8 + [True] * 12)])


def test_tied_embeddings_receive_both_gradients():
    batch = row()
    tied = tiny_model("qwen3", tie_word_embeddings=True)
    logits = tied(input_ids=batch.input_ids_T[None]).logits[0]
    logp = logits.log_softmax(-1)[batch.score_index_N, batch.score_target_N]
    expected = torch.autograd.grad(logp.sum(), tied.get_input_embeddings().weight)[0]
    policy = Policy(tied)
    ours = torch.autograd.grad(policy(batch).logprobs_N.sum(), tied.get_input_embeddings().weight)[0]
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora_adapters_are_scored_and_trained_also_on_the_head(targets):
    batch = row()
    peft_model = get_peft_model(tiny_model("qwen3"), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    peft_model.eval()
    logits = peft_model(input_ids=batch.input_ids_T[None]).logits[0]
    logp = logits.log_softmax(-1)[batch.score_index_N, batch.score_target_N]
    trainable = {n: p for n, p in peft_model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(logp.sum(), list(trainable.values()))
    scores = Policy(peft_model)(batch)
    actual = torch.autograd.grad(scores.logprobs_N.sum(), list(trainable.values()))
    assert torch.allclose(scores.logprobs_N, logp, atol=1e-5)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_installing_the_scoring_head_leaves_checkpoints_unchanged(tmp_path):
    model = tiny_model("qwen3")
    names = set(model.state_dict())
    policy = Policy(model)
    assert set(model.state_dict()) == names
    policy.model.save_pretrained(tmp_path)
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)

"""Online merging: the paper's update by hand-computed numbers, AdamW as its limit, unbiased, and resumed exactly."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from alignment.config import TrainConfig
from alignment.errors import UserError
from alignment.models import Policy
from alignment.optim.adamw import make_optimizer
from alignment.optim.merge import elect, largest_entries, random_entries
from alignment.optim.online_merging import OnlineMerging, OnlineMergingConfig, make_merging_optimizer
from tests.tiny import tiny_model
from tests.training import weights_hash

ADAM = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def config(merge="ondare", **settings):
    settings = {"merge_alpha": 0.0, "merge_keep": 1.0, "merge_base_model": "given", **settings}
    return OnlineMergingConfig(merge=merge, **settings)


def merging(tensors, tau=None, seed=0, adam=ADAM, **settings):
    """Parameters named p0, p1, … of the given values and their optimizer."""
    parameters = [nn.Parameter(torch.as_tensor(t, dtype=torch.float32).clone()) for t in tensors]
    vectors = None if tau is None else {f"p{i}": torch.as_tensor(t, dtype=torch.float32) for i, t in enumerate(tau)}
    named = [(f"p{i}", p) for i, p in enumerate(parameters)]
    return parameters, OnlineMerging([{"params": named}], vectors, config(**settings), seed, **adam)


def take_steps(parameters, optimizer, gradients):
    for gradient in gradients:
        for p, g in zip(parameters, gradient, strict=True):
            p.grad = None if g is None else torch.as_tensor(g, dtype=p.dtype).clone()
        optimizer.step()


def random_gradients(shapes, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]


def adam_steps(tensors, gradients, adam=ADAM, **settings):
    """Where torch's AdamW goes."""
    parameters = [nn.Parameter(t.clone()) for t in tensors]
    take_steps(parameters, torch.optim.AdamW(parameters, **{**adam, "weight_decay": 0.0, **settings}), gradients)
    return [p.detach() for p in parameters]


# --- AdamW is a special case ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("merge", ["ondare", "onties"])
def test_without_pull_and_keeping_all_it_is_adamw_bit_for_bit(tmp_path, merge, every):
    """Over a model's parameters, some without a gradient, with weight decay and a learning rate that changes."""
    train = TrainConfig(output_dir=str(tmp_path), learning_rate=1e-2, weight_decay=0.1)
    models = [Policy(tiny_model("qwen3")) for _ in range(2)]
    optimizers = [
        make_optimizer(models[0], train),
        make_merging_optimizer(models[1], train, config(merge, merge_every=every)),
    ]
    generator = torch.Generator().manual_seed(0)
    for step in range(7):
        for i, (p, q) in enumerate(zip(*(m.parameters() for m in models), strict=True)):
            absent = (i + step) % 5 == 0
            p.grad = None if absent else torch.randn(p.shape, generator=generator)
            q.grad = None if absent else p.grad.clone()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (step + 1)
            optimizer.step()
        assert weights_hash(models[0]) == weights_hash(models[1])


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("merge", ["ondare", "onties"])
def test_a_pull_too_weak_to_matter_leaves_the_adamw_step(merge, every):
    """The merge's own Adam update is torch's, also over a cycle and with weight decay."""
    start, gradients = [torch.randn(40)], random_gradients([40], 4)
    adam = {**ADAM, "weight_decay": 0.01}
    parameters, optimizer = merging(
        start, [torch.randn(40)], adam=adam, merge=merge, merge_alpha=1e-30, merge_every=every
    )
    take_steps(parameters, optimizer, gradients)
    expected = adam_steps(start, gradients, adam, weight_decay=0.01)[0]
    assert torch.allclose(parameters[0], expected, atol=1e-6)


def test_groups_that_are_not_merged_get_plain_adamw():
    start, gradients = [torch.randn(50), torch.randn(50)], random_gradients([50, 50], 3)
    parameters = [nn.Parameter(t.clone()) for t in start]
    groups = [{"params": [("policy", parameters[0])]}, {"params": [("value", parameters[1])], "merge": False}]
    optimizer = OnlineMerging(groups, {"policy": torch.ones(50)}, config(merge_alpha=0.1, merge_keep=0.5), 0, **ADAM)
    take_steps(parameters, optimizer, gradients)
    expected = adam_steps(start, gradients, fused=True)
    assert torch.equal(parameters[1], expected[1])
    assert not torch.allclose(parameters[0], expected[0])


# --- OnDARE -----------------------------------------------------------------------------------------------------------


def test_the_mean_unbiased_step_is_adams_and_the_mean_plain_one_is_p_times_it():
    """Over 1500 seeds, within 4.5 standard errors per entry (64 entries) and 1.5 % over all of them."""
    n, keep, seeds = 64, 0.2, 1500
    gradients = random_gradients([n], 1)
    delta = adam_steps([torch.zeros(n)], gradients)[0]
    for rescale, share in (("unbiased", 1.0), ("none", keep)):
        total = torch.zeros(n)
        for seed in range(seeds):
            parameters, optimizer = merging([torch.zeros(n)], seed=seed, merge_keep=keep, merge_rescale=rescale)
            take_steps(parameters, optimizer, gradients)
            total += parameters[0].detach()
        error = delta.abs() * share * math.sqrt((1 - keep) / keep / seeds)
        assert ((total / seeds - share * delta).abs() <= 4.5 * error).all()
        assert (total / seeds / delta).mean().item() == pytest.approx(share, rel=0.015)


def test_the_mean_step_with_a_pull_mixes_adams_step_and_tau():
    n, keep, seeds, alpha = 64, 0.5, 1000, 0.3
    gradients, tau = random_gradients([n], 1), torch.randn(64, generator=torch.Generator().manual_seed(5))
    delta = adam_steps([torch.zeros(n)], gradients)[0]
    total = torch.zeros(n)
    for seed in range(seeds):
        parameters, optimizer = merging([torch.zeros(n)], [tau], seed=seed, merge_keep=keep, merge_alpha=alpha)
        take_steps(parameters, optimizer, gradients)
        total += parameters[0].detach()
    spread = torch.sqrt(((1 - alpha) * delta) ** 2 + (alpha * tau) ** 2) * math.sqrt((1 - keep) / keep / seeds)
    assert ((total / seeds - (1 - alpha) * delta - alpha * tau).abs() <= 4.5 * spread).all()


def test_an_ondare_step_by_hand():
    """p = 1: theta + (1 - alpha) Delta + alpha tau; Adam's first step is -lr * sign(g)."""
    parameters, optimizer = merging([[1.0, 2.0, 3.0]], [[0.4, -0.4, 8.0]], merge_alpha=0.25)
    take_steps(parameters, optimizer, [[[5.0, -1.0, 0.5]]])
    assert parameters[0].tolist() == pytest.approx([1 - 0.075 + 0.1, 2 + 0.075 - 0.1, 3 - 0.075 + 2.0])


def test_a_step_takes_each_entry_whole_or_not_at_all():
    """With p = 0.25: Delta / p or 0 of Adam's update, unscaled under rescale: none."""
    for rescale, size in (("unbiased", 0.4), ("none", 0.1)):
        parameters, optimizer = merging([torch.zeros(1000)], merge_keep=0.25, merge_rescale=rescale)
        take_steps(parameters, optimizer, [[torch.ones(1000)]])
        moved = parameters[0].detach().nonzero()
        assert 180 < len(moved) < 320
        assert torch.allclose(parameters[0][moved], torch.tensor(-size))


@pytest.mark.parametrize("keep", [5e-4, 0.01, 0.3, 0.9])
def test_random_entries_are_a_bernoulli_mask(keep):
    """Every place alike often, the number kept with the binomial's mean and spread, neighbours independent."""
    n, draws = 400, 4000
    generator = torch.Generator().manual_seed(1)
    hits, counts, pairs = np.zeros(n), [], 0
    for _ in range(draws):
        places = random_entries(n, keep, generator).numpy()
        assert len(places) == 0 or (places.min() >= 0 and places.max() < n and (np.diff(places) > 0).all())
        hits[places] += 1
        counts.append(len(places))
        pairs += int((np.diff(places) == 1).sum())
    assert (np.abs(hits - draws * keep) <= 5 * math.sqrt(draws * keep * (1 - keep)) + 1).all()
    assert np.mean(counts) == pytest.approx(n * keep, abs=5 * math.sqrt(n * keep * (1 - keep) / draws))
    assert np.var(counts) == pytest.approx(n * keep * (1 - keep), rel=0.25)
    assert pairs == pytest.approx(draws * (n - 1) * keep**2, abs=6 * math.sqrt(draws * n) * keep + 3)


def test_masks_follow_from_seed_step_and_parameter_alone():
    def moved(seed, steps=1, value=0.0, size=2):
        parameters, optimizer = merging([torch.full((500,), value)] * size, seed=seed, merge_keep=0.1)
        take_steps(parameters, optimizer, [[torch.ones(500)] * size] * (steps - 1))
        before = [p.detach().clone() for p in parameters]
        take_steps(parameters, optimizer, [[torch.ones(500)] * size])
        return [(p != b).tolist() for p, b in zip(parameters, before, strict=True)]

    torch.manual_seed(3)  # the global generator plays no part
    first = moved(1)
    torch.manual_seed(4)
    assert moved(1, value=0.5) == first
    assert moved(1, size=1) == first[:1]
    assert first[0] != first[1]
    assert moved(2)[0] != first[0]
    assert moved(1, steps=2)[0] != first[0]


# --- OnTIES -----------------------------------------------------------------------------------------------------------


def test_elect_adds_agreeing_entries_and_keeps_the_larger_of_opposing_ones():
    a = torch.tensor([1.0, -1.0, 1.0, -3.0, 0.0, 2.0, -1e-30])
    b = torch.tensor([2.0, -0.5, -2.0, 2.0, -4.0, 0.0, 1e-31])
    assert elect(a, b).tolist() == pytest.approx([3.0, -1.5, -2.0, -3.0, -4.0, 2.0, -1e-30])


def test_onties_weighs_before_it_elects():
    """Delta = -+0.1, alpha = 0.1, so a = -+0.09, b = 0.1 tau. In entry 1 tau opposes Delta and is larger, but not once
    it is weighted: the parameter follows Delta instead of freezing."""
    parameters, optimizer = merging([[0.0] * 4], [[2.0, 0.5, 0.5, -3.0]], merge="onties", merge_alpha=0.1)
    take_steps(parameters, optimizer, [[[1.0, 1.0, -1.0, -1.0]]])
    assert parameters[0].tolist() == pytest.approx([0.2, -0.09, 0.14, -0.3])


def test_onties_keeps_the_largest_share_of_each_term_per_tensor():
    """eps = 1 makes Adam's first step -lr g / (|g| + 1): -0.075, 0.05, 0.025, -0.02. Half of each tensor is kept."""
    parameters, optimizer = merging(
        [[0.0] * 4, [0.0] * 2, [0.0] * 4],
        [[0.1, -0.2, 0.8, 0.4], [0.6, 0.5], [0.05, 0.3, -0.01, 0.0]],
        adam={**ADAM, "eps": 1.0},
        merge="onties",
        merge_alpha=0.5,
        merge_keep=0.5,
    )
    take_steps(parameters, optimizer, [[[3.0, -1.0, -1 / 3, 0.25], [0.25, -1.0], [3.0, -1.0, -1 / 3, 0.25]]])
    assert parameters[0].tolist() == pytest.approx([-0.0375, 0.025, 0.4, 0.2])
    assert parameters[1].tolist() == pytest.approx([0.3, 0.025])
    assert parameters[2].tolist() == pytest.approx([-0.0375, 0.175, 0.0, 0.0])  # both terms kept the same entries


def test_largest_entries_are_exactly_the_share_asked_for_also_among_equals():
    def largest(values, keep):
        places, found = largest_entries(lambda where: values[where], values, keep)
        assert torch.equal(values[places], found)
        return places.tolist()

    assert largest(torch.tensor([1.0, -5.0, 3.0, 0.0, 4.0]), 0.5) == [1, 2, 4]
    assert len(largest(torch.ones(1000), 0.01)) == 10
    assert len(largest(torch.zeros(30), 5e-4)) == 1
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(700_000, generator=generator)
    many[1::42] *= 100  # outliers at places that a regular sample passes over, or sees alone
    for values in (many, many.flip(0), many.roll(-1)):
        expected = values.abs().topk(7000).indices.sort().values
        assert largest(values, 0.01) == expected.tolist()
    assert len(largest(torch.full((700_000,), -2.0), 0.01)) == 7000


# --- step-K -----------------------------------------------------------------------------------------------------------


def test_between_merges_every_parameter_moves_as_under_adamw():
    start, gradients = [torch.randn(30), torch.randn(4, 5), torch.randn(7)], random_gradients([30, (4, 5), 7], 3)
    tau = [torch.ones_like(t) for t in start]
    parameters, optimizer = merging(start, tau, merge_alpha=0.1, merge_keep=0.1, merge_every=4)
    for step in range(3):
        take_steps(parameters, optimizer, gradients[step : step + 1])
        for p, expected in zip(parameters, adam_steps(start, gradients[: step + 1], fused=True), strict=True):
            assert torch.equal(p, expected)


@pytest.mark.parametrize("merge", ["ondare", "onties"])
def test_a_cycle_undoes_its_steps_and_merges_their_sum(merge):
    """Gradients do not depend on the weights here, so AdamW beside tells the sum of its updates. Two cycles of 3."""
    start, gradients = [torch.randn(50)], random_gradients([50], 6)
    tau = torch.randn(50)
    sums = [adam_steps([torch.zeros(50)], gradients[:n])[0] for n in (3, 6)]
    expected = start[0].clone()
    for delta in (sums[0], sums[1] - sums[0]):
        a, b = 0.75 * delta, 0.25 * tau
        expected += elect(a, b) if merge == "onties" else a + b
    parameters, optimizer = merging(start, [tau], merge=merge, merge_alpha=0.25, merge_every=3)
    take_steps(parameters, optimizer, gradients)
    assert torch.allclose(parameters[0], expected, atol=2e-6)


def test_entries_that_no_mask_keeps_return_to_where_the_cycle_began():
    start = torch.randn(2000)
    parameters, optimizer = merging([start], [torch.ones(2000)], merge_alpha=0.1, merge_keep=0.05, merge_every=4)
    take_steps(parameters, optimizer, random_gradients([2000], 4))
    same = (parameters[0] == start).float().mean().item()
    assert same == pytest.approx(0.95**2, abs=0.03)


def test_weight_decay_is_applied_whole_in_every_step():
    """Gradients of zero: nothing but decay moves the weights, kept or not, in and out of a cycle."""
    for every in (1, 2):
        adam = {**ADAM, "weight_decay": 0.5}
        parameters, optimizer = merging([torch.ones(100)], adam=adam, merge_keep=0.1, merge_every=every)
        take_steps(parameters, optimizer, [[torch.zeros(100)]] * 4)
        assert torch.allclose(parameters[0], torch.tensor(0.95**4))


def test_parameters_without_a_gradient_stay_and_their_steps_do_not_count():
    parameters, optimizer = merging(
        [torch.zeros(9), torch.zeros(9)], [torch.ones(9)] * 2, merge_alpha=0.5, merge_every=2
    )
    one = torch.ones(9)
    take_steps(parameters, optimizer, [[one, None], [one, None], [one, one]])
    assert torch.allclose(parameters[1], torch.tensor(-0.1))  # its first step, plain
    take_steps(parameters, optimizer, [[None, one]])
    assert torch.allclose(parameters[1], torch.tensor(0.5 * -0.2 + 0.5))  # its second, merged


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["ondare", "onties"])
@pytest.mark.parametrize("stop", [2, 3])
def test_a_saved_state_goes_on_bit_for_bit_also_within_a_cycle(tmp_path, merge, stop):
    start, gradients = [torch.randn(300), torch.randn(20, 20)], random_gradients([300, (20, 20)], 8)
    tau = [torch.randn_like(t) for t in start]
    settings = {"merge": merge, "merge_alpha": 0.01, "merge_keep": 0.1, "merge_every": 3}
    settings["adam"] = {**ADAM, "weight_decay": 0.1}
    straight, optimizer = merging(start, tau, **settings)
    take_steps(straight, optimizer, gradients)
    first, optimizer = merging(start, tau, **settings)
    take_steps(first, optimizer, gradients[:stop])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second, optimizer = merging([p.detach() for p in first], tau, **settings)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    take_steps(second, optimizer, gradients[stop:])
    for p, q in zip(straight, second, strict=True):
        assert torch.equal(p, q)


def test_between_cycles_the_state_is_no_larger_than_adamws():
    parameters, optimizer = merging([torch.zeros(10)], [torch.ones(10)], merge_alpha=0.1, merge_every=2)
    tensors = []
    for _ in range(4):
        take_steps(parameters, optimizer, [[torch.ones(10)]])
        tensors.append(sum(isinstance(x, torch.Tensor) for x in optimizer.state_dict()["state"][0].values()))
    assert tensors == [4, 3, 4, 3]


def test_another_tau_or_another_optimizers_state_is_refused():
    parameters, optimizer = merging([torch.zeros(10)], [torch.ones(10)], merge_alpha=0.1)
    take_steps(parameters, optimizer, [[torch.ones(10)]])
    other = torch.ones(10)
    other[3] = torch.nextafter(other[3], other[4] * 2)
    with pytest.raises(UserError, match=f"fingerprint {optimizer.fingerprint}.*merge_base_model"):
        merging([torch.zeros(10)], [other], merge_alpha=0.1)[1].load_state_dict(optimizer.state_dict())
    adam = torch.optim.AdamW(parameters)
    with pytest.raises(UserError, match="without online merging"):
        optimizer.load_state_dict(adam.state_dict())


def test_tau_in_bfloat16_on_the_cpu_and_weights_in_bfloat16():
    """Weights of 1 have steps of 2^-7 above and 2^-8 below: an update of 0.04 / p moves them, rounded once."""
    parameter = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    settings = {"merge_alpha": 0.5, "merge_keep": 0.5, "merge_dtype": "bfloat16", "merge_device": "cpu"}
    for merge in ("ondare", "onties"):
        p = copy.deepcopy(parameter)
        vectors = {"p": torch.full((64,), -0.25, dtype=torch.bfloat16)}
        optimizer = OnlineMerging([{"params": [("p", p)]}], vectors, config(merge, **settings), 0, **ADAM)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert p.dtype == torch.bfloat16
        expected = {1.0, 0.8984375, 0.75, 0.6484375} if merge == "ondare" else {1.0, 0.94921875, 0.875, 0.82421875}
        assert set(p.tolist()) <= expected
        assert len(set(p.tolist())) > 1

"""Online merging of sharded parameters, in two processes: `-m tests.merging_ranks BASE`.

Every check is an assertion here; the gradients are made up, the same on every rank, so a run on whole parameters in the
same process says what the shards have to be.
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from alignment.config import TrainConfig
from alignment.errors import UserError
from alignment.models import Policy
from alignment.optim.online_merging import OnlineMerging, OnlineMergingConfig, make_merging_optimizer
from tests.tiny import tiny_model

TRAIN = TrainConfig(output_dir="unused", learning_rate=1e-2, weight_decay=0.1)


def settings(base: str, **changes) -> OnlineMergingConfig:
    return OnlineMergingConfig(
        **{
            "merge": "ondare",
            "merge_base_model": base,
            "merge_alpha": 0.1,
            "merge_every": 2,
            "merge_keep": 1.0,
            **changes,
        }
    )


def gradient(name: str, shape: torch.Size, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + sum(map(ord, name)))
    return torch.randn(shape, generator=generator)


def take_steps(policy: nn.Module, optimizer, steps) -> None:
    for step in steps:
        for name, p in policy.named_parameters():
            g = gradient(name, p.shape, step)
            p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
        optimizer.step()


def whole_weights(policy: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in policy.named_parameters()}


def shard(policy: Policy, mesh) -> None:
    for layer in policy.base.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)


def sharded(config: OnlineMergingConfig, mesh, optimizer_first: bool):
    """Policy and optimizer; with the optimizer made first, its parameters are exchanged as accelerate does it."""
    policy = Policy(tiny_model("qwen3"))
    if not optimizer_first:
        shard(policy, mesh)
        return policy, make_merging_optimizer(policy, TRAIN, config)
    optimizer = make_merging_optimizer(policy, TRAIN, config)
    shard(policy, mesh)
    named = dict(policy.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [named[name] for name in group["param_names"]]
    return policy, optimizer


def check_fsdp(base: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    reference = Policy(tiny_model("qwen3"))
    optimizer = make_merging_optimizer(reference, TRAIN, settings(base))
    fingerprint = optimizer.fingerprint
    take_steps(reference, optimizer, range(4))
    for first in (False, True):
        policy, optimizer = sharded(settings(base), mesh, first)
        assert optimizer.fingerprint == fingerprint
        take_steps(policy, optimizer, range(4))
        held = sum(p.to_local().numel() for p in policy.parameters())
        assert held < 0.6 * sum(p.numel() for p in policy.parameters())
        for name, weights in whole_weights(policy).items():
            assert torch.allclose(weights, reference.get_parameter(name), atol=1e-6), name
    check_random_shards(base, mesh)
    for first in (False, True):
        with pytest.raises(UserError, match="onties ranks the entries of whole tensors"):
            take_steps(*sharded(settings(base, merge="onties"), mesh, first), range(1))


def check_random_shards(base: str, mesh) -> None:
    """Same seed, same masks; another mask on each shard; replicas alike; a saved state goes on bit for bit."""
    sparse = settings(base, merge_keep=0.1)
    runs = []
    for first in (False, True):
        policy, optimizer = sharded(sparse, mesh, first)
        start = whole_weights(policy)
        take_steps(policy, optimizer, range(3))
        state = copy.deepcopy(optimizer.state_dict())
        take_steps(policy, optimizer, range(3, 6))
        runs.append(whole_weights(policy))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in start)

    other, optimizer = sharded(sparse, mesh, True)
    take_steps(other, optimizer, range(3))
    fresh, optimizer = sharded(sparse, mesh, False)
    for p, q in zip(fresh.parameters(), other.parameters(), strict=True):
        p.data.copy_(q.data)
    optimizer.load_state_dict(state)
    take_steps(fresh, optimizer, range(3, 6))
    assert all(torch.equal(runs[0][name], weights) for name, weights in whole_weights(fresh).items())

    plain = settings(base, merge_keep=0.1, merge_every=1)
    policy, optimizer = sharded(plain, mesh, False)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    take_steps(policy, optimizer, range(1))
    name = "model.model.layers.0.mlp.up_proj.weight"
    moved = whole_weights(policy)[name] != start[name]
    assert 0.1 < moved.float().mean() < 0.28  # 1 - 0.9^2
    upper, lower = moved.chunk(2)
    assert not torch.equal(upper, lower)

    replicas, optimizer = sharded(plain, init_device_mesh("cpu", (2, 1), mesh_dim_names=("copy", "shard")), False)
    take_steps(replicas, optimizer, range(2))
    for p in replicas.parameters():
        both = [torch.empty_like(p.to_local()) for _ in range(2)]
        dist.all_gather(both, p.to_local().contiguous())
        assert torch.equal(*both)


class Leaf(nn.Module):
    """A parameter whose gradient is made up."""

    def __init__(self, shape: tuple[int, ...], seed: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, name: str, step: int) -> torch.Tensor:
        return (self.weight * gradient(name, self.weight.shape, step)).sum()


class Leaves(nn.Module):
    """Sizes that no number of ranks divides: partitions end in padding and within parameters."""

    def __init__(self):
        super().__init__()
        self.leaves = nn.ModuleList(Leaf(shape, i) for i, shape in enumerate([(33, 7), (5,), (11, 3), (129,), (3,)]))

    def forward(self, step: int) -> torch.Tensor:
        return sum(leaf(str(i), step) for i, leaf in enumerate(self.leaves))


def leaves_and_optimizer(**changes) -> tuple[Leaves, OnlineMerging]:
    model = Leaves()
    named = list(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if p.dim() == 2], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in named if p.dim() == 1]},
    ]
    vectors = {n: gradient(n, p.shape, -1) for n, p in named}
    return model, OnlineMerging(groups, vectors, settings("given", **changes), 0, lr=1e-2)


def check_zero(stage: int) -> None:
    import deepspeed

    def started(**changes):
        model, optimizer = leaves_and_optimizer(**changes)
        zero = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 1e9,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, "sub_group_size": 150},
        }
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=zero)[0]
        return model, engine, optimizer

    def run(engine, steps):
        for step in steps:
            engine.backward(engine(step))
            engine.step()

    def weights(model):
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return {n: p.detach().clone() for n, p in model.named_parameters()}

    reference, optimizer = leaves_and_optimizer()
    take_whole_steps(reference, optimizer, range(4))
    model, engine, optimizer = started()
    run(engine, range(4))
    held = sum(t.numel() for t in optimizer.state)
    total = sum(p.numel() for p in reference.parameters())
    assert held < 0.8 * total, f"{held} of {total}: not sharded"
    for name, value in weights(model).items():
        assert torch.allclose(value, reference.get_parameter(name), atol=1e-6), name

    runs = []
    for _ in range(2):
        model, engine, optimizer = started(merge_keep=0.3, merge_every=1)
        start = weights(model)
        run(engine, range(1))
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in start)
    long = "leaves.3.weight"
    assert 0.3 < (runs[0][long] != start[long]).float().mean() < 0.7  # 1 - 0.7^2
    model, engine, optimizer = started(merge="onties")
    with pytest.raises(UserError, match="onties ranks the entries of whole tensors"):
        run(engine, range(1))


def take_whole_steps(model: Leaves, optimizer, steps) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(step).backward()
        optimizer.step()


def main(base: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    check_fsdp(base)
    print("passed fsdp2", flush=True)
    for stage in (1, 2, 3):
        check_zero(stage)
        print(f"passed zero{stage}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

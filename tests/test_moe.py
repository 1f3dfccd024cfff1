"""The routers' load-balancing loss: over the global batch, in every trainer."""

import pytest
import torch

from alignment.algorithms.sft import Sft
from alignment.metrics import read_metrics
from alignment.models import Policy
from alignment.models.actor_critic import ActorCritic
from alignment.models.load_scalar import scalar_from_policy
from alignment.models.router import RouterBalance, balances
from alignment.packing import conversation, cut, pack
from tests.tiny import tiny_model
from tests.training import gradients, rows, train
from tests.training_distill import train_distill
from tests.training_dpo import train_dpo, train_online
from tests.training_grpo import train_grpo
from tests.training_ppo import train_ppo
from tests.training_reward import train_reward_model

ARCHITECTURES = ("qwen2_moe", "qwen3_moe")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_balance_loss_equals_that_of_transformers_for_one_layer(arch):
    model = tiny_model(arch, num_hidden_layers=1, router_aux_loss_coef=0.3)
    tokens = list(range(7, 47))
    theirs = model(torch.tensor([tokens]), output_router_logits=True).aux_loss * 0.3
    policy = Policy(model)
    policy(pack([conversation(tokens, [False] + [True] * 39)]))
    ours = policy.balance.take()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert policy.balance.take() is None


def test_balance_loss_by_hand():
    balance = RouterBalance(top_k=1, coefficient=1.0)
    # four tokens, two experts, three choose expert 0: f = (3/4, 1/4), P = (0.5 * 3 + 0.25) / 4, (0.5 * 3 + 0.75) / 4
    logits = torch.log(torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.25, 0.75]])).requires_grad_()
    balance.observe([logits], empty=False)
    p0, p1 = (0.6 * 3 + 0.25) / 4, (0.4 * 3 + 0.75) / 4
    assert balance.take().item() == pytest.approx(2 * (0.75 * p0 + 0.25 * p1))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_cut_gives_the_same_balance_gradient(arch):
    trees = rows(6)
    whole, parts = Policy(tiny_model(arch)), Policy(tiny_model(arch))
    for policy, budget in ((whole, 10_000), (parts, 40)):
        micros = cut(trees, budget)
        with policy.balance.counting(), torch.no_grad():
            for micro in micros:
                policy(micro)
        for micro in micros:
            policy(micro)
            policy.balance.take().backward()
    assert len(cut(trees, 40)) > 2
    expected = gradients(whole)
    assert expected
    for name, gradient in gradients(parts).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_training_keeps_the_experts_balanced(arch, tmp_path):
    """Even use gives top_k: E * sum over E experts of (top_k / E) * (1 / E). Without the loss training leaves it."""

    def last_balance(coefficient: float) -> float:
        folder, policy = tmp_path / str(coefficient), Policy(tiny_model(arch))
        settings = {"router_aux_loss_coef": coefficient, "max_tokens_per_micro_batch": 100, "learning_rate": 3e-3}
        train(str(folder), 30, Sft(rows(), 6, seed=1), policy, **settings)
        return read_metrics(folder / "metrics.jsonl", "train")[-1]["router_aux_loss"] / coefficient

    even = tiny_model(arch).config.num_experts_per_tok
    kept, left = last_balance(1.0), last_balance(1e-6)
    assert even - 0.01 < kept < even + 0.1
    assert left > kept + 0.05


def two_steps_of_ppo(folder: str, policy: Policy) -> None:
    model = ActorCritic(policy, scalar_from_policy(policy, shared=False))
    train_ppo(folder, 2, model=model, value_warmup_steps=1)


TRAINERS = {
    "reward model": lambda folder, policy: train_reward_model(
        folder, 1, model=scalar_from_policy(policy, shared=True, at="token")
    ),
    "dpo": lambda folder, policy: train_dpo(folder, 1, policy=policy),
    "online dpo": lambda folder, policy: train_online(folder, 1, policy=policy),
    "ppo": two_steps_of_ppo,
    "grpo": lambda folder, policy: train_grpo(folder, 1, policy=policy),
    "distillation": lambda folder, policy: train_distill("mixed", folder, 1, policy=policy),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", TRAINERS)
def test_the_loss_is_on_in_every_trainer_with_the_models_coefficient(tmp_path, name, arch):
    """Its value is the coefficient times about top_k = 2, per model; the router's step follows its gradient."""

    def routers(coefficient: float) -> tuple[float, list[torch.Tensor]]:
        folder = tmp_path / f"{coefficient}"
        policy = Policy(tiny_model(arch, vocab_size=512, router_aux_loss_coef=coefficient))
        TRAINERS[name](str(folder), policy)
        line = read_metrics(folder / "metrics.jsonl", "train")[-1]
        gates = [p for n, p in policy.named_parameters() if n.endswith("mlp.gate.weight")]
        return line["router_aux_loss"] / coefficient, gates

    (strong, with_loss), (weak, without) = routers(100.0), routers(1e-9)
    models = 2 if name == "ppo" else 1
    assert models * 2 - 0.01 < strong < models * 2.4 and weak == pytest.approx(strong, rel=0.1)
    assert len(with_loss) == 2
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(with_loss, without, strict=True))


def test_dense_models_have_no_balance_loss():
    assert balances(Policy(tiny_model("qwen3"))) == []

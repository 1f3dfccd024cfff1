"""Checkpointed and offloaded activations: less memory, the same gradients, in every kind of model; rotary settings."""

import copy

import pytest
import torch

from alignment.algorithms.distill import Distill
from alignment.algorithms.sft import Sft
from alignment.config import TrainConfig
from alignment.errors import UserError
from alignment.models import Policy
from alignment.models.load_scalar import scalar_from_policy
from alignment.models.rope import RopeConfig, check_length
from alignment.models.trunk import base_of, checkpoint_activations
from alignment.packing import cut
from tests.tiny import tiny_config, tiny_model
from tests.training import gradients, rows, train
from tests.training_distill import make
from tests.training_dpo import pairs
from tests.training_ppo import tiny_actor_critic


def gradients_of(model, loss) -> dict[str, torch.Tensor]:
    model.train()
    loss(model).backward()
    return gradients(model)


def of_policy(model):
    return model(cut(rows(4), 4096)[0]).logprobs_N.sum()


def of_pairs(model):
    return model(cut(pairs(4), 4096)[0]).logprobs_N.sum()


def of_scalar(model):
    return model(cut(pairs(4), 4096)[0]).sum()


def of_actor_critic(model):
    out = model(cut(rows(4), 4096)[0], entropy=True)
    return out.scores.logprobs_N.sum() + out.values_N.sum()


CASES = {
    "policy": (lambda: Policy(tiny_model("qwen3")), of_policy),
    "policy with experts": (lambda: Policy(tiny_model("qwen3_moe")), of_policy),
    "pairs": (lambda: Policy(tiny_model("qwen2")), of_pairs),
    "reward model": (lambda: scalar_from_policy(Policy(tiny_model("qwen3")), shared=False, at="token"), of_scalar),
    "policy and value": (lambda: tiny_actor_critic(), of_actor_critic),
    "policy and value on one backbone": (lambda: tiny_actor_critic(shared=True), of_actor_critic),
}


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_with_checkpointed_activations(name, offload):
    make_model, loss = CASES[name]
    expected = gradients_of(make_model(), loss)
    model = make_model()
    for part in model.parts.values():
        checkpoint_activations(base_of(part), offload)
    found = gradients_of(model, loss)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)


def test_a_student_learns_the_same_with_checkpointed_activations():
    losses = []
    for checkpointed in (False, True):
        algorithm: Distill = make(batch_size=6, on_policy_share=0.0, hard_coef=0.5)
        if checkpointed:
            checkpoint_activations(base_of(algorithm.student.parts["model"]))
        micro = cut(algorithm.collect(0).batches[0].trees, 4096)[0]
        losses.append(gradients_of(algorithm.student, lambda student, a=algorithm, m=micro: a.loss(student, m)[0]))
    assert all(torch.allclose(losses[0][n], losses[1][n], atol=1e-6) for n in losses[0])


def test_the_settings_reach_every_part(tmp_path):
    policy = Policy(tiny_model("qwen3"))
    train(str(tmp_path), 1, policy=policy, algorithm=Sft(rows(), 5, seed=1), activation_offload=True)
    assert policy.base.is_gradient_checkpointing
    assert TrainConfig(output_dir="x").activation_offload is False


# --- rotary embeddings ------------------------------------------------------------------------------------------------


def stretched(**settings):
    config = copy.deepcopy(tiny_config("qwen3"))
    RopeConfig(**settings).apply(config)
    return config


def test_rotary_settings_of_a_recipe_change_the_configuration_that_is_saved():
    same = stretched()
    assert same.rope_parameters == tiny_config("qwen3").rope_parameters
    larger = stretched(rope_theta=1e7, max_position=4096)
    assert (larger.rope_parameters["rope_theta"], larger.max_position_embeddings) == (1e7, 4096)
    yarn = stretched(rope_type="yarn", rope_factor=4.0)
    assert yarn.rope_parameters["rope_type"] == "yarn" and yarn.max_position_embeddings == 4 * 2048
    assert yarn.rope_parameters["original_max_position_embeddings"] == 2048


def test_dynamic_ntk_sets_in_beyond_the_length_of_the_checkpoint():
    dynamic = stretched(rope_type="dynamic", rope_factor=4.0)
    assert dynamic.max_position_embeddings == 2048
    with pytest.raises(UserError, match="max_position"):
        RopeConfig(rope_type="dynamic", rope_factor=4.0, max_position=8192)
    check_length(dynamic, 2048)
    with pytest.raises(UserError, match="max_length: 2049 exceeds the 2048 tokens"):
        check_length(dynamic, 2049)
    check_length(stretched(rope_type="yarn", rope_factor=4.0), 8192)
    base = tiny_model("qwen3", rope_parameters=dynamic.rope_parameters, max_position_embeddings=32)
    plain = tiny_model("qwen3", max_position_embeddings=32)
    ids = torch.arange(5, 69)[None]
    with torch.no_grad():
        assert not torch.allclose(base(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)


def test_dynamic_ntk_changes_nothing_within_the_length_that_the_model_knows_and_yarn_does():
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        plain = tiny_model("qwen3")(input_ids=ids).logits
        outputs = {}
        for kind in ("dynamic", "yarn"):
            config = stretched(rope_type=kind, rope_factor=4.0)
            outputs[kind] = tiny_model("qwen3", rope_parameters=config.rope_parameters)(input_ids=ids).logits
    assert torch.allclose(outputs["dynamic"], plain, atol=1e-6)
    assert not torch.allclose(outputs["yarn"], plain, atol=1e-4)


@pytest.mark.parametrize(
    "settings, message",
    [({"rope_type": "yarn"}, "rope_factor: 0.0"), ({"rope_factor": 2.0}, "it goes with"), ({"rope_theta": -1}, "0 or")],
)
def test_rotary_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RopeConfig(**settings)

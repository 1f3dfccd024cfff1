"""Architectures that compute something else on packed rows are refused when they are loaded."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.errors import UserError
from alignment.models import Policy
from alignment.models.check_packing import check_packing
from tests.tiny import tiny_model

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 256, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip


def model_of(architecture, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SHAPE, **settings)).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_moe", "llama"])
def test_what_is_exact_passes_and_is_left_as_it_was(architecture, dtype):
    policy = Policy(tiny_model(architecture).to(dtype)).train()
    check_packing(policy)
    assert policy.training and policy.base.config._attn_implementation == "alignment_tree"


@pytest.mark.parametrize("architecture", ["mistral", "gemma", "olmo2", "phi"])
def test_other_architectures_pass_too(architecture):
    check_packing(Policy(model_of(architecture)))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {}),
        ("gemma2", {"attn_logit_softcapping": 1.0}),
        ("nemotron", {}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_scaled_capped_and_unmasked_ones_are_refused(architecture, settings):
    with pytest.raises(UserError, match="packed rows"):
        check_packing(Policy(model_of(architecture, **settings)))

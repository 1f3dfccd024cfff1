"""Memory per GPU by configuration: hand-computed numbers, and published sizes of the models."""

import pytest
from transformers import Qwen3Config

from alignment.memory_plan import ModelSizes, model_sizes, spread
from tests.tiny import tiny_config, tiny_model

SIZES = ModelSizes(parameters=1000, trainable=1000, layer=100, outer=200, width=5)


@pytest.mark.parametrize(
    "configuration, weights, gradients, optimizer, cpu, sent",
    [
        ("ddp", 4000, 8000, 8000, 0, 6000),
        ("zero1", 4000, 5000, 3000, 0, 6000),
        ("zero2", 4000, 1000, 3000, 0, 3 * 3000),
        ("zero3", 1000, 1000, 3000, 0, 2 * 0.75 * 12000),
        ("zero3_offload", 1000, 0, 0, 4000, 2 * 0.75 * 12000),
        ("fsdp2", 1000, 1000, 2000, 0, 2 * 0.75 * 12000),
    ],
)
def test_hand_computed_bytes_on_four_ranks(configuration, weights, gradients, optimizer, cpu, sent):
    s = spread(SIZES, configuration, 4, micro_batches=2)
    assert (s.weights, s.gradients, s.optimizer, s.cpu, s.sent) == (weights, gradients, optimizer, cpu, sent)


def test_bfloat16_halves_what_fsdp2_gathers_and_sends_for_it():
    full, half = (spread(SIZES, "fsdp2", 4, bf16=b) for b in (False, True))
    assert half.gathered == full.gathered / 2 == 2 * 2 * 400
    assert (full.sent, half.sent) == (0.75 * 12000, 0.75 * 8000)


def test_autocast_keeps_a_copy_of_whole_weights():
    assert [spread(SIZES, name, 4, bf16=True).gathered - spread(SIZES, name, 4).gathered
            for name in ("ddp", "zero1", "zero2", "zero3")] == [2000, 2000, 2000, 0]  # fmt: skip


def test_adapters_leave_weights_where_they_were():
    s = spread(ModelSizes(1000, 10, 100, 200, 5), "ddp", 4)
    assert (s.weights, s.gradients, s.optimizer) == (4000, 80, 80)


def test_sizes_of_models():
    tiny = model_sizes(tiny_config("qwen3"))
    assert tiny.parameters == sum(p.numel() for p in tiny_model("qwen3").parameters())
    assert tiny.parameters == tiny.outer + 2 * tiny.layer
    shape = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}
    qwen3_8b = Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, **shape
    )
    assert model_sizes(qwen3_8b).parameters == 8_190_735_360  # as its checkpoint has

"""Memory per GPU by configuration: hand-computed numbers, and published sizes of the models."""

import pytest
from transformers import Qwen3Config

from alignment.memory_plan import ModelSizes, model_sizes, spread, spread_table
from tests.tiny import tiny_config, tiny_model

SIZES = ModelSizes(parameters=1000, trainable=1000, layer=100, outer=200, width=5)


@pytest.mark.parametrize(
    "configuration, weights, gradients, optimizer, cpu, sent",
    [
        ("ddp", 4000, 8000, 8000, 0, 6000),
        ("zero1", 4000, 5000, 3000, 0, 6000),
        ("zero2", 4000, 1000, 3000, 0, 3 * 3000),
        ("zero3", 1000, 1000, 3000, 0, 2 * 0.75 * 12000),
        ("zero3_offload", 1000, 0, 0, 5000, 2 * 0.75 * 12000),
        ("fsdp2", 1000, 1000, 2000, 0, 2 * 0.75 * 12000),
    ],
)
def test_hand_computed_bytes_on_four_ranks(configuration, weights, gradients, optimizer, cpu, sent):
    s = spread(SIZES, configuration, 4, micro_batches=2)
    assert (s.weights, s.gradients, s.optimizer, s.cpu, s.sent) == (weights, gradients, optimizer, cpu, sent)


def test_zeros_masters_and_moments_are_float32_also_of_bfloat16_weights():
    found = {name: spread(SIZES, name, 4, parameter_bytes=2) for name in ("zero1", "zero2", "zero3", "zero3_offload")}
    assert [(s.weights, s.optimizer, s.cpu) for s in found.values()] == [
        (2000, 3000, 0), (2000, 3000, 0), (500, 3000, 0), (500, 0, 4500)
    ]  # fmt: skip


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


def test_ranks_share_the_micro_batches_of_a_step_and_each_has_its_part_on_the_host():
    gib = ModelSizes(2**28, 2**28, 0, 0, 0)
    table = spread_table(gib, 0, False, 4, micro_batches=16, host=3 * 2**30)
    cells = {column.header: list(column.cells) for column in table.columns}
    rows = list(zip(cells["configuration"], cells["GPUs"], cells["host"], cells["sent"], strict=True))
    assert ("fsdp2", "8", "3.0", f"{2 * 7 / 8 * 3:.1f}") in rows
    assert ("fsdp2", "64", "3.0", f"{63 / 64 * 3:.1f}") in rows
    assert ("zero3_offload", "8", "3.6", f"{2 * 7 / 8 * 3:.1f}") in rows


def test_sizes_of_models():
    tiny = model_sizes(tiny_config("qwen3"))
    assert tiny.parameters == sum(p.numel() for p in tiny_model("qwen3").parameters())
    assert tiny.parameters == tiny.outer + 2 * tiny.layer
    shape = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}
    qwen3_8b = Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, **shape
    )
    assert model_sizes(qwen3_8b).parameters == 8_190_735_360  # as its checkpoint has

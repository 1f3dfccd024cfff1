"""Ranks that share packed rows train what one process trains."""

import numpy as np
import pytest
import torch

from alignment.errors import UserError
from alignment.packing import conversation, cut, empty_batch, group
from alignment.packing.sequence_parallel import ALONE, SequenceGroup, make_sequence_group
from alignment.types import Segment
from benchmarks.scale import curve_difference, weight_difference
from tests.ranks import finish, start
from tests.sharded_runs import METHODS, as_launched

SHARED = ("sft_pairs", "sft_fours", "sft_moe_pairs")


def packed():
    """A dialogue, and a prompt with two answers: 7 + 4 + 3 + 2 tokens."""
    dialogue = conversation(range(10, 17), [False] * 4 + [True] * 3)
    dialogue.segments[0].columns["weights"] = np.arange(7.0)
    answers = [Segment(ids, columns={"weights": np.full(len(ids), 0.5)}) for ids in ([30, 31, 32], [40, 41])]
    return cut([dialogue, group(range(20, 24), answers)], 100)[0]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 16])
def test_the_parts_of_a_row_hold_every_token_and_every_scored_position_once(size):
    row = packed()
    parts = [SequenceGroup(size, place).own_part(row) for place in range(size)]
    assert torch.equal(torch.cat([p.input_ids_T for p in parts]), row.input_ids_T)
    assert torch.equal(torch.cat([p.position_ids_T for p in parts]), row.position_ids_T)
    found = []
    for place, part in enumerate(parts):
        start = SequenceGroup(size, place).borders(row.tokens)[place]
        assert part.segments == row.segments
        assert all(0 <= i < part.tokens for i in part.score_index_N.tolist())
        columns = part.score_target_N.tolist(), part.columns["weights"].tolist()
        found += list(zip((part.score_index_N + start).tolist(), *columns, strict=True))
    wanted = zip(row.score_index_N.tolist(), row.score_target_N.tolist(), row.columns["weights"].tolist(), strict=True)
    assert sorted(found) == sorted(wanted)


def test_a_row_that_nobody_shares_and_a_stand_in_stay_whole():
    row, stand_in = packed(), empty_batch()
    assert ALONE.own_part(row) is row
    assert SequenceGroup(2, 1).own_part(stand_in) is stand_in


def test_groups_that_processes_cannot_be_divided_into_are_refused():
    with pytest.raises(UserError, match="sequence_parallel_size: 2 does not divide the 1 processes"):
        make_sequence_group(2, attention_heads=4)


def test_a_row_with_fewer_tokens_than_ranks_is_one_ranks_alone():
    row = packed()
    assert SequenceGroup(20, 0).own_part(row) is row
    assert SequenceGroup(20, 1).own_part(row).empty


@pytest.mark.slow
def test_ranks_that_share_rows_follow_the_single_process(tmp_path):
    """Four ranks as one group (more ranks than heads of keys) and as two; a mixture of experts with its balance over
    all parts; whole weights, FSDP2 and ZeRO-3. Some parts have no scored position at all."""
    for method in SHARED:
        as_launched("single")
        METHODS[method](str(tmp_path / method / "single"), 6, 0)
    configurations = ("ddp", "fsdp2", "zero3")
    finish(start("tests.sharded_runs", tmp_path, ",".join(configurations), ",".join(SHARED), 6, ranks=4), 600)
    for method in SHARED:
        for configuration in configurations:
            runs = tmp_path / method / "single", tmp_path / method / configuration
            assert curve_difference(*runs) < 1e-5, (method, configuration)
            assert weight_difference(*runs) < 2e-4, (method, configuration)  # Adam magnifies rounding

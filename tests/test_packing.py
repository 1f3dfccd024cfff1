"""Packed rows with shared prefixes give what each sequence alone gives (invariant 1)."""

import numpy as np
import pytest
import torch

from alignment.errors import UserError
from alignment.models import Policy
from alignment.packing import TreeLayout, conversation, cut, group, pack
from alignment.packing.attention import check_sliding_window, flex_tree_attention, segment_attention
from alignment.types import Segment, Tree
from tests.tiny import tiny_model
from tests.training import gradients

ARCHITECTURES = ["qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "llama"]


def tokens(rng, n):
    return rng.integers(5, 200, n).tolist()


def some_trees():
    """A conversation, a group of three, and a deeper tree whose inner segment is scored too."""
    rng = np.random.default_rng(0)
    talk = conversation(tokens(rng, 12), [False] * 5 + [True] * 7)
    trio = group(tokens(rng, 9), [Segment(tokens(rng, n)) for n in (4, 1, 7)])
    deep = Tree(
        [
            Segment(tokens(rng, 6)),
            Segment(tokens(rng, 3), parent=0, scored=np.array([True, True, False])),
            Segment(tokens(rng, 5), parent=1, scored=np.ones(5, dtype=bool)),
            Segment(tokens(rng, 2), parent=1, scored=np.ones(2, dtype=bool)),
            Segment(tokens(rng, 4), parent=0, scored=np.ones(4, dtype=bool)),
        ]
    )
    return [talk, trio, deep]


def separate_logprobs(model, trees):
    """Every branch through the plain model by itself, in the order of the packed row."""
    out = []
    for tree in trees:
        for i, segment in enumerate(tree.segments):
            if segment.scored is None:
                continue
            path = tree.branch_token_ids(i)
            logits = model(input_ids=torch.tensor([path]), use_cache=False).logits[0].float()
            start = len(path) - len(segment.token_ids)
            for j in np.flatnonzero(segment.scored):
                out.append(logits[start + j - 1].log_softmax(-1)[path[start + j]])
    return torch.stack(out)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logprobs_and_gradients_equal_separate_forwards(architecture):
    trees = some_trees()
    weight = torch.linspace(-1, 2, sum(t.scored_tokens for t in trees))
    model = tiny_model(architecture)
    reference = separate_logprobs(model, trees)
    (reference * weight).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    policy = Policy(model)
    packed = policy(pack(trees)).logprobs_N
    (packed * weight).sum().backward()
    assert torch.allclose(packed, reference, atol=1e-5)
    actual = gradients(model)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        assert torch.allclose(actual[name], gradient, atol=1e-5), name


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe", "llama"])
def test_dense_reference_and_gradient_checkpointing_agree_with_segment_attention(architecture):
    batch = pack(some_trees())
    plain = Policy(tiny_model(architecture))
    plain_out = plain(batch).logprobs_N
    plain_out.sum().backward()
    for variant in ("dense", "checkpointing"):
        other = Policy(tiny_model(architecture), dense_attention=variant == "dense")
        if variant == "checkpointing":
            other.model.gradient_checkpointing_enable()
            other.train()
        out = other(batch).logprobs_N
        out.sum().backward()
        assert torch.allclose(out, plain_out, atol=1e-5)
        for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, atol=1e-5), (variant, name)


def test_flex_attention_with_the_block_mask_equals_segment_attention():
    layout = TreeLayout(pack(some_trees()).segments)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, layout.tokens, 16, generator=generator)
    k, v = (torch.randn(1, 2, layout.tokens, 16, generator=generator) for _ in range(2))
    assert torch.allclose(
        flex_tree_attention(q, k, v, layout, 0.25), segment_attention(q, k, v, layout, 0.25, 0.0), atol=1e-5
    )


def test_the_model_still_generates_and_runs_padded_batches_after_switching():
    model = tiny_model("qwen3")
    ids = torch.tensor([[0, 0, 7, 8, 9], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    before = model(input_ids=ids, attention_mask=mask).logits
    Policy(model)
    after = model(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(before[mask.bool()], after[mask.bool()], atol=1e-6)


def test_sliding_window_is_exact_up_to_the_window_and_refused_beyond():
    batch = pack([conversation(list(range(5, 25)), [False] + [True] * 19)])
    overrides = {"use_sliding_window": True, "max_window_layers": 0}
    full = Policy(tiny_model("qwen2"))(batch).logprobs_N
    wide = Policy(tiny_model("qwen2", sliding_window=20, **overrides))(batch).logprobs_N
    assert torch.equal(full, wide)
    with pytest.raises(UserError, match="sliding window of 19"):
        Policy(tiny_model("qwen2", sliding_window=19, **overrides))(batch)
    with pytest.raises(UserError, match="sliding window"):
        check_sliding_window(3, TreeLayout([(0, 4, -1)]))


def test_layout_refuses_segments_that_are_not_depth_first():
    with pytest.raises(ValueError, match="not on the path"):
        TreeLayout([(0, 2, -1), (2, 4, 0), (4, 6, -1), (6, 8, 1)])
    with pytest.raises(ValueError, match="expected a non-empty one"):
        TreeLayout([(0, 2, -1), (3, 4, 0)])


def test_positions_continue_from_the_parent_and_children_score_from_its_last_token():
    batch = pack([group([10, 11, 12], [Segment([20, 21]), Segment([30])])])
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3]
    assert batch.score_index_N.tolist() == [2, 3, 2]
    assert batch.score_target_N.tolist() == [20, 21, 30]
    assert batch.score_row_N.tolist() == [0, 0, 1]


def test_first_token_of_a_root_cannot_be_scored():
    with pytest.raises(ValueError, match="nothing to be predicted from"):
        pack([conversation([1, 2], [True, True])])


def test_columns_must_be_the_same_in_all_segments():
    children = [Segment([1], columns={"a": np.ones(1)}), Segment([2])]
    with pytest.raises(ValueError, match="columns differ"):
        pack([group([3], children)])


@pytest.mark.parametrize("budget", [1, 14, 17, 25, 1000])
def test_any_cut_scores_every_token_once_with_the_same_logprob(budget):
    trees = some_trees()
    policy = Policy(tiny_model("qwen3"))
    whole = policy(pack(trees))
    scored = sorted(zip(pack(trees).score_target_N.tolist(), whole.logprobs_N.tolist(), strict=True))
    micros = cut(trees, budget)
    pieces = sorted(
        pair for m in micros for pair in zip(m.score_target_N.tolist(), policy(m).logprobs_N.tolist(), strict=True)
    )
    assert [t for t, _ in scored] == [t for t, _ in pieces]
    assert np.allclose([p for _, p in scored], [p for _, p in pieces], atol=1e-5)
    for micro in micros:  # a row exceeds the budget only when it is one branch
        roots = [s for s in micro.segments if s[2] < 0]
        longest = TreeLayout(micro.segments).longest_path
        assert micro.tokens <= budget or (len(roots) == 1 and micro.tokens == longest)


def test_atomic_trees_are_never_split():
    pair = group([1, 2, 3], [Segment([4] * 5), Segment([5] * 5)], atomic=True)
    assert [m.tokens for m in cut([pair], 6)] == [13]


def test_every_token_of_the_vocabulary_of_kept_sets_travels_with_its_position():
    kept = [np.array([20, 7], dtype=np.int32), np.array([21], dtype=np.int32)]
    batch = pack([group([1, 2], [Segment([20, 21], kept=kept), Segment([9])])])
    assert batch.kept_offsets_N1.tolist() == [0, 2, 3, 3]
    assert batch.kept_ids_K.tolist() == [20, 7, 21]

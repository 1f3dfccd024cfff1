"""Drawing tokens: exact frequencies, kept sets by their definition."""

import numpy as np
import pytest
import torch

from alignment.rollout.sampling import BLOCK, FIRST_CANDIDATES, draw, kept_candidates, random_stream
from alignment.types import Sampling


def kept_ids(logits, **filters):
    values, ids, keep = kept_candidates(torch.tensor([logits]), Sampling(**filters))
    assert (values.diff() <= 0).all()
    return set(ids[0][keep[0]].tolist())


P = [0.1, 0.4, 0.05, 0.3, 0.15]
LOGITS = np.log(P).tolist()


def test_kept_sets_of_a_hand_computed_distribution():
    assert kept_ids(LOGITS, top_k=2) == {1, 3}
    assert kept_ids(LOGITS, top_p=0.39) == {1}
    assert kept_ids(LOGITS, top_p=0.41) == {1, 3}
    assert kept_ids(LOGITS, top_p=0.71) == {1, 3, 4}
    assert kept_ids(LOGITS, min_p=0.3) == {1, 3, 4}  # 0.3 * 0.4 = 0.12
    assert kept_ids(LOGITS, top_k=3, top_p=0.8) == {1, 3}  # of 0.85: 0.47 + 0.35 reach 0.8
    assert kept_ids(LOGITS, top_p=1e-9) == {1}


@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"min_p": 0.01}, {"top_p": 0.999, "min_p": 0.001}, {"top_k": 700}])
def test_kept_sets_equal_the_definition_also_when_they_exceed_the_first_candidates(filters):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5 * FIRST_CANDIDATES, generator=generator) * torch.tensor([[0.2], [1.0], [3.0], [8.0]])
    _, ids, keep = kept_candidates(logits, Sampling(**filters))
    sizes = []
    for row in range(4):
        order = np.argsort(-logits[row].numpy(), kind="stable")[: filters.get("top_k") or None]
        p = np.exp(logits[row].double().numpy()[order])
        p /= p.sum()
        before = np.cumsum(p) - p
        wanted = (before < filters.get("top_p", 2)) & (p >= filters.get("min_p", 0) * p[0])
        assert set(ids[row][keep[row]].tolist()) == set(order[wanted].tolist())
        sizes.append(wanted.sum())
    assert max(sizes) > FIRST_CANDIDATES


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}])
def test_frequencies_follow_the_probabilities(filters):
    """Chi-square over 20,000 draws; 0.999 quantile for 4 or 2 degrees of freedom."""
    n = 20_000
    stream = random_stream(0, 0, "p", 0)
    drawn = draw(torch.tensor([LOGITS] * n), [stream.random() for _ in range(n)], Sampling(**filters))
    expected = np.array(P)
    if filters:
        expected[[0, 2]] = 0
    expected /= expected.sum()
    counts = np.bincount(drawn.tokens_R, minlength=5)
    used = expected > 0
    assert counts[~used].sum() == 0
    chi = ((counts - n * expected)[used] ** 2 / (n * expected[used])).sum()
    assert chi < (13.8 if filters else 18.5)
    for token in np.flatnonzero(used):
        first = drawn.tokens_R.index(token)
        assert drawn.logprobs_R[first] == pytest.approx(np.log(expected[token]), abs=1e-5)


@pytest.mark.parametrize("vocabulary", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_every_vocabulary_size_inverts_its_cumulative_distribution(vocabulary):
    logits = torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    probabilities = logits.double().softmax(-1).numpy()
    uniforms = np.random.default_rng(0).random(50)
    drawn = draw(logits.clone(), uniforms.tolist(), Sampling())
    for row, token in enumerate(drawn.tokens_R):
        cumulative = probabilities[row].cumsum()
        assert cumulative[token] >= uniforms[row] - 1e-5
        assert cumulative[token] - probabilities[row, token] <= uniforms[row] + 1e-5


def test_the_ends_of_the_unit_interval_never_give_an_impossible_token():
    logits = torch.tensor([[0.0, -200.0, -200.0, -200.0], [-200.0, -200.0, -200.0, 0.0]]).repeat(1, 200)
    for u in (0.0, 1.0, np.nextafter(1.0, 0.0)):
        for filters in ({}, {"top_p": 0.9}):
            drawn = draw(logits.clone(), [u, u], Sampling(**filters))
            assert [t % 4 for t in drawn.tokens_R] == [0, 3]
            assert np.isfinite(drawn.logprobs_R).all()


def test_streams_differ_by_every_part_of_their_key():
    values = {random_stream(*key).random() for key in [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0)]}
    values |= {random_stream(0, 0, "a", 1).random(), random_stream(0, 0, "a", 0).random()}
    assert len(values) == 5

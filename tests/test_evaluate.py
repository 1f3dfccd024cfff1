"""Pass rates and their intervals against hand-computed numbers, exact enumeration and simulated coverage."""

import itertools
import math

import numpy as np
import pytest

from alignment.evaluate import majority_at_k, paired_difference, pass_at_k, pass_rate


def test_pass_rate_is_the_mean_over_problems_of_scored_samples():
    result = pass_rate([[1.0, 0.0], [1.0, None, 1.0, 1.0], [None], [0.5, 0.0]])
    assert result.value == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert (result.problems, result.samples) == (3, 7)
    assert pass_rate([[0.5, 0.0]], threshold=0.5).value == 0.5


def test_the_interval_of_single_samples_is_wilsons():
    # 30 of 100, z = 1.96: Wilson's interval is 21.9 % to 39.6 %; Student's t at 99 widens it by about 1 %.
    result = pass_rate([[1.0]] * 30 + [[0.0]] * 70)
    assert (result.low, result.high) == (pytest.approx(0.219, abs=0.003), pytest.approx(0.396, abs=0.003))


def test_copies_of_a_sample_do_not_narrow_the_interval():
    once, often = (pass_rate([[1.0] * n] * 30 + [[0.0] * n] * 70) for n in (1, 16))
    assert (once.low, once.high) == (pytest.approx(often.low), pytest.approx(often.high))


def test_independent_samples_narrow_the_interval():
    rng = np.random.default_rng(0)
    one, many = (pass_rate((rng.random((100, n)) < 0.5).astype(float).tolist()) for n in (1, 16))
    assert many.high - many.low < 0.5 * (one.high - one.low)


def test_an_interval_at_zero_and_at_one_is_not_a_point():
    zero, one = pass_rate([[0.0] * 4] * 20), pass_rate([[1.0] * 4] * 20)
    assert zero.low == pytest.approx(0.0) and 0.05 < zero.high < 0.25
    assert one.high == pytest.approx(1.0) and 0.75 < one.low < 0.95
    single = pass_rate([[1.0]])
    assert 0.0 <= single.low < 0.5


@pytest.mark.parametrize("rate", [0.03, 0.4])
def test_the_interval_covers_the_truth_about_95_times_in_100(rate):
    rng, covered, trials = np.random.default_rng(1), 0, 800
    for _ in range(trials):
        difficulty = rng.beta(rate, 1 - rate, size=60)  # mean `rate`, strongly different problems
        result = pass_rate((rng.random((60, 4)) < difficulty[:, None]).astype(float).tolist())
        covered += result.low <= rate <= result.high
    assert 0.92 < covered / trials < 0.985


def test_pass_at_k_equals_the_share_of_passing_subsets():
    scores = [1.0, 0.0, 0.0, 1.0, 0.0]
    for k in range(1, 6):
        subsets = list(itertools.combinations(scores, k))
        assert pass_at_k([scores], k).value == pytest.approx(sum(max(s) for s in subsets) / len(subsets))
    assert pass_at_k([scores, [0.0] * 5], 1).value == pytest.approx(pass_rate([scores, [0.0] * 5]).value)


def test_pass_at_k_stays_finite_for_many_samples():
    assert pass_at_k([[1.0] + [0.0] * 9999], 5000).value == pytest.approx(0.5)


def test_pass_at_k_refuses_problems_with_too_few_samples():
    with pytest.raises(ValueError, match="problem 1 has 1"):
        pass_at_k([[1.0, 0.0], [1.0, None]], 2)
    with pytest.raises(ValueError, match="at least 1"):
        pass_at_k([[1.0]], 0)


def test_the_majority_counts_votes_ties_and_unreadable_answers():
    assert majority_at_k([["a", "a", "b"]], [[0.0, 0.0, 1.0]], 3).value == 0.0
    assert majority_at_k([["a", "a", "b"]], [[1.0, 1.0, 0.0]], 3).value == 1.0
    assert majority_at_k([["a", "b"]], [[1.0, 0.0]], 2).value == 0.5
    assert majority_at_k([["a", None, None]], [[1.0, 0.0, 0.0]], 3).value == 1.0
    assert majority_at_k([[None, None]], [[0.0, 0.0]], 2).value == 0.0
    with pytest.raises(ValueError, match="problem 0"):
        majority_at_k([["a"]], [[1.0]], 2)


def test_the_majority_of_draws_is_close_to_the_enumeration_and_repeatable():
    keys, scores = ["a", "a", "a", "b", "c"], [1.0, 1.0, 1.0, 0.0, 0.0]
    exact = []
    for draw in itertools.combinations(range(5), 3):
        votes = [keys[i] for i in draw]
        most = max(votes.count(v) for v in votes)
        tied = {v for v in votes if votes.count(v) == most}
        exact.append(("a" in tied) / len(tied))
    first, second = (majority_at_k([keys] * 20, [scores] * 20, 3, seed=3).value for _ in range(2))
    assert first == second == pytest.approx(np.mean(exact), abs=0.02)


def test_a_paired_difference_uses_the_problems_of_both_runs():
    result = paired_difference([[1.0, 0.0], [0.0], [None], [1.0]], [[1.0, 1.0], [1.0], [1.0], [1.0]])
    assert result.value == pytest.approx((0.5 + 1.0 + 0.0) / 3) and result.problems == 3
    assert -1.0 <= result.low < result.value < result.high <= 1.0


def test_a_paired_difference_is_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(2)
    difficulty = rng.beta(0.3, 0.3, size=200)
    first, second = ((rng.random((200, 8)) < difficulty[:, None]).astype(float).tolist() for _ in range(2))
    paired = paired_difference(first, second)
    apart = math.hypot(*(r.high - r.low for r in (pass_rate(first), pass_rate(second))))
    assert paired.high - paired.low < 0.5 * apart
    assert paired.low < 0.0 < paired.high


def test_equal_runs_differ_by_zero_with_an_interval():
    same = paired_difference([[1.0], [0.0]] * 50, [[1.0], [0.0]] * 50)
    assert same.value == 0.0 and -0.05 < same.low < 0.0 < same.high < 0.05


def test_nothing_scored_is_refused():
    with pytest.raises(ValueError, match="no problem has a scored sample"):
        pass_rate([[None], []])
    with pytest.raises(ValueError, match="no problem is scored in both"):
        paired_difference([[None], [1.0]], [[1.0], [None]])
    with pytest.raises(ValueError, match="1 and 2 problems"):
        paired_difference([[1.0]], [[1.0], [1.0]])

"""Statistics of sampled scores: pass rates, pass@k and majority votes, with intervals clustered by problem.

The samples of one problem depend on each other, so the problem is the unit: every estimate is a mean over P problems of
one number per problem, and its standard error comes from the spread over problems (Miller 2024, "Adding Error Bars to
Evals", arXiv 2411.00640). Intervals of rates are Wilson intervals at the effective sample size
m(1-m)/se² (as for survey data: Korn and Graubard 1998), so they stay inside [0, 1] and do not vanish at 0 % or 100 %.

Shapes: P problems, each with its own number of samples. A score of None is unscored and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Sequence[Sequence[float | None]]
_Z = 1.959963984540054  # 97.5 % point of the normal distribution
_DRAWS = 256


@dataclass(frozen=True, slots=True)
class Estimate:
    """value with its 95 % interval; problems: how many entered; samples: how many scored samples they had."""

    value: float
    low: float
    high: float
    problems: int
    samples: int


def pass_rate(scores: Scores, threshold: float = 1.0) -> Estimate:
    """Mean over problems of the share of samples with score >= threshold. Problems without a scored sample are left
    out. Raises ValueError when none is left."""
    passed = [row for row in _passed(scores, threshold) if row.size]
    return _rate([float(row.mean()) for row in passed], sum(row.size for row in passed))


def pass_at_k(scores: Scores, k: int, threshold: float = 1.0) -> Estimate:
    """The unbiased estimate of the probability that at least one of k samples passes: mean over problems of
    1 - C(n-c, k) / C(n, k) with c of n samples passing (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises ValueError when a problem has fewer than k scored samples.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    passed = _passed(scores, threshold)
    short = next((i for i, row in enumerate(passed) if row.size < k), None)
    if short is not None:
        raise ValueError(f"pass@{k} needs {k} scored samples per problem; problem {short} has {passed[short].size}")
    return _rate([_pass_at_k(row.size, int(row.sum()), k) for row in passed], sum(row.size for row in passed))


def majority_at_k(
    answers: Sequence[Sequence[Hashable]], scores: Scores, k: int, threshold: float = 1.0, seed: int = 0
) -> Estimate:
    """The probability that the most frequent answer of k samples passes, mean over problems.

    answers: one key per sample; None (no answer could be read) has no vote. A tie counts as the share of passing
    answers among the tied. With more than k samples the mean over 256 seeded draws of k without replacement is taken.
    Raises ValueError when answers and scores differ in shape or a problem has fewer than k samples.
    """
    rng = np.random.default_rng(seed)
    values = []
    for i, (keys, row) in enumerate(zip(answers, scores, strict=True)):
        if len(keys) != len(row) or len(keys) < k or k < 1:
            raise ValueError(f"problem {i}: {len(keys)} answers and {len(row)} scores for majority@{k}")
        right = {key for key, score in zip(keys, row) if score is not None and score >= threshold}
        draws = [np.arange(k)] if len(keys) == k else [rng.permutation(len(keys))[:k] for _ in range(_DRAWS)]
        values.append(float(np.mean([_vote([keys[j] for j in draw], right) for draw in draws])))
    return _rate(values, sum(len(keys) for keys in answers))


def paired_difference(first: Scores, second: Scores, threshold: float = 1.0) -> Estimate:
    """Pass rate of `second` minus that of `first` on the same problems, in the same order, with the interval of the
    per-problem differences (narrower than that of two separate runs). Problems that either run left unscored are left
    out. Where every difference is the same, the interval is widened by the Wilson bound for a rate of 0 in P.

    Raises ValueError when the numbers of problems differ or no problem is scored in both.
    """
    if len(first) != len(second):
        raise ValueError(f"the runs have {len(first)} and {len(second)} problems; give the same problems in one order")
    pairs = [(a, b) for a, b in zip(_passed(first, threshold), _passed(second, threshold)) if a.size and b.size]
    if not pairs:
        raise ValueError("no problem is scored in both runs")
    difference = np.array([b.mean() - a.mean() for a, b in pairs])
    mean, error = float(difference.mean()), _standard_error(difference)
    half = _t(len(pairs) - 1) * error if error > 0 else _Z**2 / (len(pairs) + _Z**2)
    samples = sum(a.size + b.size for a, b in pairs)
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half), len(pairs), samples)


def _passed(scores: Scores, threshold: float) -> list[np.ndarray]:
    return [np.array([score >= threshold for score in row if score is not None], dtype=float) for row in scores]


def _pass_at_k(n: int, c: int, k: int) -> float:
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def _vote(keys: Sequence[Hashable], right: set[Hashable]) -> float:
    votes = Counter(key for key in keys if key is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    tied = [key for key, count in votes.items() if count == most]
    return sum(key in right for key in tied) / len(tied)


def _rate(values: Sequence[float], samples: int) -> Estimate:
    """The Wilson interval of a mean of per-problem rates."""
    if not values:
        raise ValueError("no problem has a scored sample")
    rates = np.asarray(values)
    problems, mean = len(rates), float(rates.mean())
    error = _standard_error(rates)
    effective = float(problems)
    if error > 0:
        effective = min(mean * (1 - mean) / error**2, float(samples))
    z2 = _t(problems - 1) ** 2
    centre = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    half = np.sqrt(z2 * (mean * (1 - mean) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return Estimate(mean, max(0.0, float(centre - half)), min(1.0, float(centre + half)), problems, samples)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _t(freedom: int) -> float:
    """The 97.5 % point of Student's t (Cornish-Fisher expansion; within 1 % from 3 degrees of freedom on)."""
    v, z = max(freedom, 3), _Z
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )

"""Means over seeds with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5 % points of Student's t by degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval (t distribution over the seeds)."""
    if len(values) < 2:
        return fmean(values), math.nan
    return fmean(values), T_975[len(values) - 1] * stdev(values) / math.sqrt(len(values))

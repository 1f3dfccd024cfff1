"""Learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_at(
    step: int,
    total_steps: int,
    peak: float,
    floor: float = 0.0,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    warmup_steps: int = 0,
    hold_steps: int = 0,
) -> float:
    """Learning rate of step 0 … total_steps - 1: linear warm-up, an optional hold at the peak, then the schedule.

    The last step runs at `floor` (linear, cosine) or at `peak` (constant).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    start = warmup_steps + hold_steps
    if schedule == "constant" or step < start:
        return peak
    progress = min(1.0, (step - start + 1) / max(1, total_steps - start))
    shape = 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (peak - floor) * shape

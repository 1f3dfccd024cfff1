"""Models that read packed rows: the policy, scalar models, and their heads at scored positions."""

from alignment.models.head import ScoreRequest, Scores
from alignment.models.policy import Policy
from alignment.models.scalar import ScalarModel

__all__ = ["Policy", "ScalarModel", "ScoreRequest", "Scores"]

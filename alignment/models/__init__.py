"""Models that read packed rows: the policy and its heads at scored positions."""

from alignment.models.head import ScoreRequest, Scores
from alignment.models.policy import Policy

__all__ = ["Policy", "ScoreRequest", "Scores"]

"""The rollout engine: sampling completions for every method and for evaluation."""

from alignment.rollout.engine import TransformersEngine

__all__ = ["TransformersEngine"]

"""In which order prompts are visited.

Variance order (Qwen2.5, section 4.2): prompts whose sampled responses' scores vary most come first, since a group of
equal rewards teaches nothing. The first order comes from an artifact of the starting model's scores; each time all
prompts have been visited, the order is made anew from the latest scores seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alignment.data.artifact import Artifact
from alignment.errors import UserError
from alignment.types import Rollout

Order = Literal["variance", "pass_rate_band", "random"]


@dataclass(frozen=True, slots=True)
class PromptScore:
    """Scores of one prompt's responses: mean, population variance, share that passed, number scored."""

    mean: float
    variance: float
    pass_rate: float
    samples: int

    @staticmethod
    def of(scores: Sequence[float | None], terms: Sequence[float | None] | None = None) -> PromptScore | None:
        """From the scores of one prompt's responses; unscored ones are left out. None when none is scored.

        A response passes with 1 or more: in `terms` where they are given, otherwise in its score.
        """
        values = _numbers(scores)
        if not len(values):
            return None
        passing = values if terms is None else _numbers(terms)
        pass_rate = float((passing >= 1.0).mean()) if len(passing) else 0.0
        return PromptScore(float(values.mean()), float(values.var()), pass_rate, len(values))

    @staticmethod
    def of_rollouts(rollouts: Sequence[Rollout]) -> PromptScore | None:
        """By their rewards. What passes is said by the first of several rewards, as a rule a verifier: a sum that holds
        bonuses and penalties says nothing of it."""
        first = [next(iter(r.reward_terms.values()), r.reward) for r in rollouts]
        return PromptScore.of([r.reward for r in rollouts], first)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([v for v in values if v is not None and not np.isnan(v)])


class Curriculum:
    """Endless prompts, epoch after epoch, each prompt once an epoch.

    order: `variance` highest first; `pass_rate_band` keeps prompts whose pass rate lies within `band` (inclusive),
    shuffled, and as many of the nearest outside it as an epoch of `least` prompts lacks; `random` shuffles. Prompts
    without a score come last under `variance` and stay in under a band.
    Raises UserError without prompts, and when none lies within the band at the start.
    """

    def __init__(
        self,
        ids: Sequence[str],
        order: Order,
        seed: int,
        scores: Mapping[str, PromptScore] | None = None,
        band: tuple[float, float] = (0.0, 1.0),
        least: int = 1,
    ):
        if not ids:
            raise UserError("there is no prompt to train on: the data set is empty or every prompt was dropped")
        self.ids, self.order, self.seed, self.band = list(ids), order, seed, band
        self.scores, self.least = dict(scores or {}), min(least, len(ids))
        self.epoch, self.position = 0, 0
        if order == "pass_rate_band" and not any(self._outside(i) == 0 for i in range(len(ids))):
            raise UserError(f"pass_rate_band: no prompt has a pass rate within {band}; widen the band")
        self._queue = self._arrange()

    def __len__(self) -> int:
        """Prompts of an epoch."""
        return len(self._queue)

    def take(self, n: int, used: Sequence[int] = ()) -> list[int]:
        """Indices of the next n prompts, none of them twice and none of `used`, those that the step has had: samples of
        the same prompt in the same step would be the same ones. Fewer when the epoch has no others."""
        out: list[int] = []
        had = set(used)
        while len(out) < n:
            if self.position == len(self._queue):
                self.epoch, self.position = self.epoch + 1, 0
                self._queue = sorted(self._arrange(), key=lambda i: i in had)
            index = self._queue[self.position]
            if index in had:
                break
            out.append(index)
            had.add(index)
            self.position += 1
        return out

    def observe(self, prompt_id: str, score: PromptScore | None) -> None:
        """Take a newer score of a prompt; it counts from the next epoch on."""
        if score is not None:
            self.scores[prompt_id] = score

    def state_dict(self) -> dict[str, Any]:
        scores = {i: (s.mean, s.variance, s.pass_rate, s.samples) for i, s in self.scores.items()}
        return {"epoch": self.epoch, "position": self.position, "queue": list(self._queue), "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position, self._queue = state["epoch"], state["position"], list(state["queue"])
        self.scores = {i: PromptScore(*values) for i, values in state["scores"].items()}

    def _arrange(self) -> list[int]:
        shuffled = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.ids)).tolist()
        if self.order == "variance":
            return sorted(shuffled, key=lambda i: -self._variance(i))  # stable: ties stay shuffled
        if self.order == "pass_rate_band":
            inside = [i for i in shuffled if self._outside(i) == 0]
            nearest = sorted((i for i in shuffled if self._outside(i)), key=self._outside)
            return inside + nearest[: max(0, self.least - len(inside))]
        return shuffled

    def _variance(self, i: int) -> float:
        score = self.scores.get(self.ids[i])
        return -1.0 if score is None or not score.samples else score.variance

    def _outside(self, i: int) -> float:
        """How far its pass rate lies outside the band; 0 for one that is within, and for one without a score."""
        score = self.scores.get(self.ids[i])
        if score is None or not score.samples:
            return 0.0
        return max(self.band[0] - score.pass_rate, score.pass_rate - self.band[1], 0.0)


# --- the artifact -----------------------------------------------------------------------------------------------------


class ScoreFile:
    """Prompt scores on disk, with the fingerprints of model, sampling and reward; see Artifact."""

    def __init__(self, path: Path, fingerprints: dict[str, str]):
        remedy = "delete it to score the prompts again, or name another curriculum_file"
        self.file = Artifact(path, fingerprints, remedy)

    def read(self) -> dict[str, PromptScore]:
        """The scores so far. Raises UserError when the file was made with another model, sampling or reward."""
        records = self.file.read()
        return {r["id"]: PromptScore(r["mean"], r["variance"], r["pass_rate"], r["samples"]) for r in records}

    def append(self, scores: Mapping[str, PromptScore]) -> None:
        """Add scores, flushed to disk."""
        self.file.append({"id": i, **asdict(score)} for i, score in scores.items())

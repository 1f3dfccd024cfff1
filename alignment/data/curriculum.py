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

Order = Literal["variance", "pass_rate_band", "random"]


@dataclass(frozen=True, slots=True)
class PromptScore:
    """Scores of one prompt's responses: mean, population variance, share that passed, number scored."""

    mean: float
    variance: float
    pass_rate: float
    samples: int

    @staticmethod
    def of(scores: Sequence[float | None], pass_at: float = 1.0) -> PromptScore | None:
        """From the scores of one prompt's responses; unscored ones are left out. None when none is scored."""
        values = np.array([s for s in scores if s is not None and not np.isnan(s)])
        if not len(values):
            return None
        return PromptScore(float(values.mean()), float(values.var()), float((values >= pass_at).mean()), len(values))


class Curriculum:
    """Endless prompts, epoch after epoch, each prompt once an epoch.

    order: `variance` highest first; `pass_rate_band` keeps prompts whose pass rate lies within `band` (inclusive),
    shuffled; `random` shuffles. Prompts without a score come last under `variance` and stay in under a band.
    Raises UserError when no prompt is left.
    """

    def __init__(
        self,
        ids: Sequence[str],
        order: Order,
        seed: int,
        scores: Mapping[str, PromptScore] | None = None,
        band: tuple[float, float] = (0.0, 1.0),
    ):
        if not ids:
            raise UserError("there is no prompt to train on: the data set is empty or every prompt was dropped")
        self.ids, self.order, self.seed, self.band = list(ids), order, seed, band
        self.scores = dict(scores or {})
        self.epoch, self.position = 0, 0
        self._queue = self._arrange()

    def take(self, n: int) -> list[int]:
        """Indices of the next n prompts."""
        out: list[int] = []
        while len(out) < n:
            if self.position == len(self._queue):
                self.epoch, self.position = self.epoch + 1, 0
                # a prompt must not come twice in one step: its samples would be the same ones
                self._queue = sorted(self._arrange(), key=lambda i: i in out)
            step = min(n - len(out), len(self._queue) - self.position)
            out += self._queue[self.position : self.position + step]
            self.position += step
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
            shuffled = [i for i in shuffled if self._in_band(i)]
            if not shuffled:
                raise UserError(f"pass_rate_band: no prompt has a pass rate within {self.band}; widen the band")
        return shuffled

    def _variance(self, i: int) -> float:
        score = self.scores.get(self.ids[i])
        return -1.0 if score is None else score.variance

    def _in_band(self, i: int) -> bool:
        score = self.scores.get(self.ids[i])
        return score is None or self.band[0] <= score.pass_rate <= self.band[1]


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

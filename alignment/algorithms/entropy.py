"""The entropy bonus of a policy gradient: a fixed coefficient, or one that keeps the entropy within a band.

Controlled as in Skywork-OR1 (arXiv 2505.22312), with a band instead of one target: while the mean entropy per
token is below the band the coefficient grows by `step` after every training step, while it is above it shrinks by as
much, and within the band it stays. It never falls below 0: where the entropy is too high by itself, nothing is paid
for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from alignment.errors import UserError


class EntropyControl:
    """coef: what the entropy counts in the loss. band: (lowest, highest) mean entropy in nats per token, or none; then
    the coefficient stays. step: by how much it moves.

    Raises UserError for a band that does not rise, one without a step, and a step without a band.
    """

    def __init__(self, coef: float, band: Sequence[float] = (), step: float = 0.0):
        if band and not (len(band) == 2 and 0 <= band[0] < band[1]):
            raise UserError(
                f"entropy_band: {list(band)} is not valid, it has to be two rising numbers, such as [0.3, 0.6]"
            )
        if coef < 0 or step < 0:
            raise UserError("entropy_coef and entropy_coef_step have to be 0 or more")
        if bool(band) != bool(step):
            raise UserError("entropy_band and entropy_coef_step belong together: set both or neither")
        self.coef, self.band, self.step = coef, tuple(band), step

    @property
    def controlled(self) -> bool:
        return bool(self.band)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the mean entropy of a step (`entropy`); one without it, or that is no number, moves nothing."""
        entropy = metrics.get("entropy")
        if not self.band or entropy is None or not isfinite(entropy):
            return
        lowest, highest = self.band
        if entropy < lowest:
            self.coef += self.step
        elif entropy > highest:
            self.coef = max(0.0, self.coef - self.step)

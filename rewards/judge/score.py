"""The score in a judge's reply: a last line `Score: N`, or the reason why there is none."""

from __future__ import annotations

import re

from verifiers.response import outside_thinking

# Every way in which a completion stays unscored; the metrics name them so.
REASONS = (
    *("no_score", "contradictory", "out_of_range", "cut_off"),  # a reply that holds no score
    *("bad_reply", "http_error", "unreachable", "timeout", "failed"),  # no reply
)
_SCORE_LINE = re.compile(r"\s*score\s*:\s*(-?[0-9]+(?:\.[0-9]+)?)\s*", re.IGNORECASE)
_EMPHASIS = str.maketrans("", "", "*_`")
_SHOWN = 200


class Unscored(Exception):
    """No score for one completion: one of `REASONS`, and a line for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_score(reply: str, lowest: float, highest: float) -> float:
    """The number N in [lowest, highest] of the reply's last line `Score: N`, outside the judge's own thinking block.

    Markdown emphasis around the line does not matter, and neither does upper or lower case.

    >>> read_score("Agrees with the reference.\\n**Score: 7.5**", 0, 10)
    7.5

    Raises Unscored: `no_score` when the last line has another form, `contradictory` when other lines of the reply state
    other scores in this form, `out_of_range`.
    """
    text = outside_thinking(reply)
    if text is None:
        raise Unscored("no_score", "the judge's thinking block is not closed")
    lines = [line for line in text.splitlines() if line.strip()]
    found = [score_line(line) for line in lines]
    if not found or found[-1] is None:
        raise Unscored("no_score", f"the last line is not `Score: N`: {shown(lines[-1] if lines else '')}")
    scores = sorted({score for score in found if score is not None})
    if len(scores) > 1:
        raise Unscored("contradictory", f"the reply states the scores {', '.join(f'{score:g}' for score in scores)}")
    if not lowest <= scores[0] <= highest:
        raise Unscored("out_of_range", f"the score {scores[0]:g} is not in {lowest:g} to {highest:g}")
    return scores[0]


def score_line(line: str) -> float | None:
    """N of a line `Score: N`, None for any other line.

    >>> score_line("score: 3"), score_line("Score: 3 of 10")
    (3.0, None)
    """
    match = _SCORE_LINE.fullmatch(line.translate(_EMPHASIS))
    return float(match[1]) if match else None


def shown(text: str) -> str:
    """Foreign text in a message: its beginning, quoted."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")

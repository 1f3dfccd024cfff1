"""Sampled responses: small things that tests of several stages do with them."""

from __future__ import annotations

from verifiers import Verdict


def all_of(groups):
    """The rollouts of every group, one after the other."""
    return [r for g in groups for r in g]


def texts(rows) -> list[tuple[str, str]]:
    """What the pairs compare, without roles."""
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def even_length(response, row):
    """An untrained model passes now and then."""
    return Verdict(1.0, "pass") if len(response) % 2 == 0 else Verdict(0.0, "fail")

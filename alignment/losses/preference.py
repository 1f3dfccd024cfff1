"""Losses on preference pairs, from the log-probabilities of whole branches.

Shapes: P pairs. Every function returns one loss per pair, [P]; their units are pairs. With the log-ratio of a branch,
h = log pi(y|x) - log pi_ref(y|x), y+ the chosen and y- the rejected branch:

  dpo_loss                -log sigma(beta (h+ - h-))
  cdpo_loss               -(1 - eps) log sigma(beta (h+ - h-)) - eps log sigma(-beta (h+ - h-))
  length_normalised_loss  -log sigma(beta (h+/|y+| - h-/|y-|))
  ipo_loss                (h+/|y+| - h-/|y-| - 1/(2 beta))^2
  chosen_nll              -log pi(y+|x) / |y+|
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(slots=True)
class PairLogprobs:
    """Of each pair: the sums of the log-probabilities over the tokens of its branches, in nats, under the policy and
    under the reference, and the numbers of those tokens (at least 1). All [P]."""

    chosen_P: torch.Tensor
    rejected_P: torch.Tensor
    ref_chosen_P: torch.Tensor
    ref_rejected_P: torch.Tensor
    chosen_tokens_P: torch.Tensor
    rejected_tokens_P: torch.Tensor

    @property
    def chosen_ratio_P(self) -> torch.Tensor:
        """log pi(y+|x) - log pi_ref(y+|x)."""
        return self.chosen_P - self.ref_chosen_P

    @property
    def rejected_ratio_P(self) -> torch.Tensor:
        """log pi(y-|x) - log pi_ref(y-|x)."""
        return self.rejected_P - self.ref_rejected_P


def dpo_loss(pairs: PairLogprobs, beta: float) -> torch.Tensor:
    """The sigmoid loss (arXiv 2305.18290, eq. 7)."""
    return -logsigmoid(beta * (pairs.chosen_ratio_P - pairs.rejected_ratio_P))


def cdpo_loss(pairs: PairLogprobs, beta: float, label_smoothing: float) -> torch.Tensor:
    """Conservative DPO: a label is taken to be wrong with probability `label_smoothing`
    (https://ericmitchell.ai/cdpo.pdf, eq. 3). With 0 it is DPO; its minimum is at a finite margin otherwise."""
    logits_P = beta * (pairs.chosen_ratio_P - pairs.rejected_ratio_P)
    return -(1 - label_smoothing) * logsigmoid(logits_P) - label_smoothing * logsigmoid(-logits_P)


def length_normalised_loss(pairs: PairLogprobs, beta: float) -> torch.Tensor:
    """DPO on log-ratios per token, so that long answers weigh no more than short ones (Tulu 3, arXiv 2411.15124,
    section 5). beta is larger than DPO's by about the length of an answer."""
    return -logsigmoid(beta * _mean_ratio_difference(pairs))


def ipo_loss(pairs: PairLogprobs, beta: float) -> torch.Tensor:
    """The squared loss (arXiv 2310.12036, eq. 17; beta is its tau), on log-ratios per token: the sums of the equation
    would make the target margin 1/(2 beta) a matter of length. TRL's reading, too."""
    return (_mean_ratio_difference(pairs) - 1 / (2 * beta)) ** 2


def chosen_nll(pairs: PairLogprobs) -> torch.Tensor:
    """-log p per token of the chosen branch, to be added to one of the others: it keeps the likelihood of chosen
    answers from falling together with that of rejected ones (arXiv 2404.19733, eq. 1)."""
    return -pairs.chosen_P / pairs.chosen_tokens_P


def _mean_ratio_difference(pairs: PairLogprobs) -> torch.Tensor:
    return pairs.chosen_ratio_P / pairs.chosen_tokens_P - pairs.rejected_ratio_P / pairs.rejected_tokens_P

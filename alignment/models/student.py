"""The student of a distillation: a policy that answers with its divergence from a teacher."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from alignment.models.head import PositionLoss, Scores
from alignment.models.policy import Policy
from alignment.models.soft_head import SoftRequest, SoftScores, soft_score
from alignment.types import PackedBatch


class Student(nn.Module):
    """Wraps the policy, so that backbone and head run within one forward of whatever wraps it for several devices."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    @property
    def parts(self) -> dict[str, PreTrainedModel | PeftModel]:
        """The models that a checkpoint holds, by the name of their folder."""
        return self.policy.parts

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def forward(
        self, batch: PackedBatch, request: SoftRequest | None = None, loss: PositionLoss | None = None
    ) -> SoftScores | Scores:
        """At the scored positions of a packed row; without a request the log-probabilities of its tokens."""
        # the same modules are called with and without a request: ZeRO-3 gathers ahead along the order it has seen, and
        # one rank may have no data where another has
        hidden_TH = self.policy.hidden_states(batch)
        if request is None:
            return self.policy.scores(hidden_TH, batch, loss=loss)
        hidden_NH = hidden_TH.index_select(0, batch.score_index_N)
        return soft_score(self.policy.base.get_output_embeddings(), hidden_NH, request)

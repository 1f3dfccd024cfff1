"""Policy and value in one module, so that one optimizer and one wrapper serve both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from alignment.models.head import PositionLoss, Scores
from alignment.models.policy import Policy
from alignment.models.scalar import ScalarModel
from alignment.types import PackedBatch


@dataclass(slots=True)
class Rest:
    """Whether the policy rests: in the value's warm-up, on every rank, with and without data. One object for all that
    stand for the same model."""

    policy: bool = False


@dataclass
class PolicyValue:
    """scores: the policy's, None when it was not asked. values_N: one per scored token, of the state before it."""

    scores: Scores | None
    values_N: torch.Tensor


class ActorCritic(nn.Module):
    """`value` has a backbone of its own, or the policy's (`alignment.models.load_scalar.scalar_from_policy` with
    `shared=True`); one pass through a shared backbone then serves both."""

    def __init__(self, policy: Policy, value: ScalarModel):
        super().__init__()
        if value.at != "state":
            raise ValueError('a value is read at the state before each token: ScalarModel(..., at="state")')
        self.policy, self.value = policy, value
        self.rest = Rest()
        self.shared = value.base.base_model is policy.base.base_model
        if self.shared:
            value.balance = None  # the policy observes the routers

    @property
    def parts(self) -> dict[str, PreTrainedModel | PeftModel]:
        """The models that a checkpoint holds, by the name of their folder."""
        return {"model": self.policy.model, "value": self.value.model}

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def forward(
        self,
        batch: PackedBatch,
        temperature: float | torch.Tensor = 1.0,
        entropy: bool = False,
        loss: PositionLoss | None = None,
        value_only: bool = False,
    ) -> PolicyValue:
        """Both at the scored positions; `value_only` (or rest.policy) leaves the policy out, its backbone untouched by
        the gradient."""
        value_only = value_only or self.rest.policy
        if value_only and self.shared:
            with torch.no_grad():
                hidden_TH = self.policy.hidden_states(batch)
            return PolicyValue(None, self.value.read(hidden_TH, batch))
        if value_only:
            return PolicyValue(None, self.value(batch))
        hidden_TH = self.policy.hidden_states(batch)
        values_N = self.value.read(hidden_TH, batch) if self.shared else self.value(batch)
        return PolicyValue(self.policy.scores(hidden_TH, batch, temperature, entropy, loss), values_N)

"""The policy: a causal language model that reads packed rows and answers at scored positions only."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from alignment.models.head import PositionLoss, ScoreRequest, Scores, install_scoring_head, score
from alignment.models.router import router_balance
from alignment.models.trunk import base_of, packed_hidden_states
from alignment.packing import use_tree_attention
from alignment.types import PackedBatch


class Policy(nn.Module):
    """Wraps a transformers model or a PeftModel; `model` stays an ordinary one, to save and generate with.

    balance: the routers' load-balancing loss of a mixture-of-experts model, else None.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, dense_attention: bool = False):
        super().__init__()
        self.model = model
        use_tree_attention(self.base, dense=dense_attention)
        install_scoring_head(self.base.get_output_embeddings())
        self.balance = router_balance(self.base.config)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, adapters (if any) in place."""
        return base_of(self.model)

    @property
    def parts(self) -> dict[str, PreTrainedModel | PeftModel]:
        """The models that a checkpoint holds, by the name of their folder."""
        return {"model": self.model}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def hidden_states(self, batch: PackedBatch) -> torch.Tensor:
        """Last hidden states of a packed row, [T, H]."""
        return packed_hidden_states(self.base, batch, self.balance)

    def scores(
        self,
        hidden_TH: torch.Tensor,
        batch: PackedBatch,
        temperature: float | torch.Tensor = 1.0,
        entropy: bool = False,
        loss: PositionLoss | None = None,
    ) -> Scores:
        """What the head says at the scored positions of `hidden_states(batch)`; one temperature, or one each."""
        hidden_NH = hidden_TH.index_select(0, batch.score_index_N)
        if isinstance(temperature, torch.Tensor):  # the logits of a head without bias are linear in the hidden states
            hidden_NH, temperature = hidden_NH / temperature[:, None], 1.0
        kept = batch.kept_offsets_N1, batch.kept_ids_K
        request = ScoreRequest(batch.score_target_N, temperature, entropy, *kept, loss)
        return score(self.base.get_output_embeddings(), hidden_NH, request)

    def forward(
        self,
        batch: PackedBatch,
        temperature: float = 1.0,
        entropy: bool = False,
        loss: PositionLoss | None = None,
    ) -> Scores:
        """Log-probabilities [N] of the targets (and entropies [N]) at the scored positions; with a loss its sum."""
        return self.scores(self.hidden_states(batch), batch, temperature, entropy, loss)

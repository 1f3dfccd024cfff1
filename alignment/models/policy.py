"""The policy: a causal language model that reads packed rows and answers at scored positions only."""

from __future__ import annotations

from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from alignment.models.head import ScoreRequest, Scores, install_scoring_head, score
from alignment.packing import TreeLayout, use_tree_attention
from alignment.types import PackedBatch


class Policy(nn.Module):
    """Wraps a transformers model or a PeftModel; `model` stays an ordinary one, to save and generate with."""

    def __init__(self, model: PreTrainedModel | PeftModel, dense_attention: bool = False):
        super().__init__()
        self.model = model
        use_tree_attention(self.base, dense=dense_attention)
        install_scoring_head(self.base.get_output_embeddings())

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, adapters (if any) in place."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return cast(PreTrainedModel, model)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def hidden_states(self, batch: PackedBatch) -> torch.Tensor:
        """Last hidden states of a packed row, [T, H]."""
        # transformers returns a 4-dimensional mask as it is: no mask is built for the row, the layout says it all
        no_mask = torch.empty(1, 1, 1, 1, device=batch.input_ids_T.device)
        output = self.base.base_model(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            attention_mask=no_mask,
            tree=TreeLayout(batch.segments),
            use_cache=False,
        )
        return output.last_hidden_state[0]

    def forward(self, batch: PackedBatch, temperature: float = 1.0, entropy: bool = False) -> Scores:
        """Log-probabilities [N] of the targets (and entropies [N]) at the scored positions."""
        hidden_NH = self.hidden_states(batch).index_select(0, batch.score_index_N)
        request = ScoreRequest(batch.score_target_N, temperature, entropy, batch.kept_offsets_N1, batch.kept_ids_K)
        return score(self.base.get_output_embeddings(), hidden_NH, request)

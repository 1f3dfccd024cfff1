"""Scalar models: a reward or a value at scored positions of packed rows.

They are transformers sequence-classification models with one label, so that others load ours and ours load theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from alignment.models.router import router_balance
from alignment.models.trunk import base_of, packed_hidden_states
from alignment.packing import use_tree_attention
from alignment.types import PackedBatch

END_TOKEN_KEY = "reward_end_token"
"""In the model's config.json: the token at which the reward is read."""
ADAPTERS_FILE = "reward_config.json"
"""The same beside adapters, where a config.json would make transformers look for whole weights."""


def write_end_token(config: PreTrainedConfig, adapters: Path) -> None:
    """Into the folder of the adapters, if the model's configuration names it."""
    if hasattr(config, END_TOKEN_KEY):
        (adapters / ADAPTERS_FILE).write_text(json.dumps({END_TOKEN_KEY: getattr(config, END_TOKEN_KEY)}))


def read_end_token(config: PreTrainedConfig, adapters: Path) -> None:
    """From the folder of the adapters, if it is there, into the model's configuration."""
    if (adapters / ADAPTERS_FILE).is_file():
        setattr(config, END_TOKEN_KEY, json.loads((adapters / ADAPTERS_FILE).read_text())[END_TOKEN_KEY])


class ScalarModel(nn.Module):
    """Wraps a sequence-classification model (or a PeftModel of one) whose head `score` gives one number.

    at: where it is read. "token" at the scored token itself (a reward, once all is said); "state" at the position
    that predicts it (a value, before the token is chosen).
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        at: Literal["token", "state"] = "token",
        dense_attention: bool = False,
    ):
        super().__init__()
        self.model, self.at = model, at
        use_tree_attention(self.base, dense=dense_attention)
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

    def read(self, hidden_TH: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """The head at the scored positions, [N], float32."""
        index_N = batch.score_token_N if self.at == "token" else batch.score_index_N
        head = cast(nn.Module, self.base.score)
        return head(hidden_TH.index_select(0, index_N))[:, 0].float()

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """One number per scored position, [N]."""
        return self.read(packed_hidden_states(self.base, batch, self.balance), batch)

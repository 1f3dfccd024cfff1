"""A sequence-classification model whose head is two linear layers with a ReLU between them (Qwen2.5-Math, arXiv
2409.12122).

This file imports torch and transformers only: it is saved beside the weights, so that others load the checkpoint with
AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True). The weights are named as in
Qwen2.5-Math-RM: score.0 and score.2. Beside them stands an empty guard named `score.weight`: without trust_remote_code
transformers takes its own class, whose linear head has that name, and refuses the guard's shape instead of going on
with a random head.
"""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification


class TwoLayerRewardModel(GenericForSequenceClassification, PreTrainedModel):
    """Any backbone that AutoModel knows, with the head behind it."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _keys_to_ignore_on_load_missing = ["score.weight"]  # Qwen2.5-Math-RM has no guard

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = AutoModel.from_config(config)
        self._supports_attention_backend = self.model._supports_attention_backend
        width = config.get_text_config().hidden_size
        layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.num_labels))
        self.score = nn.Sequential(*layers)  # type: ignore[assignment]
        self.score.register_buffer("weight", torch.zeros(1))  # the guard
        self.post_init()


TwoLayerRewardModel.register_for_auto_class("AutoModelForSequenceClassification")

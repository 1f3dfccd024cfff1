"""Loading reward and value models: sequence-classification checkpoints with one label, or a language model's backbone
with a fresh head.

Transformers' own head is one linear layer without bias. A head of two layers (Qwen2.5-Math) is kept as
`score_layers: 2` in the model's config; only this loader builds it again.
"""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from trl import ModelConfig, get_peft_config, get_quantization_config

from alignment.chat.template import ensure_chat_template
from alignment.errors import UserError
from alignment.models.load import load_config, load_tokenizer
from alignment.models.policy import Policy
from alignment.models.scalar import ScalarModel

At = Literal["token", "state"]


def load_scalar(
    config: ModelConfig, at: At = "token", head_layers: int = 1, seed: int = 0
) -> tuple[ScalarModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of `config.model_name_or_path`. A checkpoint that has a head brings it, head_layers then
    being its own; any other gets a fresh small one of `head_layers` layers, made from `seed`.

    Raises UserError for missing files, a head with more than one label, and a tokenizer of another model.
    """
    name = config.model_name_or_path
    if not name:
        raise UserError("model_name_or_path is missing: a hub name or a folder with a transformers checkpoint")
    settings, tokenizer = load_config(name), load_tokenizer(name)
    has_head = any("SequenceClassification" in kind for kind in settings.architectures or [])
    if has_head and settings.num_labels != 1:
        raise UserError(f"model_name_or_path: the head of {name} has {settings.num_labels} labels, not 1")
    layers = getattr(settings, "score_layers", 1) if has_head else head_layers
    if not has_head:
        logging.set_verbosity_error()  # its report would warn of the missing head
    model = _load(config, settings, layers)
    if not has_head:
        logging.set_verbosity_warning()
        _start_head(model, seed)
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer of {name} has {len(tokenizer)} tokens but its model embeds only {rows}")
    ensure_chat_template(tokenizer)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    peft_config = get_peft_config(config)
    if peft_config is None:
        return ScalarModel(model, at), tokenizer
    peft_config.task_type = "SEQ_CLS"  # keeps the head trained and saved beside the adapters
    return ScalarModel(cast(PeftModel, get_peft_model(model, peft_config)), at), tokenizer


def scalar_from_policy(policy: Policy, shared: bool, at: At = "state", seed: int = 0) -> ScalarModel:
    """A fresh head on the policy's backbone: the very same modules (`shared`) or a copy of them."""
    base = policy.base
    settings = copy.deepcopy(base.config)
    settings.num_labels = 1
    with torch.device("meta"):
        model = _class_of(settings, 1)(settings)
    setattr(model, model.base_model_prefix, base.base_model if shared else copy.deepcopy(base.base_model))
    _start_head(model, seed)
    model.to(device=policy.device)  # type: ignore[call-arg]
    return ScalarModel(model, at)


def _load(config: ModelConfig, settings: PreTrainedConfig, layers: int) -> PreTrainedModel:
    name = config.model_name_or_path
    dtype = config.dtype if config.dtype in ("auto", None) else getattr(torch, config.dtype)
    settings.num_labels = 1
    try:
        return _class_of(settings, layers).from_pretrained(
            name,
            config=settings,
            revision=config.model_revision,
            dtype=dtype or "auto",
            quantization_config=get_quantization_config(config),
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model_name_or_path: {name} could not be loaded as a reward or value model: {error}"
        ) from error


def _class_of(settings: PreTrainedConfig, layers: int) -> type[PreTrainedModel]:
    """Transformers' class for the architecture, with a head of `layers`."""
    try:
        plain = cast(type[PreTrainedModel], MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(settings)])
    except KeyError as error:
        raise UserError(f"{settings.model_type} models have no sequence classification in transformers") from error
    if layers == 1:
        return plain
    if layers != 2:
        raise UserError(f"head_layers: {layers} is not valid, a head has 1 or 2 layers")

    class TwoLayers(plain):  # type: ignore[misc, valid-type]
        def __init__(self, config: PreTrainedConfig):
            super().__init__(config)
            width = config.hidden_size
            self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1, bias=False))
            config.score_layers = 2

    TwoLayers.__name__ = TwoLayers.__qualname__ = plain.__name__
    return TwoLayers


def _start_head(model: PreTrainedModel, seed: int) -> None:
    """Small weights, so that the first rewards are near 0; the same for the same seed in every process."""
    random = torch.Generator().manual_seed(seed)
    for layer in cast(nn.Module, model.score).modules():
        if isinstance(layer, nn.Linear):
            weight = torch.randn(layer.weight.shape, generator=random) / (layer.in_features + 1)
            layer.weight = nn.Parameter(weight.to(model.dtype))
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.zeros(layer.out_features, dtype=model.dtype))

"""Loading reward and value models: sequence-classification checkpoints with one label, or fresh heads on language
models.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, load_peft_weights
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig, get_peft_config, get_quantization_config

from alignment.errors import UserError, explained
from alignment.models.load import (
    dtype_of,
    fit_embeddings,
    grow_embeddings,
    is_adapter,
    keep_gradients,
    load_config,
    load_tokenizer,
)
from alignment.models.policy import Policy
from alignment.models.scalar import ScalarModel, read_end_token
from alignment.models.two_layer import TwoLayerRewardModel

At = Literal["token", "state"]


def load_scalar(
    config: ModelConfig, at: At = "token", head_layers: int = 1, seed: int = 0
) -> tuple[ScalarModel, PreTrainedTokenizerBase]:
    """A reward model (`at="token"`) or value model (`at="state"`) and its tokenizer.

    A sequence-classification checkpoint brings its head, and so does a folder of adapters of one, which are merged; a
    causal language model gets a fresh one of `head_layers` (1 or 2) linear layers, small and drawn from `seed`, and
    ChatML where its tokenizer has no chat template; a checkpoint with a head then reads texts alone. LoRA as
    in load_policy, with the head trained and saved beside the adapters.
    Raises UserError for a missing checkpoint, more labels than one, weights that are missing or do not fit, and new
    adapters on a folder of adapters, with which the merged ones could not be saved.
    """
    if not config.model_name_or_path:
        raise UserError("model_name_or_path is missing: a hub name or a folder with a transformers checkpoint")
    if head_layers not in (1, 2):
        raise UserError(f"head_layers: {head_layers} is not valid, it has to be 1 or 2")
    if config.use_peft and is_adapter(config.model_name_or_path):
        raise UserError(
            f"use_peft: {config.model_name_or_path} holds adapters already. Merge them first: align merge "
            f"{config.model_name_or_path} --output FOLDER; or leave out use_peft to train all weights"
        )
    tokenizer = load_tokenizer(config.model_name_or_path)
    model = load_scalar_model(config, head_layers, seed)
    # a head has learned to read other tokens than a template that is made up here would put
    fit_embeddings(model, tokenizer, chat=not has_head(config.model_name_or_path))
    _set_pad_token(model.config, tokenizer)
    return ScalarModel(_with_adapters(model, get_peft_config(config)), at), tokenizer


def load_scalar_model(config: ModelConfig, head_layers: int, seed: int) -> PreTrainedModel:
    """The transformers model alone; see load_scalar."""
    path = config.model_name_or_path
    assert path is not None
    if is_adapter(path):
        merged = _load_adapters(config, seed).requires_grad_(True)
        read_end_token(merged.config, Path(path))
        return merged
    own = load_config(path)
    kind = _head_of(own)
    if kind == "two layers" or (kind == "none" and head_layers == 2):
        model_class: Any = TwoLayerRewardModel
    else:
        model_class = AutoModelForSequenceClassification
    if kind == "linear" and head_layers == 2:
        raise UserError(f"head_layers: {path} has a linear head already; set head_layers: 1 or start from a base model")
    if kind == "linear" and own.num_labels != 1:
        raise UserError(
            f"model_name_or_path: {path} classifies into {own.num_labels} labels; a reward or value model has one"
        )
    own.num_labels = 1
    model, problems = _read(model_class, config, own)
    missing = {name for name in problems["missing_keys"] if kind != "none" or not name.startswith("score.")}
    if missing:
        raise UserError(f"model_name_or_path: {path} lacks weights, among them {min(missing)}: it is no whole model")
    if kind == "none":
        init_head(model, seed)
    return model


def has_head(name_or_path: str) -> bool:
    """Whether a checkpoint brings a head of its own. Raises UserError when there is no checkpoint."""
    return is_adapter(name_or_path) or _head_of(load_config(name_or_path)) != "none"


def init_head(model: nn.Module, seed: int) -> None:
    """A fresh head, the same for the same seed. Its last layer has standard deviation 1/(H + 1), so that behind a
    normalised hidden state of width H the numbers are about 1/sqrt(H): ours; transformers' 0.02 would start the reward
    of a wide model far from zero."""
    generator = torch.Generator().manual_seed(seed)
    head = cast(nn.Module, model.score)
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            width = layer.in_features
            deviation = 1 / (width + 1) if layer is layers[-1] else width**-0.5
            drawn = torch.randn(layer.weight.shape, generator=generator) * deviation
            layer.weight.copy_(drawn)
            if layer.bias is not None:
                layer.bias.zero_()


def scalar_from_policy(
    policy: Policy, shared: bool, at: At = "state", head_layers: int = 1, seed: int = 0
) -> ScalarModel:
    """A scalar model with a fresh head on a policy's backbone: the policy's own modules when `shared`, else a copy.

    A copy of a policy with fresh LoRA adapters gets new ones of the same shape. Raises UserError for adapters on a
    shared backbone, which could be saved with neither model, and for trained ones, which the copy's could not hold.
    """
    adapters = next(iter(policy.model.peft_config.values())) if isinstance(policy.model, PeftModel) else None
    if shared and adapters is not None:
        raise UserError(
            "a value head on the policy's backbone does not go with LoRA: give the value model a backbone of its own, "
            "or train without use_peft"
        )
    if adapters is not None and _are_trained(policy.model):
        raise UserError(
            "value_model: the policy's adapters have been trained, and a value model would be saved without them: "
            "merge them first (align merge ADAPTERS --output FOLDER)"
        )
    source = policy.base if shared else _copy_of(policy)
    config = type(source.config).from_dict(source.config.to_dict())  # without the state of the running model
    config.num_labels = 1
    with torch.device("meta"), _quiet():
        if head_layers == 2:
            model: PreTrainedModel = TwoLayerRewardModel(config)
        else:
            model = AutoModelForSequenceClassification.from_config(config)
    setattr(model, model.base_model_prefix, source.base_model)
    cast(nn.Module, model.score).to_empty(device=source.device).to(source.dtype)
    init_head(model, seed)
    return ScalarModel(_with_adapters(model, copy.deepcopy(adapters)), at)


def _are_trained(model: nn.Module) -> bool:
    """Whether LoRA adapters change the model: one factor of each is zero when it is made."""
    return any(bool(p.any()) for n, p in model.named_parameters() if ".lora_B." in n or ".lora_embedding_A." in n)


def _copy_of(policy: Policy) -> PreTrainedModel:
    if getattr(policy.base, "is_quantized", False):
        raise UserError(
            "value_model: a quantised policy has no copy that can be trained; name a model, such as its base"
        )
    model = copy.deepcopy(policy.model)
    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model  # type: ignore[operator]
    return cast(PreTrainedModel, merged.requires_grad_(True))


def _with_adapters(model: PreTrainedModel, config: PeftConfig | None) -> PreTrainedModel | PeftModel:
    if config is None:
        return model
    # trains and saves the head, too; a policy's adapters may come with its own head
    config.task_type = "SEQ_CLS"  # type: ignore[assignment]
    if isinstance(config, LoraConfig) and config.modules_to_save:
        config.modules_to_save = [name for name in config.modules_to_save if name not in ("lm_head", "score")]
    with explained("use_peft: adapters with these settings cannot be made"):
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def _load_adapters(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The base model that a folder of adapters names, with the adapters merged into it."""
    path = cast(str, config.model_name_or_path)
    base = copy.copy(config)
    unread = f"model_name_or_path: the adapters in {path} could not be loaded"
    with explained(unread):
        base.model_name_or_path = PeftConfig.from_pretrained(path).base_model_name_or_path
        names = list(load_peft_weights(path, device="cpu"))
    if not any(".score." in name for name in names):
        raise UserError(f"model_name_or_path: the adapters in {path} have no head `score`, so they give no number")
    two_layers = any(".score.2." in name for name in names)
    model = load_scalar_model(base, 2 if two_layers else 1, seed)
    with explained(unread):
        grow_embeddings(model, path)
        return PeftModel.from_pretrained(model, path).merge_and_unload()


def _head_of(config: PreTrainedConfig) -> Literal["none", "linear", "two layers"]:
    """By the class that the checkpoint was saved from; Qwen2.5-Math-RM calls itself Qwen2ForRewardModel."""
    name = next(iter(config.architectures or []), "")
    if name.endswith("ForSequenceClassification"):
        return "linear"
    return "two layers" if name.endswith("RewardModel") else "none"


def _read(model_class: Any, config: ModelConfig, own: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    failed = f"model_name_or_path: {config.model_name_or_path} could not be loaded as a reward or value model"
    with explained(failed), _quiet():
        model, info = model_class.from_pretrained(
            config.model_name_or_path,
            config=own,
            revision=config.model_revision,
            dtype=dtype_of(config),
            quantization_config=get_quantization_config(config),
            output_loading_info=True,
        )
    keep_gradients(model)
    return model, info


def _set_pad_token(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Other programs read the reward at the last token that is not padding, so padding must not be the end token."""
    pad = tokenizer.pad_token_id
    config.get_text_config().pad_token_id = None if pad == tokenizer.eos_token_id else pad


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of missing and unused weights: what is missing is checked here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)

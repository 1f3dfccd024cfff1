"""Loading a policy and its tokenizer, from a hub name or a folder, as TRL's ModelConfig describes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_peft_config, get_quantization_config

from alignment.chat.template import ensure_chat_template
from alignment.errors import UserError, explained
from alignment.models.check_packing import check_packing
from alignment.models.policy import Policy
from alignment.models.rope import RopeConfig


def looks_like_a_path(name: str) -> bool:
    """Whether a name can be no hub name."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights. Raises UserError when it is missing or has no end token."""
    if not name_or_path:
        raise UserError("model_name_or_path is missing: a hub name or a folder with a transformers checkpoint")
    if looks_like_a_path(name_or_path) and not Path(name_or_path).is_dir():
        raise UserError(f"model_name_or_path: there is no folder {name_or_path}")
    with explained(f"model_name_or_path: no tokenizer could be loaded from {name_or_path}"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        empty = not tokenizer("a").input_ids
    if empty:  # what transformers makes of a folder with weights alone
        raise UserError(f"model_name_or_path: there is no tokenizer in {name_or_path}: save the model's beside it")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name_or_path} has no eos_token: set one in its tokenizer_config.json")
    return tokenizer


def load_config(name_or_path: str) -> PreTrainedConfig:
    """The model's configuration without its weights."""
    with explained(f"model_name_or_path: no configuration could be loaded from {name_or_path}"):
        return AutoConfig.from_pretrained(name_or_path)


def dtype_of(config: ModelConfig) -> torch.dtype | str:
    """The type of the weights, or auto. Raises UserError for a name that is none of torch's."""
    if config.dtype in ("auto", None):
        return "auto"
    dtype = getattr(torch, config.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype: {config.dtype} is no type of weights; give float32, bfloat16, float16 or auto")
    return dtype


def load_model(config: ModelConfig, rope: RopeConfig | None = None) -> PreTrainedModel | PeftModel:
    """The causal language model, quantised and with LoRA adapters as the configuration asks.

    Weights are loaded in the type that `dtype` names (TRL's default: float32); `dtype: auto` keeps the checkpoint's.
    A folder of adapters (LoRA) is loaded onto the base model it names, and the adapters are trained on.
    """
    if not config.model_name_or_path:
        raise UserError("model_name_or_path is missing: a hub name or a folder with a transformers checkpoint")
    if config.attn_implementation:
        raise UserError(
            "attn_implementation: packed rows attend by code of their own, which picks the kernel; leave the key out"
        )
    if is_adapter(config.model_name_or_path):
        return _load_adapter(config, rope)
    own = load_config(config.model_name_or_path)
    if rope is not None:
        rope.apply(own)
    with explained("load_in_4bit, load_in_8bit"):
        quantization = get_quantization_config(config)
    with explained(f"model_name_or_path: {config.model_name_or_path} could not be loaded as a causal language model"):
        model = AutoModelForCausalLM.from_pretrained(
            config.model_name_or_path,
            config=own,
            revision=config.model_revision,
            dtype=dtype_of(config),
            quantization_config=quantization,
        )
    if quantization is not None:
        keep_gradients(model)
        if not config.use_peft:
            model.requires_grad_(False)  # to score and to teach; to train it needs adapters
    with explained("use_peft: adapters with these settings cannot be made"):
        peft_config = get_peft_config(config)
        return model if peft_config is None else get_peft_model(model, peft_config)


def keep_gradients(model: nn.Module) -> None:
    """On CPUs bitsandbytes packs 4-bit weights anew in the first pass that is not for training, and from then on no
    gradient passes through them; a policy samples and is scored between its updates."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  of bitsandbytes' layers


def is_adapter(name_or_path: str) -> bool:
    """Whether it is a folder that LoRA adapters were saved to."""
    return (Path(name_or_path) / "adapter_config.json").is_file()


def _load_adapter(config: ModelConfig, rope: RopeConfig | None) -> PeftModel:
    """Adapters on the base model that they name, trainable. Raises UserError for a base that is not there and for
    settings that ask for new adapters."""
    path = config.model_name_or_path or ""
    if config.use_peft:
        raise UserError(
            f"use_peft: {path} holds adapters already, and training goes on with these. Leave out use_peft, or merge "
            f"them first: align merge {path} --output FOLDER"
        )
    base = copy.copy(config)
    unread = f"model_name_or_path: the adapters in {path} could not be loaded"
    with explained(unread):
        base.model_name_or_path = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base.model_name_or_path:
        raise UserError(f"model_name_or_path: the adapters in {path} name no base_model_name_or_path")
    model = cast(PreTrainedModel, load_model(base, rope))
    with explained(unread):
        grow_embeddings(model, path)
        return PeftModel.from_pretrained(model, path, is_trainable=True)


def grow_embeddings(base: PreTrainedModel, adapters: str) -> None:
    """As many rows as the embeddings that were saved with the adapters: tokens may have come to the base's."""
    embeddings = cast(nn.Embedding, base.get_input_embeddings())
    name = next(name for name, module in base.named_modules() if module is embeddings)
    saved = load_peft_weights(adapters, device="cpu")
    rows = [len(saved[key]) for key in saved if key.endswith((f"{name}.weight", f"{name}.base_layer.weight"))]
    if rows and rows[0] > embeddings.num_embeddings:
        base.resize_token_embeddings(rows[0], mean_resizing=False)


def load_policy(config: ModelConfig, rope: RopeConfig | None = None) -> tuple[Policy, PreTrainedTokenizerBase]:
    """Policy and tokenizer of `config.model_name_or_path`. A tokenizer without a chat template gets ChatML, and the
    embeddings grow by the tokens that brings. Raises UserError when tokenizer and model do not belong together."""
    tokenizer = load_tokenizer(config.model_name_or_path or "")
    model = load_model(config, rope)
    fit_embeddings(model, tokenizer)
    policy = Policy(model)
    check_packing(policy)
    return policy, tokenizer


def fit_embeddings(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, chat: bool = True) -> None:
    """See load_policy. chat=False: a tokenizer without a chat template stays without."""
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds only {rows}: they do not belong together"
        )
    if chat:
        ensure_chat_template(tokenizer)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))


def switch_dropout_off(policy: nn.Module) -> None:
    """Of the model and of its adapters."""
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  an attribute of attention layers, unknown to nn.Module


def copy_weights(model: PreTrainedModel | PeftModel, path: Path) -> None:
    """Read a saved checkpoint of the same model (or the same adapters) into `model`, bit for bit.

    Raises UserError when it is of another model."""
    try:
        if isinstance(model, PeftModel):
            set_peft_model_state_dict(model, load_peft_weights(str(path)))
        else:
            saved = type(model).from_pretrained(path, config=load_config(str(path)), dtype=model.dtype)
            model.load_state_dict(saved.state_dict())
    except (RuntimeError, ValueError, KeyError, OSError, UserError) as error:
        raise UserError(
            f"{path.parent} is of another model than this run's ({str(error).splitlines()[0]}): set model_name_or_path "
            "and the adapter's settings as they were, or start a new run with another output_dir"
        ) from error

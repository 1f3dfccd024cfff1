"""Adapters (LoRA) merged into their base model: a plain transformers checkpoint with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel
from trl import ModelConfig

from alignment.errors import UserError, explained
from alignment.models.load import is_adapter, load_model, load_tokenizer
from alignment.models.load_scalar import load_scalar_model


def merge_adapter(path: str, output: str, dtype: str = "auto") -> str:
    """Write the merged model to `output`; returns the name of its class. Adapters of a reward or value model bring its
    head. The base is loaded whole, also when the adapters were trained on a quantised one.

    Raises UserError when `path` holds no adapters, `output` is not empty, or the base is not found.
    """
    if not is_adapter(path):
        raise UserError(f"{path} holds no adapters: there is no adapter_config.json in it")
    target = Path(output)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"--output: {output} is not empty; name a new folder")
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"--dtype: {dtype!r} is no type of torch's; give float32, bfloat16, float16 or auto")
    config = ModelConfig(model_name_or_path=path, dtype=dtype)
    with explained(f"the adapters in {path} could not be loaded"):
        adapters = PeftConfig.from_pretrained(path)
    if adapters.task_type == "SEQ_CLS":
        merged = load_scalar_model(config, 1, 0)
    else:
        model = cast(PeftModel, load_model(config))
        with explained(f"the adapters in {path} could not be merged"):
            merged = cast(PreTrainedModel, model.merge_and_unload())  # type: ignore[operator]
    tokenizer = load_tokenizer(path)
    target.mkdir(parents=True, exist_ok=True)
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return type(merged).__name__

"""A transformers model as a reader of packed rows: what the policy and the scalar models have in common."""

from __future__ import annotations

from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from alignment.errors import UserError
from alignment.models.router import RouterBalance
from alignment.packing import TreeLayout
from alignment.types import PackedBatch


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model, adapters (if any) in place."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def checkpoint_activations(base: PreTrainedModel, offload: bool = False) -> None:
    """Keep each layer's input only and compute the layer again in the backward pass; with `offload` the inputs wait in
    the CPU's memory, where they are anyway without a GPU. Raises UserError where transformers is too old for that."""
    offload = offload and torch.cuda.is_available()
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable({"use_reentrant": False}, offload=offload)
    elif offload:
        raise UserError("activation_offload: this transformers cannot do it; upgrade it, or use gradient_checkpointing")
    else:
        base.gradient_checkpointing_enable({"use_reentrant": False})


def packed_hidden_states(base: PreTrainedModel, batch: PackedBatch, balance: RouterBalance | None) -> torch.Tensor:
    """Last hidden states of a packed row, [T, H]; routers are observed."""
    # transformers returns a 4-dimensional mask as it is: no mask is built for the row, the layout says it all
    no_mask = torch.empty(1, 1, 1, 1, device=batch.input_ids_T.device)
    routers = {"output_router_logits": True} if balance is not None else {}
    output = base.base_model(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.position_ids_T[None],
        attention_mask=no_mask,
        tree=TreeLayout(batch.segments, batch.shared_by),
        use_cache=False,
        **routers,
    )
    if balance is not None:
        balance.observe(output.router_logits, batch.empty)
    return output.last_hidden_state[0]

"""Tree attention: exact attention over a packed row, registered with transformers' public attention interface.

`use_tree_attention(model)` switches a model to it; the layout then travels as the keyword `tree`, which transformers
hands down to every layer. Shapes: B = 1, Hq query heads, Hk key heads, T tokens, D head width.

Paths, all the same function: per-segment scaled_dot_product_attention (CPU), FlexAttention with a block mask (CUDA),
variable-length flash attention (CUDA half precision, no shared prefixes), a dense mask (reference).
"""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from alignment.errors import UserError
from alignment.packing.layout import TreeLayout
from alignment.packing.sequence_parallel import to_heads, to_tokens

TREE = "alignment_tree"
TREE_DENSE = "alignment_tree_dense"


def use_tree_attention(model: PreTrainedModel, dense: bool = False) -> None:
    """Make `model(..., tree=TreeLayout)` attend along the tree. `dense=True` takes the reference path.

    Raises UserError for models whose attention is not transformers' pluggable interface.
    """
    if not model._supports_attention_backend:
        raise UserError(
            f"{type(model).__name__} does not use transformers' AttentionInterface, so packed rows with shared "
            "prefixes cannot be exact on it. Use a Qwen2, Qwen3, Llama or another model with attention backends."
        )
    model.set_attn_implementation(TREE_DENSE if dense else TREE)


def check_sliding_window(window: int | None, tree: TreeLayout) -> None:
    """A sliding window changes nothing while every path fits into it; beyond that tree attention does not serve."""
    if window is not None and tree.longest_path > window:
        raise UserError(
            f"a sequence of {tree.longest_path} tokens exceeds the model's sliding window of {window}: packed rows are "
            "exact only up to the window. Lower the maximum length or switch the window off in the model's config."
        )


def segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeLayout, scaling: float, dropout: float
) -> torch.Tensor:
    """Attention segment by segment; a child's keys are its ancestors' and its own. [1, Hq, T, D] in and out."""
    queries, keys, values = (x.split(tree.lengths, dim=2) for x in (query, key, value))
    outputs = []
    for i, path in enumerate(tree.paths):
        prefix = sum(tree.lengths[j] for j in path[:-1])
        seen_keys = torch.cat([keys[j] for j in path], dim=2) if prefix else keys[i]
        seen_values = torch.cat([values[j] for j in path], dim=2) if prefix else values[i]
        outputs.append(
            F.scaled_dot_product_attention(
                queries[i],
                seen_keys,
                seen_values,
                attn_mask=tree.bias(prefix, tree.lengths[i], query.dtype, query.device) if prefix else None,
                is_causal=not prefix,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2)


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeLayout, scaling: float, dropout: float
) -> torch.Tensor:
    """The reference: one [T, T] mask."""
    mask = tree.dense_mask_TT(query.device)
    gqa = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=gqa
    )


@functools.cache
def _compiled_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def flex_tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeLayout, scaling: float
) -> torch.Tensor:
    """FlexAttention with the row's block mask; compiled on CUDA, torch's eager form elsewhere."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = _compiled_flex_attention() if query.is_cuda else flex_attention
    gqa = query.shape[1] != key.shape[1]
    return attend(query, key, value, block_mask=tree.block_mask(query.device), scale=scaling, enable_gqa=gqa)


def varlen_tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeLayout, scaling: float
) -> torch.Tensor:
    """torch's variable-length flash attention for rows without shared prefixes (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = tree.cu_seqlens(query.device), max(tree.lengths)
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (
        x[0].transpose(0, 1) for x in (query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1))
    )
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0))
    assert isinstance(out, torch.Tensor)  # a pair only when asked for auxiliary outputs
    return out.transpose(0, 1)[None]


def _has_varlen(query: torch.Tensor) -> bool:
    """torch >= 2.10 brings variable-length flash attention; it takes half precision only."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return half and importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _attend(query, key, value, tree: TreeLayout, scaling: float, dropout: float) -> torch.Tensor:
    if not query.is_cuda:
        return segment_attention(query, key, value, tree, scaling, dropout)
    if dropout:
        return dense_attention(query, key, value, tree, scaling, dropout)
    if not tree.has_shared_prefix and _has_varlen(query):
        return varlen_tree_attention(query, key, value, tree, scaling)
    return flex_tree_attention(query, key, value, tree, scaling)


def _interface(dense: bool):
    """The function transformers calls in each layer. With `tree` it attends along the tree, and a `decode` cache beside
    it stores the keys and values; with `decode` alone it attends from that cache. With neither it is transformers' own
    sdpa, so that ordinary forwards and `generate` keep working on the same model."""
    ordinary = AttentionInterface()["sdpa"]

    def forward(module, query, key, value, attention_mask, scaling, dropout=0.0, tree=None, decode=None, **kwargs):
        if decode is not None:
            if tree is None:
                return decode.attend(module.layer_idx, query, key, value, scaling), None
            decode.store(module.layer_idx, key, value)
        if tree is None:
            return ordinary(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        check_sliding_window(kwargs.get("sliding_window"), tree)
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            raise UserError(f"{type(module).__name__} caps its logits or has attention sinks: packed rows have neither")
        device = query.device.type
        if torch.is_autocast_enabled(device):  # rotary embedding leaves float32 beside a half-precision value
            query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
        if tree.shared_by is not None:
            query, key, value = to_heads(query, key, value, tree.shared_by, tree.tokens)
        attend = dense_attention if dense else _attend
        out = attend(query, key, value, tree, scaling, dropout)
        if tree.shared_by is not None:
            out = to_tokens(out, tree.shared_by)
        return out.transpose(1, 2).contiguous(), None

    return forward


for _name, _dense in ((TREE, False), (TREE_DENSE, True)):
    AttentionInterface.register(_name, _interface(_dense))
    AttentionMaskInterface.register(_name, AttentionMaskInterface()["sdpa"])

"""Packed rows with shared prefixes: builders, micro-batches, tree attention."""

from alignment.packing.attention import use_tree_attention
from alignment.packing.layout import TreeLayout
from alignment.packing.micro_batches import cut, empty_batch
from alignment.packing.pack import BFLOAT16, conversation, group, pack

__all__ = ["BFLOAT16", "TreeLayout", "conversation", "cut", "empty_batch", "group", "pack", "use_tree_attention"]

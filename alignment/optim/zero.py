"""DeepSpeed ZeRO optimizes flat partitions in place of the model's parameters: which entries stand where in one.

Its parameters carry attributes that torch's do not declare, hence the Any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` entries of the flattened parameter `name`, from `start` on, stand in a partition from `offset` on."""

    name: str
    start: int
    offset: int
    count: int


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO optimizes partitions in place of this parameter."""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer")


def pieces_of(flat: torch.Tensor, parameters: Mapping[str, Any]) -> tuple[list[Piece], list[str]]:
    """What of `parameters` the partition `flat` holds (nothing where it is all padding), and the names of which no
    other partition of this rank holds anything."""
    pieces, settled = [], []
    for name, parameter in parameters.items():
        view, start = _fragment(parameter)
        if view is None:
            settled.append(name)
            continue
        offset = view.storage_offset() - int(flat.storage_offset())
        inside = offset >= 0 and offset + view.numel() <= flat.numel()
        if inside and view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr():
            numel = getattr(parameter, "ds_numel", parameter.numel())
            count = max(0, min(view.numel(), numel - start))  # the piece of the last rank may end in padding
            pieces.append(Piece(name, start, offset, count))
            settled.append(name)
    return pieces, settled


def gather(flat: torch.Tensor, pieces: list[Piece], whole: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The pieces of `whole` laid out like `flat`, 0 in its padding; on the CPU."""
    dtype = whole[pieces[0].name].dtype if pieces else torch.float32
    out = torch.zeros(flat.numel(), dtype=dtype)
    for piece in pieces:
        source = whole[piece.name].flatten()[piece.start : piece.start + piece.count]
        out[piece.offset : piece.offset + piece.count] = source
    return out


def _fragment(parameter: Any) -> tuple[Any, int]:
    """The part of this rank's partitions that stands for a part of the parameter, and where in the flattened parameter
    that begins. (None, 0) when this rank holds none of it."""
    if hasattr(parameter, "_z3_optimizer"):  # stage 3 cuts every parameter into one piece per rank
        stage = parameter._z3_optimizer
        group, offset, count = stage.grad_position[stage.get_param_id(parameter)]
        view = stage.fp32_partitioned_groups_flat[group].narrow(0, offset, count)
        return view, dist.get_rank(parameter.ds_process_group) * parameter.partition_numel()
    mapping = parameter._hp_mapping  # stages 1 and 2 cut the row of all parameters
    return (None, 0) if mapping is None else (mapping.hp_fragment, mapping.lp_fragment_address.start)

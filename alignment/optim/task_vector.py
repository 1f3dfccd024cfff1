"""The task vector tau = theta_SFT - theta_base that Online Merging pulls along, whole or as this rank's shard.

It is a function of two sets of weights, so checkpoints hold its fingerprint only, and a run that goes on makes it anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from transformers import AutoModelForCausalLM

from alignment.errors import UserError, explained


def load_base_weights(name_or_path: str) -> dict[str, torch.Tensor]:
    """The weights of the pretrained model, on the CPU, in the types of its checkpoint."""
    with explained(f"merge_base_model: {name_or_path} could not be loaded as a causal language model"):
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype="auto")
    return model.state_dict()


@torch.no_grad()
def task_vector(
    name: str, parameter: nn.Parameter, base: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """parameter - base[name], subtracted in float32 and kept in `dtype`, on the parameter's device; a DTensor where the
    parameter is one. Rows that it has beyond the base's (embeddings of tokens added for SFT) get 0.

    Raises UserError when the base model has no such parameter, or one of another shape.
    """
    if name not in base:
        raise UserError(
            f"merge: the trainable parameter {name} is not in merge_base_model, so SFT - base is undefined for it. "
            "Adapters cannot be merged towards a base: train all weights (use_peft: false), or set merge_alpha: 0 "
            "or merge: none. If it is no adapter, merge_base_model is another architecture."
        )
    origin = base[name]
    added = parameter.shape[0] - origin.shape[0] if parameter.dim() >= 2 else 0
    if parameter.shape[0] - added != origin.shape[0] or parameter.shape[1:] != origin.shape[1:] or added < 0:
        raise UserError(
            f"merge: {name} has the shape {tuple(parameter.shape)} in the policy and {tuple(origin.shape)} in "
            "merge_base_model: give the pretrained model that the policy was fine-tuned from"
        )
    if added:
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        origin = torch.cat([origin.to(whole), whole[-added:]])
    if isinstance(parameter, DTensor):
        origin = _distribute(origin, parameter)
    return (parameter.float() - origin.to(parameter.device).float()).to(dtype)


def fingerprint(vectors: Mapping[str, torch.Tensor]) -> str:
    """Of the bits of all entries, the same whole and sharded. A collective where the vectors are DTensors."""
    digest = hashlib.sha256()
    for name, vector in sorted(vectors.items()):
        own = local(vector)
        # sums of integers do not depend on the order of the terms, so shards can add theirs up
        total = own.contiguous().view(torch.int32 if own.element_size() == 4 else torch.int16).sum(dtype=torch.int64)
        if isinstance(vector, DTensor):
            placements = [Replicate() if p.is_replicate() else Partial() for p in vector.placements]
            total = DTensor.from_local(total, vector.device_mesh, placements).full_tensor()
        digest.update(f"{name} {tuple(vector.shape)} {vector.dtype} {int(total)};".encode())
    return digest.hexdigest()[:16]


# --- shards -----------------------------------------------------------------------------------------------------------


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, DTensor) and not all(p.is_replicate() for p in tensor.placements)


def shard_number(tensor: torch.Tensor) -> int:
    """Which shard this rank holds; replicas of a shard share its number."""
    if not isinstance(tensor, DTensor):
        return 0
    number = 0
    coordinate: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    for place, size, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements):
        if not placement.is_replicate():
            number = number * size + place
    return number


def shard_like(vector: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """What of `vector` belongs to this rank's part of `parameter`."""
    if not isinstance(parameter, DTensor) or isinstance(vector, DTensor):
        return local(vector)
    return local(_distribute(vector, parameter)).clone()


def _distribute(whole: torch.Tensor, like: DTensor) -> DTensor:
    # without a source rank every rank cuts its own copy, and nothing is sent
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

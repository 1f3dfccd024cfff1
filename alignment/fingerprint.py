"""Short hashes that tell whether an artifact belongs to a run: of values, of files, of weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_WHOLE = 1 << 28  # bytes up to which a file is read as a whole
_BLOCKS, _BLOCK = 1024, 1 << 16  # of a larger one: how many pieces, and their bytes


def fingerprint(*parts: Any) -> str:
    """Of anything JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def content_fingerprint(path: Path, times: bool = False) -> str:
    """Of the content of a file, or of all files in a folder and their names. Of files above 256 MiB the size and evenly
    spread pieces count, in nearly all of which a model that was trained again differs; with `times` also the time of
    the last change, which tells of one row that was edited."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE:
                digest.update(stream.read())
                continue
            digest.update(f"{file.stat().st_mtime_ns if times else ''}".encode())
            for i in range(_BLOCKS):
                stream.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16]


def weights_fingerprint(model: torch.nn.Module, adapters: bool = True) -> list[float]:
    """Numbers that change with the weights: per parameter, the sum of at most 1,024 evenly spread entries.
    adapters=False leaves those of LoRA out."""
    out = []
    for name, parameter in model.named_parameters():
        if not adapters and ".lora_" in name:
            continue
        flat = parameter.detach().reshape(-1)
        out.append(float(flat[:: max(1, flat.numel() // 1024)].double().sum()))
    return out

"""What a reward's entry names on disk, as text or as a digest: artifacts made with it must not outlive a change of it.

Settings and routing files are read whole, the models that they name included. A model's folder is digested from its
small files whole, and from its weights by size, ends and evenly spread blocks, so that large models take no time: a
model that was trained again differs in nearly every block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rewards.registry import JUDGE_PREFIX, REWARD_MODEL_PREFIX, ROUTING_PREFIX

WHOLE = 1 << 20  # files up to this many bytes are read whole
BLOCK, BLOCKS = 4096, 256
FILES, MODEL = (JUDGE_PREFIX, ROUTING_PREFIX), REWARD_MODEL_PREFIX


def contents(entry: Any) -> list[str]:
    """A text or digest for each file and model folder that an entry names, itself, in its parameters or in its file.

    entry: as it stands in YAML. What is not on this disk, such as a model on the hub, has none.
    """
    return [found for kind, path in _named(entry) for found in _contents_at(kind, path)]


def _named(value: Any) -> Iterator[tuple[str, Path]]:
    """(prefix, path) of what the value names, deepest last."""
    if isinstance(value, str):
        kind = next((prefix for prefix in (*FILES, MODEL) if value.startswith(prefix)), None)
        if kind is not None:
            yield kind, Path(value.removeprefix(kind))
    elif isinstance(value, Mapping):
        kind = f"{value.get('name')}:"
        if kind in (*FILES, MODEL) and isinstance(value.get("path"), str):
            yield kind, Path(value["path"])
        for inner in value.values():
            yield from _named(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner)


def _contents_at(kind: str, path: Path) -> list[str]:
    if kind == MODEL:
        return [digest_of_folder(path)] if path.is_dir() else []
    if not path.is_file():
        return []
    text = path.read_text()
    try:
        inside = yaml.safe_load(text)
    except yaml.YAMLError:
        return [text]  # refused, with its place, when the reward is made
    return [text, *contents(inside)]


def digest_of_folder(folder: Path) -> str:
    """Of the names and contents of the files directly in it."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name} {size};".encode())
        with file.open("rb") as stream:
            if size <= WHOLE:
                digest.update(stream.read())
                continue
            for i in range(BLOCKS):
                stream.seek(i * (size - BLOCK) // (BLOCKS - 1))
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()[:16]

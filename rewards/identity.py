"""What a reward's entry names on disk, as text or as a digest: artifacts made with it must not outlive a change of it.

Settings and routing files are read whole; of the models that they name the content counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from alignment.fingerprint import content_fingerprint
from rewards.registry import JUDGE_PREFIX, REWARD_MODEL_PREFIX, ROUTING_PREFIX

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
        return [content_fingerprint(path)] if path.is_dir() else []
    if not path.is_file():
        return []
    text = path.read_text()
    try:
        inside = yaml.safe_load(text)
    except yaml.YAMLError:
        return [text]  # refused, with its place, when the reward is made
    return [text, *contents(inside)]

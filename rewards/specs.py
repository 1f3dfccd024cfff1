"""Rewards as YAML writes them: a name, or a mapping of the name, a weight and parameters.

rewards:
  - verifier:math
  - {name: overlong, max_length: 4096, buffer: 512, weight: 0.5}
  - routing:recipes/qwen3/rewards.yaml
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NewType

from rewards.from_verifier import RewardFn
from rewards.identity import contents
from rewards.registry import ROUTING_PREFIX, VERIFIER_PREFIX, get_reward

# An entry as it stands in YAML: text, or a mapping. The fields of recipes carry this type.
RewardEntry = NewType("RewardEntry", object)


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One entry: what `get_reward` is asked for, and the weight of the reward in its sum."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    def build(self) -> RewardFn:
        """Raises ValueError as `get_reward` does."""
        return get_reward(self.name, self.parameters)

    @property
    def key(self) -> str:
        """Equal for entries that make the same reward, whatever their weights."""
        return json.dumps([self.name, self.parameters], sort_keys=True, default=str)

    @property
    def verifier(self) -> str:
        """The verifier's name, "" for another reward."""
        return self.name.removeprefix(VERIFIER_PREFIX) if self.name.startswith(VERIFIER_PREFIX) else ""

    def identity(self) -> list[Any]:
        """What an artifact made with this reward depends on: the entry, and what it names on disk."""
        return [self.key, self.weight, contents({**self.parameters, "name": self.name})]


def read_spec(entry: object) -> RewardSpec:
    """The entry's parts; nothing is looked up.

    >>> read_spec({"name": "overlong", "max_length": 4096, "weight": 0.5})
    RewardSpec(name='overlong', parameters={'max_length': 4096}, weight=0.5)
    >>> read_spec("routing:tasks.yaml")
    RewardSpec(name='routing', parameters={'path': 'tasks.yaml'}, weight=1.0)

    Raises ValueError when it is neither text nor a mapping with a `name`, and for a weight that is no finite number.
    """
    if not isinstance(entry, (str, Mapping)):
        raise ValueError(f"an entry is a name or a mapping with one, got {entry!r}")
    parameters: dict[Any, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    name, weight = parameters.pop("name", None), parameters.pop("weight", 1.0)
    if not isinstance(name, str) or not name:
        raise ValueError(f"an entry needs a name, for instance {{name: overlong, max_length: 4096}}; got {entry!r}")
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the weight of {name!r} has to be a number, got {weight!r}")
    if name.startswith(ROUTING_PREFIX):
        name, parameters = "routing", {"path": name.removeprefix(ROUTING_PREFIX), **parameters}
    return RewardSpec(name, parameters, number)


def read_specs(entries: Sequence[object], weights: Sequence[float] = ()) -> list[RewardSpec]:
    """Several entries, with their weights in a list beside them if that is given.

    Raises ValueError as `read_spec` does, for a name that occurs twice, for a number of weights that differs, and when
    both `weights` and an entry state one.
    """
    if weights and len(weights) != len(entries):
        raise ValueError(f"{len(weights)} weights for {len(entries)} rewards")
    specs = [read_spec(entry) for entry in entries]
    names = [spec.name for spec in specs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{repeated!r} is named twice; give each reward one entry and one weight")
    if not weights:
        return specs
    both = next((e for e in entries if isinstance(e, Mapping) and "weight" in e), None)
    if both is not None:
        raise ValueError(f"{both['name']!r} has a weight of its own, and there is a list of weights; leave out one")
    return [RewardSpec(spec.name, spec.parameters, float(weight)) for spec, weight in zip(specs, weights)]


def nested_specs(spec: RewardSpec) -> list[RewardSpec]:
    """The entry and the entries in its parameters: mappings with a name, and verifiers.

    >>> [part.name for part in nested_specs(read_spec({"name": "qwen_math", "verifier_reward": "verifier:math"}))]
    ['qwen_math', 'verifier:math']
    """
    found = [spec]
    for value in spec.parameters.values():
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            found += nested_specs(read_spec(value))
        elif isinstance(value, str) and value.startswith(VERIFIER_PREFIX):
            found.append(read_spec(value))
    return found

"""A routing file with the judge and the reward model of this run put into every entry that asks for one.

python -m recipes.qwen3.rewards_at --file recipes/qwen3/rewards.yaml --output runs/qwen3/rewards.yaml \
    --judge_url http://localhost:8000/v1 --judge Qwen/Qwen3-32B --reward_model runs/qwen3/4_reward_model/model
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from rewards.routing import read_tasks


def replaced(value: Any, settings: dict[str, dict[str, Any]]) -> Any:
    """The value with the settings of every mapping of that `name`, in lists and mappings too."""
    if isinstance(value, list):
        return [replaced(part, settings) for part in value]
    if not isinstance(value, dict):
        return value
    parts = {key: replaced(part, settings) for key, part in value.items()}
    return {**parts, **settings.get(str(value.get("name")), {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("file", "output", "judge_url", "judge", "reward_model"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    read_tasks(options.file)  # raises for what is wrong with it
    cache = str(Path(options.output).parent / "judge_cache")
    settings = {
        "judge": {"url": options.judge_url, "model": options.judge, "cache_dir": cache},
        "reward_model": {"path": options.reward_model},
    }
    content = replaced(yaml.safe_load(Path(options.file).read_text()), settings)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(yaml.safe_dump(content, sort_keys=False))
    tasks = read_tasks(options.output)
    print(f"{len(tasks)} tasks in {options.output}")


if __name__ == "__main__":
    main()

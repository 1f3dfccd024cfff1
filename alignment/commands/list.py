"""`align list`: the registered rewards and verifiers."""

from __future__ import annotations

import argparse
import importlib

from rich import box
from rich.console import Console
from rich.table import Table

from alignment.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--import", dest="modules", metavar="MODULE", action="append", default=[],
                        help="import a module of yours that registers some; may be repeated")  # fmt: skip

    parser.add_argument("--routing", metavar="FILE", help="show the tasks and rewards of this routing file instead")


def run(options: argparse.Namespace) -> int:
    """Raises UserError when a module cannot be imported or a routing file cannot be read."""
    from rewards import list_rewards, reward_info
    from verifiers import list_verifiers, verifier_info

    import_modules(options.modules)
    console = Console(highlight=False, markup=False)
    if options.routing:
        return list_tasks(console, options.routing)
    verifiers = Table("verifier", "columns", "optional", "what it checks", title="Verifiers", box=box.SIMPLE_HEAD)
    for name in list_verifiers():
        verifier = verifier_info(name)
        verifiers.add_row(name, ", ".join(verifier.columns), ", ".join(verifier.optional), verifier.summary)
    rewards = Table("reward", "columns", "parameters", "what it scores", title="Rewards", box=box.SIMPLE_HEAD)
    for name in list_rewards():
        reward = reward_info(name)
        # those of a verifier stand in the table above
        optional = () if name.startswith("verifier:") else tuple(f"[{column}]" for column in reward.optional)
        lists = ((*reward.columns, *optional), reward.parameters)
        rewards.add_row(name, *map(", ".join, lists), reward.summary)
    console.print(verifiers)
    console.print(rewards)
    return 0


def list_tasks(console: Console, path: str) -> int:
    """One line per task and reward; exit code 1 when a reward is unknown or its parameters cannot be right."""
    from rewards.registry import check_reward
    from rewards.routing import read_tasks
    from rewards.specs import nested_specs

    try:
        tasks = read_tasks(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    table = Table("task", "reward", "weight", "parameters", title=f"Tasks of {path}", box=box.SIMPLE_HEAD)
    problems: dict[str, list[str]] = {}
    for task, specs in tasks.items():
        for spec in specs:
            parameters = ", ".join(f"{name}: {value}" for name, value in spec.parameters.items())
            table.add_row(task if spec is specs[0] else "", spec.name, f"{spec.weight:g}", parameters)
            for part in nested_specs(spec):
                try:
                    check_reward(part.name, part.parameters)
                except (ValueError, ImportError) as error:
                    problems.setdefault(str(error), []).append(task)
    console.print(table)
    for problem, users in problems.items():
        console.print(f"{', '.join(users)}: {problem}")
    return 1 if problems else 0


def import_modules(names: list[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--import {name}: {error}") from error

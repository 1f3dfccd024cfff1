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


def run(options: argparse.Namespace) -> int:
    """Raises UserError when a module cannot be imported."""
    from rewards import list_rewards, reward_info
    from verifiers import list_verifiers, verifier_info

    import_modules(options.modules)
    verifiers = Table("verifier", "columns", "optional", "what it checks", title="Verifiers", box=box.SIMPLE_HEAD)
    for name in list_verifiers():
        verifier = verifier_info(name)
        verifiers.add_row(name, ", ".join(verifier.columns), ", ".join(verifier.optional), verifier.summary)
    rewards = Table("reward", "columns", "what it scores", title="Rewards", box=box.SIMPLE_HEAD)
    for name in list_rewards():
        reward = reward_info(name)
        rewards.add_row(name, ", ".join(reward.columns), reward.summary)
    console = Console(highlight=False, markup=False)
    console.print(verifiers)
    console.print(rewards)
    return 0


def import_modules(names: list[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--import {name}: {error}") from error

"""`align doctor`: what this machine offers to training and to verification."""

from __future__ import annotations

import argparse

from rich import box
from rich.console import Console
from rich.table import Table


def configure(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    """Exit code 1 when no sandbox tier works: code is then not verified here, never unprotected."""
    import torch  # noqa: F401  so that threads and accelerators are reported

    from alignment.environment import describe_environment
    from verifiers.sandbox import probe

    console = Console(highlight=False, markup=False)
    machine = Table("", "", title="Machine", box=box.SIMPLE_HEAD, show_header=False)
    for name, value in describe_environment().items():
        machine.add_row(name, value)
    console.print(machine)
    tiers = Table("sandbox tier", "state", title="Sandbox for model-written code", box=box.SIMPLE_HEAD)
    reasons = probe()
    for tier, reason in reasons.items():
        tiers.add_row(tier, reason or "works")
    console.print(tiers)
    return int(all(reasons.values()))

"""`align sandbox-server`: see verifiers.sandbox.server."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", nargs=argparse.REMAINDER, help="options of the server; `-- --help` lists them")


def run(options: argparse.Namespace) -> int:
    from verifiers.sandbox.server import main

    return main([argument for argument in options.server if argument != "--"])

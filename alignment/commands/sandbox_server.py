"""`align sandbox-server`: see verifiers.sandbox.server."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    from verifiers.sandbox.server import add_options

    add_options(parser)


def run(options: argparse.Namespace) -> int:
    from verifiers.sandbox.server import serve

    return serve(options)

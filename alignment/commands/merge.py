"""`align merge ADAPTER --output FOLDER`: LoRA adapters merged into the base model that they name."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="folder with adapter_config.json")
    parser.add_argument("--output", required=True, help="folder of the merged transformers checkpoint")
    parser.add_argument("--dtype", default="auto", help="type of the weights; auto: the base model's")


def run(options: argparse.Namespace) -> int:
    """Raises UserError for a folder without adapters and for a base model that is not found."""
    from alignment.models.merge import merge_adapter

    kind = merge_adapter(options.adapter, options.output, options.dtype)
    print(f"{kind} in {options.output}")
    return 0

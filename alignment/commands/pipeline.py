"""`align pipeline pipeline.yaml`: runs the stages of a pipeline that are not finished."""

from __future__ import annotations

import argparse
import shlex

from alignment.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="YAML file of the pipeline; see alignment/pipeline.py")
    parser.add_argument(
        "--from", dest="start", default="", metavar="STAGE", help="run this stage anew and those behind it"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be done and do nothing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another value for a variable, or for folder"
    )


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from alignment.pipeline import read_pipeline
    from alignment.pipeline_process import Interrupted
    from alignment.pipeline_run import command_of, plan_all, run_pipeline

    given = {}
    for entry in options.set:
        name, found, value = entry.partition("=")
        if not found:
            raise UserError(f"--set {entry}: write NAME=VALUE")
        given[name] = value
    pipeline = read_pipeline(options.file, given)
    console = Console(highlight=False, markup=False)
    if options.dry_run:
        for stage, plan in plan_all(pipeline, options.start):
            console.print(f"{stage.name}: {plan.action} ({plan.reason})", soft_wrap=True)
            console.print(f"    {shlex.join(command_of(pipeline, stage))}", soft_wrap=True)
        return 0
    try:
        run_pipeline(pipeline, options.start, lambda text: console.rule(text, align="left"))
    except Interrupted as stopped:
        console.print(f"align pipeline: {stopped}")
        return 130
    console.print(f"all stages are finished; they are in {pipeline.folder}")
    return 0

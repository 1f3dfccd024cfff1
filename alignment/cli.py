"""The `align` command. Each subcommand is a module of `alignment.commands` with `configure(parser)` and `run(options)`.

To add one: a line in COMMANDS and the module. Only the module of the command that is called gets imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from alignment.errors import UserError, as_line

COMMANDS = {
    "doctor": "what this machine offers: versions, accelerators, sandbox tiers",
    "inspect": "what a recipe would train on: tokens by mask, lengths, steps, memory",
    "list": "the registered rewards and verifiers, with the columns they read",
    "merge": "merge LoRA adapters into their base model, as a plain checkpoint",
    "pipeline": "run the recipes of a pipeline one after another; finished ones are not run again",
    "report": "write the HTML report of a run folder again",
    "sandbox-server": "run sandboxed jobs of other machines here",
    "verify": "score responses, or the rows' own gold answers, with a verifier",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 when a check found something wrong, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a command's path is its own folder: modules of the user's are found beside her
    options = _parse(arguments)
    try:
        return int(_module(options.command).run(options) or 0)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        sys.stderr.close()
        return 1
    except (UserError, OSError) as error:
        if options.debug:
            raise
        print(f"align {options.command}: {as_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"alignment.commands.{command.replace('-', '_')}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="align", description="The command of the alignment toolkit.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == called:
            _module(name).configure(subparser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""`align report RUN_DIR`: writes report.html of an existing run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignment.errors import UserError
from alignment.report import find_stages, read_object, write_report


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="folder with metrics.jsonl, or with stage folders that have it")


def run(options: argparse.Namespace) -> int:
    try:
        print(main(options.run_dir))
    except ValueError as error:
        raise UserError(str(error)) from error
    return 0


def main(run_dir: str | Path) -> Path:
    """Writes `<run_dir>/report.html` from the logs there (and summary.json, if present) and returns its path.
    Raises ValueError when run_dir holds no run."""
    run_dir = Path(run_dir)
    summary = read_object(run_dir / "summary.json")
    path = run_dir / "report.html"
    write_report(path, run_dir.resolve().name, find_stages(run_dir, summary), summary)
    return path

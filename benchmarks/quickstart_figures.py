"""Picture and table of docs/quickstart.md: `python -m benchmarks.quickstart_figures RUN [RUN …]`, finished folders."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from alignment.report import plot_summary

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"(<!-- table: quickstart -->\n).*?(<!-- end -->)", re.DOTALL)


def table(summaries: dict[str, dict]) -> str:
    """A Markdown table: a line per stage, a column per run, pass rate with its 95 % interval."""
    names = [stage["name"] for stage in next(iter(summaries.values()))["stages"]]
    lines = ["| held-out pass rate, % | " + " | ".join(summaries) + " |", "|---" * (len(summaries) + 1) + "|"]
    for i, name in enumerate(names):
        cells = []
        for summary in summaries.values():
            s = summary["stages"][i]
            cells.append(f"{100 * s['pass_rate']:.1f} ({100 * s['ci_low']:.1f} – {100 * s['ci_high']:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="finished quickstart folders")
    options = parser.parse_args()
    found = [json.loads((run / "summary.json").read_text()) for run in options.runs]
    summaries = {f"seed {summary['seed']}": summary for summary in found}
    plot_summary(DOCS / "quickstart.png", summaries)
    page = DOCS / "quickstart.md"
    content = f"![Pass rates](quickstart.png)\n\n{table(summaries)}\n"
    page.write_text(BLOCK.sub(lambda found: found[1] + content + found[2], page.read_text(), count=1))


if __name__ == "__main__":
    main()

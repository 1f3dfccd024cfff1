"""Picture and table of quickstart runs: `python -m recipes.quickstart.figures RUN [RUN …] --docs docs`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alignment.report import plot_summary

MARK = "<!-- figures -->"


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
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    found = [json.loads((run / "summary.json").read_text()) for run in options.runs]
    summaries = {f"seed {summary['seed']}": summary for summary in found}
    plot_summary(options.docs / "quickstart.png", summaries)
    page = options.docs / "quickstart.md"
    before, _, rest = page.read_text().partition(MARK)
    after = rest[rest.index("\n## ") :]
    page.write_text(f"{before}{MARK}\n\n![Pass rates](quickstart.png)\n\n{table(summaries)}\n{after}")


if __name__ == "__main__":
    main()

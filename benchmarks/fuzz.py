"""Runs mutated recipes and data rows. `python -m benchmarks.fuzz --cases 1000`; see tests/fuzzing.py and fuzz_runs.py.

Prints every case that ends badly, then the distinct messages for reading.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub: made-up names are asked for nowhere

from tests.fuzz_runs import Ending, run_cases
from tests.tiny_recipes import write_material


def plain(message: str, base: str) -> str:
    """Without what differs between cases that got the same answer."""
    return re.sub(r"\d+", "N", message.replace(base, "").replace("\n", " "))[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        material = write_material(Path(folder) / "material")

        def say(ending: Ending) -> None:
            if ending.problems:
                print(f"--- {ending.case.name}: {ending.case.what}\n    {ending.problems}: {ending.case.command_line}")
                print(ending.output[-1500:], flush=True)

        endings: list[Ending] = []
        with contextlib.suppress(KeyboardInterrupt):  # interrupted, it sums up what it has done
            for seed in range(options.first, options.first + options.cases):
                endings += run_cases([seed], material, Path(folder), say)
                shutil.rmtree(Path(folder) / f"case-{seed}")
        messages = Counter(plain(e.message, folder) for e in endings if e.code == 2)
    print(f"\n=== {len(messages)} distinct messages")
    for message, times in sorted(messages.items()):
        print(f"{times:4d}  {message}")
    bad = [e for e in endings if e.problems]
    counts = Counter("bad" if e.problems else "runs" if e.code in (0, 1) else "one message" for e in endings)
    by_name = Counter(e.case.name for e in endings)
    print(f"\n{len(endings)} cases in {time.monotonic() - started:.0f} s: {dict(counts)}\n{dict(by_name)}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()

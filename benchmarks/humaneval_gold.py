"""The `code` verifier over HumanEval: every reference solution must pass, every stub must fail.

    python benchmarks/humaneval_gold.py HumanEval.jsonl.gz [--tier flat]

Exit code 1 when one does not do as it should.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from verifiers.code import code, use_backend
from verifiers.sandbox import TIERS, Sandbox

ALWAYS_EQUAL = """
class Always:
    def yes(self, *others): return True
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __bool__ = yes
    def __ne__(self, other): return False
    def __hash__(self): return 1
    def __len__(self): return 1
    def __iter__(self): return iter([self])
    def __getitem__(self, key): return self
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __mul__ = __rmul__ = __abs__ = __neg__ = __sub__
"""
BODIES = {
    "pass": "pass",
    "None": "return None",
    "0": "return 0",
    "True": "return True",
    "[]": "return []",
    "''": "return ''",
    "first argument": "return args[0] if args else 0",
    "always equal": "return Always()",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
}


def fenced(source: str) -> str:
    return f"```python\n{source}\n```"


def stub(body: str) -> Callable[[dict], str]:
    return lambda row: fenced(f"{ALWAYS_EQUAL}\ndef {row['entry_point']}(*args):\n    {body}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--tier", choices=TIERS)
    options = parser.parse_args()
    with gzip.open(options.path, "rt") as file:
        rows = [json.loads(line) for line in file]
    responses: dict[str, Callable[[dict], str]] = {
        "reference solution": lambda row: fenced(row["prompt"] + row["canonical_solution"]),
        "reference continuation": lambda row: fenced(row["canonical_solution"]),
        "empty": lambda row: "",
        **{f"stub: {name}": stub(body) for name, body in BODIES.items()},
    }
    wrong = 0
    with Sandbox(options.tier) as sandbox, ThreadPoolExecutor(sandbox.workers + 1) as pool:
        use_backend(sandbox)
        print(f"{len(rows)} rows, tier {sandbox.tier}, load {os.getloadavg()[0]:.1f}")
        for name, respond in responses.items():
            start = time.perf_counter()
            verdicts = list(pool.map(lambda row, respond=respond: code(respond(row), row), rows))
            rate = len(rows) / (time.perf_counter() - start)
            passed = sum(verdict.passed for verdict in verdicts)
            wrong += passed != (len(rows) if name.startswith("reference") else 0)
            print(f"{name:24s} {passed:4d} pass  {dict(Counter(v.status for v in verdicts))}  {rate:.0f} /s")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())

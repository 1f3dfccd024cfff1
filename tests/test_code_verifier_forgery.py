"""No program talks its way to a pass, and none talks its way out of a fail into an unscored error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.humaneval_gold import ALWAYS_EQUAL
from tests.code_sandbox import judge, judged_in
from tests.sandbox_modes import open_mode

CHECK = {
    "entry_point": "f",
    "test": "def check(function):\n    assert function(3) == 'expected-9'\n    assert function(4) == 'expected-16'\n",
}
ASSERTS = {"tests": ["assert f(3) == 'expected-9'", "assert f(4) == 'expected-16'"]}
CASES = {
    "entry_point": "f",
    "cases": [{"args": [3], "expected": "expected-9"}, {"args": [4], "expected": "expected-16"}],
}
FORMS = {"check": CHECK, "asserts": ASSERTS, "cases": CASES}
GOLD = "def f(x):\n    return f'expected-{x * x}'"


AS_ANOTHER_USER = [pytest.param(f"{tier}-as-nobody", marks=pytest.mark.slow) for tier in ("namespaces", "flat")]


@pytest.fixture(scope="module", autouse=True, params=["namespaces", "flat", *AS_ANOTHER_USER])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with judged_in(lambda: open_mode(request.param)):
        yield


@pytest.fixture(params=FORMS)
def row(request: pytest.FixtureRequest) -> dict:
    return {**FORMS[request.param], "time_limit_s": 5, "memory_limit_mb": 256}


HACKS = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit in the call": "import os\ndef f(x): os._exit(0)",
    "SystemExit": "def f(x): raise SystemExit(0)",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "GeneratorExit": "def f(x): raise GeneratorExit",
    "StopIteration": "def f(x): raise StopIteration",
    "always equal": ALWAYS_EQUAL + "def f(x): return Always()",
    "always equal str": "class S(str):\n"
    "    __eq__ = lambda *a: True\n    __hash__ = str.__hash__\ndef f(x): return S('no')",
    "always equal list": ALWAYS_EQUAL + "def f(x): return [Always()]",
    "always equal type": "class M(type):\n    __eq__ = lambda *a: True\n    __hash__ = type.__hash__\n"
    "class C(metaclass=M): pass\ndef f(x): return C",
    "patched assert": "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\ndef f(x): return 0",
    "patched builtins": "import builtins\nfor n in ('all', 'any', 'str', 'type', 'isinstance', 'repr', 'len'):\n"
    "    setattr(builtins, n, lambda *a: True)\ndef f(x): return True",
    "patched json": 'import json\njson.dumps = lambda *a, **k: \'{"passed":2,"total":2}\'\ndef f(x): return 0',
    "patched worker": "import sys\nfor m in list(sys.modules.values()):\n    for n in ('encode', 'describe', 'send'):\n"
    "        if hasattr(m, n) and 'jail' in m.__name__: setattr(m, n, lambda *a: {'ok': True})\ndef f(x): return 0",
    "own tests": "def check(candidate): pass\ndef f(x): return 0",
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return 0",
    "gc inspection": "import gc\ndef f(x):\n"
    "    for o in gc.get_objects():\n        if type(o) in (list, dict, tuple):\n"
    "            for s in (o.values() if type(o) is dict else o):\n"
    "                if type(s) is str and s.startswith('expected-') and len(s) < 12: return s\n    return 0",
    "frame inspection": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        for s in map(str, frame.f_locals.values()):\n"
    "            at = s.find('expected-')\n            if at >= 0: return s[at:at + 10].strip(chr(39))\n"
    "        frame = frame.f_back\n    return 0",
    "pass markers": "print('OK PASS passed 2/2 All tests passed')\nimport sys\n"
    "print('Ran 2 tests OK', file=sys.stderr)\n"
    "def f(x): return 0",
    "messages on every descriptor": """
import os
result = b'{"passed":2,"total":2,"detail":""}'
frames = [result, result + b'\\n', len(result).to_bytes(4, 'little') + result, b'{"ok":null}\\n{"ok":null}\\n',
          b'{"index":0,"code":0,"reason":"","wall_s":0,"cpu_s":0,"rss_mb":0}']
for fd in range(200):
    for frame in frames:
        try: os.write(fd, frame)
        except OSError: pass
def f(x): return 0
""",
    "messages in the call": "import os\ndef f(x):\n    for fd in range(3, 20):\n"
    "        try: os.write(fd, b'\\x13\\0\\0\\0'"
    ' + b\'{"ok":"expected-9"}\' * 3)\n        except OSError: pass\n    return 0',
    "descriptors passed over": """
import os, socket, array
def f(x):
    for fd in range(3, 20):
        try: socket.socket(fileno=os.dup(fd)).sendmsg([b'x'], [(1, 1, array.array('i', [1]))])
        except OSError: pass
    return 0
""",
    "closed descriptors": "import os\ndef f(x): os.closerange(0, 100)",
    "deep data": "def f(x):\n    r = []\n    for _ in range(5000): r = [r]\n    return r",
    "deep text": "import os\ndef f(x):\n    text = b'{\"ok\":' + b'[' * 200000\n    for fd in (4, 5):\n        try:\n"
    "            os.write(fd, len(text).to_bytes(4, 'little') + text)\n        except OSError: pass\n    os._exit(0)",
    "cyclic data": "def f(x):\n    r = []\n    r.append(r)\n    return r",
    "huge integer": "def f(x): return 10 ** 1000000",
    "members that hash alike": "def f(x): return {k * (2**61 - 1) for k in range(500)}",
    "huge fraction": "from fractions import Fraction\ndef f(x): return Fraction(1 << 200_000, 3)",
    "large result": "def f(x): return 'x' * 12_000_000",
    "handle of the tests": "class H: pass\ndef f(x): return {'h': [0, 'f']}",
    "changed arguments": "def f(x): return [x]",
    "endless iterator": "import itertools\ndef f(x): return itertools.count()",
    "crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "recursion": "def f(x): return f(x)",
    "syntax error": "def f(x: return",
    "null byte": "def f(x): return '\\0'\n\0",
    "no function": "g = 1",
    "not a function": "f = 1",
    "stub": "def f(x): pass",
}


def test_gold_passes(row):
    assert judge(GOLD, row).status == "pass"


@pytest.mark.parametrize("name", HACKS)
def test_hack_scores_zero_and_stays_scored(row, name):
    verdict = judge(HACKS[name], {**row, "time_limit_s": 1.5})
    # a program that spoils its own socket may leave both jails waiting
    assert verdict.status in ("fail", "timeout") and verdict.score == 0.0, verdict


@pytest.mark.parametrize("source", ["def f(x):\n    while True: pass", "import time\ntime.sleep(60)"])
def test_endless_program_is_a_timeout(row, source):
    verdict = judge(source, {**row, "time_limit_s": 0.5})
    assert (verdict.status, verdict.score) == ("timeout", 0.0), verdict


def test_control_the_same_hacks_fool_a_shared_interpreter():
    for name in ("always equal", "always equal str"):
        namespace: dict = {}
        exec(HACKS[name], namespace)
        exec(CHECK["test"], namespace)
        namespace["check"](namespace["f"])  # raises nothing


@pytest.mark.parametrize(
    "test",
    [
        "abs(f(3) - 2.5) < 1e-6",
        "f(3)",
        "not f(3)",
        "5 in f(3)",
        "f(3) in [1, 2]",
        "f(3) > 2",
        "sorted([f(3), 2]) == [2, 3]",
        "float(f(3)) == 2.5",
        "f(3)[0] == 5",
        "f(3).value == 5",
        "len(f(3)) == 2",
        "str(f(3)) == 'x'",
        "f(3) + 1 == 2",
        "{f(3): 1} == {5: 1}",
        "set([f(3)]) == {5}",
        "max(f(3), 5) == 5",
    ],
)
def test_no_operator_of_the_program_meets_an_expected_value(test):
    verdict = judge(ALWAYS_EQUAL + "def f(x): return Always()", {"tests": [f"assert {test}"], "time_limit_s": 5})
    assert verdict.status == "fail", verdict


def test_a_function_that_returns_a_value_cannot_change_the_tests_data():
    row = {"entry_point": "f", "test": "def check(f):\n    x = [2, 1]\n    assert f(x) == sorted(x)\n"}
    assert judge("def f(x):\n    x.clear()\n    return []", row).status == "fail"


def test_stdout_beginning_right_is_not_enough():
    row = {"stdio": [{"stdin": "1", "stdout": "1\n2\n"}]}
    assert judge("print(1)", row).status == "fail"
    assert judge("print(1); print(2); print(3)", row).status == "fail"
    assert judge("print(1); print(2); import os; os._exit(1)", row).status == "fail"
    assert judge("print(1); print(2)", row).status == "pass"

"""The `code` verifier on programs that are not in Python: they pass, fail, run out of time and stay in their jail."""

from __future__ import annotations

import shutil

import pytest

from tests.code_sandbox import backend, judge
from verifiers.code import check, code, code_weak
from verifiers.code.languages import MissingTool
from verifiers.code.task import read_task
from verifiers.sandbox import Sandbox, SandboxError

__all__ = ["backend"]  # a fixture

REVERSE = {
    "javascript": "const s = require('fs').readFileSync(0, 'utf8').trim();\nconsole.log([...s].reverse().join(''));",
    "c": '#include <stdio.h>\n#include <string.h>\nint main() { char s[99]; scanf("%98s", s);\n'
    'for (int i = strlen(s); i--;) putchar(s[i]); puts(""); }',
    "c++": "#include <iostream>\n#include <algorithm>\nint main() { std::string s; std::cin >> s;\n"
    "std::reverse(s.begin(), s.end()); std::cout << s << '\\n'; }",
    "java": "import java.util.*;\npublic class Reverse { public static void main(String[] a) {\n"
    "System.out.println(new StringBuilder(new Scanner(System.in).next()).reverse()); } }",
    "bash": 'read s; echo "$s" | rev',
}
TOOLS = {"javascript": "node", "c": "gcc", "c++": "g++", "java": "java", "bash": "bash"}


@pytest.fixture(params=TOOLS)
def language(request: pytest.FixtureRequest, backend: Sandbox) -> str:
    if backend.find(TOOLS[request.param]) is None:
        pytest.skip(f"{TOOLS[request.param]} is not installed")
    if backend.tier == "flat" and request.param in ("c", "c++", "bash"):
        pytest.skip("this language needs the namespaces tier")
    return request.param


def test_language_passes_and_fails(language):
    row = {"language": language, "stdio": [{"stdin": "abc", "stdout": "cba"}], "time_limit_s": 30}
    verdict = judge(REVERSE[language], row, language)
    assert verdict.status == "pass", verdict
    assert judge(REVERSE[language], {**row, "stdio": [{"stdin": "abc", "stdout": "abc"}]}, language).status == "fail"


def test_broken_program_fails(language):
    row = {"language": language, "stdio": [{"stdin": "abc", "stdout": "cba"}], "time_limit_s": 30}
    assert judge("this is ( no program", row, language).status == "fail"


def test_endless_program_times_out(language):
    loops = {
        "javascript": "for (;;);",
        "c": "int main() { for (;;); }",
        "c++": "int main() { for (volatile int i = 0;;) i = i; }",
        "java": "public class M { public static void main(String[] a) { while (true); } }",
        "bash": "while :; do :; done",
    }
    row = {"language": language, "stdio": [{"stdin": "", "stdout": ""}], "time_limit_s": 1}
    assert judge(loops[language], row, language).status == "timeout"


def test_memory_of_other_languages_is_watched(language):
    floods = {
        "javascript": "const k = []; for (let i = 0; i < 60; i++) k.push(Buffer.alloc(16 << 20, 1));",
        "c": "#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n"
        "int main() { for (int i = 0; i < 60; i++) { memset(malloc(16 << 20), 1, 16 << 20); usleep(5000); } }",
    }
    if language not in floods:
        pytest.skip("covered by the two kinds of runtime")
    row = {"language": language, "stdio": [{"stdin": "", "stdout": ""}], "time_limit_s": 20, "memory_limit_mb": 64}
    verdict = judge(floods[language], row, language)
    assert verdict.status == "fail" and "memory" in verdict.detail, verdict


def test_other_languages_are_jailed_too(language):
    reads = {
        "javascript": "require('fs').readFileSync('/etc/passwd')",
        "c": '#include <stdio.h>\nint main() { return fopen("/etc/passwd", "r") == 0; }',
        "c++": '#include <cstdio>\nint main() { return fopen("/etc/passwd", "r") == 0; }',
        "java": "public class M { public static void main(String[] a) throws Exception {\n"
        'new java.io.FileReader("/etc/passwd").close(); } }',
        "bash": "exec < /etc/passwd",
    }
    row = {"language": language, "stdio": [{"stdin": "", "stdout": ""}], "time_limit_s": 30}
    assert judge(reads[language], row, language).status == "fail"


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool, path=None: None)
    row = {"language": "c", "stdio": [{"stdin": "", "stdout": ""}]}
    verdict = judge("int main() {}", row, "c")
    assert verdict.status == "error" and "'gcc' is not installed" in verdict.detail


def test_flat_tier_names_what_it_cannot_run():
    try:
        sandbox = Sandbox("flat", workers=1)
    except SandboxError as error:
        pytest.skip(str(error))
    with sandbox:
        row = read_task({"language": "bash", "stdio": [{"stdin": "", "stdout": ""}]})
        with pytest.raises(MissingTool, match="'flat' tier"):
            check(sandbox, "echo", row)


def test_weak_verdicts_are_labelled_and_separate(language):
    if language != "javascript":
        pytest.skip("one language is enough")
    row = {"language": "javascript", "tests": ["if (add(1, 2) !== 3) throw 'wrong'"], "time_limit_s": 20}
    response = "```js\nfunction add(a, b) { return a + b }\n```"
    assert code(response, row).status == "error"
    verdict = code_weak(response, row)
    assert verdict.status == "pass" and verdict.detail.startswith("weak")
    verdict = code_weak("```js\nfunction add(a, b) { return a * b }\n```", row)
    assert verdict.status == "fail" and "weak" in verdict.detail

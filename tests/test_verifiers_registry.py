"""Verdicts, registration, lookup, and the call that turns exceptions into verdicts."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import verifiers
from verifiers import Verdict, get_verifier, list_verifiers, register_verifier, verifier_info, verify
from verifiers import registry as registry_module


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(registry_module, "_registered", dict(registry_module._registered))


def by_path(response, row):
    return Verdict(1.0, "pass")


CONTRADICTIONS = [
    *[(1.0, "error"), (0.0, "pass"), (None, "pass"), (None, "fail"), (1.5, "pass"), (-0.1, "fail"), (True, "pass")],
    *[(float("nan"), "fail"), (0.5, "unparsed"), (1.0, "ok"), ("1", "pass")],
]


@pytest.mark.parametrize(("score", "status"), CONTRADICTIONS)
def test_contradicting_verdicts_are_refused(score, status):
    with pytest.raises(ValueError):
        Verdict(score, status)


def test_importing_verifiers_loads_only_the_standard_library():
    heavy = {"torch", "transformers", "sympy", "math_verify", "numpy", "trl", "datasets", "rich"}
    code = f"import sys, verifiers, verifiers.math, verifiers.format; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_unknown_names_suggest_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'math'"):
        get_verifier("maths")
    with pytest.raises(ValueError, match="did you mean 'by_path'"):
        get_verifier(f"{__name__}:by_pat")
    with pytest.raises(ValueError, match="cannot import 'no_module'"):
        get_verifier("no_module:f")


def test_a_function_is_found_by_name_and_by_path(registry):
    register_verifier("mine", columns=("answer",), optional=("unit",))(by_path)
    assert get_verifier("mine") is by_path and "mine" in list_verifiers()
    assert get_verifier(f"{__name__}:by_path") is by_path
    assert verifier_info("mine").columns == ("answer",) and verifier_info("mine").optional == ("unit",)


def test_a_name_is_taken_once(registry):
    register_verifier("mine")(by_path)
    register_verifier("mine")(by_path)
    with pytest.raises(ValueError, match="already registered"):
        register_verifier("mine")(lambda response, row: Verdict(1.0, "pass"))
    with pytest.raises(ValueError, match="already registered"):
        register_verifier("math")(by_path)


def test_exceptions_and_wrong_returns_are_unscored():
    def broken(response, row):
        raise ZeroDivisionError("a bug")

    verdict = verify(broken, "x", {})
    assert (verdict.score, verdict.status) == (None, "error") and "ZeroDivisionError: a bug" in verdict.detail
    assert verdict.seconds > 0
    assert verify(lambda response, row: 1.0, "x", {}).status == "error"


def test_a_row_without_a_needed_column_is_unscored_and_names_it():
    verdict = verify("math", "72", {"question": "?"})
    assert verdict.status == "error" and "'answer'" in verdict.detail and "question" in verdict.detail


def test_every_builtin_verifier_states_its_purpose():
    for name in list_verifiers():
        assert verifier_info(name).summary, name


def test_every_builtin_verifier_names_its_columns_and_has_examples():
    for name in registry_module._BUILTIN_MODULES:
        info = verifier_info(name)
        text = f"{info.fn.__doc__}{sys.modules[info.fn.__module__].__doc__}"
        assert [column for column in (*info.columns, *info.optional) if f"`{column}`" not in text] == [], name
        assert doctest.DocTestParser().get_examples(info.fn.__doc__ or ""), name


def test_docstring_examples():
    assert doctest.testmod(verifiers) == doctest.TestResults(failed=0, attempted=2)


@pytest.mark.parametrize("module", sorted(set(registry_module._BUILTIN_MODULES.values()) - {"verifiers.code"}))
def test_docstring_examples_of_built_in_verifiers(module):  # those of `code` need a sandbox and run beside its tests
    for package in {"verifiers.json": ["jsonschema"], "verifiers.text": ["sacrebleu"]}.get(module, []):
        pytest.importorskip(package)
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


def test_the_page_names_every_built_in_verifier_with_its_columns():
    lines = (Path(__file__).parent.parent / "docs" / "verifiers.md").read_text().split("\n## ")[0].splitlines()
    for name in registry_module._BUILTIN_MODULES:
        (line,) = [line for line in lines if line.startswith("| ") and f"`{name}`" in line.split("|")[1]]
        info = verifier_info(name)
        wanted = info.columns if name.startswith("code") else (*info.columns, *info.optional)
        assert not [column for column in wanted if f"`{column}`" not in line], line

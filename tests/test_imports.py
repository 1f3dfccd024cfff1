"""Imports go one way, and light packages stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "verifiers": {"alignment", "rewards", "recipes", "torch", "transformers", "trl"},
    "rewards": {"recipes"},
    "alignment": {"verifiers", "rewards", "recipes"},
}
COMPOSITION_ROOT = {"alignment/cli.py"}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        name = str(path.relative_to(ROOT))
        if name in COMPOSITION_ROOT or name.startswith("alignment/commands/"):
            continue
        wrong = {n for n in imported_packages(path) if n.split(".")[0] in FORBIDDEN[package]}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_inside_alignment_lower_layers_do_not_import_higher_ones():
    higher = {"alignment.algorithms", "alignment.trainer", "alignment.cli"}
    for layer in ("losses", "packing", "chat", "models", "rollout", "data"):
        for path in (ROOT / "alignment" / layer).rglob("*.py"):
            wrong = {n for n in imported_packages(path) if any(n.startswith(h) for h in higher)}
            assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"
    trainer = imported_packages(ROOT / "alignment" / "trainer.py")
    assert not {n for n in trainer if n.startswith("alignment.algorithms")}


def test_trl_is_used_through_its_public_names_only():
    for package in ("alignment", "rewards", "verifiers", "recipes"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl":
                    assert node.module == "trl", f"{path}: {node.module}"
                    assert not [a.name for a in node.names if a.name.startswith("_")]


def test_importing_verifiers_loads_neither_torch_nor_transformers():
    code = "import sys, verifiers; print([m for m in ('torch', 'transformers', 'sympy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"

"""Recipes: the scripts that put the toolkit's parts together.

Importing this package checks that `alignment`, `rewards` and `verifiers` are the ones that belong to it. The names are
common, and a package of the same name earlier on the path would be used instead and fail much later.
"""

from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _check_siblings() -> None:
    for name in ("alignment", "rewards", "verifiers"):
        spec = find_spec(name)  # finds a top-level package without importing it
        found = (spec.submodule_search_locations or [spec.origin or "built-in"]) if spec else []
        places = [str(Path(p).resolve()) for p in found]
        ours = _HERE.parent / name
        if places[:1] == [str(ours)]:
            continue
        if not places:
            raise ImportError(f"package {name!r} not found; it should be at {ours}. Reinstall alignment-toolkit.")
        raise ImportError(
            f"Python would import {name!r} from {places[0]}, which is not the {name!r} of this toolkit at {ours}. "
            f"Remedy: uninstall the package that provides {places[0]}, or put {_HERE.parent} before it on PYTHONPATH; "
            "an environment of its own for the toolkit avoids the clash."
        )


_check_siblings()

"""HTML pages that need nothing else, for reports and verdicts: style and script inline, no external reference.

The content policy allows the one inline script by its hash and nothing else, so text sampled from a model cannot run or
load anything, escaped or not.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignment.metrics import replace_file

MAX_CHARACTERS = 8000
_FOLDER = Path(__file__).parent


def write_page(path: Path, template: Path, script: Path, values: Mapping[str, Any]) -> None:
    """Writes the HTML file `path`, or leaves an older one when something fails.

    template: extends page.html.jinja. script: runs before page.js, whose functions it may use. values: what the
    template reads, with `title`, `when` (a line below it, may be empty) and `headline` ({"value", "label"} or empty).
    """
    loader = FileSystemLoader([template.parent, _FOLDER])
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["is_long"] = is_long
    own, shared = script.read_text(encoding="utf-8"), (_FOLDER / "page.js").read_text(encoding="utf-8")
    code = f'"use strict";\n\n{own}\n{shared}'
    page = templates.get_template(template.name).render(
        **values,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=code,
        script_hash=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page)


def is_long(text: str) -> bool:
    """Whether the page shows the text cut off at first."""
    return len(text) > 400 or text.count("\n") > 6


def shorten(text: str, limit: int = MAX_CHARACTERS) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"

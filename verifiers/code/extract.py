"""The program in a response: the last fenced block outside the thinking block."""

from __future__ import annotations

import re

from verifiers.response import fenced_blocks, outside_thinking

ALIASES: dict[str, tuple[str, ...]] = {
    "python": ("python", "py", "python3"),
    "javascript": ("javascript", "js", "node"),
    "c": ("c",),
    "c++": ("c++", "cpp", "cxx"),
    "java": ("java",),
    "bash": ("bash", "sh", "shell"),
}


def as_fenced(source: str, language: str = "python") -> str:
    """A response that is this program; one that is fenced already comes back as it is.

    >>> extract_code(as_fenced("x = 2")).strip()
    'x = 2'
    """
    if fenced_blocks(source):
        return source
    fence = max(re.findall(r"`{3,}", source), default="``") + "`"
    return f"{fence}{language}\n{source.rstrip()}\n{fence}"


def extract_code(response: str, language: str = "python") -> str | None:
    """The last block tagged with the language; else the last without a tag; else the last. None without any, or when
    it is blank.

    >>> extract_code("<think>```python\\n1\\n```</think> So:\\n```python\\nx = 2\\n```\\nIt prints\\n```\\n2\\n```")
    'x = 2\\n'
    """
    blocks = fenced_blocks(outside_thinking(response) or "")
    for wanted in (ALIASES[language], ("",)):
        tagged = [content for tag, content in blocks if tag in wanted]
        if tagged:
            return tagged[-1] if tagged[-1].strip() else None
    return blocks[-1][1] if blocks and blocks[-1][1].strip() else None

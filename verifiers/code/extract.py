"""The program in a response: the last fenced block outside the thinking block."""

from __future__ import annotations

import re

ALIASES: dict[str, tuple[str, ...]] = {
    "python": ("python", "py", "python3"),
    "javascript": ("javascript", "js", "node"),
    "c": ("c",),
    "c++": ("c++", "cpp", "cxx"),
    "java": ("java",),
    "bash": ("bash", "sh", "shell"),
}
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


def outside_thinking(response: str) -> str:
    """What follows the last `</think>`; nothing when a thinking block never ends."""
    _, found, after = response.rpartition("</think>")
    if found:
        return after if "<think>" not in after else after.partition("<think>")[0]
    return response.partition("<think>")[0]


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language tag, content) of every fenced block; an unclosed one ends with the text, as in CommonMark."""
    blocks = []
    position = 0
    while opening := _FENCE.search(text, position):
        if "`" in opening[2]:  # code within a line
            position = opening.end()
            continue
        fence, tag = opening[1], opening[2].lower().split()[:1]
        closing = re.compile(rf"^ {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t\r]*$", re.MULTILINE)
        end = closing.search(text, opening.end())
        blocks.append(("".join(tag), text[opening.end() + 1 : end.start() if end else len(text)]))
        position = end.end() if end else len(text)
    return blocks


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
    blocks = fenced_blocks(outside_thinking(response))
    for wanted in (ALIASES[language], ("",)):
        tagged = [content for tag, content in blocks if tag in wanted]
        if tagged:
            return tagged[-1] if tagged[-1].strip() else None
    return blocks[-1][1] if blocks and blocks[-1][1].strip() else None

"""Constraints on the form of a response: its Markdown, its parts, JSON, and what must stand in it."""

from __future__ import annotations

import json
import re

from verifiers.ifeval.constraints import compare, compare_exactly, count, register_constraint, text_value

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# The patterns take time in proportion to the text, whatever it holds.
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*[^\[\]\s][^\[\]\n]*\]")
_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,3})(?![\s*])[^*\n]*(?<!\s)\1(?!\*)")
_DIVIDER = re.compile(r"([-*])(?:\s*\1){2,}")
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)


@register_constraint("detectable_content:number_placeholders", {"num_placeholders": count})
def number_placeholders(text: str, num_placeholders: int) -> str:
    """At least so many placeholders, such as [address]."""
    return compare(len(_PLACEHOLDER.findall(text)), "at least", num_placeholders, "placeholders")


@register_constraint("detectable_content:postscript", {"postscript_marker": text_value})
def postscript(text: str, postscript_marker: str) -> str:
    """The marker stands somewhere, in any case; P.S. and P.P.S may have spaces inside."""
    pattern = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}.get(postscript_marker)
    found = re.search(pattern or re.escape(postscript_marker.lower()), text.lower())
    return "" if found else f"no postscript {postscript_marker!r}"


@register_constraint("detectable_format:number_bullet_lists", {"num_bullets": count})
def number_bullet_lists(text: str, num_bullets: int) -> str:
    """Exactly so many lines that begin with a bullet, * or -, and say something."""
    return compare_exactly(sum(map(_is_bullet, text.split("\n"))), num_bullets, "bullet points")


@register_constraint("detectable_format:constrained_response")
def constrained_response(text: str) -> str:
    """One of ANSWERS stands in the text."""
    return "" if any(answer in text for answer in ANSWERS) else f"none of {', '.join(map(repr, ANSWERS))}"


@register_constraint("detectable_format:number_highlighted_sections", {"num_highlights": count})
def number_highlighted_sections(text: str, num_highlights: int) -> str:
    """At least so many stretches inside a line in *, ** or *** (Markdown's emphasis)."""
    return compare(len(_HIGHLIGHT.findall(text)), "at least", num_highlights, "highlighted sections")


@register_constraint("detectable_format:multiple_sections", {"section_spliter": text_value, "num_sections": count})
def multiple_sections(text: str, section_spliter: str, num_sections: int) -> str:
    """At least so many headings of the form "Section 1", anywhere, in the case that is asked for."""
    found = re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)
    return compare(len(found), "at least", num_sections, f"sections marked {section_spliter!r}")


@register_constraint("detectable_format:json_format")
def json_format(text: str) -> str:
    """The whole text, or what stands in the fence around it, is JSON; NaN is none."""
    whole = text.strip()
    opening = _FENCE.match(whole)
    inside = whole[opening.end() if opening else 0 :].removesuffix("```")
    try:
        json.loads(inside, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"[:200]
    return ""


@register_constraint("detectable_format:title")
def title(text: str) -> str:
    """Something stands in <<double angular brackets>> on one line."""
    for line in text.split("\n"):
        _, opening, rest = line.partition("<<")
        inside, closing, _ = rest.rpartition(">>")
        if opening and closing and inside.strip("<> \t\r"):
            return ""
    return "no title in <<double angular brackets>>"


@register_constraint("combination:two_responses")
def two_responses(text: str) -> str:
    """Two different texts with ****** between them; one more divider is allowed at either end."""
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return "a response between two dividers is empty"
    given = [part for part in parts if part]
    if len(given) == 2 and given[0] == given[1]:
        return "the two responses are the same"
    return compare_exactly(len(given), 2, "responses")


@register_constraint("combination:repeat_prompt", {"prompt_to_repeat": text_value})
def repeat_prompt(text: str, prompt_to_repeat: str) -> str:
    """The text begins with the request, in any case."""
    begins = text.strip().lower().startswith(prompt_to_repeat.lower())
    return "" if begins else "it does not begin with the request"


def _is_bullet(line: str) -> bool:
    line = line.strip()
    marker, rest = line[:1], line[1:]
    if marker not in ("*", "-") or not rest.strip() or rest.startswith(marker) or _DIVIDER.fullmatch(line):
        return False
    # "*Note:* text" is emphasis: nothing between the marker and the word, and a star that closes it.
    return not (marker == "*" and not rest[0].isspace() and rest.count("*") % 2)


def _no_json(name: str) -> float:
    raise ValueError(f"{name} is no JSON")

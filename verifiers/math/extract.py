r"""Reading the final answer out of a response.

The rule, first match wins, on the text outside the thinking block:

1. the last `\boxed{…}` (or `\fbox{…}`, or `\boxed x`) with matched braces; an unbalanced last box is no answer;
2. the last line that holds `#### x`;
3. the text after the last "final answer is", "answer is", "answer:" or the like, up to the end of its sentence;
4. the whole text, when it is one short line that reads as an answer by itself;
5. the last display or inline formula (`$…$`, `\(…\)`, `\[…\]`), when nothing but punctuation or a unit follows it;
6. the last number, when it stands alone, that is, when it is not an operand of an expression.

Rules 5 and 6 take nothing that is denied, approximate, a bound or the last of several ("not 5", "about 5", "6 or 5").
"""

from __future__ import annotations

import re

from verifiers.response import outside_thinking

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_PHRASE = re.compile(
    r"(?:final\s+answer|correct\s+answer|answer|result|solution)(?:\s+\w+){0,3}?\s*(?:\*\*)?\s*"
    r"(?:\bis\b(?:\s*equal\s+to)?(?:\s*:)?|:|=)\s*(?:\*\*)?\s*",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"[-+−]?(?:[$€£]\s*)?(?:(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?(?:\s*%)?", re.ASCII
)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")
_BOLD = re.compile(r"(?<![\w)}*])\*\*(?=[^\s*])([^*\n]+)(?<=[^\s*])\*\*(?![\w({*])")
_NOT_STATED = re.compile(
    r"(?:\b(?:not|cannot be|than|least|most|about|approximately|roughly|around|nearly|almost)|n't(?: be)?|[≈~<>≤≥≠]"
    r"|[\d$)]\s*,?\s*or(?:\s+(?:maybe|perhaps|possibly))?)\s*$|\d[ \xa0]$",
    re.IGNORECASE,
)
_DENIED = re.compile(r"[\s$]*(?:is|was)(?:n't|\s+(?:not|wrong|incorrect))\b")
_WHOLE_MAX = 200
_TAIL_MAX = 2000  # rules 3, 5 and 6 look no further back; bounds their regular expressions


def extract_answer(response: str) -> str | None:
    """The final answer as written, or None. Expressions are not interpreted here."""
    text = outside_thinking(response)
    if text is None or not text.strip():
        return None
    boxes = list(_BOX.finditer(text))
    if boxes:
        return _box_content(text, boxes[-1].end())
    hashes = _HASHES.findall(text)
    if hashes:
        return hashes[-1].strip() or None
    tail = text[-_TAIL_MAX:]
    plain = _BOLD.sub(r"\1", tail)
    return _after_phrase(tail) or _whole(text) or _last_formula(plain) or _last_number(plain)


def _box_content(text: str, start: int) -> str | None:
    if start >= len(text):
        return None
    if text[start] != "{":
        match = re.match(r"-?[\w.]+", text[start:])
        return match.group() if match else None
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "{}" and text[i - 1] != "\\":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start + 1 : i].strip() or None
    return None


def _after_phrase(text: str) -> str | None:
    matches = list(_PHRASE.finditer(text))
    if not matches:
        return None
    rest = text[matches[-1].end() :].lstrip()
    end = _SENTENCE_END.search(rest)
    answer = (rest[: end.start()] if end else rest).strip().removesuffix("**").strip()
    formula = _FORMULA.match(answer)
    if formula and not re.search(r"[\d\\]", answer[formula.end() :]):
        return _group(formula)
    return answer or None


def _whole(text: str) -> str | None:
    text = text.strip()
    if len(text) > _WHOLE_MAX or "\n" in text or re.search(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}\s+[A-Za-z]{2,}", text):
        return None
    # A sentence ("Paul has 5 apples") starts with a word; an answer with a unit ("5 apples") does not.
    if re.match(r"[A-Za-z]{2,}[,:]?\s+\S|[A-Za-z]\s+[A-Za-z]{2,}", text) and re.search(r"\d", text):
        return None
    return text


def _last_formula(text: str) -> str | None:
    last = next(reversed(list(_FORMULA.finditer(text))), None)
    if last is None or re.search(r"[\d\\=+*/^]", text[last.end() :]) or not _is_stated(text, last):
        return None
    return _group(last)


def _is_stated(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - 40) : match.start()]
    return not _NOT_STATED.search(before) and not _DENIED.match(text, match.end())


def _group(match: re.Match[str]) -> str | None:
    return next((g.strip() for g in match.groups() if g), None)


def _last_number(text: str) -> str | None:
    last = next(reversed(list(_NUMBER.finditer(text))), None)
    if last is None:
        return None
    before = text[: last.start()].rstrip()
    glued = last.start() > 0 and text[last.start() - 1].isalnum()
    operand_before = re.search(r"(?:[-+−*/^_{\\(×÷·]|[\d)],)$", before[-2:])
    operand_after = re.match(r"[A-Za-z\\{]|\s*[+*/^_}!√]", text[last.end() :])
    if glued or operand_before or operand_after or not _is_stated(text, last):
        return None
    return last.group().strip()

r"""From the text of an answer to tokens: typography removed, thousands separators joined, Unicode mapped to LaTeX."""

from __future__ import annotations

import re
from typing import NamedTuple

from verifiers.math.words import FUNCTIONS

MAX_LENGTH = 2000
MAX_NESTING = 40


class MathSyntaxError(ValueError):
    """The text is not an answer this parser reads."""


class Token(NamedTuple):
    """kind: num, word (ASCII letters), cmd (LaTeX command without backslash), text (of \\text{…}), op, sep, env."""

    kind: str
    value: str
    spaced: bool  # white space stands before it


_UNICODE = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
    "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "±": r"\pm ", "√": r" sqrt ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "°": r"\degree ", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ",
    "ℝ": r"\mathbb{R}", "≈": r"\approx ", "…": r"\ldots ", "’": "'", "£": r"\pounds ", "€": r"\euro ", "¢": " cents ",
    "\u00a0": " ", "％": "%", "，": ",", "（": "(", "）": ")", "：": ":",
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(_UNICODE)
_ARGUMENT = r"\{((?:[^{}]|\\[{}])*)\}"
_SPACING = re.compile(
    r"\\(?:left|right|middle|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|displaystyle|textstyle|limits|qquad|quad|"
    r"mathstrut|strut|phantom\{[^{}]*\})(?![A-Za-z])|(?<!\\)\\[;: >]|~|&(?=\s*=)"
)
_STYLE = re.compile(r"\\(?:mathbf|boldsymbol|bm|mathit|mathcal|mathsf|textstyle|ensuremath|boxed|fbox)\s*" + _ARGUMENT)
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|textnormal|mathrm|mbox|hbox|operatorname\*?|rm)\s*" + _ARGUMENT
)
_LATEX_THOUSANDS = re.compile(r"(?<![\d.])([1-9]\d{0,2})((?:(?:\{,\}|\\,|,\\!|\\!,|\\ |\u2009)\d{3})+)(?!\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/] )(?<![\d.,/])([1-9]\d{0,2})((?: \d{3})+)(?![\d/]| \d)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))", re.ASCII)
_DOTTED = re.compile(r"(\d*\.\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", re.ASCII)
_FRACTIONS = re.compile(r"\\[dtcs]frac(?![A-Za-z])")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<env>\\(?:begin|end)\s*\{[A-Za-z]+\*?\}(?:\{[lcr|]*\})?)
    |(?P<text>\x01[^\x02]*\x02)
    |(?P<rows>\\\\)
    |\\(?P<cmd>[A-Za-z]+|[{}%$|\#&_])
    |(?P<num>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4}(?![\w.]))?)
    |(?P<word>[A-Za-z]+)
    |(?P<op>\*\*|<=|>=|!=|==|[-+*/^_=<>()\[\]{}|!%,;:'&$])""",
    re.VERBOSE | re.ASCII,
)
_THOUSANDS = re.compile(r"([1-9]\d{0,2})((?:,\d{3})+)(?![\d]|,\d)(\.\d+)?", re.ASCII)


def strip_typography(text: str) -> str:
    """The answer without wrappers (`$…$`, `**…**`), spacing commands and a closing full stop."""
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise MathSyntaxError(f"longer than {MAX_LENGTH} characters")
    text = text.translate(_UNICODE_TABLE)
    changed = True
    while changed:
        stripped = re.sub(r"(?<!\\)[.,;:]+$", "", text).strip()
        for start, end in _WRAPPERS:
            inner = stripped[len(start) : -len(end)]
            if stripped.startswith(start) and stripped.endswith(end) and inner and start not in inner:
                stripped = inner.strip()
        changed = stripped != text
        text = stripped
    text = _LATEX_THOUSANDS.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = _SPACED_THOUSANDS.sub(lambda m: m[1] + m[2].replace(" ", ""), text)
    text = _DOTTED.sub(lambda m: rf"{m[1]}\overline{{{m[2]}{m[3] or ''}{m[4] or ''}}}", text)
    text = _REPEATING.sub(_repeating, text)
    text = _FRACTIONS.sub(r"\\frac", text.replace(r"\!", "").replace(r"\,", " ").replace("\u2009", " "))
    text = _SPACING.sub(" ", text).replace("{,}", ",")
    return _unwrap(text).strip()


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` is 0.1 + 6/90."""
    whole, fixed, period = match[1] or "0", match[2], match[3] or match[4]
    nines = int("9" * len(period) + "0" * len(fixed))
    return f"({int(whole + fixed) * (10 ** len(period) - 1) + int(period)}/{nines})"


def _unwrap(text: str) -> str:
    r"""`\mathbf{x}` becomes x and `\text{cm}` a text token; from the inside out, so nesting works."""
    for _ in range(MAX_NESTING):
        text, styles = _STYLE.subn(r"{\1}", text)
        text, texts = _TEXT.subn(_text_token, text)
        if not styles and not texts:
            return text
    raise MathSyntaxError(f"nested more than {MAX_NESTING} deep")


def _text_token(match: re.Match[str]) -> str:
    content = re.sub(r"[\x01\x02]|\\(?=[%$])", "", match[1]).strip()
    is_unit = match.start() > 0 and match.string[match.start() - 1].isdigit() and content not in ("e", "i", "d", "x")
    if content in FUNCTIONS and len(content) > 1:
        return rf"\{content} "
    if re.fullmatch(r"[A-Za-z]", content) and is_unit:
        return f" \x01{content}\x02 "
    if re.search(r"\d|\\|^[A-Za-z]$|^$|^[^A-Za-z]*$", content):  # an expression, a single symbol, or punctuation
        return f" {content} "
    return f" \x01{content}\x02 "


def tokenize(text: str) -> list[Token]:
    """Tokens of a text that `strip_typography` returned. Raises MathSyntaxError at a character with no meaning here."""
    tokens: list[Token] = []
    position, spaced, depth, nesting = 0, False, 0, 0
    while position < len(text):
        thousands = _THOUSANDS.match(text, position) if depth == 0 else None
        if thousands and (position == 0 or not (text[position - 1].isdigit() or text[position - 1] in ".,")):
            number = thousands.group().replace(",", "")
            tokens.append(Token("num", number, spaced))
            position, spaced = thousands.end(), False
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise MathSyntaxError(f"unexpected character {text[position]!r}")
        position = match.end()
        kind, value = match.lastgroup or "", match.group()
        if kind == "space":
            spaced = True
            continue
        if kind == "cmd":
            value = match["cmd"]
        elif kind == "text":
            value = value[1:-1]
        opens = (kind == "op" and value in "([") or (kind == "cmd" and value in ("{", "langle"))
        closes = (kind == "op" and value in ")]") or (kind == "cmd" and value in ("}", "rangle"))
        depth += opens - closes
        nesting += (opens or value == "{") - (closes or value == "}")
        if nesting > MAX_NESTING:
            raise MathSyntaxError(f"nested more than {MAX_NESTING} deep")
        tokens.append(Token(kind, value, spaced))
        spaced = False
    return tokens

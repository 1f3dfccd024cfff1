"""The leaves of the answer grammar: numbers, words, brackets, commands, functions, matrices."""

from __future__ import annotations

import re
from typing import Any

from verifiers.math.tokens import MathSyntaxError, Token
from verifiers.math.words import (
    BASES,
    BRACKETS,
    DEGREE,
    FUNCTIONS,
    GREEK,
    MATRICES,
    MULTIPLIERS,
    NOT_AFTER_NUMBERS,
    NOT_UNITS,
    TRIGONOMETRIC,
    UNITS,
)

Node = tuple[Any, ...]


class AtomParser:
    """The token cursor and everything that starts with a distinct token; `Parser` adds what joins these."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.in_bars = False
        self.joined_by_or = False

    # -- tokens ---------------------------------------------------------------------------------------------------
    def peek(self, ahead: int = 0) -> Token | None:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else None

    def next_is(self, kind: str, *values: str, ahead: int = 0) -> bool:
        token = self.peek(ahead)
        return token is not None and token.kind == kind and token.value in values

    def take(self, kind: str, *values: str) -> bool:
        found = self.next_is(kind, *values)
        self.at += found
        return found

    def expect(self, kind: str, value: str) -> None:
        if not self.take(kind, value):
            raise MathSyntaxError(f"expected {value!r} at token {self.at}")

    # -- what Parser adds ------------------------------------------------------------------------------------------
    def items(self) -> list[Node]:
        raise NotImplementedError

    def joined(self, items: list[Node]) -> Node:
        raise NotImplementedError

    def sum(self) -> Node:
        raise NotImplementedError

    def power(self, after_value: bool = False) -> Node:
        raise NotImplementedError

    def starts_atom(self) -> bool:
        raise NotImplementedError

    # -- atoms ----------------------------------------------------------------------------------------------------
    def atom(self, after_value: bool) -> Node:
        token = self.peek()
        if token is None:
            raise MathSyntaxError("the text ends where a value should stand")
        self.at += 1
        if token.kind == "num":
            return self.number(token)
        if token.kind == "word":
            return self.word(token, after_value)
        if token.kind == "text":
            if not after_value:
                raise MathSyntaxError("words where a value should stand")
            self.no_change_of_number(token.value)
            return _quantity(token.value)
        if token.kind == "env":
            return self.matrix(token)
        if token.kind == "op" and token.value in "([{":
            return self.bracketed(token.value)
        if token.kind == "op" and token.value == "|" and not self.in_bars:
            return self.bars()
        if token.kind == "op" and token.value == "$":
            return ("mul", [self.power(), ("unit", "$")])
        if token.kind == "cmd":
            return self.command(token.value)
        raise MathSyntaxError(f"unexpected {token.value!r}")

    def number(self, token: Token) -> Node:
        if not self.take("op", "_"):
            return ("num", token.value)
        braced = self.take("op", "{")
        base = self.peek()
        self.at += 1
        if base is None or not token.value.isdigit():
            raise MathSyntaxError("a base must be a number")
        if braced:
            self.expect("op", "}")
        return based(token.value, BASES.get(base.value.lower(), base.value))

    def word(self, token: Token, after_value: bool) -> Node:
        word = token.value
        if word in FUNCTIONS or word == "sqrt":
            return self.command(word)
        if word in GREEK:
            return self.subscripted(word)
        if word.lower() in ("inf", "infinity"):
            return ("inf",)
        if len(word) == 1:
            return self.subscripted(word)
        if word.lower() in NOT_UNITS:
            raise MathSyntaxError(f"the word {word!r} where a value should stand")
        if after_value and word.lower() in MULTIPLIERS:
            return ("num", MULTIPLIERS[word.lower()])
        if after_value and (token.spaced or len(word) > 3 or word in UNITS):
            self.no_change_of_number(word)
            return _unit(word)
        if len(word) > 3:
            raise MathSyntaxError(f"the word {word!r} where a value should stand")
        return ("mul", [("sym", letter) for letter in word])

    def no_change_of_number(self, text: str) -> None:
        """The words of the token that was just taken are no unit when they change what stands before them."""
        first = text.lower().split()[:1]
        if NOT_AFTER_NUMBERS.intersection(first) and self.tokens[self.at - 2].kind not in ("word", "text"):
            raise MathSyntaxError(f"{text!r} changes the number before it")

    def subscripted(self, name: str) -> Node:
        if self.take("op", "_"):
            group = self.take("op", "{")
            token = self.peek()
            self.at += 1
            if token is None or token.kind not in ("num", "word", "text"):
                raise MathSyntaxError("a subscript must be a name or a number")
            if group:
                self.expect("op", "}")
            name = f"{name}_{token.value}"
        while self.take("op", "'"):
            name += "'"
        return ("sym", name)

    def bracketed(self, opening: str) -> Node:
        """After an opening bracket: a group, a tuple, an interval, or (plain braces around several items) a set."""
        bars, self.in_bars = self.in_bars, False
        items = self.items()
        self.in_bars = bars
        closing = self.peek()
        if (
            closing is None
            or closing.kind != "op"
            or closing.value not in ")]}"
            or (opening == "{") != (closing.value == "}")
        ):
            raise MathSyntaxError(f"the bracket {opening!r} is not closed")
        self.at += 1
        if len(items) == 1:
            if opening + closing.value in ("(]", "[)"):
                raise MathSyntaxError("brackets do not match")
            return items[0]
        if opening == "{":
            return ("set", items)
        if len(items) == 2 and opening + closing.value != "()":
            return ("interval", opening, items[0], items[1], closing.value)
        return ("tuple", items)

    def bars(self) -> Node:
        self.in_bars = True
        node = self.sum()
        self.expect("op", "|")
        self.in_bars = False
        return ("call", "abs", [node])

    def argument(self) -> Node:
        """The argument of a command: a braced group, or one digit, letter or command."""
        token = self.peek()
        if token is None:
            raise MathSyntaxError("a command without its argument")
        if token.kind == "num" and not (token.spaced and len(token.value) == 1) and token.value.isdigit():
            rest = token.value[1:]
            self.tokens[self.at : self.at + 1] = [Token("num", token.value[0], token.spaced)] + (
                [Token("num", rest, False)] if rest else []
            )
            self.at += 1
            return ("num", token.value[0])
        if token.kind == "op" and token.value == "{":
            self.at += 1
            items = self.items()
            self.expect("op", "}")
            if len(items) > 1:
                raise MathSyntaxError("several values in one argument")
            return items[0]
        return self.atom(after_value=False)

    def command(self, name: str) -> Node:
        if name == "frac":
            return ("div", self.argument(), self.argument())
        if name in ("binom", "dbinom", "tbinom"):
            return ("call", "binom", [self.argument(), self.argument()])
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK:
            return self.subscripted(name.removeprefix("var"))
        if name == "infty":
            return ("inf",)
        if name == "{":
            if (variable := self.peek()) and variable.kind == "word" and self.next_is("op", "|", ahead=1):
                self.at += 2
                return self.condition()
            items = [] if self.next_is("cmd", "}") else self.items()
            if len(items) == 1 and items[0][0] == "sym" and self.take("cmd", "mid"):
                return self.condition()
            self.expect("cmd", "}")
            return ("set", items)
        if name in ("emptyset", "varnothing"):
            return ("set", [])
        if name == "mathbb":
            letter = self.argument()
            if letter[1] not in ("R", "Q", "Z", "N", "C"):
                raise MathSyntaxError("an unknown set of numbers")
            return ("numset", letter[1])
        if name in ("vec", "overrightarrow", "overline", "bar"):
            return self.marked(name)
        if name in ("angle", "triangle"):
            token = self.peek()
            self.at += 1
            if token is None or token.kind not in ("num", "word"):
                raise MathSyntaxError("an angle needs a name")
            return ("sym", f"{name} {token.value}")
        if name == "langle":
            items = self.items()
            self.expect("cmd", "rangle")
            return ("tuple", items)
        if name in ("$", "pounds", "euro"):
            return ("mul", [self.power(), ("unit", name)])
        for function, (opening, closing) in BRACKETS.items():
            if name == opening:
                node = self.sum()
                self.expect("cmd", closing)
                return ("call", function, [node])
        raise MathSyntaxError(f"the command \\{name} is not read here")

    def condition(self) -> Node:
        """The rest of { x | condition }, which says it all."""
        items = self.items()
        self.expect("cmd", "}")
        return self.joined(items)

    def marked(self, mark: str) -> Node:
        r"""`\vec{v}` is named v and the segment `\overline{AB}` AB; `\bar{z}` is not z."""
        node = self.argument()
        letters = [node] if node[0] == "sym" else node[1]
        if any(letter[0] != "sym" for letter in letters):
            raise MathSyntaxError(f"a value under \\{mark}")
        if mark in ("overline", "bar") and (len(letters) == 1 or any(letter[1].islower() for letter in letters)):
            return ("sym", f"bar {''.join(letter[1] for letter in letters)}")
        return node

    def root(self) -> Node:
        index: Node | None = None
        if self.take("op", "["):
            index = self.sum()
            self.expect("op", "]")
        plain = self.tokens[self.at - 1].kind == "word"
        node = self.power() if plain else self.argument()
        return ("pow", node, ("div", ("num", "1"), index or ("num", "2")))

    def function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        if self.take("op", "_"):
            base = self.argument()
        if self.take("op", "^"):
            exponent = ("neg", self.power()) if self.take("op", "-") else self.argument()
        if self.next_is("op", "(", "{"):
            opening = self.tokens[self.at].value
            self.at += 1
            arguments = self.items()
            self.expect("op", ")" if opening == "(" else "}")
        else:
            factors = [self.power()]
            while self.starts_atom() and not self.next_is("cmd", *FUNCTIONS) and not self.next_is("text"):
                factors.append(self.power(after_value=True))
            arguments = [factors[0] if len(factors) == 1 else ("mul", factors)]
        if base is not None:
            arguments = [*arguments, base]
        if name in TRIGONOMETRIC:
            arguments = [_in_radians(argument) for argument in arguments]
        inverse = name in ("sin", "cos", "tan") and exponent == ("neg", ("num", "1"))
        if inverse:
            name, exponent = f"arc{name}", None
        if exponent is not None and exponent[0] == "neg":
            raise MathSyntaxError("a negative power of a function is ambiguous")
        node: Node = ("call", name, arguments)
        return node if exponent is None else ("pow", node, exponent)

    def matrix(self, opening: Token) -> Node:
        name = opening.value[opening.value.index("{") + 1 : opening.value.index("}")]
        if not opening.value.startswith("\\begin") or name not in MATRICES:
            raise MathSyntaxError(f"{opening.value} is not read here")
        rows: list[list[Node]] = [[]]
        while not ((token := self.peek()) and token.kind == "env"):
            if token is None:
                raise MathSyntaxError("a matrix is not closed")
            if self.take("rows", "\\\\"):
                rows.append([])
            elif not self.take("op", "&"):
                rows[-1].append(self.sum())
        self.at += 1
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) != 1 or f"{{{name}}}" not in token.value:
            raise MathSyntaxError("a matrix needs rows of one length")
        node: Node = ("matrix", rows)
        return ("call", "det", [node]) if name == "vmatrix" else node


def _in_radians(node: Any) -> Any:
    """The argument of a trigonometric function, with degree signs as numbers."""
    if isinstance(node, tuple) and len(node) == 2 and node[0] == "unit" and node[1].lower().rstrip("s") in DEGREE:
        return ("div", ("sym", "pi"), ("num", "180"))
    if isinstance(node, (tuple, list)):
        return type(node)(_in_radians(part) for part in node)
    return node


def _quantity(text: str) -> Node:
    """The text after a value: a unit, or a multiplier and a unit ("million dollars")."""
    first, _, rest = text.partition(" ")
    if first.lower() not in MULTIPLIERS:
        return _unit(text)
    factor: Node = ("num", MULTIPLIERS[first.lower()])
    return ("mul", [factor, _unit(rest)]) if rest.strip() else factor


def _unit(word: str) -> Node:
    if not NOT_UNITS.isdisjoint(re.findall(r"[a-z]+", word.lower().replace("'", ""))):
        raise MathSyntaxError(f"{word!r} is not a unit")
    return ("unit", word)


def based(digits: str, base: str) -> Node:
    """A numeral in a base from 2 to 36. Raises MathSyntaxError when a digit is not one of that base."""
    if not base.isdigit() or not 2 <= int(base[:3]) <= 36:
        raise MathSyntaxError(f"{base} is not a base")
    try:
        int(digits, int(base))
    except ValueError as error:
        raise MathSyntaxError(f"{digits} is not a numeral in base {base}") from error
    return ("base", digits, base)

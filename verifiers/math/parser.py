r"""Recursive descent over the tokens of an answer. The whole text must be read, or MathSyntaxError is raised.

The tree is made of tuples that survive JSON: ("num", "1.5"), ("sym", "x"), ("unit", "cm"), ("add"|"mul", [nodes]),
("neg"|"fact"|"pct", node), ("div"|"pow"|"pm"|"mp", a, b), ("call", name, [nodes]), ("base", digits, base), ("inf",),
and the structures ("tuple"|"list"|"set"|"union"|"ratio", [nodes]), ("interval", "(", low, high, "]"), ("minus", a, b),
("numset", "R"), ("matrix", [[nodes]]), ("rel", [nodes], [operators]), ("in", a, b), ("approx", exact, decimal), and
("either", [nodes]) for relations joined by "or".
"""

from __future__ import annotations

from verifiers.math.atoms import AtomParser, Node
from verifiers.math.tokens import MAX_NESTING, MathSyntaxError, tokenize
from verifiers.math.words import (
    DEGREE,
    NOT_ATOMS,
    RELATIONS,
)


def parse(text: str) -> Node:
    """The tree of a text that `strip_typography` returned."""
    return Parser(tokenize(text)).whole()


class Parser(AtomParser):
    # -- lists, relations, sets -----------------------------------------------------------------------------------
    def whole(self) -> Node:
        items = self.items()
        if self.at != len(self.tokens):
            raise MathSyntaxError(f"cannot read on from {self.tokens[self.at].value!r}")
        return self.joined(items)

    def items(self) -> list[Node]:
        items = [self.relation()]
        while self.separator():
            items.append(self.relation())
        return items

    def separator(self) -> bool:
        comma = self.take("op", ",", ";")
        if self.take("word", "or") or self.take("text", "or") or self.take("cmd", "vee", "lor"):
            self.joined_by_or = True
            return True
        return self.take("word", "and") or self.take("text", "and") or self.take("cmd", "wedge", "land") or comma

    def relation(self) -> Node:
        nodes, operators = [self.sets()], []
        while (token := self.peek()) and (operator := RELATIONS.get(token.value)) and token.kind in ("op", "cmd"):
            self.at += 1
            operators.append(operator)
            nodes.append(self.sets())
        if self.take("cmd", "in"):
            if operators:
                raise MathSyntaxError("a relation followed by \\in")
            return ("in", nodes[0], self.sets())
        if self.take("cmd", "approx"):
            return self.approximated(nodes, operators)
        return ("rel", nodes, operators) if operators else nodes[0]

    def approximated(self, nodes: list[Node], operators: list[str]) -> Node:
        """`x = \\sqrt{2} \\approx 1.41` is about the exact value on the left, which the decimal must agree with."""
        exact, decimal = nodes[-1], self.sum()
        if exact[0] in ("num", "sym") or (self.peek() and not self.next_is("op", ",")):
            raise MathSyntaxError("an approximate value is no exact answer")
        nodes = [*nodes[:-1], ("approx", exact, decimal)]
        return ("rel", nodes, operators) if operators else nodes[0]

    def sets(self) -> Node:
        nodes = [self.difference()]
        while self.take("cmd", "cup") or self.take("word", "U"):
            nodes.append(self.difference())
        return nodes[0] if len(nodes) == 1 else ("union", nodes)

    def difference(self) -> Node:
        node = self.ratio()
        while self.take("cmd", "setminus", "backslash"):
            node = ("minus", node, self.ratio())
        return node

    def ratio(self) -> Node:
        nodes = [self.sum()]
        while self.take("op", ":"):
            nodes.append(self.sum())
        return nodes[0] if len(nodes) == 1 else ("ratio", nodes)

    def joined(self, items: list[Node]) -> Node:
        relations = all(item[0] == "rel" for item in items)
        if len(items) == 1:
            return items[0]
        return ("either" if relations and self.joined_by_or else "list", items)

    # -- arithmetic -----------------------------------------------------------------------------------------------
    def sum(self) -> Node:
        self.depth += 1
        if self.depth > 2 * MAX_NESTING:
            raise MathSyntaxError(f"nested more than {MAX_NESTING} deep")
        node = self.signed()
        terms = [node]
        while True:
            if self.take("op", "+"):
                terms.append(self.signed())
            elif self.take("op", "-"):
                terms.append(("neg", self.signed()))
            elif self.next_is("cmd", "pm", "mp"):
                sign = "pm" if self.take("cmd", "pm") else "mp"
                self.take("cmd", "mp")
                left = terms[0] if len(terms) == 1 else ("add", terms)
                terms = [(sign, left, self.term())]
            else:
                break
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", terms)

    def signed(self) -> Node:
        if self.take("op", "-"):
            return ("neg", self.term())
        for sign in ("pm", "mp"):
            if self.take("cmd", sign):
                return (sign, ("num", "0"), self.term())
        self.take("op", "+")
        return self.term()

    def term(self) -> Node:
        node = self.mixed_number() or self.power()
        factors = list(node[1]) if node[0] == "mul" else [node]
        while True:
            if self.take("op", "*") or self.take("cmd", "times", "cdot", "ast"):
                factors.append(self.factor())
            elif self.take("op", "/") or self.take("cmd", "div"):
                left = factors[0] if len(factors) == 1 else ("mul", factors)
                factors = [("div", left, self.factor())]
            elif self.starts_atom():
                if self.next_is_number() and _is_unit(factors[-1]):
                    raise MathSyntaxError("a number after a unit is no factor: 5 feet 7 inches")
                part = self.power(after_value=True)
                factors.extend(part[1] if part[0] == "mul" else [part])
            else:
                return factors[0] if len(factors) == 1 else ("mul", factors)

    def next_is_number(self) -> bool:
        token = self.peek()
        return token is not None and (token.kind == "num" or self.next_is("cmd", "frac"))

    def factor(self) -> Node:
        if self.take("op", "-"):
            return ("neg", self.power())
        return self.power(after_value=True)

    def mixed_number(self) -> Node | None:
        r"""`1 1/2` and `1\frac{1}{2}` are 3/2; never a product."""
        whole, start = self.peek(), self.at
        if whole is None or whole.kind != "num" or not whole.value.isdigit():
            return None
        self.at += 1
        part: Node | None = None
        if self.next_is("cmd", "frac"):
            part = self.power()
        elif (top := self.peek()) and top.kind == "num" and top.spaced and self.next_is("op", "/", ahead=1):
            bottom = self.peek(2)
            if bottom and bottom.kind == "num":
                part, self.at = ("div", ("num", top.value), ("num", bottom.value)), self.at + 3
        plain = part and part[0] == "div" and all(p[0] == "num" and p[1].isdigit() for p in part[1:])
        if part and plain:
            return ("add", [("num", whole.value), part])
        self.at = start
        return None

    def starts_atom(self) -> bool:
        token = self.peek()
        if token is None:
            return False
        if token.kind == "num":
            return self.tokens[self.at - 1].kind != "num" and self.tokens[self.at - 1].value != "!"
        if token.kind == "word":
            return token.value not in ("and", "or") and token.value != "U"
        if token.kind == "text":
            return token.value not in ("and", "or")
        if token.kind == "op":
            return token.value in ("(", "[", "{") or (token.value == "|" and not self.in_bars)
        return token.kind == "cmd" and token.value not in NOT_ATOMS and token.value not in RELATIONS

    def power(self, after_value: bool = False) -> Node:
        base = self.postfix(self.atom(after_value))
        if not (self.take("op", "^") or self.take("op", "**")):
            return base
        if self.take("cmd", *DEGREE):
            return ("mul", [base, ("unit", "degree")])
        if self.next_is("op", "{") and self.next_is("cmd", *DEGREE, ahead=1) and self.next_is("op", "}", ahead=2):
            self.at += 3
            return ("mul", [base, ("unit", "degree")])
        if self.next_is("op", "'"):
            raise MathSyntaxError("a prime is not a power")
        return self.postfix(("pow", base, self.exponent()))

    def exponent(self) -> Node:
        self.depth += 1
        if self.depth > 2 * MAX_NESTING:
            raise MathSyntaxError(f"nested more than {MAX_NESTING} deep")
        negative = self.take("op", "-")
        node = self.power()
        self.depth -= 1
        return ("neg", node) if negative else node

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("op", "!"):
                node = ("fact", node)
            elif (
                self.take("op", "%")
                or self.take("cmd", "%")
                or self.take("word", "percent")
                or self.take("text", "percent")
            ):
                node = ("pct", node)
            elif self.take("cmd", "degree"):
                node = ("mul", [node, ("unit", "degree")])
            else:
                return node


def _is_unit(node: Node) -> bool:
    return node[0] == "unit" or (node[0] == "pow" and node[1][0] == "unit")

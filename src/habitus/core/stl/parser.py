"""The text syntax of formulas, read by precedence climbing.

From the loosest binding to the tightest; all but `->` and comparisons group to the left:

==============================  =============================================================
`a -> b`, `a implies b`         groups to the right
`a or b`, `|`, `||`
`a and b`, `&`, `&&`
`a until[2,5] b`, `U`           also without an interval
`always[0,10] a`, `G`           also without an interval; so `eventually`, `F` and `not`, `!`
`x >= y`, `<=`, `>`, `<`        of arithmetic
`x + y`, `x - y`
`x * y`, `x / y`
`-x`, `abs(x)`, `sqrt(x)`, `exp(x)`, `min(x, y)`, `max(x, y)`, numbers, names
==============================  =============================================================

An interval is [first, last] in steps, both included; [first, last) leaves the last out, [first, inf] has none. A colon
may stand for the comma.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from habitus.core.errors import FormulaError, suggest
from habitus.core.stl import formulas, temporal
from habitus.core.stl.expressions import FUNCTIONS, INFIX, Expression, Number, Operation, Signal
from habitus.core.stl.formulas import Formula

TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)"
    r"|(?P<mark>->|<=|>=|&&|\|\||[-+*/<>()\[\],:&|!]))"
)
SYNONYMS = {
    "implies": "->", "||": "or", "|": "or", "&&": "and", "&": "and", "U": "until", "G": "always", "F": "eventually",
    "!": "not",
}  # fmt: skip
COMPARISONS = (">=", "<=", ">", "<")
POWERS = {"->": 1, "or": 2, "and": 3, "until": 4, **dict.fromkeys(COMPARISONS, 5), "+": 6, "-": 6, "*": 7, "/": 7}
TEMPORAL = {"always": temporal.Always, "eventually": temporal.Eventually}
RESERVED = {"->", "or", "and", "until", "not", *TEMPORAL}
MAX_DEPTH = 60  # of nesting
MAX_LENGTH = 20_000  # of the text, in characters


class Token(NamedTuple):
    """A word of the text and its column, from 1."""

    kind: str
    text: str
    column: int


class Node(NamedTuple):
    """What was read, where it begins, how deeply it is nested, and whether it stood in parentheses."""

    value: Formula | Expression
    column: int
    depth: int = 1
    closed: bool = False


def parse(text: str, signals: Sequence[str] | None = None) -> Formula:
    """The formula that a text says; see the module for the syntax.

    Args:
        text: such as `always[0,20] (speed <= 5 and eventually[0,3] abs(x - goal) < 0.1)`.
        signals: the names that it may speak of, parameters included; any, if left out.

    Raises:
        FormulaError: with the column, where the text is no formula or speaks of an unknown signal.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"the text is longer than {MAX_LENGTH:,} characters; build the formula in parts.", "", 1)
    return _Parser(text, signals).formula()


def _tokens(text: str) -> list[Token]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise FormulaError(f"{text[at]!r} has no meaning here.", text, at + 1)
        kind = match.lastgroup or ""
        word = match.group(kind)
        found.append(Token(kind, SYNONYMS.get(word, word), match.start(kind) + 1))
        at = match.end()
    return [*found, Token("end", "", end + 1)]


class _Parser:
    """Reads tokens one after the other."""

    def __init__(self, text: str, signals: Sequence[str] | None):
        self.text, self.signals = text, signals
        self.tokens, self.at, self.depth = _tokens(text), 0, 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def fail(self, problem: str, column: int) -> NoReturn:
        raise FormulaError(problem, self.text, column)

    def take(self) -> Token:
        token = self.next
        self.at += token.kind != "end"
        return token

    def expect(self, *wanted: str) -> Token:
        if self.next.text not in wanted:
            self.fail(f"expected {' or '.join(map(repr, wanted))}, found {self.found()}.", self.next.column)
        return self.take()

    def found(self) -> str:
        return "the end" if self.next.kind == "end" else repr(self.next.text)

    def formula(self) -> Formula:
        """The whole text."""
        node = self.climb(1)
        if self.next.kind != "end":
            self.fail(f"expected an operator or the end, found {self.found()}.", self.next.column)
        return self.as_formula(node)

    def as_formula(self, node: Node) -> Formula:
        if isinstance(node.value, Formula):
            return node.value
        self.fail("this is a number where a formula should stand; compare it, as in x >= 0.", node.column)

    def as_number(self, node: Node) -> Expression:
        if isinstance(node.value, Expression):
            return node.value
        self.fail("this is a formula where a number should stand; join comparisons with 'and'.", node.column)

    def climb(self, least: int) -> Node:
        """The longest piece from here whose operators bind at least so tightly."""
        self.depth += 1
        self.check_depth(self.depth, self.next.column)
        left = self.prefix()
        while (power := POWERS.get(self.next.text, 0)) >= least:
            left = self.infix(left, self.take(), power)
        self.depth -= 1
        return left

    def check_depth(self, depth: int, column: int) -> None:
        """Keeps below the depth of Python's stack whatever walks over formulas."""
        if depth > MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} operators are nested here; build the formula in parts.", column)

    def node(self, value: Formula | Expression, column: int, *inside: Node) -> Node:
        """What was read from the nodes inside it."""
        depth = 1 + max(node.depth for node in inside)
        self.check_depth(depth, column)
        return Node(value, column, depth)

    def infix(self, left: Node, operator: Token, power: int) -> Node:
        symbol = operator.text
        interval = self.interval() if symbol == "until" else (0, None)
        right = self.climb(power if symbol == "->" else power + 1)
        if symbol in INFIX:
            return self.node(Operation(symbol, (self.as_number(left), self.as_number(right))), left.column, left, right)
        if symbol in COMPARISONS:
            compared = formulas.Compare(self.as_number(left), self.as_number(right), symbol)
            return self.node(compared, left.column, left, right)
        first, second = self.as_formula(left), self.as_formula(right)
        if symbol == "until":
            return self.node(temporal.Until(first, second, *interval), left.column, left, right)
        if symbol == "->":
            return self.node(formulas.Implies(first, second), left.column, left, right)
        kind = formulas.And if symbol == "and" else formulas.Or
        if isinstance(first, kind) and not left.closed:
            return Node(kind((*first.parts, second)), left.column, max(left.depth, right.depth + 1))
        return self.node(kind((first, second)), left.column, left, right)

    def prefix(self) -> Node:
        token = self.take()
        if token.text in TEMPORAL:
            interval, part = self.interval(), self.climb(5)
            return self.node(TEMPORAL[token.text](self.as_formula(part), *interval), token.column, part)
        if token.text == "not":
            part = self.climb(5)
            return self.node(formulas.Not(self.as_formula(part)), token.column, part)
        if token.text == "-":
            part = self.climb(8)
            return self.node(Operation("neg", (self.as_number(part),)), token.column, part)
        if token.text == "(":
            inside = self.climb(1)
            self.expect(")")
            return Node(inside.value, token.column, inside.depth, closed=True)
        if token.kind == "number":
            return Node(Number(float(token.text)), token.column)
        if token.kind == "name" and token.text not in RESERVED:
            return self.call(token) if self.next.text == "(" else self.named(token)
        found = "the end" if token.kind == "end" else repr(token.text)
        self.fail(f"expected a formula or a number, found {found}.", token.column)

    def named(self, token: Token) -> Node:
        """A signal."""
        if self.signals is not None and token.text not in self.signals:
            known = suggest(token.text, list(self.signals))
            self.fail(f"there is no signal {token.text!r}: {known}", token.column)
        return Node(Signal(token.text), token.column)

    def call(self, token: Token) -> Node:
        """A function of numbers."""
        if token.text not in FUNCTIONS:
            self.fail(f"{token.text!r} is no function; the functions are {', '.join(FUNCTIONS)}.", token.column)
        self.take()
        arguments = [self.climb(1)]
        for _ in range(FUNCTIONS[token.text][1] - 1):
            self.expect(",")
            arguments.append(self.climb(1))
        self.expect(")")
        return self.node(Operation(token.text, tuple(map(self.as_number, arguments))), token.column, *arguments)

    def interval(self) -> tuple[int, int | None]:
        """The steps of an operator; all of them if none are given."""
        if self.next.text != "[":
            return 0, None
        self.take()
        start = self.steps()
        self.expect(",", ":")
        last = self.next
        if last.text == "inf":
            self.take()
            self.expect("]", ")")
            return start, None
        end = self.steps()
        end -= self.expect("]", ")").text == ")"
        if end < start:
            self.fail(f"the interval ends at {end}, before it starts at {start}.", last.column)
        return start, end

    def steps(self) -> int:
        token = self.take()
        if not token.text.isdecimal() or len(token.text) > 9:
            self.fail(f"an interval is in whole steps from 0, but this is {token.text or 'the end'!r}.", token.column)
        return int(token.text)

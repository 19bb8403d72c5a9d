"""The expressions of `//@` lines: whole numbers, names, + - * / %, and ceil_div, min and max."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence

from convbackprop.arguments import known
from convbackprop.devices.compiler import SHARED_BYTES
from convbackprop.errors import InvalidArgument, LaunchFailed
from convbackprop.ladder.variant import ceil_div
from convbackprop.problem import ConvProblem

_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: dict[str, Callable[..., int]] = {"ceil_div": ceil_div, "min": min, "max": max}

#: CUDA's limits on a block's extents, the first of which its threads may not exceed either.
MAX_BLOCK = (1024, 1024, 64)


class InvalidLaunch(LaunchFailed):
    """A `//@` line asks for what CUDA does not launch on a problem; nothing was launched.

    Attributes
    ----------
    sentence : str
        The message without the problem.
    """

    def __init__(self, sentence: str, problem: ConvProblem | None = None) -> None:
        super().__init__(f"{sentence}; the problem is {problem}")
        self.sentence = sentence


class Expression:
    """A function of the names' values; no other Python can be reached from its text.

    Raises
    ------
    InvalidArgument
        The text is no expression; `where` (file and line) begins the message.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text.strip(), where
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except SyntaxError:
            raise InvalidArgument(f"{where}: {self.text!r} is not an expression") from None

    def __call__(self, names: Mapping[str, int]) -> int:
        """Return the value.

        Raises
        ------
        InvalidArgument
            It has a name, a function or Python that it may not have.
        InvalidLaunch
            It divides by zero.
        """
        try:
            return self._value(self._tree, names)
        except ZeroDivisionError:
            raise InvalidLaunch(f"{self.where}: {self.text} divides by zero{with_values([self], names)}") from None
        except TypeError as error:
            raise InvalidArgument(f"{self.where}: {self.text!r}: {error}") from None

    def _value(self, node: ast.expr, names: Mapping[str, int]) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name):
            return names[known(node.id, tuple(names), f"{self.where}: name")]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self._value(node.left, names), self._value(node.right, names))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            function = FUNCTIONS[known(node.func.id, tuple(FUNCTIONS), f"{self.where}: function")]
            return function(*(self._value(argument, names) for argument in node.args))
        part = ast.unparse(node)
        raise InvalidArgument(f"{self.where}: {part!r} is not allowed; use whole numbers, names, + - * / %")

    @property
    def names(self) -> list[str]:
        """The names in it, in their order."""
        found = [node for node in ast.walk(self._tree) if isinstance(node, ast.Name) and node.id not in FUNCTIONS]
        return [node.id for node in sorted(found, key=lambda node: node.col_offset)]


def with_values(expressions: Sequence[Expression], names: Mapping[str, int]) -> str:
    """Return " with N = 1, K = 2" for the names in some expressions; nothing where there are none."""
    used = dict.fromkeys(name for expression in expressions for name in expression.names if name in names)
    return f" with {', '.join(f'{name} = {names[name]:,}' for name in used)}" if used else ""


def comma_separated(text: str, where: str) -> list[Expression]:
    """Return the expressions between commas."""
    source = f"[{text.strip()}]"
    try:
        elements = ast.parse(source, mode="eval").body.elts  # type: ignore[attr-defined]
    except (SyntaxError, AttributeError):
        raise InvalidArgument(f"{where}: {text.strip()!r} is not a list of expressions with commas between") from None
    return [Expression(ast.get_source_segment(source, element) or "", where) for element in elements]


def grid_of(expressions: Sequence[Expression], names: Mapping[str, int]) -> tuple[int, ...]:
    """Return a grid's extents; an empty batch may have none. One that is too large is left to `Variant.refusal`."""
    grid = tuple(expression(names) for expression in expressions)
    if min(grid) < min(1, names["N"]):
        raise _refused("grid", expressions, grid, names, "it should have at least 1 block along each axis")
    return grid


def block_of(expressions: Sequence[Expression], names: Mapping[str, int]) -> tuple[int, ...]:
    """Return a block's extents."""
    block = tuple(expression(names) for expression in expressions)
    most = MAX_BLOCK[0]
    if min(block) < 1 or math.prod(block) > most or any(map(operator.gt, block, MAX_BLOCK)):
        wanted = f"it should have 1 to {most:,} threads, at most {MAX_BLOCK[2]} along z"
        raise _refused("block", expressions, block, names, wanted)
    return block


def shared_bytes_of(expressions: Sequence[Expression], names: Mapping[str, int]) -> int:
    """Return the bytes of dynamic shared memory that a block has; without an expression none."""
    shared = tuple(expression(names) for expression in expressions)
    if shared and not 0 <= shared[0] <= SHARED_BYTES:
        raise _refused("shared", expressions, shared, names, f"a block has at most {SHARED_BYTES:,} bytes")
    return shared[0] if shared else 0


def scratch_of(expressions: Sequence[Expression], names: Mapping[str, int]) -> int:
    """Return the accumulators of scratch memory; without an expression none."""
    found = [expression(names) for expression in expressions]
    for expression, value in zip(expressions, found, strict=True):
        if value < 0:
            raise _refused("scratch", [expression], [value], names, "it should be at least 0")
    return sum(found)


def _refused(
    what: str, expressions: Sequence[Expression], found: Sequence[int], names: Mapping[str, int], wanted: str
) -> InvalidLaunch:
    """Return the exception that tells the line, its expressions and all values."""
    text, values = ", ".join(each.text for each in expressions), ", ".join(f"{value:,}" for value in found)
    return InvalidLaunch(
        f"{expressions[0].where}: {what}=[{text}] is [{values}]{with_values(expressions, names)}; {wanted}"
    )

"""A .cu file of one's own as a variant: how it is launched stands in `//@` lines of the file itself.

    //@ constant THREADS = 128
    //@ let slices = min(N * P, 64)
    //@ scratch = slices * (K * C / groups * R * S + K)
    //@ launch kernel_grad(dy, saved, x, scratch) grid=[ceil_div(K, THREADS), slices] block=[THREADS]
    //@ launch total(scratch, dw, db; slices) grid=[1] block=[32] shared=[0]

Expressions know the problem's letters (N C H W K R S P Q, stride_h, stride_w, pad_top, pad_left, dilation_h,
dilation_w, groups), the file's constants and lets, + - * / % (whole numbers: / rounds down), and ceil_div, min, max.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from convbackprop.arguments import known
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.signature import ALIASES, pass_signature, requirements, writes_all
from convbackprop.ladder.variant import Constants, Launch, Requirement, Tunable, Variant, ceil_div
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.sources import entry_points, parameters

_LETTERS = ("N", "C", "H", "W", "K", "R", "S", "P", "Q", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h",
            "dilation_w", "groups")  # fmt: skip
_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"ceil_div": ceil_div, "min": min, "max": max}

_Expression = Callable[[Mapping[str, int]], int]


def _compile(text: str, where: str) -> _Expression:
    """Return a function of the names' values; no other Python can be reached from the text."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise InvalidArgument(f"{where}: {text.strip()!r} is not an expression") from None

    def value(node: ast.expr, names: Mapping[str, int]) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name):
            return names[known(node.id, tuple(names), f"{where}: name")]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left, names), value(node.right, names))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            function = _FUNCTIONS[known(node.func.id, tuple(_FUNCTIONS), f"{where}: function")]
            return function(*(value(argument, names) for argument in node.args))
        raise InvalidArgument(f"{where}: {ast.unparse(node)!r} is not allowed; use whole numbers, names, + - * / %")

    def evaluate(names: Mapping[str, int]) -> int:
        try:
            return value(tree, names)
        except (ZeroDivisionError, TypeError) as error:
            raise InvalidArgument(f"{where}: {text.strip()!r}: {error}") from None

    return evaluate


def _split(text: str) -> list[str]:
    """Split at the commas that are not inside parentheses."""
    return [part for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def variant_from_file(path: Path, pass_name: str) -> Variant:
    """Return the .cu file as a variant of a pass; it is neither installed nor registered.

    Parameters
    ----------
    path : Path
        The file; its ``//@`` lines say how it is launched.
    pass_name : str
        forward, input_grad, kernel_grad or backward.

    Raises
    ------
    InvalidArgument
        The file cannot be read, has no CUDA kernel, a ``//@`` line is not understood, or a CUDA kernel takes other
        parameters than its launch gives it; the message names the line and what is expected.
    """
    known(pass_name, tuple(PASSES), "pass")
    entries = entry_points(path, pass_signature(pass_name))
    declared = parameters(path)
    requires: list[Requirement] = []
    tunables: dict[str, Tunable] = {}
    lets: dict[str, _Expression] = {}
    scratch: list[_Expression] = []
    launches: list[Launch] = []

    def names(problem: ConvProblem, constants: Constants) -> dict[str, int]:
        values = {letter: getattr(problem, letter) for letter in _LETTERS} | dict(constants)
        for name, expression in lets.items():
            values[name] = expression(values)
        return values

    def geometry(text: str, where: str) -> Callable[[ConvProblem, Constants], tuple[int, ...]]:
        expressions = [_compile(part, where) for part in _split(text)]
        return lambda p, t: tuple(expression(names(p, t)) for expression in expressions)

    def first(text: str, where: str) -> Callable[[ConvProblem, Constants], int]:
        several = geometry(text, where)
        return lambda p, t: several(p, t)[0]

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("//@"):
            continue
        where, text = f"{path.name}:{number}", line[3:].strip()
        if match := re.fullmatch(r"constant (\w+) *= *(\d+)", text):
            value = int(match[2])
            tunables[match[1]] = Tunable(legal=(value,), cuda=value, cpu=value)
        elif match := re.fullmatch(r"let (\w+) *= *(.+)", text):
            lets[match[1]] = _compile(match[2], where)
        elif match := re.fullmatch(r"(?:scratch|partial) *= *(.+)", text):
            scratch.append(_compile(match[1], where))
        elif match := re.fullmatch(
            r"launch (\w+)\(([\w, ]*)(?:;([^)]*))?\) +grid=\[(.+?)\] +block=\[(.+?)\](?: +shared=\[(.+?)\])?", text
        ):
            entry, operands, integers, grid, block, shared = match.groups()
            known(entry, entries, f"{where}: CUDA kernel")
            arrays = (*(operand.name for operand in PASSES[pass_name].operands), "scratch")
            launches.append(
                Launch(
                    entry,
                    tuple(
                        known(ALIASES.get(name, name), arrays, f"{where}: array")
                        for name in map(str.strip, _split(operands))
                    ),
                    geometry(grid, where),
                    geometry(block, where),
                    geometry(integers or "", where),
                    first(shared or "0", where),
                )
            )
            count = len(_split(integers or ""))
            requires += requirements(where, pass_name, launches[-1], count, declared[entry])
        else:
            raise InvalidArgument(
                f"{where}: {line!r} is not understood; it should be one of '//@ constant NAME = 1', "
                "'//@ let name = ...', '//@ scratch = ...', '//@ launch entry(arrays) grid=[...] block=[...]'"
            )
    if not launches:
        raise InvalidArgument(
            f"{path} does not say how it is launched; add a line such as "
            f"'//@ launch {entries[0]}({', '.join(o.name for o in PASSES[pass_name].operands)}) grid=[N] block=[32]'"
        )
    return Variant(
        pass_name,
        path.stem,
        tuple(launches),
        tunables,
        scratch=lambda p, t: sum(expression(names(p, t)) for expression in scratch),
        requires=(writes_all(path, pass_name, launches), *requires),
        file=path,
    )

"""A .cu file of one's own as a variant: how it is launched stands in `//@` lines of the file itself.

    //@ pass kernel_grad
    //@ constant THREADS = 128
    //@ let slices = min(N * P, 64)
    //@ scratch = slices * (K * C / groups * R * S + K)
    //@ launch kernel_grad(dy, saved, x, scratch) grid=[ceil_div(K, THREADS), slices] block=[THREADS]
    //@ launch total(scratch, dw, db; slices) grid=[1] block=[32] shared=[0]

Expressions know the problem's letters (N C H W K R S P Q, stride_h, stride_w, pad_top, pad_left, dilation_h,
dilation_w, groups), the file's constants and lets, + - * / % (whole numbers: / rounds down), and ceil_div, min, max.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from convbackprop.arguments import known
from convbackprop.devices.compiler import RUNTIME, find_cxx
from convbackprop.errors import CompilerNotFound, InvalidArgument
from convbackprop.ladder.expression import (
    FUNCTIONS,
    Expression,
    InvalidLaunch,
    block_of,
    comma_separated,
    grid_of,
    scratch_of,
    shared_bytes_of,
)
from convbackprop.ladder.registry import VARIANTS
from convbackprop.ladder.signature import ALIASES, pass_signature, requirements, writes_all
from convbackprop.ladder.variant import Constants, Launch, Requirement, Tunable, Variant
from convbackprop.problem import OPTIONAL, PASSES, ConvProblem
from convbackprop.sources import entry_points, parameters, words_of_headers

_LETTERS = ("N", "C", "H", "W", "K", "R", "S", "P", "Q", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h",
            "dilation_w", "groups")  # fmt: skip

_T = TypeVar("_T")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what stands in each `//@` line of a file, after where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("//@"):
            yield f"{path.name}:{number}", line[3:].strip()


def _pass_of(path: Path, asked: str | None) -> str:
    """Return the pass that a file computes: what its `//@ pass` line says, which nothing may contradict."""
    if asked is not None:
        known(asked, tuple(PASSES), "pass")
    said = [(where, text.split()[1]) for where, text in _lines(path) if re.fullmatch(r"pass +\w+", text)]
    for where, name in said:
        known(name, tuple(PASSES), f"{where}: pass")
        if name != (asked or said[0][1]):
            other = f"--pass is {asked}" if asked else f"{said[0][0]} says {said[0][1]}"
            raise InvalidArgument(f"{where} says that the file computes {name}, but {other}; leave one of them out")
    if asked is None and not said:
        raise InvalidArgument(
            f"{path} does not say what it computes; add a line '//@ pass {next(iter(PASSES))}', or say it with --pass: "
            + ", ".join(PASSES)
        )
    return asked or said[0][1]


@functools.cache
def _taken_by_headers() -> frozenset[str]:
    """Return the constants that the ladder's files give their headers: those are theirs to define."""
    problem = ConvProblem.parse("1,1,9,9,1,3,3,padding=same")
    return frozenset(name for variant in VARIANTS for name in variant.constants(variant.runs_on[0], problem))


@functools.cache
def _words_of_cxx() -> frozenset[str]:
    """Return the macros and types in capitals that the C++ compiler's own headers define."""
    try:
        command = [str(find_cxx()), "-std=c++17", "-E", "-dD", "-x", "c++", "-include", str(RUNTIME / "cuda_on_cpu.h")]
        told = subprocess.run([*command, os.devnull], capture_output=True, stdin=subprocess.DEVNULL)
    except (CompilerNotFound, OSError):
        return frozenset()  # nothing is compiled with them here
    found = re.findall(r"^#define ([A-Z]\w*)|\btypedef [^;{}()]*\b([A-Z]\w*);", told.stdout.decode(), re.MULTILINE)
    return frozenset("".join(words) for words in found)


def _check_constant(name: str, value: int, where: str, path: Path) -> None:
    """Refuse a name that would change what the headers say: the compilers get a constant as a macro."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name, re.ASCII):
        raise InvalidArgument(
            f"{where}: the constant is named {name}; a constant, which the compilers get, is named in capitals "
            f"(THREADS), and what only //@ lines need is '//@ let {name} = {value}'"
        )
    if (header := words_of_headers(path).get(name)) and name not in _taken_by_headers():
        raise InvalidArgument(
            f"{where}: the constant is named {name}, a word of {header} that would be replaced by {value} there; "
            f"choose another name, such as MY_{name}"
        )
    if name in _words_of_cxx():
        raise InvalidArgument(
            f"{where}: the constant is named {name}, which the C++ compiler's own headers define; choose another name, "
            f"such as MY_{name}"
        )


def variant_from_file(path: Path, pass_name: str | None = None) -> Variant:
    """Return the .cu file as a variant of a pass; it is neither installed nor registered.

    Parameters
    ----------
    path : Path
        The file; its ``//@`` lines say how it is launched.
    pass_name : str, optional
        forward, input_grad, kernel_grad or backward; None: as its ``//@ pass`` line says.

    Raises
    ------
    InvalidArgument
        The file cannot be read, has no CUDA kernel, a ``//@`` line is not understood, or a CUDA kernel takes other
        parameters than its launch gives it; the message names the line and what is expected.
    """
    pass_name = _pass_of(path, pass_name)
    entries = entry_points(path, pass_signature(pass_name))
    declared = parameters(path)
    requires: list[Requirement] = []
    tunables: dict[str, Tunable] = {}
    lets: dict[str, Expression] = {}
    scratch: list[Expression] = []
    launches: list[Launch] = []

    def computed(compute: Callable[[Mapping[str, int]], _T]) -> Callable[[ConvProblem, Constants], _T]:
        """Return a function of problem and constants; what it says of a wrong launch names the problem."""

        def value(problem: ConvProblem, constants: Constants) -> _T:
            names = {letter: getattr(problem, letter) for letter in _LETTERS} | dict(constants)
            try:
                for name, expression in lets.items():
                    names[name] = expression(names)
                return compute(names)
            except InvalidLaunch as fault:
                raise InvalidLaunch(fault.sentence, problem) from None

        return value

    def values(expressions: Sequence[Expression]) -> Callable[[Mapping[str, int]], tuple[int, ...]]:
        return lambda names: tuple(expression(names) for expression in expressions)

    for where, text in _lines(path):
        if re.fullmatch(r"pass +\w+", text):
            continue
        if match := re.fullmatch(r"constant (\w+) *= *(\d+)", text):
            value = int(match[2])
            _check_constant(match[1], value, where, path)
            tunables[match[1]] = Tunable(legal=(value,), cuda=value, cpu=value)
        elif match := re.fullmatch(r"let (\w+) *= *(.+)", text):
            if match[1] in (*_LETTERS, *FUNCTIONS, *tunables):
                raise InvalidArgument(f"{where}: {match[1]} has a meaning already; choose another name for the let")
            lets[match[1]] = Expression(match[2], where)
        elif match := re.fullmatch(r"(?:scratch|partial) *= *(.+)", text):
            scratch.append(Expression(match[1], where))
        elif match := re.fullmatch(
            r"launch (\w+)\(([\w, ]*)(?:;([^)]*))?\) +grid=\[(.+?)\] +block=\[(.+?)\](?: +shared=\[(.+?)\])?", text
        ):
            entry, operands, *lists = match.groups()
            known(entry, entries, f"{where}: CUDA kernel")
            arrays = (*(operand.name for operand in PASSES[pass_name].operands), "scratch")
            integers, grid, block, shared = (comma_separated(given or "", where) for given in lists)
            for what, extents, most in (("grid", grid, 3), ("block", block, 3), ("shared", shared, 1)):
                if len(extents) > most or (most > 1 and not extents):
                    raise InvalidArgument(f"{where}: {what} has {len(extents)} numbers; it should have 1 to {most}")
            launches.append(
                Launch(
                    entry,
                    tuple(
                        known(ALIASES.get(name, name), arrays, f"{where}: array")
                        for name in re.findall(r"\w+", operands)
                    ),
                    computed(functools.partial(grid_of, grid)),
                    computed(functools.partial(block_of, block)),
                    computed(values(integers)),
                    computed(functools.partial(shared_bytes_of, shared)),
                )
            )
            requires += requirements(where, pass_name, launches[-1], len(integers), declared[entry])
        else:
            raise InvalidArgument(
                f"{where}: '//@ {text}' is not understood; it should be one of '//@ pass {pass_name}', "
                "'//@ constant NAME = 1', '//@ let name = ...', '//@ scratch = ...', "
                "'//@ launch entry(arrays) grid=[...] block=[...]'"
            )
    if not launches:
        names = (operand.name for operand in PASSES[pass_name].operands if operand.name not in OPTIONAL)
        raise InvalidArgument(
            f"{path} does not say how it is launched; add a line such as "
            f"'//@ launch {entries[0]}({', '.join(names)}) grid=[N] block=[32]'"
        )
    return Variant(
        pass_name,
        path.stem,
        tuple(launches),
        tunables,
        scratch=computed(functools.partial(scratch_of, scratch)),
        requires=(writes_all(path, pass_name, launches), *requires),
        file=path,
    )

"""What a CUDA kernel takes: how that of a pass is declared, and whether a file's own fits the way it is launched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convbackprop.errors import InvalidArgument
from convbackprop.ladder.variant import Launch, Requirement
from convbackprop.problem import ACCUMULATORS, PASSES, ConvProblem
from convbackprop.sources import Parameter

#: The types of array elements as the kernels name them (scalar.cuh, activation_grad.cuh); other operands are of Scalar.
_TYPES = {"saved": "Saved", "mask": "MaskByte", "scratch": "Acc"}

#: Another name that an array may have, in a file of one's own: scratch memory mostly holds partial sums.
ALIASES = {"partial": "scratch"}

#: What the names stand for, by dtype. A type that is none of these may be anything: the compiler and `check` judge it.
_SCALARS = {"float": "float32", "double": "float64", "__half": "float16", "half": "float16",
            "__nv_bfloat16": "bfloat16", "nv_bfloat16": "bfloat16"}  # fmt: skip
_BYTES = ("MaskByte", "unsigned char", "uint8_t")
_INTEGERS = ("int", "unsigned", "unsigned int", "char", "signed char", "short", "unsigned short", "long",
             "unsigned long", "long long", "unsigned long long", "int32_t", "uint32_t", "int64_t", "uint64_t", "size_t",
             "bool")  # fmt: skip
_KNOWN = frozenset(("Scalar", "Acc", "Saved", "Conv2dShape", *_SCALARS, *_BYTES, *_INTEGERS))


def signature(entry: str, pass_name: str, operands: Sequence[str], integers: int = 0) -> str:
    """Return how a CUDA kernel of a pass should be declared that takes these arrays."""
    written = {operand.name for operand in PASSES[pass_name].operands if operand.written}
    arrays = [
        f"{'' if name in written or name == 'scratch' else 'const '}{_TYPES.get(name, 'Scalar')}* {name}"
        for name in operands
    ]
    numbers = [f"int i{number}" for number in range(integers)]
    return f'extern "C" __global__ void {entry}({", ".join([*arrays, "Conv2dShape shape", *numbers])})'


def pass_signature(pass_name: str) -> str:
    """Return how the CUDA kernel of a pass is usually declared."""
    usual = ConvProblem.parse("1,1,9,9,1,3,3,activation=relu,bias=1")
    return signature(pass_name, pass_name, [operand.name for operand in PASSES[pass_name].present(usual)])


def _restriction(name: str, parameter: Parameter) -> Requirement | None:
    """Return what the type of an array's elements asks of a problem; None: nothing.

    Raises
    ------
    ValueError
        No problem has such elements.
    """
    wanted, found = _TYPES.get(name, "Scalar"), parameter.type
    if found == wanted or found not in _KNOWN or (wanted == "MaskByte" and found in _BYTES):
        return None
    if wanted == "Saved" and found in ("Scalar", *_SCALARS, *_BYTES):
        return _reads(name, found)
    if wanted in ("Scalar", "Acc") and found in ("Scalar", "Acc", *_SCALARS):
        return _elements(name, found, wanted == "Acc")
    raise ValueError


def _elements(name: str, found: str, sums: bool) -> Requirement:
    def requirement(p: ConvProblem) -> str | None:
        """The elements of its arrays are of one dtype."""
        wanted = ACCUMULATORS[p.dtype] if sums else p.dtype
        has = _SCALARS.get(found) or (p.dtype if found == "Scalar" else ACCUMULATORS[p.dtype])
        return None if has == wanted else f"its {name} is an array of {found}, and should be one of {wanted}"

    return requirement


def _reads(name: str, found: str) -> Requirement:
    def requirement(p: ConvProblem) -> str | None:
        """It reads the saved output, or its bit mask, but not both."""
        bits = found in _BYTES
        if p.saved is None or (bits if p.mask else not bits and _SCALARS.get(found, p.dtype) == p.dtype):
            return None
        return f"its {name} is an array of {found}, and the problem saves {'bits' if p.mask else p.dtype}"

    return requirement


def requirements(
    where: str, pass_name: str, launch: Launch, integers: int, taken: Sequence[Parameter]
) -> list[Requirement]:
    """Hold a kernel's parameters against what the launch gives it, and return what they ask of a problem.

    Raises
    ------
    InvalidArgument
        They differ; the message tells what is expected.
    """
    given, count = launch.operands, len(launch.operands)
    arrays, rest = taken[:count], taken[count:]
    others = {operand.name for operand in PASSES[pass_name].operands} | {"scratch"}
    found: list[Requirement] = []
    fits = len(taken) == count + 1 + integers and all(parameter.is_pointer for parameter in arrays)
    fits &= not any(parameter.is_pointer for parameter in rest)
    fits &= all((parameter.type == "Conv2dShape") == (i == 0) for i, parameter in enumerate(rest))
    fits &= not any(parameter.type in ("Scalar", "Acc", *_SCALARS) for parameter in rest)
    for name, parameter in zip(given, arrays, strict=False):
        called = ALIASES.get(parameter.name, parameter.name)
        fits &= called == name or called not in others  # else two are exchanged
        try:
            restriction = _restriction(name, parameter)
        except ValueError:
            fits = False
        else:
            found += [restriction] if restriction else []
    if fits:
        return found
    raise InvalidArgument(
        f"{where}: {launch.entry} takes ({', '.join(map(str, taken))}), which is not what the launch gives it; "
        f"expected: {signature(launch.entry, pass_name, given, integers)}"
    )


def writes_all(path: Path, pass_name: str, launches: Sequence[Launch]) -> Requirement:
    """Return the requirement that a problem has no result that no launch writes.

    Raises
    ------
    InvalidArgument
        Every problem of the pass needs it.
    """
    named = {name for launch in launches for name in launch.operands}
    plainest = ConvProblem.parse("1,1,9,9,1,3,3")
    always = [operand.name for operand in PASSES[pass_name].present(plainest) if operand.written]
    if lacking := [name for name in always if name not in named]:
        raise InvalidArgument(
            f"{path} has no launch that writes {' and '.join(lacking)}; {pass_name} is expected to be launched as: "
            f"{pass_signature(pass_name)}"
        )

    def writes_every_result(problem: ConvProblem) -> str | None:
        """Every result that the problem has must be written by a launch."""
        wanted = PASSES[pass_name].present(problem)
        return next((f"it writes no {o.name}" for o in wanted if o.written and o.name not in named), None)

    return writes_every_result

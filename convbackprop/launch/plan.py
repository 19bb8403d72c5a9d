"""A plan: a variant made ready for one problem on one device; running it is all that is left."""

from __future__ import annotations

import functools
import operator
import re
import struct
from collections.abc import Mapping
from typing import Any

from convbackprop import activations
from convbackprop.devices import Device, Kernel
from convbackprop.devices.compiler import Source
from convbackprop.devices.gpus import Target
from convbackprop.errors import UnsupportedProblem
from convbackprop.ladder.variant import ALIGNED, WIDEST, Alignment, Variant
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.sources import source_root


@functools.cache
def shape_fields() -> tuple[str, ...]:
    """Return the names of the fields of Conv2dShape, in their order, from conv2d.cuh, where they are declared."""
    text = (source_root() / "conv2d.cuh").read_text(encoding="utf-8")
    body = text[text.index("struct Conv2dShape {") : text.index("__device__")]
    return tuple(name for line in re.findall(r"^\s*int ([^;]+);", body, re.MULTILINE) for name in line.split(", "))


def pack_shape(problem: ConvProblem) -> bytes:
    """Return the problem as the bytes of a Conv2dShape."""
    fields = shape_fields()
    return struct.pack(f"{len(fields)}i", *(getattr(problem, name) for name in fields))


def constants_of(
    variant: Variant, problem: ConvProblem, target: Target | str, alignment: Alignment = ALIGNED
) -> dict[str, object]:
    """Return what is known at compile time, by the name under which the .cu file knows it."""
    constants = variant.constants(target, problem, alignment)
    options = {
        "SCALED": problem.scale,
        "RESIDUAL": problem.residual and variant.pass_name == "forward",
        "CHANNELS_LAST": problem.layout == "nhwc",
    }
    return {
        "SCALAR": problem.dtype,
        **activations.constants(problem.activation, problem.transposed),
        "SAVED": "MaskByte" if problem.mask and variant.pass_name != "forward" else "Scalar",
        **{name: 1 for name, wanted in options.items() if wanted},
        **{name: value for name, value in constants.items() if name.isupper()},
    }


def three(extents: tuple[int, ...]) -> tuple[int, int, int]:
    """Return one to three extents as x, y and z."""
    x, y, z = (*extents, 1, 1)[:3]
    return x, y, z


class Plan:
    """A variant made ready for one problem on one device.

    Attributes
    ----------
    scratch_bytes : int
        Scratch memory that `run` wants as "scratch".
    """

    def __init__(
        self, variant: Variant, problem: ConvProblem, device: Device, target: Target | str, alignment: Alignment
    ) -> None:
        architecture = getattr(device, "architecture", None)  # of a GPU
        if architecture is not None and not variant.is_for(architecture):
            raise UnsupportedProblem(
                f"{variant} is written for {' and '.join(variant.architectures)}; {device.name} is {architecture}"
            )
        constants = variant.constants(target, problem, alignment)
        source = Source.of(variant.path, constants_of(variant, problem, target, alignment))
        shape = pack_shape(problem)
        self.variant = variant
        self.problem = problem
        self.device = device
        self.scratch_bytes = variant.scratch(problem, constants) * problem.accumulator_bytes
        self.steps: list[tuple[tuple[str, ...], Kernel]] = []
        for launch in variant.launches:
            grid = three(launch.grid(problem, constants))
            # An empty batch may leave nothing to compute.
            if launch.when(problem, constants) and (all(grid) or problem.N):
                kernel = device.load(
                    source,
                    launch.entry,
                    grid,
                    three(launch.block(problem, constants)),
                    launch.shared_bytes(problem, constants),
                    len(launch.operands),
                    shape,
                    launch.integers(problem, constants),
                    [(launch.operands.index(each.operand), each) for each in launch.maps(problem, constants)],
                )
                self.steps.append((launch.operands, kernel))
        # What a kernel may be given; the rest of what it names is null.
        self.absent = {o.name: 0 for o in PASSES[variant.pass_name].operands if not o.present(problem)}

    def run(self, pointers: Mapping[str, int], stream: Any = None) -> None:
        """Launch, on arrays at these addresses by operand name; what the problem lacks may be left out."""
        given = {**pointers, **self.absent}
        for operands, kernel in self.steps:
            kernel.launch([given[name] for name in operands], stream)


@functools.lru_cache(maxsize=1024)
def plan(
    variant: Variant,
    problem: ConvProblem,
    device: Device,
    tunables: Target | str | None = None,
    alignment: Alignment = ALIGNED,
) -> Plan:
    """Return the plan, compiled and loaded on first use.

    Parameters
    ----------
    tunables : Target, "cpu", "cuda" or None
        What the constants are chosen for; None: the device.
    alignment : Alignment
        Of the arrays that it will run on; see `alignment_of`.
    """
    return Plan(variant, problem, device, target_of(device, tunables), alignment)


def target_of(device: Device, tunables: Target | str | None) -> Target:
    """Return what constants are chosen for: a target, a kind of device, of which this one may be, or None: this one."""
    if isinstance(tunables, Target):
        return tunables
    return device.target if tunables in (None, device.kind) else Target(tunables)


#: The operands whose addresses an Alignment speaks of; a bit mask is read byte by byte.
_X_SHAPED, _Y_SHAPED = ("x", "dx"), ("y", "dy", "saved")


def alignment_of(pointers: Mapping[str, int], mask: bool) -> Alignment:
    """Return how arrays at these addresses, by operand name, are aligned; `mask`: "saved" is a bit mask."""
    y_shaped = _Y_SHAPED[:2] if mask else _Y_SHAPED
    x, y = (
        functools.reduce(operator.or_, (pointers.get(name, 0) for name in names), WIDEST)
        for names in (_X_SHAPED, y_shaped)
    )
    return Alignment(x & -x, y & -y)

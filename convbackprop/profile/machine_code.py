"""What nvcc makes of the variants: registers, spills, shared memory and occupancy of each kernel, without a GPU."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from convbackprop.devices.compiler import Source, cubin
from convbackprop.devices.gpus import GPUS, Gpu, Target
from convbackprop.errors import CompileError
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import constants_of
from convbackprop.problem import ConvProblem
from convbackprop.profile import sass
from convbackprop.profile.occupancy import LIMITS, Occupancy, occupancy

#: The heights (and widths) of the filter in the configurations that are published; a variant may refuse some.
FILTERS = (3, 5, 7, 15)


def problem_of(dtype: str, size: int) -> ConvProblem:
    """Return the main job: a layer of one channel on 4096 x 4096 numbers, with a size x size filter."""
    return ConvProblem.parse(f"1,1,4096,4096,1,{size},{size},padding=same,activation=relu,bias=1", dtype=dtype)


def whole_layer(dtype: str, size: int) -> ConvProblem:
    """Return the job of those who refuse one channel: 32 images, 64 channels to 128 at 112 x 112."""
    return ConvProblem.parse(f"32,64,112,112,128,{size},{size},padding=same,activation=relu,bias=1", dtype=dtype)


class Usage(NamedTuple):
    """What a thread (registers, bytes of stack and spills) and a block (bytes of shared memory) of a kernel use."""

    registers: int
    static_shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


def usage(log: str) -> dict[str, Usage]:
    """Return what ptxas -v says of each entry point; functions that it calls count as a part of it."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.partition("'")[0]
        registers = re.search(r"Used (\d+) registers", part)
        if registers is None:
            raise CompileError(f"ptxas says nothing of the registers of {name}:\n{log}")
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", part)
        sums = [
            sum(map(int, re.findall(rf"(\d+) bytes {what}", part)))
            for what in ("stack frame", "spill stores", "spill loads")
        ]
        found[name] = Usage(int(registers[1]), int(shared[1]) if shared else 0, *sums)
    return found


@dataclass(frozen=True)
class Configuration:
    """A variant, compiled for a problem and an architecture; `on`: another problem than the published ones."""

    variant: Variant
    dtype: str
    filter: int
    architecture: str
    on: ConvProblem | None = None
    target: Target = GPUS[0].target

    @classmethod
    def of(cls, variant: Variant, problem: ConvProblem, gpu: Gpu) -> Configuration:
        """Return the configuration of any problem."""
        return cls(variant, problem.dtype, problem.R, gpu.architecture, problem, gpu.target)

    @property
    def problem(self) -> ConvProblem:
        """The problem: of one channel, if the variant computes that."""
        if self.on is not None:
            return self.on
        single, whole = problem_of(self.dtype, self.filter), whole_layer(self.dtype, self.filter)
        return whole if self.variant.refusal(single) and not self.variant.refusal(whole) else single

    @property
    def refusal(self) -> str | None:
        """The sentence on why the variant refuses it, or None."""
        return self.variant.refusal(self.problem, "cuda")

    def __str__(self) -> str:
        return f"{self.variant} {self.dtype} {self.filter}x{self.filter} {self.architecture}"


@dataclass(frozen=True)
class Kernel:
    """What is known of a kernel of a configuration.

    Attributes
    ----------
    entry : str
        The name of the __global__ function.
    threads : int
        Of a block.
    dynamic_shared_bytes : int
        Of a block.
    instructions : Instructions or None
        None without cuobjdump.
    """

    configuration: Configuration
    entry: str
    threads: int
    dynamic_shared_bytes: int
    usage: Usage
    occupancy: Occupancy
    instructions: sass.Instructions | None = None

    @property
    def is_main(self) -> bool:
        """Whether it is the one that does the work."""
        return self.entry == main_entry(self.configuration.variant)

    @property
    def shared_bytes(self) -> int:
        """Of a block, static and dynamic."""
        return self.usage.static_shared_bytes + self.dynamic_shared_bytes

    @property
    def spill_bytes(self) -> int:
        """Stored and loaded by a thread because it has too few registers."""
        return self.usage.spill_store_bytes + self.usage.spill_load_bytes


def main_entry(variant: Variant) -> str:
    """Return the kernel that does the work: the one named as the pass, or the one that is launched first."""
    entries = [launch.entry for launch in variant.launches]
    return variant.pass_name if variant.pass_name in entries else entries[0]


def kernels(configuration: Configuration, cuobjdump: Path | None = None) -> Sequence[Kernel]:
    """Compile a configuration and return what its kernels use, in the order of the launches.

    Raises
    ------
    CompilerNotFound, CompileError
        Without nvcc; where nvcc rejects the file, with its messages.
    EnvironmentProblem
        cuobjdump fails.
    """
    variant, problem, architecture = configuration.variant, configuration.problem, configuration.architecture
    path, log = cubin(Source.of(variant.path, constants_of(variant, problem, configuration.target)), architecture)
    constants = variant.constants(configuration.target, problem)
    used = usage(log)
    code = sass.instructions(cuobjdump, path) if cuobjdump else {}
    found = []
    for launch in {launch.entry: launch for launch in variant.launches}.values():  # of two ways to launch one, either
        own = used[launch.entry]
        threads = math.prod(launch.block(problem, constants))
        dynamic = launch.shared_bytes(problem, constants)
        fits = occupancy(LIMITS[architecture], threads, own.registers, own.static_shared_bytes + dynamic)
        found.append(Kernel(configuration, launch.entry, threads, dynamic, own, fits, code.get(launch.entry)))
    return found

"""What a variant's addresses ask of memory: its launches, replayed block by block on the cpu device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convbackprop.errors import EnvironmentProblem
from convbackprop.problem import ConvProblem
from convbackprop.variants import Variant


@dataclass(frozen=True)
class LineTraffic:
    """What one line of source asks of memory, over all replayed blocks."""

    file: Path  # absolute
    line: int
    space: str  # "global" or "shared"
    kind: str  # "load", "store" or "atomic"
    bytes: int  # of one lane's access (the widest)
    requests: int  # of a warp
    lanes: int  # active lanes, summed over the requests
    sectors: int  # global: 32-byte sectors, summed over the requests; shared: 0
    least_sectors: int  # global: what the distinct bytes asked for would take, packed
    wavefronts: int  # shared: passes over the banks, summed over the requests; global: 0
    least_wavefronts: int  # shared: without bank conflicts


@dataclass(frozen=True)
class ArrayTraffic:
    """What the blocks ask of one array."""

    name: str  # operand name, "x", "dy", "partial" ...
    loaded_bytes: int  # bytes that lanes ask for
    stored_bytes: int
    loaded_sectors: int  # distinct 32-byte sectors of a block, summed over the blocks
    stored_sectors: int


@dataclass(frozen=True)
class KernelTraffic:
    """One launch of a variant, replayed."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    blocks: int  # replayed; at most those of the grid
    lines: tuple[LineTraffic, ...]
    arrays: tuple[ArrayTraffic, ...]


def traffic(variant: Variant, problem: ConvProblem, blocks: int = 64) -> tuple[KernelTraffic, ...]:
    """Replay up to `blocks` blocks of each launch on the cpu device with a GPU's tunables."""
    raise EnvironmentProblem("the cpu device of this version does not replay addresses")

"""What a kernel asks of memory, as a few figures that do not depend on a clock or on the sizes of the problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convbackprop.check.reference import numpy_dtype
from convbackprop.profile.report import Report
from convbackprop.profile.traffic import LineTraffic

_IMAGES = ("x", "dy", "saved")


@dataclass(frozen=True)
class Counts:
    """Figures of all launches of a variant, from its replayed addresses.

    Attributes
    ----------
    coalescing : float
        Sectors of global memory that are asked for, over those that the bytes would fill.
    bank_conflicts : float or None
        Wavefronts of shared memory, over the fewest; None: no shared memory is used.
    pixels : float
        Numbers of images (x, dy, the saved output) that are loaded from global memory for each multiply-add.
    loads : float
        Numbers that are loaded for each multiply-add, of all arrays, from global and shared memory.
    moved : float
        Bytes of the distinct sectors of each block, over those that any implementation moves.
    atomics : int
        Atomic operations of the replayed blocks.
    """

    coalescing: float
    bank_conflicts: float | None
    pixels: float
    loads: float
    moved: float
    atomics: int

    @classmethod
    def of(cls, report: Report) -> Counts | None:
        """Return the figures of a report; None: its addresses were not replayed."""
        replayed = [(launch, launch.traffic) for launch in report.launches if launch.traffic]
        if not replayed or report.own_bytes is None:
            return None

        def total(figure: Callable[[LineTraffic], float], *spaces: str) -> float:
            return sum(
                launch.scale * figure(line)
                for launch, traffic in replayed
                for line in traffic.lines
                if line.space in spaces
            )

        def numbers(line: LineTraffic) -> float:
            return line.lanes * line.bytes / size if line.kind == "load" else 0

        products = report.flops / 2
        size = numpy_dtype(report.problem.dtype).itemsize
        fewest = total(lambda line: line.least_wavefronts, "shared")
        images = sum(
            launch.scale * array.loaded_bytes / size
            for launch, traffic in replayed
            for array in traffic.arrays
            if array.name in _IMAGES
        )
        return cls(
            coalescing=total(lambda line: line.sectors, "global") / total(lambda line: line.least_sectors, "global"),
            bank_conflicts=total(lambda line: line.wavefronts, "shared") / fewest if fewest else None,
            pixels=images / products,
            loads=total(numbers, "global", "shared") / products,
            moved=report.own_bytes / report.least_bytes,
            atomics=sum(line.lanes for _, traffic in replayed for line in traffic.lines if line.kind == "atomic"),
        )

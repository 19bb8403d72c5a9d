"""What a kernel asks of memory, as a few figures that do not depend on a clock or on the sizes of the problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convbackprop.check.reference import numpy_dtype
from convbackprop.problem import PASSES
from convbackprop.profile.report import Report
from convbackprop.profile.traffic import LineTraffic


@dataclass(frozen=True)
class Counts:
    """Figures of all launches of a variant, from its replayed addresses.

    Attributes
    ----------
    coalescing : float
        Sectors of global memory that are asked for, over those that the bytes would fill.
    bank_conflicts : float or None
        Wavefronts of shared memory, over the fewest; None: no shared memory is used.
    global_loads, loads : float
        Numbers that are loaded for each multiply-add: from global memory, and from shared memory, too.
    moved : float
        Bytes of the distinct sectors of each block, over those that any implementation moves.
    atomics : int
        Atomic operations of the replayed blocks.
    """

    coalescing: float
    bank_conflicts: float | None
    global_loads: float
    loads: float
    moved: float
    atomics: int

    @classmethod
    def of(cls, report: Report) -> Counts | None:
        """Return the figures of a report; None: its addresses were not replayed."""
        replayed = [(launch, launch.traffic) for launch in report.launches if launch.traffic]
        if not replayed or report.own_bytes is None:
            return None

        def total(space: str, figure: Callable[[LineTraffic], float], kinds: tuple[str, ...] = ()) -> float:
            return sum(
                launch.scale * figure(line)
                for launch, traffic in replayed
                for line in traffic.lines
                if line.space in space and (not kinds or line.kind in kinds)
            )

        products = report.flops / 2
        size = numpy_dtype(report.problem.dtype).itemsize

        def loads(space: str) -> float:
            return total(space, lambda line: line.lanes * line.bytes / size, ("load",)) / products

        fewest = total("shared", lambda line: line.least_wavefronts)
        return cls(
            coalescing=total("global", lambda line: line.sectors) / total("global", lambda line: line.least_sectors),
            bank_conflicts=total("shared", lambda line: line.wavefronts) / fewest if fewest else None,
            global_loads=loads("global"),
            loads=loads("global, shared"),
            moved=report.own_bytes / report.least_bytes,
            atomics=sum(line.lanes for _, traffic in replayed for line in traffic.lines if line.kind == "atomic"),
        )

"""A row of a benchmark: what is known of a variant on a problem, in a run or read from a saved one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convbackprop.bench.timing import Timing
from convbackprop.problem import PASSES, ConvProblem

MEMORY, ARITHMETIC = "memory", "arithmetic"


@dataclass
class Row:
    """A variant on a problem: whether it is right, how long it took, and what it is compared with.

    Attributes
    ----------
    name : str
        pass/variant; a file of one's own keeps its ending.
    problem, label : ConvProblem, str
        What was computed, and its short name.
    refusal : str or None
        Why the variant does not compute it.
    faults : sequence of str
        What is wrong with its results; such a row has no timing.
    error : float
        The largest, as a share of its bound.
    ours, copy, public : Timing or None
        The variant's launches; a copy that reads and writes together as many bytes as the pass must; the public
        function, from host arrays to host arrays.
    peers : mapping of str to Timing
        Other libraries' ways, such as "torch channels_last".
    peak_flops : float or None
        Floating-point operations a second that the device does at best.
    """

    name: str
    problem: ConvProblem
    label: str
    refusal: str | None = None
    faults: Sequence[str] = ()
    error: float = float("nan")
    ours: Timing | None = None
    copy: Timing | None = None
    public: Timing | None = None
    peers: Mapping[str, Timing] = field(default_factory=dict)
    peak_flops: float | None = None

    @property
    def pass_name(self) -> str:
        """Its pass."""
        return self.name.partition("/")[0]

    @property
    def case(self) -> tuple[str, str]:
        """What it was computed on: the label, as two photographs can be one problem, and the problem."""
        return (self.label, str(self.problem))

    @property
    def key(self) -> tuple[str, str, str]:
        """What is the same in another run."""
        return (self.name, *self.case)

    # -- costs -------------------------------------------------------------------------------------------------
    @property
    def least_bytes(self) -> int:
        """Bytes that the pass moves at least."""
        return PASSES[self.pass_name].least_bytes(self.problem)

    @property
    def flops(self) -> int:
        """Floating-point operations of the pass."""
        return PASSES[self.pass_name].flops(self.problem)

    @property
    def floor(self) -> tuple[float, str] | None:
        """The least time in seconds, and what limits it: the copy of its bytes, or its operations at the peak rate.

        The roofline's two roofs (Williams, Waterman and Patterson, 2009), as times.
        """
        if self.copy is None:
            return None
        arithmetic = self.flops / self.peak_flops if self.peak_flops else 0.0
        return max((self.copy.median, MEMORY), (arithmetic, ARITHMETIC))

    @property
    def share_of_floor(self) -> float | None:
        """The floor's time over the median: 1 is as fast as can be."""
        return self.floor[0] / self.ours.median if self.floor and self.ours else None

    # -- rates -------------------------------------------------------------------------------------------------
    def rate(self, timing: Timing | None) -> float | None:
        """Return the least bytes over the median, in GB/s."""
        return self.least_bytes / timing.median * 1e-9 if timing else None

    @property
    def gflops(self) -> float | None:
        """GFLOP/s."""
        return self.flops / self.ours.median * 1e-9 if self.ours else None

    def over(self, timing: Timing | None) -> float | None:
        """Return how many times as long as ours something else took."""
        return timing.median / self.ours.median if timing and self.ours else None

    def peer(self, name: str | None = None) -> Timing | None:
        """Return the fastest of a peer's ways, or of all peers'."""
        ways = [timing for way, timing in self.peers.items() if name in (None, way.partition(" ")[0])]
        return min(ways, key=lambda timing: timing.median, default=None)

    # -- JSON --------------------------------------------------------------------------------------------------
    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        low, high = (1e3 * bound for bound in self.ours.range) if self.ours else (None, None)
        floor, limit = self.floor or (None, None)
        return {
            "variant": self.name,
            "problem": str(self.problem),
            "label": self.label,
            "ok": None if self.refusal else not self.faults,
            "refused": self.refusal,
            "faults": list(self.faults),
            "error": self.error,
            "median_ms": ms(self.ours),
            "p20_ms": low,
            "p80_ms": high,
            "repetitions": len(self.ours.seconds) if self.ours else 0,
            "least_bytes": self.least_bytes,
            "flops": self.flops,
            "gb_per_s": self.rate(self.ours),
            "gflop_per_s": self.gflops,
            "copy_gb_per_s": self.rate(self.copy),
            "share_of_copy": self.over(self.copy),
            "peak_gflop_per_s": 1e-9 * self.peak_flops if self.peak_flops else None,
            "floor_ms": 1e3 * floor if floor is not None else None,
            "floor_is": limit,
            "share_of_floor": self.share_of_floor,
            "peers": {name: {"median_ms": ms(t), "ratio": self.over(t)} for name, t in self.peers.items()},
            "public_ms": ms(self.public),
        }


def ms(timing: Timing | None) -> float | None:
    """Return a median in milliseconds."""
    return 1e3 * timing.median if timing else None


def peer_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the names of the peers that rows were compared with, without their ways."""
    return tuple(dict.fromkeys(way.partition(" ")[0] for row in rows for way in row.peers))

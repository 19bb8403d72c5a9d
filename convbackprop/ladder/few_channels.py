"""The few channels of a result at a tile of pixels (the .cu files named few_channels): a thread has the sums of all."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from convbackprop.devices.gpus import Target
from convbackprop.ladder.coalesced import vectors
from convbackprop.ladder.launches import PACK_MASK, block
from convbackprop.ladder.requirements import countable
from convbackprop.ladder.variant import WIDEST, Alignment, Constants, Launch, Tunable, Variant, ceil_div
from convbackprop.problem import ConvProblem

#: A result has at most so many channels: a tile of a matrix product is not much emptier with more.
_MOST = 4

#: Terms of a sum before it starts anew, as in implicit_gemm.py.
_RUN = 256

#: What the arrays of a thread may take of its 255 registers; if they take few, so many CUDA threads are resident on a
#: multiprocessor, else half of them.
_ARRAY_REGISTERS, _FEW_REGISTERS, _RESIDENT_THREADS = 190, 130, 384

#: Multiply-adds of a plane that a thread may have as instructions of their own: what the first cache of them holds.
_UNROLLED = 640

#: The shared memory that every GPU gives a block that does not ask for more, and what leaves room for several; planes
#: that it holds at most, and those that a thread asks for at once.
_SHARED_BYTES, _OF_SEVERAL, _MOST_PLANES, _AT_ONCE = 48 * 1024, 40 * 1024, 8, 4

#: Instructions of a thread: that bring what it loads at once to shared memory, and those before and after all planes.
_STAGING, _ONCE = 16, 400

#: THREADS: of a block. TILE_ROWS x TILE_COLS: of a thread; of input_grad, strides of pixels.
_LEGAL: Mapping[str, tuple[int, ...]] = {"THREADS": (64, 128), "TILE_ROWS": (1, 2, 4), "TILE_COLS": (1, 2, 4)}

#: THREADS by default, and those of a warp, which lie side by side.
_THREADS, _LANES = 128, 32


class Axis(NamedTuple):
    """Along one axis, as in the .cu files: a thread's results, and the positions of a plane that they meet."""

    own: int
    step: int
    seen: int


@dataclass(frozen=True)
class Rung:
    """What the entry of a pass is made of."""

    is_forward: bool

    def few(self, p: ConvProblem) -> int:
        """Return the channels of the result of a group."""
        return (p.K if self.is_forward else p.C) // p.groups

    def axes(self, p: ConvProblem, t: Constants) -> tuple[Axis, Axis]:
        """Return the axes down and across."""

        def axis(taps: int, stride: int, dilation: int, pad: int, count: int) -> Axis:
            reach = (taps - 1) * dilation
            if self.is_forward:
                return Axis(count, count * stride, (count - 1) * stride + reach + 1)
            phase = pad % stride
            return Axis(count * stride, count, max(0, reach - phase) // stride + count + (stride - 1 + phase) // stride)

        counts = t["TILE_ROWS"], t["TILE_COLS"]
        sides = zip((p.R, p.S), p.stride, p.dilation, (p.pad_top, p.pad_left), counts, strict=True)
        down, across = itertools.starmap(axis, sides)
        return down, across

    # -- what a block and a thread hold ------------------------------------------------------------------------------
    def source(self, p: ConvProblem, t: Constants) -> tuple[int, int]:
        """Return the rows and columns of a plane in shared memory, at most."""
        down, across = self.axes(p, t)
        places = _LANES + (across.seen + t["TILE_COLS"] - 2) // across.step  # of them LEAD < TILE_COLS
        return (t["THREADS"] // _LANES - 1) * down.step + down.seen, places * across.step

    def taps_across(self, p: ConvProblem) -> int:
        """Return the taps of a row of the filter for all channels, in whole vectors."""
        vector = WIDEST // p.accumulator_bytes
        return ceil_div(p.S * self.few(p), vector) * vector

    def plane_bytes(self, p: ConvProblem, t: Constants) -> int:
        """Return the shared memory that a plane and its taps take at most."""
        between = 32 * self.axes(p, t)[1].step + 32  # phases
        return (math.prod(self.source(p, t)) + between + p.R * self.taps_across(p)) * p.accumulator_bytes

    def products(self, p: ConvProblem, t: Constants) -> int:
        """Return the multiply-adds of a thread for a plane."""
        return t["TILE_ROWS"] * t["TILE_COLS"] * self.few(p) * p.R * p.S

    def registers(self, p: ConvProblem, t: Constants) -> int:
        """Return the 32-bit registers of a thread's arrays: the sums and their totals, the taps, a row of a plane."""
        down, across = self.axes(p, t)
        sums = 2 * down.own * across.own * self.few(p)
        taps = self.taps_across(p) * (p.R if t["TILE_ROWS"] > 1 else 1)  # those that several rows meet stay
        return (sums + taps + across.seen) * p.accumulator_bytes // 4

    # -- the constants -----------------------------------------------------------------------------------------------
    def tiles(self, p: ConvProblem, t: Constants) -> int:
        """Return the tiles of all images and groups."""
        (down, across), (height, width) = self.axes(p, t), (p.P, p.Q) if self.is_forward else (p.H, p.W)
        rows, cols = t["THREADS"] // _LANES * down.own, _LANES * across.own
        return p.N * p.groups * ceil_div(height, rows) * ceil_div(width, cols)

    def time(self, p: ConvProblem, target: Target, t: Constants) -> int:
        """Return the instructions of the busiest multiprocessor: of two blocks at least, of which one waits."""
        (down, across), planes = self.axes(p, t), (p.C if self.is_forward else p.K) // p.groups
        loads = down.seen * across.seen + p.R * self.taps_across(p) * p.accumulator_bytes // WIDEST
        pieces = math.prod(self.source(p, t)) // min(t["TILE_COLS"], math.gcd(p.W, p.Q, 4))
        of_plane = t["THREADS"] * (self.products(p, t) + loads) + _STAGING * pieces
        block = planes * of_plane + _ONCE * t["THREADS"]
        return max(2, ceil_div(self.tiles(p, t), target.multiprocessors)) * block

    def holds(self, p: ConvProblem, t: Constants) -> bool:
        """Return whether a GPU's registers, shared memory and first cache of instructions hold a choice well.

        Of filters of more taps than a run has, rows are runs, and more than one row of results would be other ones.
        """
        fits = self.registers(p, t) <= _ARRAY_REGISTERS and self.plane_bytes(p, t) <= _SHARED_BYTES
        is_small = self.registers(p, t) <= _FEW_REGISTERS and self.products(p, t) <= _UNROLLED
        return fits and (t["TILE_ROWS"] == 1 or (is_small and p.R * p.S <= _RUN))

    @functools.lru_cache(maxsize=1024)  # noqa: B019 -- there are two of them
    def tile(self, p: ConvProblem, target: Target) -> Constants:
        """Return the fastest choice of TILE_ROWS and TILE_COLS; where none fits, which `fits` tells, the smallest."""
        choices = [
            {"THREADS": _THREADS, "TILE_ROWS": rows, "TILE_COLS": cols}
            for rows, cols in itertools.product(_LEGAL["TILE_ROWS"], _LEGAL["TILE_COLS"])
        ]
        held = [t for t in choices if self.holds(p, t)]
        return min(held, key=functools.partial(self.time, p, target), default=choices[0])

    def tunables(self) -> dict[str, Tunable]:
        """Return the tunables; on a CPU, where the result is all that is wanted, rows of one result."""
        return {
            "THREADS": Tunable(_LEGAL["THREADS"], cuda=_THREADS, cpu=_THREADS),
            "TILE_ROWS": Tunable(_LEGAL["TILE_ROWS"], cuda=lambda p, target: self.tile(p, target)["TILE_ROWS"], cpu=1),
            "TILE_COLS": Tunable(_LEGAL["TILE_COLS"], cuda=lambda p, target: self.tile(p, target)["TILE_COLS"], cpu=1),
        }

    def constants(self, p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        """Return what follows from the tunables. LEAD: a vector begins so many columns before what is read first."""
        loads = vectors(p, alignment, {"COLS": t["TILE_COLS"]})
        if self.is_forward:
            lead, phases = -p.pad_left % loads["X_VECTOR"], {}
        else:
            phases = {"PHASE_H": p.pad_top % p.stride_h, "PHASE_W": p.pad_left % p.stride_w}
            back = max(0, (p.S - 1) * p.dilation_w - phases["PHASE_W"]) // p.stride_w
            lead = (p.pad_left // p.stride_w - back) % loads["Y_VECTOR"]
        chunk = min(_MOST_PLANES, 2 ** int(math.log2(max(1, _OF_SEVERAL // self.plane_bytes(p, t)))))
        is_costly = not self.is_forward and p.saved == "pre_activation"  # phi' takes many instructions and registers
        at_once = 1 if is_costly else min(_AT_ONCE, chunk)
        is_crowded = is_costly or self.registers(p, t) > _FEW_REGISTERS
        return {
            **loads,
            "LEAD": lead,
            "FEW": self.few(p),
            **{"FILTER_R": p.R, "FILTER_S": p.S, "STRIDE_H": p.stride_h, "STRIDE_W": p.stride_w},
            **{"DILATION_H": p.dilation_h, "DILATION_W": p.dilation_w, **phases},
            "UNROLLED": int(self.products(p, t) <= _UNROLLED),
            "CHUNK": chunk,
            "AT_ONCE": at_once,
            "RUN_TERMS": _RUN,
            "RESIDENT": max(1, _RESIDENT_THREADS // (2 if is_crowded else 1) // t["THREADS"]),
        }

    # -- the problems ------------------------------------------------------------------------------------------------
    def is_few(self, p: ConvProblem) -> str | None:
        """It takes groups of few channels (forward: few filters)."""
        if (few := self.few(p)) > _MOST:
            what = "filters" if self.is_forward else "channels"
            return f"a group has {few} {what}; it works where there are at most {_MOST}"
        return None

    def fits(self, p: ConvProblem) -> str | None:
        """A thread's sums and taps fit its registers, and the part of a plane under a tile shared memory."""
        least = {"THREADS": _THREADS, "TILE_ROWS": 1, "TILE_COLS": 1}
        if (registers := self.registers(p, least)) > _ARRAY_REGISTERS:
            return (f"sums and taps of a {p.R}x{p.S} filter with stride {p.stride_h}x{p.stride_w} take {registers} "
                    f"registers of a thread in {p.dtype}; at most {_ARRAY_REGISTERS} fit")  # fmt: skip
        if (taken := self.plane_bytes(p, least)) > _SHARED_BYTES:
            return (f"the part of a plane under a tile takes {ceil_div(taken, 1024)} KiB of shared memory; "
                    f"at most {_SHARED_BYTES // 1024} KiB fit")  # fmt: skip
        return None

    def entry(self, pass_name: str, *launches: Launch) -> Variant:
        """Return the entry of the pass."""
        return Variant(
            pass_name,
            "few_channels",
            launches=launches,
            tunables=self.tunables(),
            specialise=self.constants,
            requires=(self.is_few, self.fits, countable),
            auto_on=("cuda",),
            unproven=True,
            all_phases=not self.is_forward,
        )


_FORWARD, _INPUT_GRAD = Rung(is_forward=True), Rung(is_forward=False)

ENTRIES = (
    _FORWARD.entry(
        "forward",
        Launch("forward", ("x", "w", "scale", "b", "residual", "y"), lambda p, t: (_FORWARD.tiles(p, t),),
               block("THREADS")),
        PACK_MASK,
    ),
    _INPUT_GRAD.entry(
        "input_grad",
        Launch("input_grad", ("dy", "saved", "w", "scale", "b", "dx"), lambda p, t: (_INPUT_GRAD.tiles(p, t),),
               block("THREADS")),
    ),
)  # fmt: skip

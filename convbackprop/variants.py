"""The registry: every variant of every pass, one entry a .cu file.

Nothing else in the package knows a variant. Its file, entry points, tests, benchmark rows and documentation follow
from the entry here and from the head comment of its .cu file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from convbackprop import gemms, strips, tiles
from convbackprop.errors import UnsupportedProblem
from convbackprop.problem import PASSES, ConvProblem, known
from convbackprop.variant import MAX_GRID, Alignment, Constants, Geometry, Launch, Tunable, Variant, ceil_div
from convbackprop.workspace import most_slices

__all__ = ["VARIANTS", "Alignment", "Launch", "Tunable", "Variant", "choose", "of_pass", "select", "why_not"]


def _one_thread_each(count: Callable[[ConvProblem], int]) -> Geometry:
    return lambda p, t: (ceil_div(count(p), t["THREADS"]),)


def _threads(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    return (t["THREADS"],)


_WHOLE_WARPS = Tunable(legal=(32, 64, 128, 256, 512, 1024), cuda=128, cpu=128)


def _taps(p: ConvProblem) -> int:
    return math.prod(p.w_shape) + p.K


def _slices(p: ConvProblem) -> int:
    """Into how many slices the rows of all images go: one a row, while the partial sums fit in the workspace."""
    return max(1, min(p.N * p.P, MAX_GRID[1], most_slices(p, _taps(p))))


#: Of kernel_grad_total.cuh. One group a warp: many where many warps hide the latency of memory, one where threads take
#: turns; these then take many taps each.
_TOTAL = {
    "SLICE_GROUPS": Tunable(legal=(1, 4, 16, 32), cuda=32, cpu=1),
    "TAPS_EACH": Tunable(legal=(1, 64), cuda=1, cpu=64),
}


def _total(slices: Callable[[ConvProblem, Constants], int]) -> Launch:
    """Return the launch of kernel_grad_total.cuh, which adds up the slices of partial sums."""
    return Launch("kernel_grad_total", ("partial", "dw", "db"),
                  lambda p, t: (ceil_div(_taps(p), 32 * t["TAPS_EACH"]),),
                  lambda p, t: (32, t["SLICE_GROUPS"]), integers=lambda p, t: (slices(p, t),))  # fmt: skip


#: Within a pass in the order of the ladder: each rung is meant to be faster than those before it.
VARIANTS: tuple[Variant, ...] = (
    Variant(
        "forward",
        "naive",
        launches=(
            Launch("forward", ("x", "w", "b", "y"), _one_thread_each(lambda p: math.prod(p.y_shape)), _threads),
            Launch("pack_mask", ("y", "mask"), _one_thread_each(lambda p: math.prod(p.mask_shape)), _threads,
                   when=lambda p: p.mask),
        ),
        tunables={"THREADS": _WHOLE_WARPS},
    ),
    Variant(
        "forward",
        "tiled",
        launches=(
            Launch("forward", ("x", "w", "b", "y"), tiles.forward_grid, tiles.block("TILE_Q", "TILE_P"),
                   shared_bytes=tiles.forward_bytes),
            Launch("pack_mask", ("y", "mask"), _one_thread_each(lambda p: math.prod(p.mask_shape)), _threads,
                   when=lambda p: p.mask),
        ),
        tunables=tiles.FORWARD,
        specialise=lambda p, a, t: {"THREADS": t["TILE_P"] * t["TILE_Q"]},
        requires=(tiles.forward_fits,),
        auto_on=("cuda",),  # on a CPU a barrier costs more than the loads that it saves
    ),
    Variant(
        "forward",
        "coalesced",
        launches=(Launch("forward", ("x", "w", "b", "y", "mask"), strips.correlation_grid(True), _threads),),
        tunables=strips.TUNABLES,
        specialise=strips.correlation_constants(True),
        requires=(strips.unit_stride, strips.unit_dilation, strips.countable),
    ),
    Variant(
        "forward",
        "implicit_gemm",
        launches=(
            Launch("pack", ("w", "partial"), gemms.pack_grid("forward"), _threads, integers=gemms.slices("forward")),
            Launch("forward", ("x", "partial", "b", "y"), gemms.grid("forward"), _threads,
                   integers=gemms.slices("forward"), shared_bytes=gemms.shared_bytes("forward")),
            Launch("pack_mask", ("y", "mask"), _one_thread_each(lambda p: math.prod(p.mask_shape)), _threads,
                   when=lambda p: p.mask),
        ),
        tunables=gemms.TUNABLES["forward"],
        specialise=gemms.constants("forward"),
        partial_sums=gemms.packed_elements("forward"),
        requires=gemms.requires("forward"),
        auto_not=gemms.enough_rows("forward"),
    ),
    Variant(
        "input_grad",
        "naive",
        launches=(
            Launch("input_grad", ("dy", "saved", "w", "dx"),
                   _one_thread_each(lambda p: math.prod(p.x_shape)), _threads),
        ),
        tunables={"THREADS": _WHOLE_WARPS},
    ),
    Variant(
        "input_grad",
        "tiled",
        launches=(
            Launch("input_grad", ("dy", "saved", "w", "dx"), tiles.input_grad_grid, tiles.block("TILE_W", "TILE_H"),
                   integers=tiles.input_grad_steps, shared_bytes=tiles.input_grad_bytes),
        ),
        tunables=tiles.INPUT_GRAD,
        requires=(tiles.input_grad_fits,),
        auto_on=("cuda",),  # on a CPU a barrier costs more than the loads that it saves
    ),
    Variant(
        "input_grad",
        "coalesced",
        launches=(Launch("input_grad", ("dy", "saved", "w", "dx"), strips.correlation_grid(False), _threads),),
        tunables=strips.TUNABLES,
        specialise=strips.correlation_constants(False),
        requires=(strips.unit_stride, strips.unit_dilation, strips.countable),
    ),
    Variant(
        "input_grad",
        "implicit_gemm",
        launches=(
            Launch("pack", ("w", "partial"), gemms.pack_grid("input_grad"), _threads,
                   integers=gemms.slices("input_grad")),
            Launch("input_grad", ("dy", "saved", "partial", "dx"), gemms.grid("input_grad"), _threads,
                   integers=gemms.slices("input_grad"), shared_bytes=gemms.shared_bytes("input_grad")),
        ),
        tunables=gemms.TUNABLES["input_grad"],
        specialise=gemms.constants("input_grad"),
        partial_sums=gemms.packed_elements("input_grad"),
        requires=gemms.requires("input_grad"),
        auto_not=gemms.enough_rows("input_grad"),
    ),
    Variant(
        "kernel_grad",
        "naive",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "partial"),
                   lambda p, t: (ceil_div(_taps(p), t["THREADS"]), _slices(p)), _threads),
            _total(lambda p, t: _slices(p)),
        ),
        tunables={"THREADS": _WHOLE_WARPS, **_TOTAL},
        partial_sums=lambda p, t: _slices(p) * _taps(p),
    ),
    Variant(
        "kernel_grad",
        "tiled",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "partial"), tiles.kernel_grad_grid, _threads,
                   shared_bytes=tiles.kernel_grad_bytes),
            _total(tiles.kernel_grad_slices),
        ),
        tunables={**tiles.KERNEL_GRAD, **_TOTAL},
        partial_sums=lambda p, t: tiles.kernel_grad_slices(p, t) * _taps(p),
        requires=(tiles.kernel_grad_fits,),
        auto_on=("cuda",),  # on a CPU a barrier costs more than the loads that it saves
    ),
    Variant(
        "kernel_grad",
        "coalesced",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "partial"), strips.kernel_grad_grid, _threads,
                   integers=lambda p, t: (strips.kernel_grad_blocks(p, t),)),
            _total(strips.kernel_grad_blocks),
        ),
        tunables={**strips.TUNABLES, **_TOTAL},
        specialise=strips.kernel_grad_constants,
        partial_sums=lambda p, t: strips.kernel_grad_blocks(p, t) * _taps(p),
        requires=(strips.unit_stride, strips.unit_dilation, strips.countable),
    ),
    Variant(
        "kernel_grad",
        "implicit_gemm",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "partial"), gemms.kernel_grad_grid, _threads,
                   integers=gemms.kernel_grad_integers, shared_bytes=gemms.kernel_grad_bytes),
            _total(gemms.kernel_grad_splits),
        ),
        tunables={**gemms.TUNABLES["kernel_grad"], **_TOTAL},
        specialise=gemms.constants("kernel_grad"),
        partial_sums=lambda p, t: gemms.kernel_grad_splits(p, t) * _taps(p),
        requires=gemms.requires("kernel_grad"),
        auto_not=gemms.enough_rows("kernel_grad"),
    ),
    Variant(
        "backward",
        "fused",
        launches=(
            Launch("backward", ("dy", "saved", "x", "w", "dx", "partial"),
                   lambda p, t: (p.C * strips.backward_blocks(p, t),), _threads,
                   integers=lambda p, t: (strips.backward_blocks(p, t),)),
            dataclasses.replace(_total(strips.backward_blocks), when=lambda p: p.dw or p.bias),
        ),
        tunables={**strips.FUSED_TUNABLES, **_TOTAL},
        specialise=strips.backward_constants,
        partial_sums=lambda p, t: strips.backward_blocks(p, t) * _taps(p) * (p.dw or p.bias),
        requires=(strips.unit_stride, strips.unit_dilation, strips.depthwise, strips.small_odd_filter,
                  strips.enough_registers, strips.same_padding, strips.countable),
    ),
)  # fmt: skip


def of_pass(pass_name: str) -> tuple[Variant, ...]:
    """Return the variants of a pass, in the order of the ladder."""
    known(pass_name, tuple(PASSES), "pass")
    return tuple(variant for variant in VARIANTS if variant.pass_name == pass_name)


def choose(pass_name: str, variant: str, problem: ConvProblem, device_kind: str) -> Variant:
    """Return the variant that `variant` names, or the one that "auto" stands for.

    Raises
    ------
    InvalidArgument
        There is no such variant; the message lists the known ones.
    UnsupportedProblem
        The variant refuses the problem; the message is its sentence.
    """
    known(variant, ("auto", *(rung.name for rung in of_pass(pass_name))), "variant")
    if variant == "auto":
        reasons = why_not(pass_name, problem, device_kind)
        chosen = next((rung for rung, reason in reasons.items() if reason is None), None)
        if chosen is None:
            raise UnsupportedProblem(
                f"no variant of {pass_name} computes this problem: {'; '.join(filter(None, reasons.values()))}"
            )
        return chosen
    chosen = next(rung for rung in of_pass(pass_name) if rung.name == variant)
    if sentence := chosen.refusal(problem):
        raise UnsupportedProblem(f"{chosen} does not compute this problem: {sentence}")
    return chosen


def why_not(pass_name: str, problem: ConvProblem, device_kind: str) -> dict[Variant, str | None]:
    """Return each variant of a pass with the reason why "auto" does not choose it, None for the one that it chooses.

    The rule: the highest rung of the ladder that computes the problem, of those that are meant for the device and do
    not themselves leave such a problem to a lower one.
    """
    reasons: dict[Variant, str | None] = {}
    chosen: Variant | None = None
    for rung in reversed(of_pass(pass_name)):
        reason = rung.refusal(problem)
        if reason is None and device_kind not in rung.auto_on:
            reason = f"it is made for {' and '.join(rung.auto_on)}, not for {device_kind}"
        if reason is None:
            reason = rung.auto_not(problem, device_kind)
        if reason is None and chosen is not None:
            reason = f"{chosen.name} is a higher rung"
        if reason is None:
            chosen = rung
        reasons[rung] = reason
    return reasons


def select(pattern: str | None) -> tuple[Variant, ...]:
    """Return the variants that "pass", "pass/variant" or None (all) stands for."""
    if pattern is None:
        return VARIANTS
    pass_name, _, name = pattern.partition("/")
    rungs = of_pass(pass_name)
    if not name:
        return rungs
    known(name, tuple(rung.name for rung in rungs), f"variant of {pass_name}")
    return tuple(rung for rung in rungs if rung.name == name)

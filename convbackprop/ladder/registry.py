"""The registry: every variant of every pass, from the modules of their techniques, and the rule of "auto"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convbackprop.arguments import known
from convbackprop.devices.gpus import Target
from convbackprop.errors import UnsupportedProblem
from convbackprop.ladder import (
    banded,
    coalesced,
    few_channels,
    fused,
    hopper,
    implicit_gemm,
    naive,
    pipelined,
    register_tiled,
    tensor_core,
    tiled,
    vectorised,
    vectorised_direct,
    vectorised_gemm,
    winograd,
)
from convbackprop.ladder.variant import Variant
from convbackprop.problem import PASSES, ConvProblem

if TYPE_CHECKING:
    from convbackprop.devices import Device

#: In the order of the ladder: each rung is meant to be faster than those before it.
TECHNIQUES = (
    naive,
    tiled,
    register_tiled,
    few_channels,
    coalesced,
    fused,
    pipelined,
    banded,
    vectorised,
    implicit_gemm,
    tensor_core,
    hopper,
    winograd,
    vectorised_gemm,
    vectorised_direct,
)

#: What `variant` may be in place of a rung: the fastest one, as far as it was measured; and what the rule chooses.
AUTO, UNTUNED = "auto", "untuned"

#: By pass, and within a pass in the order of the ladder.
VARIANTS: tuple[Variant, ...] = tuple(
    entry
    for pass_name in PASSES
    for technique in TECHNIQUES
    for entry in technique.ENTRIES
    if entry.pass_name == pass_name
)


def of_pass(pass_name: str) -> tuple[Variant, ...]:
    """Return the variants of a pass, in the order of the ladder."""
    known(pass_name, tuple(PASSES), "pass")
    return tuple(variant for variant in VARIANTS if variant.pass_name == pass_name)


def choose(pass_name: str, variant: str, problem: ConvProblem, device: Device | Target | str) -> Variant:
    """Return the variant that `variant` names, or the one that the rule of "auto" chooses.

    `device`: where, for which target, or on which kind of device.

    Raises
    ------
    InvalidArgument
        There is no such variant; the message lists the known ones.
    UnsupportedProblem
        The variant refuses the problem; the message is its sentence.
    """
    known(variant, (AUTO, UNTUNED, *(rung.name for rung in of_pass(pass_name))), "variant")
    if variant in (AUTO, UNTUNED):
        reasons = why_not(pass_name, problem, device)
        chosen = next((rung for rung, reason in reasons.items() if reason is None), None)
        if chosen is None:
            raise UnsupportedProblem(
                f"no variant of {pass_name} computes this problem: {'; '.join(filter(None, reasons.values()))}"
            )
        return chosen
    chosen = next(rung for rung in of_pass(pass_name) if rung.name == variant)
    if sentence := chosen.refusal(problem, device):
        raise UnsupportedProblem(f"{chosen} does not compute this problem: {sentence}")
    return chosen


def why_not(pass_name: str, problem: ConvProblem, device: Device | Target | str) -> dict[Variant, str | None]:
    """Return each variant of a pass with the reason why "auto" does not choose it, None for the one that it chooses.

    The rule: the highest rung of the ladder that computes the problem, of those that are meant for the device and do
    not themselves leave such a problem to a lower one.
    """
    target = Target.of(device) if isinstance(device, (str, Target)) else device.target
    reasons: dict[Variant, str | None] = {}
    chosen: Variant | None = None
    for rung in reversed(of_pass(pass_name)):
        reason = rung.refusal(problem, device)
        if reason is None and target.kind not in rung.auto_on:
            reason = f"it is made for {' and '.join(rung.auto_on)}, not for {target.kind}"
        if reason is None and rung.transforms:
            reason = "the bound of its errors is wider than the one that is promised; it is chosen by its name"
        if reason is None:
            reason = rung.auto_not(problem, target)
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

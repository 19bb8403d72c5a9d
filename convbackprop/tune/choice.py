"""What "auto" takes: a measured choice for the problem's class, else the nearest one, else the rule's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convbackprop.devices import Device
from convbackprop.errors import ConvBackpropError
from convbackprop.ladder import registry
from convbackprop.ladder.registry import AUTO, UNTUNED
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ConvProblem
from convbackprop.tune import table
from convbackprop.tune.table import SEPARATE, Entry

Passes = list[tuple[Variant, ConvProblem]]

#: What `tuning` wants to be told of before anything is chosen: pass, problem, device.
listeners: list[Callable[[str, ConvProblem, Device], None]] = []


@dataclass(frozen=True)
class Tuned:
    """A measured choice, and how many octaves off the problem it was measured."""

    entry: Entry
    distance: float

    @property
    def sentence(self) -> str:
        """Which, and why."""
        entry = self.entry
        octaves = f"{self.distance:g} octave{'s' * (self.distance != 1)}"
        where = f"the nearest, {octaves} off" if self.distance else "this class"
        found = f"{entry.choice}; {entry.times_rule:.2f}x the rule"
        if entry.variant == UNTUNED:
            found = "nothing is faster than the rule's choice"
        return f"tuned: {found} on {entry.problem} ({where}), {entry.date[:10]}"


def tuned(pass_name: str, problem: ConvProblem, device: Device) -> Tuned | None:
    """Return the measured choice for a problem on a device, or None where there is none that computes it."""
    for distance, entry in table.lookup(device.title, pass_name, problem):
        if entry.rung is None or entry.rung.refusal(problem, device) is None:
            return Tuned(entry, distance)
    return None


def choose(pass_name: str, variant: str, problem: ConvProblem, device: Device | str) -> Variant:
    """Return the variant that `variant` names, or the one that "auto" stands for on a device.

    Of a kind of device alone nothing has been measured.

    Raises
    ------
    InvalidArgument, UnsupportedProblem
        As `registry.choose` does.
    """
    if isinstance(device, str):
        return registry.choose(pass_name, variant, problem, device)
    if variant == AUTO and (found := _asked(pass_name, problem, device)) and (rung := found.entry.rung):
        return rung
    return registry.choose(pass_name, variant, problem, device)


def passes_of(pass_name: str, variant: str, problem: ConvProblem, device: Device) -> Passes | None:
    """Return the pass as `choose` finds it; None: no variant that may be chosen takes the layout of the images."""
    if not takes_layout(pass_name, variant, problem, device):
        return None
    return [(choose(pass_name, variant, problem, device), problem)]


def takes_layout(pass_name: str, variant: str, problem: ConvProblem, device: Device) -> bool:
    """Return whether `choose` would find a variant for another layout than nchw, in which every problem is computed."""
    if problem.layout == "nchw":
        return True
    if variant == AUTO and (found := tuned(pass_name, problem, device)) and found.entry.rung:
        return True
    try:
        registry.choose(pass_name, variant, problem, device)
    except ConvBackpropError:
        return False
    return True


def one_pass(variant: str, problem: ConvProblem, device: Device | str) -> Variant | None:
    """Return the rung of backward that computes all gradients in one pass, or None: separate passes do."""
    if variant == AUTO and not isinstance(device, str) and (found := _asked("backward", problem, device)):
        if found.entry.variant == SEPARATE:
            return None
        if rung := found.entry.rung:
            return rung
    for rung, reason in registry.why_not("backward", problem, device).items():
        named = rung.name == variant and rung.refusal(problem, device) is None
        if named or (variant in (AUTO, UNTUNED) and reason is None):
            return rung
    return None


def _asked(pass_name: str, problem: ConvProblem, device: Device) -> Tuned | None:
    for tell in listeners:
        tell(pass_name, problem, device)
    return tuned(pass_name, problem, device)

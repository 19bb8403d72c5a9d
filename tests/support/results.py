"""What variants write, bit for bit."""

from __future__ import annotations

from convbackprop import check
from convbackprop.devices import Device
from convbackprop.devices.gpus import Target
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ConvProblem


def results(
    variant: Variant, problem: ConvProblem, device: Device, multiprocessors: int, data: str = "normal"
) -> dict[str, bytes]:
    """Return the bits of what a variant writes with the grid of a GPU of so many multiprocessors."""
    given = check.inputs(variant.pass_name, problem, data, seed=0)
    blocks = check.launch(variant, problem, given, device, Target("cpu", multiprocessors))
    return {name: block.array.tobytes() for name, block in blocks.items() if name not in (*given, "scratch")}

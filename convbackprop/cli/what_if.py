"""`profile --what-if`: a variant with other values of its tunables, beside the one that it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from convbackprop.cli.common import grid, say
from convbackprop.devices.gpus import Gpu
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.variant import Variant, pinned
from convbackprop.problem import ConvProblem
from convbackprop.profile.report import Report
from convbackprop.profile.roofline import duration
from convbackprop.profile.tables import comparison_rows


def changed(text: str, variant: Variant) -> Variant:
    """Return a variant with the tunables that the text names, such as "ROWS=16,COLS=4".

    Raises
    ------
    InvalidArgument
        The variant has no such tunable, or the value is none of its legal ones; the message lists them.
    """
    values: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in variant.tunables:
            names = ", ".join(variant.tunables) or "it has none"
            raise InvalidArgument(f"--what-if names {name!r}; it should be a tunable of {variant.title}: {names}")
        legal = variant.tunables[name].legal
        if value not in map(str, legal):
            raise InvalidArgument(
                f"--what-if has {name}={value}; it should be one of {', '.join(map(str, legal))}, as {variant.title} "
                "wants it"
            )
        if name in values:
            raise InvalidArgument(f"--what-if names {name} twice; it should name it once")
        values[name] = int(value)
    return pinned(variant, tuple(values.items()))


def differences(now: Variant, other: Variant, problem: ConvProblem, gpu: Gpu) -> dict[str, tuple[int, int]]:
    """Return each tunable that differs, with the value that it has and the other one."""
    values = [variant.constants(gpu.target, problem) for variant in (now, other)]
    return {name: (values[0][name], values[1][name]) for name in now.tunables if values[0][name] != values[1][name]}


def print_comparison(now: Report, other: Report, out: Console) -> None:
    """Print both beside each other, and one sentence."""
    found = differences(now.variant, other.variant, now.problem, now.gpu)
    if not found:
        say(out, f"{now.variant.title} has these values as it is: nothing would change.")
        return
    heads = ["", *(", ".join(f"{name}={pair[i]}" for name, pair in found.items()) for i in (0, 1))]
    out.print(grid(heads, comparison_rows([now, other])))
    changes = ", ".join(f"{name} {after} instead of {before}" for name, (before, after) in found.items())
    what = "expected" if now.expected and other.expected else "at least"
    times = [each.expected.seconds if what == "expected" and each.expected else each.predicted for each in (now, other)]
    say(out, "", f"{changes}: {what} {duration(times[0])} -> {duration(times[1])}.")


def as_json(now: Report, other: Report, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tunables that differ, and the other report."""
    found = differences(now.variant, other.variant, now.problem, now.gpu)
    return {"tunables": {name: {"now": pair[0], "what_if": pair[1]} for name, pair in found.items()}, "report": report}

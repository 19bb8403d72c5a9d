"""What is wanted of layers of many channels on a CPU: of the variant that "auto" chooses, beside torch and naive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convbackprop.bench import layers
from convbackprop.bench.layers import Layer
from convbackprop.bench.rows import Row

#: GFLOP/s on the whole layer, and how many times as long as torch at most on it and on ResNet's 3 x 3 layers.
RATE, WHOLE, RESNET = 40, 6, 8

WANTED = (
    f"goals of layers: at most {WHOLE} times as long as torch on the whole layer, with {RATE} GFLOP/s, and {RESNET} "
    "times on ResNet's 3 x 3 layers; nowhere slower than naive."
)


@dataclass(frozen=True)
class Result:
    """What a pass of a layer took: naive's row and that of the variant which "auto" chooses."""

    layer: Layer
    naive: Row
    chosen: Row

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.chosen.gflops or float("nan")

    @property
    def times_torch(self) -> float | None:
        """How many times as long as torch it takes."""
        return 1 / over if (over := self.chosen.over(self.chosen.peer("torch"))) else None

    @property
    def times_naive(self) -> float:
        """How many times as fast as naive it is."""
        return self.chosen.over(self.naive.ours) or float("nan")

    @property
    def misses(self) -> list[str]:
        """The goals that are not met."""
        most = WHOLE if self.layer == layers.WHOLE else RESNET if self.layer in layers.RESNET_3X3 else None
        found = []
        if self.layer == layers.WHOLE and not self.gflops >= RATE:
            found.append(f"below {RATE} GFLOP/s")
        if most and self.times_torch is not None and self.times_torch > most:
            found.append(f"over {most}x torch")
        if self.chosen.name != self.naive.name and not self.times_naive >= 1:
            found.append("slower than naive")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        return {"layer": self.chosen.label, "batch": self.layer.batch, "problem": str(self.chosen.problem),
                "variant": self.chosen.name, "gflop_per_s": self.gflops, "times_torch": self.times_torch,
                "times_naive": self.times_naive, "misses": self.misses}  # fmt: skip


def results_of(rows: Sequence[Row], layer_of: Mapping[str, Layer]) -> list[Result]:
    """Return the results of rows in the order in which they were timed; `layer_of` has the layers by problem."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if str(row.problem) in layer_of:
            pairs.setdefault((str(row.problem), row.pass_name), []).append(row)
    return [
        Result(layer_of[problem], pair[0], pair[-1])
        for (problem, _), pair in pairs.items()
        if all(row.ours for row in pair)
    ]


def sentences(results: Sequence[Result]) -> list[str]:
    """Return what is to be said of the results: how many meet the goals, and which do not."""
    missed = [result for result in results if result.misses]
    return [
        f"{WANTED} {len(results) - len(missed)} of {len(results)} meet them{'.' if not missed else '; not:'}",
        *(f"  {r.chosen.name} on {r.chosen.label} {r.chosen.problem}: {'; '.join(r.misses)}" for r in missed),
    ]

"""The rows of `bench --layers`: layers of real networks, and what is wanted of the variant that "auto" chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from convbackprop import layers
from convbackprop.cli.bench_rows import Case, Row
from convbackprop.cli.common import distinct, say
from convbackprop.problem import PASSES
from convbackprop.variants import Variant, choose, of_pass

#: A CPU does one image: naive, which stands beside each layer, takes seconds for a batch.
BATCH = 1

#: GFLOP/s on the whole layer, and how many times as long as torch at most on it and on ResNet's 3 x 3 layers.
_RATE, _WHOLE, _RESNET = 40, 6, 8


@dataclass(frozen=True)
class LayerCase(Case):
    """A layer of a network as a problem."""

    layer: layers.Layer = layers.WHOLE


def cases() -> tuple[LayerCase, ...]:
    """Return the layers, each once."""
    return tuple(
        LayerCase(layer.network, layer.problem(BATCH), layer=layer)
        for layer in distinct((layers.WHOLE, *layers.DEEPBENCH))
    )


def variants_on(case: Case, pass_name: str, device_kind: str) -> tuple[Variant, ...]:
    """Return naive, and what "auto" chooses."""
    return (of_pass(pass_name)[0], choose(pass_name, "auto", case.problem, device_kind))


@dataclass(frozen=True)
class Result:
    """What a pass of a layer took: naive's row and that of the variant which "auto" chooses."""

    naive: Row
    chosen: Row

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        flops = PASSES[self.chosen.variant.pass_name].flops(self.chosen.case.problem)
        return flops / self.chosen.ours.median * 1e-9 if self.chosen.ours else float("nan")

    @property
    def times_torch(self) -> float | None:
        """How many times as long as torch it takes."""
        return 1 / over if (over := self.chosen.over(self.chosen.torch)) else None

    @property
    def times_naive(self) -> float:
        """How many times as fast as naive it is."""
        return self.chosen.over(self.naive.ours) or float("nan")

    @property
    def misses(self) -> list[str]:
        """The goals that are not met."""
        layer = self.chosen.case.layer if isinstance(self.chosen.case, LayerCase) else None
        most = _WHOLE if layer == layers.WHOLE else _RESNET if layer in layers.RESNET_3X3 else None
        found = []
        if layer == layers.WHOLE and not self.gflops >= _RATE:
            found.append(f"below {_RATE} GFLOP/s")
        if most and self.times_torch is not None and self.times_torch > most:
            found.append(f"over {most}x torch")
        if self.chosen.variant != self.naive.variant and not self.times_naive >= 1:
            found.append("slower than naive")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        return {"layer": self.chosen.case.label, "problem": str(self.chosen.case.problem),
                "variant": str(self.chosen.variant), "gflop_per_s": self.gflops, "times_torch": self.times_torch,
                "times_naive": self.times_naive, "misses": self.misses}  # fmt: skip


def results_of(rows: Sequence[Row]) -> list[Result]:
    """Return the results of rows in the order in which they were timed."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((str(row.case.problem), row.variant.pass_name), []).append(row)
    return [Result(pair[0], pair[-1]) for pair in pairs.values() if all(row.ours for row in pair)]


def print_results(results: Sequence[Result], out: Any) -> None:
    """Print the table, and what is wanted."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("variant", overflow="fold")
    for name in ("ms", "GFLOP/s", "torch ms", "x torch", "x naive", "goals"):
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for result in results:
        row, problem = result.chosen, str(result.chosen.case.problem).split(",activation")[0]
        label = "" if problem == before else f"{row.case.label} {problem}"
        before = problem
        torch = f"{1e3 * row.torch.median:.3g}" if row.torch else "-"
        times = f"{result.times_torch:.2f}" if result.times_torch else "-"
        verdict = Text("; ".join(result.misses), "yellow") if result.misses else Text("met", "green")
        median = row.ours.median if row.ours else float("nan")
        table.add_row(label, str(row.variant), f"{1e3 * median:.3g}", f"{result.gflops:.1f}", torch, times,
                      f"{result.times_naive:.1f}", verdict)  # fmt: skip
    out.print()
    out.print(table)
    say(out, f"{BATCH} image, bias and ReLU, float32. x torch: how many times as long as torch, which is given g "
        f"ready-made, it takes; at most {_WHOLE} on the whole layer, with {_RATE} GFLOP/s, and {_RESNET} on ResNet's "
        "3 x 3 layers. x naive: how many times as fast as naive; at least 1.")  # fmt: skip

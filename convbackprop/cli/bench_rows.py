"""The rows of `bench`: a case, what is known of a variant on it, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from convbackprop.check import inputs
from convbackprop.cli.common import distinct, say, title
from convbackprop.cli.photograph import CAMERA, Photograph
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.reference import numpy_dtype
from convbackprop.timing import Timing
from convbackprop.variants import Variant

#: Narrower than this, the problems are headings of the table instead of a column.
_WIDE = 104


@dataclass(frozen=True)
class Case:
    """A problem, its short name, and the image that it is about (None: random numbers)."""

    label: str
    problem: ConvProblem
    image: Photograph | None = None

    def arrays(self, pass_name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a pass; `own` are those that are known already."""
        problem, dtype = self.problem, numpy_dtype(self.problem.dtype)
        w = np.random.default_rng(1).standard_normal(problem.w_shape) / problem.R
        mine = {}
        if self.image is not None:
            mine["x"] = self.image.grey.reshape(problem.x_shape).astype(dtype)
            # A filter that sums to 0 sees edges: on an image of positive values any other opens, or shuts, nearly all
            # of the ReLUs.
            w -= w.mean() if w.size > 1 else 0
            mine["b"] = np.full(problem.K, 0.01, dtype)
        mine["w"] = w.astype(dtype)
        return inputs(pass_name, problem, own={**mine, **own})


@dataclass
class Row:
    """A variant on a problem: whether it is right, and how long it took."""

    variant: Variant
    case: Case
    refusal: str | None = None
    faults: Sequence[str] = ()
    error: float = float("nan")
    ours: Timing | None = None
    copy: Timing | None = None
    torch: Timing | None = None
    opencv: Timing | None = None
    public: Timing | None = None

    @property
    def least_bytes(self) -> int:
        """Bytes that the pass moves at least."""
        return PASSES[self.variant.pass_name].least_bytes(self.case.problem)

    def rate(self, timing: Timing | None) -> float | None:
        """Return the least bytes over the median, in GB/s."""
        return self.least_bytes / timing.median * 1e-9 if timing else None

    def over(self, timing: Timing | None) -> float | None:
        """Return how many times as long as ours something else took."""
        return timing.median / self.ours.median if timing and self.ours else None

    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        low, high = (1e3 * bound for bound in self.ours.range) if self.ours else (None, None)
        return {
            "variant": title(self.variant),
            "problem": str(self.case.problem),
            "label": self.case.label,
            "ok": None if self.refusal else not self.faults,
            "refused": self.refusal,
            "faults": list(self.faults),
            "error": self.error,
            "median_ms": _ms(self.ours),
            "p20_ms": low,
            "p80_ms": high,
            "repetitions": len(self.ours.seconds) if self.ours else 0,
            "least_bytes": self.least_bytes,
            "flops": PASSES[self.variant.pass_name].flops(self.case.problem),
            "gb_per_s": self.rate(self.ours),
            "copy_gb_per_s": self.rate(self.copy),
            "share_of_copy": self.over(self.copy),
            "torch_ms": _ms(self.torch),
            "ratio_to_torch": self.over(self.torch),
            "opencv_ms": _ms(self.opencv),
            "ratio_to_opencv": self.over(self.opencv),
            "public_ms": _ms(self.public),
        }


def _ms(timing: Timing | None) -> float | None:
    return 1e3 * timing.median if timing else None


def print_rows(rows: Sequence[Row], out: Any, against: str) -> None:
    """Print the table, what is wrong, and what the columns mean; `against` is the peer that was asked for."""
    wide = out.width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.add_column("pass/variant", no_wrap=True)
    if wide:
        table.add_column("problem", overflow="fold")
    for name in ("ms", "20-80 %", "GB/s", "of copy", "vs opencv" if against == "opencv" else "vs torch", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    label = None
    for row in rows:
        if row.case.label != label:
            if label is not None or not wide:
                table.add_row()
            label = row.case.label
            if not wide:
                table.add_row(Text(label, "bold", no_wrap=True, overflow="ellipsis"))
        table.add_row(title(row.variant), *([label] if wide else []), *_cells(row))
    out.print(table)
    for row in rows:
        for fault in row.faults:
            say(out, f"{title(row.variant)} on {row.case.problem} is WRONG: {fault}")
    for sentence in distinct(
        f"{title(row.variant)} refuses {row.case.label}: {row.refusal}" for row in rows if row.refusal
    ):
        say(out, sentence)
    _print_legend(rows, out)


def _cells(row: Row) -> list[Any]:
    if row.refusal or row.faults or not row.ours:
        return [Text("refused") if row.refusal else Text("WRONG", "red"), "", "", "", "", _digits(row.error)]
    low, high = row.ours.range
    ratio = row.over(row.torch or row.opencv)
    return [
        _digits(1e3 * row.ours.median),
        f"{_digits(1e3 * low)}-{_digits(1e3 * high)}" if len(row.ours.seconds) > 1 else "once",
        _digits(row.rate(row.ours)),
        f"{_digits(100 * (row.over(row.copy) or 0))} %",
        f"{_digits(ratio)}x" if ratio else "-",
        f"{row.error:.2f}" if row.error >= 0.005 else "<0.01",
    ]


def _digits(value: float | None) -> str:
    """Return a number in three digits."""
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if 999.5 <= value < 99999.5 else f"{value:#.3g}".rstrip(".")


def _print_legend(rows: Sequence[Row], out: Any) -> None:
    copies = [rate for row in rows if (rate := row.rate(row.copy))]
    if not copies:
        return
    say(
        out,
        f"\nms: median. GB/s: the bytes that the pass must move, over the median; of copy: its share of what a copy of "
        f"as many bytes reaches, timed in turn with the pass's fastest rows ({_digits(min(copies))} to "
        f"{_digits(max(copies))} GB/s).",
    )
    if any(row.torch for row in rows):
        say(
            out,
            "vs torch: how many times as long torch takes. It allocates its results, which ours do not; for the "
            "gradients it is given dy * phi'(s) ready-made, which ours form.",
        )
    if any(row.opencv for row in rows):
        say(
            out,
            "vs opencv: how many times as long filter2D takes, with as many threads and into an array that is there; "
            "it adds no bias and has no ReLU.",
        )
    say(out, "error: the largest, as a share of the bound that any order of summation obeys; 1 or less is right.")
    if any(row.case.image is not None and row.case.image.name == CAMERA for row in rows):
        say(out, f"{CAMERA}: scikit-image's photograph, grey values from 0 to 1; other images are random numbers.")

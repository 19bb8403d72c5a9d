"""Measure the error against float64 by reduction length, dtype and data, and write docs/accuracy.{md,svg}.

    python tools/accuracy.py [--measure]

--measure runs every variant on the cpu device beside torch: minutes. Without it the picture and the generated parts of
the page are made anew from docs/data/accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

import convbackprop
from convbackprop import check
from convbackprop.bench import plots
from convbackprop.bench.torch_calls import import_torch
from convbackprop.check import reference
from convbackprop.devices import get_device
from convbackprop.devices.cpu_level import processor
from convbackprop.files import write_whole
from convbackprop.ladder.registry import of_pass
from convbackprop.problem import DTYPES, ConvProblem

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE, MEASURED, PICTURE = DOCS / "accuracy.md", DOCS / "data" / "accuracy.json", DOCS / "accuracy.svg"

#: Problems whose results are sums of n products, for n that each pass may have.
SUMS = {
    "forward": (lambda n: f"2,{n},4,5,8,1,1", (16, 256, 4096, 65536)),
    "input_grad": (lambda n: f"2,8,4,5,{n},1,1", (16, 256, 4096, 65536)),
    "kernel_grad": (lambda n: f"1,2,{math.isqrt(n)},{math.isqrt(n)},8,1,1", (16, 256, 4096, 65536, 2**20)),
}

#: The two factors of each pass's products, and the axes along which they are added up.
FACTORS = {"forward": (("x", 1), ("w", 1)), "input_grad": (("dy", 1), ("w", 0)), "kernel_grad": (("x", 2), ("dy", 2))}

#: What the data is like, of the table of unusual data; `n` is its reduction length.
UNUSUAL = {
    "all equal": "one number everywhere: round-offs do not cancel",
    "all positive": "uniform between 0 and 1: the sum grows throughout",
    "cancelling": "each product comes a second time, negated: the sum is 0",
    "mixed": "magnitudes from 2^-6 to 2^6, evenly in the exponent",
    "subnormal": "products below the smallest normal number of the dtype",
    "huge": "sums of magnitudes near the largest number of the dtype",
}
UNUSUAL_N = 4096

_SMALLEST_NORMAL = {"float32": -126, "float64": -1022, "float16": -14, "bfloat16": -126}
_LARGEST = {"float32": 128, "float64": 1024, "float16": 16, "bfloat16": 128}


def data(kind: str, pass_name: str, problem: ConvProblem, n: int) -> dict[str, Any]:
    """Return the arrays of a pass, filled as the kind says."""
    rng = np.random.default_rng(n)
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "dy": problem.y_shape}
    arrays = {}
    for i, (name, axis) in enumerate(FACTORS[pass_name]):
        shape = shapes[name]
        values = rng.standard_normal(shape)
        if kind == "all equal":
            values = np.full(shape, 0.7)
        elif kind == "all positive":
            values = rng.uniform(0, 1, shape)
        elif kind == "mixed":
            values = np.exp2(rng.uniform(-6, 6, shape)) * rng.choice((-1, 1), shape)
        elif kind == "cancelling":
            half = np.split(values, 2, axis)[0]
            values = np.concatenate([half, -half if i else half], axis)
        elif kind == "subnormal":
            exponent = _SMALLEST_NORMAL[problem.dtype] - 2  # of the products
            values = np.ldexp(values, exponent // 2 + (exponent % 2) * i)
        elif kind == "huge":
            values = np.ldexp(values, (_LARGEST[problem.dtype] - 2 - round(math.log2(n))) // 2)
        arrays[name] = values.astype(reference.numpy_dtype(problem.dtype))
    return arrays


def shares(name: str, problem: ConvProblem, got: Any, expected: Any) -> Any:
    """Return each element's error as a share of its bound."""
    value, magnitude = expected
    return reference.error_share(got, value, reference.error_bound(name, problem, value, magnitude), problem.dtype)


def of_torch(pass_name: str, arrays: dict[str, Any], problem: ConvProblem) -> Any:
    """Return what torch computes on the CPU, in the dtype of the arrays."""
    torch = import_torch()
    kind = getattr(torch, problem.dtype)
    t = {name: torch.from_numpy(array.astype(np.float64)).to(kind) for name, array in arrays.items()}  # exact
    if pass_name == "forward":
        result = torch.nn.functional.conv2d(t["x"], t["w"])
    elif pass_name == "input_grad":
        result = torch.nn.grad.conv2d_input(problem.x_shape, t["w"], t["dy"])
    else:
        result = torch.nn.grad.conv2d_weight(t["x"], problem.w_shape, t["dy"])
    return result.to(torch.float64).numpy().astype(reference.numpy_dtype(problem.dtype))


def row(pass_name: str, dtype: str, kind: str, n: int) -> dict[str, Any]:
    """Return the worst and the typical share of the bound: of each variant, and of torch."""
    problem = ConvProblem.parse(SUMS[pass_name][0](n), dtype=dtype)
    arrays = data(kind, pass_name, problem, n)
    ((name, expected),) = reference.answer(pass_name, problem, arrays).items()
    ours: dict[str, tuple[float, float]] = {}
    for variant in of_pass(pass_name):
        if variant.refusal(problem) is None:
            got = check.launch(variant, problem, arrays, get_device("cpu"))[name].array
            each = shares(name, problem, got, expected)
            ours[variant.name] = float(each.max()), float(np.median(each))
    theirs = shares(name, problem, of_torch(pass_name, arrays, problem), expected)
    return {
        "pass": pass_name, "dtype": dtype, "data": kind, "n": n, "ours": ours,
        "torch": [float(theirs.max()), float(np.median(theirs))],
    }  # fmt: skip


def measure() -> None:
    """Measure everything, and keep it."""
    torch = import_torch()
    rows = []
    for dtype in DTYPES:
        for pass_name, (_, lengths) in SUMS.items():
            rows += [row(pass_name, dtype, "normal", n) for n in lengths]
            rows += [row(pass_name, dtype, kind, UNUSUAL_N) for kind in UNUSUAL]
            print(f"{dtype} {pass_name}: worst {max(worst(each)[0] for each in rows[-8:]):.2f}", flush=True)
    facts = {
        "convbackprop": convbackprop.__version__, "torch": torch.__version__.split("+")[0],
        "processor": processor(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    write_whole(MEASURED, json.dumps({"facts": facts, "rows": rows}, indent=None, separators=(",", ":")) + "\n")


def read() -> dict[str, Any]:
    """Return what was measured last."""
    return json.loads(MEASURED.read_text())


def worst(one: dict[str, Any]) -> tuple[float, float]:
    """Return the largest error of any of our variants, and the largest of their medians."""
    return tuple(max(pair[i] for pair in one["ours"].values()) for i in (0, 1))  # type: ignore[return-value]


# -- the page --------------------------------------------------------------------------------------------------------
def _share(value: float | None) -> str:
    """Return a share of the bound for a table; JSON has Infinity for a NaN or an overflow that should not be."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.2f}" if value >= 0.005 else f"{value:.0e}" if value else "0"


def lengths_table(measured: dict[str, Any]) -> str:
    """Return the errors of normal numbers by dtype and reduction length."""
    lines = ["| dtype | n | " + " | ".join(f"{name}: worst / typical | torch" for name in SUMS) + " |",
             "|---|--:|" + "--:|--:|" * len(SUMS)]  # fmt: skip
    by = {(r["dtype"], r["n"], r["pass"]): r for r in measured["rows"] if r["data"] == "normal"}
    for dtype in DTYPES:
        for n in sorted({key[1] for key in by}):
            cells = []
            for pass_name in SUMS:
                found = by.get((dtype, n, pass_name))
                cells += [" / ".join(map(_share, worst(found))), _share(found["torch"][0])] if found else ["", ""]
            lines.append(f"| {dtype} | {n:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def unusual_table(measured: dict[str, Any]) -> str:
    """Return the worst errors of unusual data, over passes and variants, beside torch's."""
    lines = ["| data | what it is | " + " | ".join(f"{dtype} | torch" for dtype in DTYPES) + " |",
             "|---|---|" + "--:|--:|" * len(DTYPES)]  # fmt: skip
    for kind, what in UNUSUAL.items():
        cells = []
        for dtype in DTYPES:
            found = [r for r in measured["rows"] if (r["data"], r["dtype"]) == (kind, dtype)]
            cells += [_share(max(worst(r)[0] for r in found)), _share(max(r["torch"][0] for r in found))]
        lines.append(f"| {kind} | {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def caption(measured: dict[str, Any]) -> str:
    """Return on what it was measured."""
    f = measured["facts"]
    return (f"*convbackprop {f['convbackprop']} on the cpu device, torch {f['torch']} on the CPU, {f['processor']}, "
            f"{f['date']}.*")  # fmt: skip


def parts(measured: dict[str, Any]) -> dict[str, str]:
    """Return the generated parts of the page, by name."""
    note = caption(measured)
    return {"lengths": f"{lengths_table(measured)}\n\n{note}", "unusual": f"{unusual_table(measured)}\n\n{note}"}


def picture(measured: dict[str, Any]) -> bytes:
    """Return the share of the bound against the reduction length: the worst of our variants, their median, torch."""
    drawing = plots.figure(11, 5.6)
    axes = drawing.subplots(len(SUMS), len(DTYPES), sharex="row", sharey=True)
    for line, pass_name in zip(axes, SUMS, strict=True):
        for ax, dtype in zip(line, DTYPES, strict=True):
            rows = sorted(
                (r for r in measured["rows"] if (r["pass"], r["dtype"], r["data"]) == (pass_name, dtype, "normal")),
                key=lambda r: r["n"],
            )
            n = [r["n"] for r in rows]
            ax.axhline(1, color="#D55E00", linewidth=1, label="the bound")
            ax.plot(n, [worst(r)[0] for r in rows], "o-", color="#0072B2", label="worst element, any variant")
            ax.plot(n, [worst(r)[1] for r in rows], "o:", color="#56B4E9", label="typical element (median)")
            ax.plot(n, [r["torch"][0] for r in rows], "x--", color="#888888", label="torch, worst element")
            ax.set(xscale="log", yscale="log")
            if pass_name == next(iter(SUMS)):
                ax.set_title(dtype)
        line[0].set_ylabel(pass_name)
    drawing.supxlabel("products in a sum")
    drawing.supylabel("error as a share of its bound")
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return plots.rendered(drawing, "svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure anew: minutes")
    if parser.parse_args().measure:
        measure()
    measured = read()
    write_whole(PICTURE, picture(measured))
    text = PAGE.read_text()
    for name, part in parts(measured).items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, rest = text.split(begin)
        text = before + begin + part + "\n" + end + rest.split(end, 1)[1]
    write_whole(PAGE, text)


if __name__ == "__main__":
    main()

"""Pictures of the lab: the course's example, a filter that sees edges, through a layer and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from convbackprop import demo
from convbackprop.arguments import known
from convbackprop.bench.photograph import CAMERA
from convbackprop.bench.plots import FORMATS, rendered
from convbackprop.bench.torch_calls import why_no_torch
from convbackprop.cli.common import add_device, check_memory, console, print_json, say
from convbackprop.devices import choice_of_device
from convbackprop.errors import InvalidArgument
from convbackprop.files import write_whole
from convbackprop.problem import ConvProblem

HELP = "pictures of the lab"
EPILOG = f"""\
edge: the filter [-1 0 1]/3 in three rows, a bias of {demo.BIAS} and a ReLU, on a
photograph: input, pre-activation, output, upstream gradient, input gradient and
kernel gradient as heat maps in one figure, computed by our kernels, with the
numbers beside torch's. The loss asks the layer to answer as Sobel's filter
would, so -dR/dw asks for a larger step in the middle row than in the others.

The photograph is scikit-image's (pip install 'convbackprop[data]'); without it
a picture is drawn. pip install 'convbackprop[plot]' brings matplotlib, which
the figure needs.

examples:
  convbackprop demo edge
  convbackprop demo edge --image photo.jpg --output edge.svg

JSON keys: device, image, picture, ok, note, numbers [part, what, formula,
least, largest, sum, torch_least, torch_largest, torch_sum, difference, error],
filter, kernel_grad; error is the largest of ours against float64, as a share of
its bound.
"""

DEMOS = ("edge",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help=", ".join(DEMOS))
    parser.add_argument("--image", metavar="FILE", help="an image, made grey, in place of the photograph")
    parser.add_argument("--output", default="edge.png", metavar="FILE", help="the figure, by its ending as PNG or SVG; "
                        "default: edge.png in this directory")  # fmt: skip
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compute, draw and print; return 0 if every number is within its bound."""
    known(arguments.name, DEMOS, "demo")
    path = Path(arguments.output)
    if path.suffix[1:] not in FORMATS:
        raise InvalidArgument(f"--output is {path}; its name should end in .png or .svg")
    image = demo.image_of(arguments.image)
    height, width = image.grey.shape
    check_memory(ConvProblem.parse(f"1,1,{height},{width},1,3,3,padding=same"))
    device, choice = choice_of_device(arguments.device)
    edge = demo.compute(image, device)
    write_whole(path, rendered(demo.draw(edge, device), path.suffix[1:]))
    ok = all(error <= 1 for error in edge.errors.values())
    rows = demo.numbers(edge)
    notes = [why_no_torch("cpu") or ""]
    if arguments.image is None and image.name != CAMERA:
        notes.append("scikit-image is not installed, so a picture was drawn: pip install 'convbackprop[data]'")
    note = "; ".join(filter(None, notes)) or None
    if arguments.json:
        print_json({"device": device.name, "image": image.name, "picture": str(path), "ok": ok, "note": note,
                    "numbers": rows, "filter": demo.FILTER.tolist(),
                    "kernel_grad": edge.ours["dw"].tolist()})  # fmt: skip
        return 0 if ok else 1
    out = console()
    say(out, choice)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"{image.name}, {height} x {width}", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in ("least", "largest", "sum", "torch's sum", "differ by", "error"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        figures = (row[key] for key in ("least", "largest", "sum", "torch_sum", "difference"))
        error = "-" if row["error"] is None else f"{row['error']:.2f}"
        table.add_row(row["what"], row["formula"], *("-" if v is None else f"{v:.6g}" for v in figures), error)
    out.print(table)
    say(out, "differ by: the largest difference of an element from torch's. error: the largest of an element from "
        "float64, as a share of the bound that any order of summation obeys; 1 or less is right.", "")  # fmt: skip
    out.print("dR/dw:")
    for line in edge.ours["dw"]:
        out.print("  " + "  ".join(f"{float(value):11.4f}" for value in line))
    say(out, "", *([note] if note else []), f"wrote {path}")
    return 0 if ok else 1

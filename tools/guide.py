"""The generated parts of docs/guide.md: what the recorded run says of each rung, and the pictures.

A picture belongs to a command of the page: of "convbackprop explain tile -o tile.png" it is docs/pictures/tile.png.
Each says in its file what it shows; one that no longer shows what the kernels do is drawn anew.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import textwrap
from pathlib import Path

from convbackprop.bench.columns import digits
from convbackprop.cli import explain
from convbackprop.explain.drawing import digest_of, rendered
from convbackprop.explain.picture import Picture
from tools.gpu_page import LADDER, Recorded, newest, since
from tools.gpu_parts import table

ROOT = Path(__file__).parent.parent
GUIDE, PICTURES = ROOT / "docs" / "guide.md", ROOT / "docs" / "pictures"

#: The layers whose rows are shown, those of them that the run has of a rung.
LAYERS = {
    "4096 3x3": "one channel, 4096², 3x3",
    LADDER: "one channel, 4096², 5x5",
    "4096 7x7": "one channel, 4096², 7x7",
    "64->128 112 3x3": "64 to 128 channels, 112², 3x3, 32 images",
}

_CEILINGS = """\
The figures below are of a recorded run, in microseconds: an {device}, {date}, float32, medians with a cold cache, bias
and ReLU included. There a copy of 1 GiB moves {memory:.2f} TB/s, and multiply-adds reach {arithmetic:.1f} TFLOP/s:
{ridge:.1f} operations in the time of a byte. torch: {torch}, the better of its memory formats, in full float32 as
ours; its gradients are given g ready-made, which ours form. {since} So these are times
of the ideas, not of every line that you read today."""

_WIDTH = 126

_COMMAND = re.compile(r"(?:^    |`)convbackprop explain ?([^`\n]*)", re.MULTILINE)


def commands(page: str) -> list[argparse.Namespace]:
    """Return the arguments of every `explain` in a page."""
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    return [parser.parse_args(shlex.split(text)) for text in _COMMAND.findall(page)]


def pictures(page: str) -> dict[Path, list[Picture]]:
    """Return what each picture of the page shows."""
    return {PICTURES / each.output: explain.drawn(each) for each in commands(page) if each.output}


def shown(drawn: list[Picture]) -> str:
    """Return what a file says that shows these."""
    return "+".join(picture.digest for picture in drawn)


def stale(page: str) -> dict[Path, bytes]:
    """Return the pictures that are missing or do not show what the kernels do."""
    return {
        path: rendered(drawn, path.suffix[1:])
        for path, drawn in pictures(page).items()
        if not path.exists() or digest_of(path) != shown(drawn)
    }


def parts() -> dict[str, str]:
    """Return the parts of the page that the newest run makes, by their names."""
    run = newest()[-1]
    names = re.findall(r"<!-- generated: measured (\w+) -->", GUIDE.read_text())
    return {"ceilings": ceilings(run), **{f"measured {name}": measured(run, name) for name in names}}


def ceilings(run: Recorded) -> str:
    """Return what the GPU can do, and of which code the times are."""
    most = run.found["ceilings"]
    memory, arithmetic = most["copy_bytes_per_s"], most["ffma_flops_per_s"]
    text = _CEILINGS.format(
        device=run.device, date=run.date, memory=memory / 1e12, arithmetic=arithmetic / 1e12, ridge=arithmetic / memory,
        torch=run.environment["torch"], since=since(run),
    )  # fmt: skip
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def measured(run: Recorded, rung: str) -> str:
    """Return a table of a rung's times, or that there are none."""
    rows = []
    for layer, title in LAYERS.items():
        for line in run.of(layer):
            if line.rung == rung and line.us and line.floor:
                rows.append([title, line.pass_name, digits(line.us), digits(line.floor), f"{line.us / line.floor:.1f}",
                             digits(line.torch)])  # fmt: skip
    if not rows:
        return f"No GPU has timed `{rung}`: the recorded run has no row of it."
    for above, row in reversed(list(itertools.pairwise(rows))):
        row[0] = "" if row[0] == above[0] else row[0]
    return table(["layer", "pass", "us", "floor", "times the floor", "torch"], rows, left=2)

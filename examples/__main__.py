"""Run every example in full, one after the other, and print what each has shown.

Pictures go to a folder, each under the name of its example. Each example runs in a process of its own; one that fails
is reported, and the rest goes on.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from convbackprop.arguments import known
from convbackprop.bench.plots import FORMATS
from convbackprop.cli import guarded
from convbackprop.cli.common import console, print_json, progress, say
from convbackprop.errors import InvalidArgument

EXAMPLES = ("edge_filter", "numeric_gradient", "basic_cnn", "linear_scaling", "unet_level", "resnet_block",
            "frozen_batch_norm", "checkpointing", "whole_layer", "training_speed")  # fmt: skip


def carried_out(name: str, picture: Path, seed: int) -> dict[str, Any]:
    """Return an example's claims and picture, what it prints as JSON (`printed`), or what it says where it fails."""
    script = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(script), "--json", "--seed", str(seed), "--output", str(picture)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, Any] = {"example": name, "seconds": time.perf_counter() - start, "ok": False, "claims": []}
    try:
        printed = json.loads(done.stdout)
        return {**found, **{key: printed[key] for key in ("ok", "claims", "picture")}, "printed": printed}
    except json.JSONDecodeError:
        return {**found, "failure": done.stderr.strip() or f"it ended with exit code {done.returncode}"}


def run(arguments: argparse.Namespace, bar: Progress) -> list[dict[str, Any]]:
    """Run the examples that were asked for."""
    names = list(dict.fromkeys(arguments.names)) or list(EXAMPLES)
    for name in names:
        known(name, EXAMPLES, "example")
    if arguments.format not in FORMATS:
        raise InvalidArgument(f"--format is {arguments.format}; it should be one of {', '.join(FORMATS)}")
    task = bar.add_task("", total=len(names))
    found = []
    for name in names:
        bar.update(task, description=name, refresh=True)
        found.append(carried_out(name, Path(arguments.output) / f"{name}.{arguments.format}", arguments.seed))
        bar.update(task, advance=1, refresh=True)
    return found


def show(found: Sequence[dict[str, Any]]) -> None:
    """Print the closing table: an example's claims below one another."""
    out = console()
    shown = common.table("example", "seconds")
    for column in ("", "shown", "found"):
        shown.add_column(column, no_wrap=False)
    for one in found:
        claims = [("yes" if claim["ok"] else "NO", claim["what"], claim["found"]) for claim in one["claims"]]
        if "failure" in one:
            claims.append(("NO", "it ran", one["failure"].splitlines()[-1]))
        for i, claim in enumerate(claims):
            shown.add_row(*((one["example"], f"{one['seconds']:.0f}") if i == 0 else ("", "")), *claim)
    out.print(shown)
    pictures = [one["picture"] for one in found if "picture" in one]
    say(out, "", f"wrote {', '.join(pictures)}" if pictures else "no picture was written")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="examples", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(EXAMPLES)}; default: all of them")
    parser.add_argument("--output", default="build/examples", metavar="DIR", help="the pictures' folder; default: "
                        "%(default)s")  # fmt: skip
    parser.add_argument("--format", default="png", help=f"of the pictures: {', '.join(FORMATS)}; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON: for each example its name, seconds, "
                        "claims, picture and what it prints with --json; where it fails, the failure")  # fmt: skip
    arguments = parser.parse_args(argv)

    def command() -> int:
        with progress() as bar:
            found = run(arguments, bar)
        if arguments.json:
            print_json(found)
        else:
            show(found)
        return 0 if all(one["ok"] for one in found) else 1

    return guarded(command)


if __name__ == "__main__":
    raise SystemExit(main())

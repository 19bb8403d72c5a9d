"""Write the generated parts of README.md anew: the table of variants, and with --bench the picture of a run.

    python tools/readme.py [--errors] [--bench]

The table's errors stand in docs/errors.json; --errors measures them anew, on the cpu device.

Each part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

import convbackprop
from convbackprop.problem import PASSES
from convbackprop.variants import of_pass

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "bench.svg"
ERRORS = ROOT / "docs" / "errors.json"


def variants_table() -> str:
    """Return the registry as a Markdown table."""
    errors = json.loads(ERRORS.read_text())
    rows = ["| pass/variant | what it does | largest error: float32 / any dtype |", "|---|---|---|"]
    for pass_name in PASSES:
        for variant in of_pass(pass_name):
            link = f"[{variant}](cuda_src/{pass_name}/{variant.name}.cu)"
            rows.append(f"| {link} | {variant.summary} | {_largest(errors.get(str(variant), {}))} |")
    return "\n".join(rows)


def _largest(errors: dict[str, float]) -> str:
    """Return the largest errors of a variant, measured by dtype."""
    return f"{errors['float32']:.2f} / {max(errors.values()):.2f}" if errors else "-"


def measure_errors() -> None:
    """Check every variant on the curated problems, and keep the largest error of each in each dtype."""
    done = subprocess.run(
        [sys.executable, "-m", "convbackprop", "check", "--device", "cpu", "--json"], stdout=subprocess.PIPE, check=True
    )
    errors: dict[str, dict[str, float]] = {}
    for row in json.loads(done.stdout)["rows"]:
        errors.setdefault(row["variant"], {})[row["dtype"]] = round(row["error"], 3)
    ERRORS.parent.mkdir(exist_ok=True)
    ERRORS.write_text(json.dumps(errors, indent=1) + "\n")


def bench_picture() -> str:
    """Run the benchmark, draw what it prints, and return the Markdown that shows it."""
    width = 150
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(width)}
    done = subprocess.run(
        [sys.executable, "-m", "convbackprop", "bench"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi(done.stdout.rstrip()))
    svg = console.export_svg(title="make bench")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # nothing is fetched from elsewhere
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
    what = f"version {convbackprop.__version__}, {datetime.date.today()}, {cpu_name()}, {os.cpu_count()} cores"
    return f"![What make bench prints](docs/{PICTURE.name})\n\n*A run of `make bench`: {what}.*"


def cpu_name() -> str:
    """Return what the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.machine()


def replace(text: str, name: str, part: str) -> str:
    """Return the text with a generated part exchanged."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"README.md has no part {name}"
    return pattern.sub(lambda found: f"{found[1]}{part}\n{found[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", action="store_true", help="run the benchmark, too, and draw its picture")
    parser.add_argument("--errors", action="store_true", help="measure the largest errors, too: a minute or two")
    arguments = parser.parse_args()
    if arguments.errors:
        measure_errors()
    text = replace(README.read_text(), "variants", variants_table())
    if arguments.bench:
        text = replace(text, "bench", bench_picture())
    README.write_text(text)


if __name__ == "__main__":
    main()

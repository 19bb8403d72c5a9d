"""Write the generated parts of README.md anew: the table of variants, the picture of a run, two runs compared.

    python tools/readme.py [--errors] [--bench] [--compare]

The table's errors stand in docs/data/errors.json; --errors measures them anew, on the cpu device. The run is the saved run
docs/data/bench.json; --bench times it anew. The runs that are compared are before.json and after.json there; --compare
times both anew, the second one with kernels that the C++ compiler optimised less.

Each part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from convbackprop.bench import plots, runs
from convbackprop.cli.plot import only
from convbackprop.files import write_whole
from convbackprop.ladder.registry import of_pass
from convbackprop.problem import PASSES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RUN = ROOT / "docs" / "data" / "bench.json"
PICTURE = ROOT / "docs" / "bench.svg"
SHOWN = "1024x1024 5x5"  # of the run, what the picture shows
ERRORS = ROOT / "docs" / "data" / "errors.json"
COMPARED = {"before": {}, "after": {"CONVBACKPROP_CXXFLAGS": "-O1"}}  # saved runs in docs/data, and how they were made
COMMANDS = ("compare before after", "plot before", "report before after")


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


def measure_bench() -> None:
    """Run the benchmark, and keep the run."""
    with tempfile.TemporaryDirectory() as workshop:
        saved = Path(workshop) / RUN.name
        subprocess.run([sys.executable, "-m", "convbackprop", "bench", "--save", str(saved)], check=True)
        RUN.parent.mkdir(exist_ok=True)
        shutil.move(saved, RUN)


def bench_part() -> str:
    """Return the Markdown that shows the run that was kept."""
    caption = plots.caption(runs.read(str(RUN)))
    shown = f"![The passes on {SHOWN} with every variant and peer, and the floor](docs/{PICTURE.name})"
    return f"{shown}\n\n*{SHOWN} in a run of `make bench`: {caption}.*"


def bench_picture() -> bytes:
    """Return the picture of the run that was kept."""
    return plots.rendered(plots.ladder(only(runs.read(str(RUN)), re.escape(SHOWN))), "svg")


def measure_compared() -> None:
    """Time the kernel gradients of one problem twice, and keep both runs."""
    command = ["bench", "kernel_grad", "--problem", "1,1,1024,1024,1,5,5,padding=same", "--against", "none"]
    with tempfile.TemporaryDirectory() as workshop:
        for name, environment in COMPARED.items():
            saved = Path(workshop) / f"{name}.json"
            subprocess.run(
                [sys.executable, "-m", "convbackprop", *command, "--seconds", "1", "--save", str(saved)],
                env={**os.environ, **environment},
                check=True,
            )
        for name in COMPARED:  # both from the checkout as it was
            shutil.move(Path(workshop) / f"{name}.json", ROOT / "docs" / "data" / f"{name}.json")


def place_runs(folder: Path) -> None:
    """Copy the runs that are compared to where the commands look for them in a folder."""
    (folder / ".convbackprop" / "runs").mkdir(parents=True)
    for name in COMPARED:
        shutil.copy(ROOT / "docs" / "data" / f"{name}.json", folder / ".convbackprop" / "runs")


def compared_part() -> str:
    """Return what the commands that read saved runs print, after each of them."""
    shown = []
    with tempfile.TemporaryDirectory() as workshop:
        place_runs(Path(workshop))
        for command in COMMANDS:
            done = subprocess.run(
                [sys.executable, "-m", "convbackprop", *command.split()],
                cwd=workshop,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            shown.append(f"$ convbackprop {command}\n{tidy(done.stdout)}")
    return "```text\n" + "\n\n".join(shown) + "\n```"


def tidy(output: str) -> str:
    """Return lines without the blanks at their ends."""
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


def replace(text: str, name: str, part: str) -> str:
    """Return the text with a generated part exchanged."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"README.md has no part {name}"
    return pattern.sub(lambda found: f"{found[1]}{part}\n{found[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", action="store_true", help="run the benchmark, too: a minute and a half")
    parser.add_argument("--errors", action="store_true", help="measure the largest errors, too: a minute or two")
    parser.add_argument("--compare", action="store_true", help="time the runs that are compared, too")
    arguments = parser.parse_args()
    if arguments.errors:
        measure_errors()
    if arguments.bench:
        measure_bench()
    if arguments.compare:
        measure_compared()
    write_whole(PICTURE, bench_picture())
    text = replace(README.read_text(), "variants", variants_table())
    text = replace(text, "bench", bench_part())
    write_whole(README, replace(text, "compare", compared_part()))


if __name__ == "__main__":
    main()

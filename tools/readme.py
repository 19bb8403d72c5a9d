"""Write the generated parts of README.md and of docs anew: `make readme`.

    python tools/readme.py [--errors] [--bench] [--compare] [--commands]

README.md, docs/gpu.md, gpu.svg,    what a GPU measured: benchmarks/results, and what `profile` says of these rows
  expected.svg                      (tools/predict.py)
convbackprop/tune/measured          the tables that the package ships: what those runs tuned
README.md, docs/ladder.md           the ladder: the registry; errors.json, which --errors measures on the cpu device
docs/expected.md                    what is expected of layers: expected.json (tools/expected_page.py)
docs/command_line.md, lab.md        what commands print; those that are recorded run again with --commands only
docs/guide.md, docs/pictures        what `explain` draws, and what a GPU measured of each rung (tools/guide.py)
docs/command_line.md, bench.svg     a run of `make bench`: bench.json, which --bench times anew

errors.json, bench.json and the two runs that are compared, before.json and after.json (--compare times them anew, the
second with kernels that the C++ compiler optimised less), lie in docs/data. A part stands between
`<!-- generated: NAME -->` and `<!-- end -->`; for commands see tools/console.py.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from convbackprop.bench import plots, runs
from convbackprop.cli.plot import only
from convbackprop.files import write_whole
from convbackprop.ladder.registry import VARIANTS, of_pass
from convbackprop.problem import PASSES
from tools import console, expected_page, gpu_page, gpu_parts, guide

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README, GPU, LADDER, COMMANDS = ROOT / "README.md", DOCS / "gpu.md", DOCS / "ladder.md", DOCS / "command_line.md"
EXPECTED, LAB = DOCS / "expected.md", DOCS / "lab.md"
GPU_PICTURE, BENCH_PICTURE = DOCS / "gpu.svg", DOCS / "bench.svg"
BENCH, ERRORS = DOCS / "data" / "bench.json", DOCS / "data" / "errors.json"
SHOWN = "1024x1024 5x5"  # of the run of the benchmark, what the picture shows
COMPARED = {"before": {}, "after": {"CONVBACKPROP_CXXFLAGS": "-O1"}}  # runs in docs/data, and how they were made


# -- parts -----------------------------------------------------------------------------------------------------------
def gpu_part() -> str:
    """Return the front page's picture and table of the newest run."""
    run = gpu_page.newest()[-1]
    return f"![The ladder on the {run.device}]({GPU_PICTURE.relative_to(ROOT)})\n\n{gpu_page.front(run)}"


def runs_part() -> str:
    """Return what every GPU's newest run measured."""
    return "\n\n".join(f"### {run.device}\n\n{gpu_page.measured(run)}" for run in reversed(gpu_page.newest()))


def expected_part() -> str:
    """Return what is expected of the layers of networks."""
    return expected_page.part()


def ladder_part() -> str:
    """Return the techniques as a Markdown table; the CPU's own, which a reader looks at last, in one row."""
    rows = ["| rung | passes | what its first file does |", "|---|---|---|"]
    for_a_cpu = []
    for name in dict.fromkeys(variant.name for variant in VARIANTS):
        own = [variant for variant in VARIANTS if variant.name == name]
        link = f"[{name}](cuda_src/{own[0]}.cu)"
        if all(variant.runs_on == ("cpu",) for variant in own):
            for_a_cpu.append(link)
        else:
            passes, summary = (variant.pass_name for variant in own), re.sub(r" \(\w+\.cuh\)", "", own[0].summary)
            rows.append(f"| {link} | {', '.join(passes)} | {summary} |")
    rows.append(f"| {', '.join(for_a_cpu)} | {', '.join(PASSES)} | The CPU's own rungs, with its vectors. |")
    return "\n".join(rows)


def variants_part() -> str:
    """Return the registry as a Markdown table."""
    errors = json.loads(ERRORS.read_text())
    rows = ["| pass/variant | what it does | largest error: float32 / any dtype |", "|---|---|---|"]
    for pass_name in PASSES:
        for variant in of_pass(pass_name):
            link = f"[{variant}](../cuda_src/{variant}.cu)"
            rows.append(f"| {link} | {variant.summary} | {_largest(errors.get(str(variant), {}))} |")
    return "\n".join(rows)


def _largest(errors: dict[str, float]) -> str:
    """Return the largest errors of a variant, measured by dtype; a dash for float32 where it was not checked."""
    of_float32 = f"{errors['float32']:.2f}" if "float32" in errors else "-"
    return f"{of_float32} / {max(errors.values()):.2f}" if errors else "-"


def bench_part() -> str:
    """Return the Markdown that shows the run that was kept."""
    caption = plots.caption(runs.read(str(BENCH)))
    shown = f"![The passes on {SHOWN} with every variant and peer, and the floor]({BENCH_PICTURE.name})"
    return f"{shown}\n\n*{SHOWN} in a run of `make bench`: {caption}.*"


def pages(recorded: bool = False) -> dict[Path, bytes]:
    """Return what each generated file should hold; commands that are recorded run again only if asked."""
    readme = replace(README.read_text(), "gpu", gpu_part())
    commands = replace(COMMANDS.read_text(), "bench", bench_part())
    chapter = guide.GUIDE.read_text()
    for name, part in guide.parts().items():
        chapter = replace(chapter, name, part)
    texts = {
        guide.GUIDE: chapter,
        README: replace(readme, "ladder", ladder_part()),
        GPU: replace(GPU.read_text(), "runs", runs_part()),
        EXPECTED: replace(EXPECTED.read_text(), "expected", expected_part()),
        LADDER: replace(LADDER.read_text(), "variants", variants_part()),
        COMMANDS: console.played(commands, recorded),
        LAB: console.played(LAB.read_text(), recorded),
    }
    pictures = {
        GPU_PICTURE: plots.rendered(gpu_page.picture(gpu_page.newest()[-1]), "svg"),
        DOCS / gpu_page.EXPECTED_PICTURE: plots.rendered(gpu_page.scatter(gpu_page.newest()[-1]), "svg"),
        BENCH_PICTURE: plots.rendered(plots.ladder(only(runs.read(str(BENCH)), re.escape(SHOWN))), "svg"),
    }
    tuned = {path: text for run in gpu_page.newest() for path, text in gpu_parts.shipped_table(run).items()}
    return {path: text.encode() for path, text in (texts | tuned).items()} | pictures | guide.stale(chapter)


def replace(text: str, name: str, part: str) -> str:
    """Return the text with a generated part exchanged."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"there is no part {name}"
    return pattern.sub(lambda found: f"{found[1]}{part}\n{found[2]}", text)


# -- what takes time -------------------------------------------------------------------------------------------------
def measure_errors() -> None:
    """Check every variant on the curated problems, and keep the largest error of each in the dtypes that it takes."""
    done = subprocess.run(
        [sys.executable, "-m", "convbackprop", "check", "--device", "cpu", "--json"], stdout=subprocess.PIPE, check=True
    )
    errors: dict[str, dict[str, float]] = {}
    for row in json.loads(done.stdout)["rows"]:
        if row["checks"]:
            errors.setdefault(row["variant"], {})[row["dtype"]] = round(row["error"], 3)
    ERRORS.write_text(json.dumps(errors, indent=1) + "\n")


def measure_bench() -> None:
    """Run the benchmark, and keep the run."""
    _bench(BENCH)


def measure_compared() -> None:
    """Time the kernel gradients of one problem twice, and keep both runs."""
    for name, environment in COMPARED.items():
        _bench(BENCH.with_stem(name), "kernel_grad", "--problem", "1,1,1024,1024,1,5,5,padding=same",
               "--against", "none", "--seconds", "1", environment=environment)  # fmt: skip


def _bench(kept: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    with tempfile.TemporaryDirectory() as workshop:
        saved = Path(workshop) / kept.name
        subprocess.run([sys.executable, "-m", "convbackprop", "bench", *arguments, "--save", str(saved)],
                       env={**os.environ, **(environment or {})}, check=True)  # fmt: skip
        shutil.move(saved, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", action="store_true", help="run the benchmark, too: a minute and a half")
    parser.add_argument("--errors", action="store_true", help="measure the largest errors, too: a minute or two")
    parser.add_argument("--compare", action="store_true", help="time the runs that are compared, too")
    parser.add_argument("--commands", action="store_true", help="run the recorded commands, too: two minutes")
    arguments = parser.parse_args()
    for wanted, measure in (
        (arguments.errors, measure_errors),
        (arguments.bench, measure_bench),
        (arguments.compare, measure_compared),
    ):
        if wanted:
            measure()
    for path, content in pages(arguments.commands).items():
        write_whole(path, content)


if __name__ == "__main__":
    main()

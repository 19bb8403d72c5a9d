"""Time a few passes and compare with the last saved run on the same machine: `make bench-compare`.

    python tools/bench_compare.py [--slower PERCENT] [--save] [--storage DIR] [PYTEST ARGUMENTS]

Fails when the median of a pass is longer than in that run by more than a share (15 %). The first run on a machine is
saved, and succeeds. Later ones are only compared, so that many small steps do not add up unseen, until --save makes a
later run, in which nothing is slower, the one to compare with. Machines are told apart by processor, CPUs, threads and
device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from convbackprop.bench.machine import LOAD, load
from convbackprop.devices import get_device
from convbackprop.devices.cpu import get_num_threads
from convbackprop.devices.cpu_level import processor
from convbackprop.files import write_whole

ROOT = Path(__file__).parents[1]


def folder_of_machine(storage: Path) -> Path:
    """Return where the runs of this machine are kept."""
    device = get_device()
    facts = (processor(), os.cpu_count(), get_num_threads(), device.title)
    return storage / hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def by_name(run: Path) -> dict[str, Any]:
    """Return the benchmarks of a run that pytest-benchmark wrote."""
    return {benchmark["fullname"]: benchmark for benchmark in json.loads(run.read_text())["benchmarks"]}


def slower(before: Path, now: Path, share: float) -> list[str]:
    """Return a sentence on each benchmark that takes longer by more than a share, and on each that is gone."""
    earlier, found = by_name(before), by_name(now)
    said = [f"GONE: {name}, which the saved run has, was not timed" for name in earlier if name not in found]
    for name, benchmark in found.items():
        if name not in earlier:
            continue
        was, took = (run["stats"]["median"] for run in (earlier[name], benchmark))
        if took > (1 + share) * was:
            rates = [run["extra_info"]["copy_gb_per_s"] for run in (earlier[name], benchmark)]
            info = benchmark["extra_info"]
            said.append(
                f"SLOWER: {info['variant']} on {info['label']} takes {1e3 * took:.3g} ms, {took / was:.2f} times as "
                f"long as before; a copy of as many bytes takes {rates[0] / rates[1]:.2f} times as long"
            )
    return said


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slower", type=float, default=15, metavar="PERCENT", help="fails from here on; default: 15")
    parser.add_argument("--save", action="store_true", help="the run to compare with from now on, if nothing is slower")
    parser.add_argument("--storage", type=Path, default=ROOT / ".benchmarks", help="default: .benchmarks")
    arguments, for_pytest = parser.parse_known_args(argv)
    if not 0 < arguments.slower < 1000:
        parser.error(f"--slower is {arguments.slower:g}; it should be a percentage above 0 and below 1000")
    folder = folder_of_machine(arguments.storage.absolute())
    earlier = sorted(folder.glob("*.json"))
    before = load()
    with tempfile.TemporaryDirectory() as workshop:
        found = Path(workshop) / "found.json"
        command = [
            sys.executable, "-m", "pytest", "benchmarks/test_passes.py", "-k", "quick", "-q", "-p", "no:cacheprovider",
            "--benchmark-only", f"--benchmark-storage=file://{folder}", f"--benchmark-json={found}",
            "--benchmark-sort=name", "--benchmark-columns=median,iqr,rounds",
            *([f"--benchmark-compare={earlier[-1]}"] if earlier else []), *for_pytest,
        ]  # fmt: skip
        # Inside another run of pytest, in one of its workers, pytest-benchmark would time nothing.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
        code = subprocess.run(command, cwd=ROOT, env=outside).returncode
        print(flush=True)
        if code or not found.exists():
            print("bench-compare FAILED: the passes could not be timed; see above.")
            return code or 1
        if before is not None and before > LOAD:
            print(f"The load was {before:g} before timing began: others compute here, so times are not to be trusted.")
        if earlier:
            if said := slower(earlier[-1], found, arguments.slower / 100):
                print(*said, sep="\n")
                print(f"bench-compare FAILED: more than {arguments.slower:g} % slower than {earlier[-1]}.")
                return 1
            print(f"No pass takes over {arguments.slower:g} % longer than in {earlier[-1]}.")
        else:
            print("There was no run of this machine to compare with.")
        if not earlier or arguments.save:
            path = folder / f"{len(earlier) + 1:04}_passes.json"
            write_whole(path, found.read_bytes())
            print(f"This run was saved as {path}: the next one is compared with it.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

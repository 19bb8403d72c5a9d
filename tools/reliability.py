"""Write the counts of docs/reliability.md anew, from what `make hardening` has left in build/figures.

    python tools/reliability.py [FOLDER]

The counts stand in docs/data/reliability.json; those that FOLDER has take the places of older ones.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

from convbackprop.files import write_whole

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
COUNTS = ROOT / "docs" / "data" / "reliability.json"

#: What is counted, by the names under which tests record it.
TITLES = {
    "faults": "faults of the driver, the compilers and the cache",
    "storm": "processes on one cache that are killed while its entries are damaged",
    "threads": "calls of 16 threads at once",
    "interrupts": "launches ended by Ctrl-C",
    "memory": "calls with little memory",
    "compiler_memory": "compilations with little memory",
    "disk": "compilations on a disk of little room",
    "exits": "interpreters that end with work in flight",
    "forks": "forks while threads launch",
    "ucontext": "runs of the portable fibers on a busy machine",
    "fuzz": "random problems, laws and malformed calls",
    "large_forward": "outputs written by one launch",
    "large_input_grad": "input gradients written by one launch",
    "large_kernel_grad_naive": "products of one sum, naive",
    "large_kernel_grad_coalesced": "products of one sum, coalesced",
    "launches": "launches in one process, memory and threads as before",
    "sanitized_address": "launches under AddressSanitizer",
    "sanitized_undefined": "launches under UndefinedBehaviorSanitizer",
    "sanitized_thread": "launches under ThreadSanitizer",
}


def table(counts: dict[str, dict[str, int]]) -> str:
    """Return the counts as a Markdown table, in the order of `TITLES`."""
    rows = ["| what | counted |", "|---|---|"]
    for name, title in TITLES.items():
        if name in counts:
            found = ", ".join(f"{what.replace('_', ' ')} {count:,}" for what, count in counts[name].items())
            rows.append(f"| {title} | {found} |")
    return "\n".join(rows)


def page(counts: dict[str, dict[str, int]]) -> str:
    """Return the page with these counts."""
    part = f"<!-- generated: counts -->\n{table(counts)}\n<!-- end -->"
    return re.sub(r"<!-- generated: counts -->\n.*?<!-- end -->", lambda _: part, PAGE.read_text(), flags=re.DOTALL)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "figures")
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    new: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("*.json")):  # what comes in several parts has NAME.PART.json: their sum is counted
        new.setdefault(path.name.partition(".")[0], Counter()).update(json.loads(path.read_text()))
    if not new:
        raise SystemExit(f"{folder} has no counts; run 'make hardening' first, or name another folder")
    if unknown := sorted(set(new) - set(TITLES)):
        raise SystemExit(f"{folder} has counts without a title in {Path(__file__).name}: {', '.join(unknown)}")
    counts |= new
    write_whole(COUNTS, json.dumps(dict(sorted(counts.items())), indent=1) + "\n")
    write_whole(PAGE, page(counts))
    print(f"wrote {COUNTS.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}: {len(new)} of {len(counts)} counts are new")


if __name__ == "__main__":
    main()

"""Launch every variant on small problems and check the results; compute-sanitizer looks on.

compute-sanitizer --tool memcheck python -m benchmarks.report.launch_all
"""

from __future__ import annotations

import sys

from benchmarks.report.jobs import sanitizer_runs
from convbackprop.check import check
from convbackprop.devices import get_device


def main(arguments: list[str]) -> int:
    """Return 0 if all results are right; with --stand-in no GPU takes part."""
    if "--stand-in" in arguments:
        from benchmarks.report import stand_in

        stand_in.install()
    device = get_device("cuda")
    count, wrong = 0, 0
    for variant, problem in sanitizer_runs():
        outcome = check(variant, problem, device)
        count += 1
        if not outcome.ok:
            wrong += 1
            print(f"{variant} on {problem} is WRONG: {outcome.faults[0]}", flush=True)
    print(f"{count} launches checked, {wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

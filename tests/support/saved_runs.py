"""Runs that were never timed, for the tests of what is made of saved runs."""

from __future__ import annotations

import numpy as np

from convbackprop.bench.rows import Row
from convbackprop.bench.runs import Run
from convbackprop.bench.timing import Timing
from convbackprop.problem import ConvProblem

ENVIRONMENT = {
    "machine": "a processor", "cpus": 2, "threads": 2, "device": "cpu", "convbackprop": "0.1.0", "commit": "abc",
    "python": "3.11.7", "numpy": "2.0", "compiler": "g++ 12",
}  # fmt: skip
QUIET = {"load_before": 0.0, "load_during": 1.0, "load_after": 1.0, "spread": 0.02, "noisy": False}

#: Seconds of each variant at 64 x 64; at other sizes in proportion to the elements.
LADDER = {
    "forward/naive": 4e-3, "forward/coalesced": 2e-4, "kernel_grad/naive": 8e-3, "kernel_grad/coalesced": 4e-4,
}  # fmt: skip


def samples(rng, seconds, count=20, spread=0.02):
    """Return repetitions around a time, skewed as timings are."""
    return Timing(tuple(float(seconds * (1 + spread * value)) for value in rng.exponential(1, count)))


def run(name="a", seed=0, factor=1.0, sizes=(64, 128), ladder=LADDER, count=20, **environment):
    """Return a run; `factor` is how many times as long each of our rows took."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        problem = ConvProblem.parse(f"1,1,{size},{size},1,3,3,padding=same,activation=relu,bias=1")
        scale = (size / 64) ** 2
        rows += [
            Row(
                variant, problem, f"{size}x{size} 3x3", error=0.25,
                ours=samples(rng, factor * seconds * scale, count), copy=samples(rng, 1e-4 * scale, count),
                peers={"torch": samples(rng, 6e-3 * scale, count), "scipy": samples(rng, 2e-3 * scale, count)},
                peak_flops=1e11,
            )
            for variant, seconds in ladder.items()
        ]  # fmt: skip
    settings = {"suite": "lab", "dtype": "float32", "peers": ["torch", "scipy"], "seconds_a_row": 0.5}
    return Run(name, "2026-01-02T03:04:05+0000", {**ENVIRONMENT, **environment}, settings, QUIET, (), rows)

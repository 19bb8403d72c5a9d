"""A row: how long something took in a job, or why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = {"min": 0, "p5": 5, "p20": 20, "median": 50, "p80": 80, "p95": 95}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the percentiles in microseconds, and how many repetitions they are of."""
    values = np.percentile(np.asarray(seconds) * 1e6, list(PERCENTILES.values()))
    return {**dict(zip(PERCENTILES, map(float, values), strict=True)), "repetitions": len(seconds)}


@dataclass
class Row:
    """One way to do a job.

    Attributes
    ----------
    job, who : str
        The job's name; "pass/variant", "torch", "torch channels_last", "... TF32", "copy", or what a call is made of.
    part : str
        Of the report: "rows", or what its job is about besides.
    ours : bool
        Whether it is the package's.
    problem : str
        As ConvProblem.parse reads it.
    cold, warm, host : dict or None
        Percentiles in microseconds: by events with the L2 cache flushed, without, and of a call by the host's clock;
        in "graphs" a call's share of many that are queued, until the last has ended.
    least_bytes, flops : int
        What the job moves and computes at least.
    small_share, full_share : float or None
        The largest error as a share of its bound, on the small problem (against the float64 reference) and at full
        size (against float64 sums over taps by torch; in "training" and "nccl" against torch.nn's or the unsplit
        layer's results, as a share of what rounding may make of them); 1 or less is right.
    deterministic : bool or None
        Whether a second run gave the same bits.
    failed : str or None
        Why there is no time.
    """

    job: str
    who: str
    ours: bool = False
    problem: str = ""
    cold: dict[str, float] | None = None
    warm: dict[str, float] | None = None
    host: dict[str, float] | None = None
    least_bytes: int = 0
    flops: int = 0
    small_share: float | None = None
    full_share: float | None = None
    deterministic: bool | None = None
    failed: str | None = None
    part: str = "rows"

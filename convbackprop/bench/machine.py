"""What timings depend on: the machine, the versions, the commit; and whether the machine is quiet enough to time on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convbackprop._version import __version__
from convbackprop.bench.peers import Peer
from convbackprop.bench.rows import Row
from convbackprop.devices import Device
from convbackprop.devices.compiler import cxx_name
from convbackprop.devices.cpu import get_num_threads
from convbackprop.devices.cpu_level import processor

#: What makes two runs comparable without a note.
SAME = ("machine", "cpus", "threads", "device", "convbackprop", "commit", "compiler", "python", "numpy")


def commit() -> str | None:
    """Return the commit of the checkout that the package is in, with "+" where files have been changed; else None."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))


def environment(device: Device, peers: Sequence[Peer]) -> dict[str, Any]:
    """Return what the timings depend on."""
    facts: dict[str, Any] = {
        "machine": processor() if device.kind == "cpu" else device.title,
        "cpus": os.cpu_count(),
        "threads": get_num_threads(),
        "device": device.name,
        "convbackprop": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if device.kind == "cpu":
        facts["compiler"] = cxx_name()
    for peer in peers:
        facts |= peer.versions()
    return facts


def one_line(facts: dict[str, Any]) -> str:
    """Return what timings depend on as a line."""
    text = f"{facts['machine']}, {facts['threads']} threads"
    text += f"; convbackprop {facts['convbackprop']}"
    text += f" ({facts['commit']})" if facts.get("commit") else ""
    text += f", python {facts['python']}, numpy {facts['numpy']}"
    text += f", {facts['compiler']}" if "compiler" in facts else ""
    if "torch" in facts:
        text += f"; torch {facts['torch']}, {facts['torch_threads']} threads, "
        text += f"OMP_WAIT_POLICY={facts['OMP_WAIT_POLICY']}"
    for name in ("scipy", "opencv", "cupy"):
        text += f"; {name} {facts[name]}" if name in facts else ""
    return text


# -- noise -----------------------------------------------------------------------------------------------------------
#: More load than this before timing means that others compute here; more spread than this, that rows are disturbed.
LOAD, SPREAD = 0.5, 0.15


def load() -> float | None:
    """Return how many processes wanted a CPU in the last minute, on average; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


@dataclass(frozen=True)
class Noise:
    """How quiet the machine was.

    Attributes
    ----------
    load_before, load_after : float or None
        The load average of the last minute, before timing and after it. Timing itself makes load, too.
    load_during : float or None
        The largest of those seen between the rows.
    spread : float or None
        The median over rows of their 20th to 80th percentile, as a share of their median.
    """

    load_before: float | None
    load_during: float | None
    load_after: float | None
    spread: float | None

    @property
    def noisy(self) -> bool:
        """Whether small differences mean nothing."""
        return (self.load_before or 0) > LOAD or (self.spread or 0) > SPREAD

    @property
    def sentence(self) -> str | None:
        """What is to be said of a noisy machine; None of a quiet one."""
        if not self.noisy:
            return None
        reasons = []
        if (self.load_before or 0) > LOAD:
            reasons.append(f"its load was {self.load_before:g} before timing began")
        if (self.spread or 0) > SPREAD:
            reasons.append(f"half of the rows spread by more than {100 * (self.spread or 0):.0f} %")
        return (
            f"NOISY machine: {' and '.join(reasons)}. Small differences mean nothing: stop other work, wait a minute, "
            "and time again, or longer (--seconds)."
        )

    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        return {**asdict(self), "noisy": self.noisy}


def spread_of(rows: Sequence[Row]) -> float | None:
    """Return the median over rows of (80th - 20th percentile) / median; None where no row was repeated."""
    spreads = [(r.ours.range[1] - r.ours.range[0]) / r.ours.median for r in rows if r.ours and len(r.ours.seconds) > 1]
    return float(np.median(spreads)) if spreads else None

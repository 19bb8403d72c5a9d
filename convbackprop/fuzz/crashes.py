"""Smaller problems that still end in a crash; each is tried in a process of its own, which it takes along."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from convbackprop.errors import ConvBackpropError
from convbackprop.fuzz.problems import spelled
from convbackprop.problem import ConvProblem

#: What a command prints (cli/shield.py) whose kernel ended the process that it was tried in.
CRASHED = "ended in a crash"


def crashes(words: Sequence[str], seconds: float) -> bool:
    """Return whether a command of ours ends in a crash within some seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, errors="replace", timeout=max(1.0, seconds)
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode < 0 or CRASHED in done.stderr


def shrink(
    words: Sequence[str], seconds: float, crashes: Callable[[Sequence[str], float], bool] = crashes
) -> Iterator[list[str]]:
    """Yield commands with smaller and smaller `--problem` that end in a crash as well, for some seconds."""
    at, deadline = words.index("--problem") + 1, time.monotonic() + seconds
    best: list[str] | None = list(words)
    while best:
        problem, head, tail = ConvProblem.parse(best[at]), best[:at], best[at + 1 :]
        best = None
        for candidate in smaller(problem):
            if (left := deadline - time.monotonic()) <= 0:
                return
            trial = [*head, spelled(candidate), *tail]
            if crashes(trial, left):
                yield trial
                best = trial
                break


def smaller(problem: ConvProblem) -> Iterator[ConvProblem]:
    """Yield problems with one thing less, the largest steps first."""
    p = problem
    (top, bottom), (left, right) = p.padding
    changes: list[dict[str, Any]] = [
        {"N": 1}, {"groups": 1, "C": p.C // p.groups, "K": p.K // p.groups}, {"C": p.groups}, {"K": p.groups},
        {"stride": (1, 1)}, {"dilation": (1, 1)}, {"padding": ((0, 0), (0, 0))}, {"H": 1}, {"W": 1},
        {"R": 1}, {"S": 1}, {"H": p.filter_extent[0]}, {"W": p.filter_extent[1]},
        *({name: getattr(p, name) // 2} for name in ("N", "H", "W", "R", "S")),
        {"C": p.C // 2 // p.groups * p.groups}, {"K": p.K // 2 // p.groups * p.groups},
        *({"padding": sides} for sides in (((0, bottom), (left, right)), ((top, 0), (left, right)),
                                           ((top, bottom), (0, right)), ((top, bottom), (left, 0)))),
        *({name: getattr(p, name) - 1} for name in ("N", "H", "W", "R", "S")),
        {"C": p.C - p.groups}, {"K": p.K - p.groups},
    ]  # fmt: skip
    for change in changes:
        if any(value != getattr(p, name) and value != 0 for name, value in change.items()):
            try:
                candidate = p.with_(**change)
            except ConvBackpropError:  # the filter is then larger than the image, or groups do not divide channels
                continue
            if _size(candidate) < _size(p):
                yield candidate


def _size(p: ConvProblem) -> int:
    return sum((p.N, p.C, p.H, p.W, p.K, p.R, p.S, p.groups, *p.stride, *p.dilation, *p.padding[0], *p.padding[1]))

"""Check variants, then time the right ones in turn with a copy of memory and with peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convbackprop import ops
from convbackprop.bench.cases import Case
from convbackprop.bench.machine import load
from convbackprop.bench.peers import Peer
from convbackprop.bench.roof import measure_roof
from convbackprop.bench.rows import Row
from convbackprop.bench.timing import LEAST, Call, CpuStage, Timing, alternate, host_clock, stage
from convbackprop.check import check
from convbackprop.check.reference import answer, numpy_dtype
from convbackprop.devices import Device
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ACCUMULATORS, PASSES, ConvProblem

#: Rows that take so many times as long as the fastest of their pass are timed after it, so that it gets more turns.
_SLOWER = 5.0

#: A round of calls that takes more than these seconds is repeated only so often, and one of slow rows not at all.
_LONG_ROUND, _FEW = 1.0, 3


@dataclass
class Settings:
    """How rows are run.

    Attributes
    ----------
    device : Device
        Where.
    peers : sequence of Peer
        Beside whom.
    seconds : float
        For each row.
    public : bool
        Time the public functions, too.
    doing : callable
        Told what is run next, for the message where that crashes.
    notes : list of str
        What is to be said in the end; rows add to it.
    loads : list of float
        The machine's load, seen before each pass.
    refused : dict
        By (peer, reason) the passes and cases that a peer was left out of.
    """

    device: Device
    peers: Sequence[Peer]
    seconds: float
    public: bool = False
    doing: Callable[[str], None] = lambda what: None
    notes: list[str] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    refused: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def not_compared(self) -> list[str]:
        """Return a sentence on each reason why a peer was left out."""
        return [
            f"{peer} is not timed on {where[0]}{f' and {len(where) - 1} others' if len(where) > 1 else ''}: {reason}"
            for (peer, reason), where in self.refused.items()
        ]


@dataclass
class Shared:
    """What the passes of one problem share: the inputs and the reference's answers, by operand name."""

    arrays: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    def answer(self, pass_name: str, problem: ConvProblem, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reference's answer, which is computed once: backward's is that of the two gradients."""
        wanted = [o.name for o in PASSES[pass_name].present(problem) if o.written and o.name != "mask"]
        if not all(name in self.answers for name in wanted):
            self.answers |= answer(pass_name, problem, given)
        self.arrays |= {name: given[name] for name in ("x", "w", "b", "scale", "residual") if name in given}
        if pass_name == "forward" and problem.saved == "output":
            self.arrays["saved"] = self.answers["y"][0].astype(numpy_dtype(problem.dtype))
        return {name: self.answers[name] for name in wanted}


def time_pass(case: Case, variants: Sequence[Variant], shared: Shared, how: Settings) -> list[Row]:
    """Check the variants of one pass on one problem, then time the right ones in turn with a copy and the peers."""
    pass_name, problem = variants[0].pass_name, case.problem
    refusals = [variant.refusal(problem, how.device) for variant in variants]
    rows = [Row(v.title, problem, case.label, refusal) for v, refusal in zip(variants, refusals, strict=True)]
    if all(row.refusal for row in rows):
        return rows
    given = case.arrays(pass_name, shared.arrays)
    expected = shared.answer(pass_name, problem, given)
    for row, variant in zip(rows, variants, strict=True):
        if row.refusal is None:
            how.doing(f"{row.name} on {problem}")
            outcome = check(variant, problem, how.device, given=given, expected=expected)
            row.error, row.faults = outcome.share, outcome.faults
    if (now := load()) is not None:
        how.loads.append(now)
    right = {row.name: (row, v) for row, v in zip(rows, variants, strict=True) if not row.refusal and not row.faults}
    if right:
        _time_rows(case, right, given, how)
    return rows


def raise_roofs(rows: Sequence[Row]) -> None:
    """Give all rows of a kind of sums the highest roof that was seen in the run."""
    for row in rows:
        alike = (
            other.peak_flops for other in rows if ACCUMULATORS[other.problem.dtype] == ACCUMULATORS[row.problem.dtype]
        )
        row.peak_flops = max(filter(None, alike), default=None)


def time_beside_naive(case: Case, variants: Sequence[Variant], shared: Shared, how: Settings) -> list[Row]:
    """Time a variant as `time_pass` does, and naive, the first of them, by one run: of a layer it may take seconds."""
    naive, *others = variants
    if not others:
        return time_pass(case, variants, shared, how)
    rows = time_pass(case, others, shared, how)
    given = case.arrays(naive.pass_name, shared.arrays)
    outcome = check(naive, case.problem, how.device, given=given,
                    expected=shared.answer(naive.pass_name, case.problem, given))  # fmt: skip
    row = Row(naive.title, case.problem, case.label, error=outcome.share, faults=outcome.faults,
              copy=rows[0].copy, peers=rows[0].peers, peak_flops=rows[0].peak_flops)  # fmt: skip
    if not row.faults:
        with stage(how.device, naive.pass_name, case.problem, given) as place:
            row.ours = Timing((place.clock(place.ours(naive)),))
    return [row, *rows]


def _time_rows(case: Case, right: Mapping[str, tuple[Row, Variant]], given: Mapping[str, Any], how: Settings) -> None:
    """Time rows of one pass on one problem; the slow ones after the fast ones, the copy and the peers."""
    pass_name = next(iter(right.values()))[1].pass_name
    with stage(how.device, pass_name, case.problem, given) as place:
        calls: dict[str, Call] = {name: place.ours(variant) for name, (_, variant) in right.items()}
        once = {name: place.clock(call) for name, call in calls.items()}
        peers = _peer_calls(pass_name, case, place, once, how)
        calls |= peers
        calls["copy"], once["copy"] = place.copy(), 0
        limit = _SLOWER * min(once[name] for name in right)
        slow = [name for name in right if once[name] > limit]
        fast = [name for name in calls if name not in slow]
        few = sum(once[name] for name in fast) > _LONG_ROUND
        timings = alternate({name: calls[name] for name in fast}, place.clock, how.seconds * len(fast),
                            least=_FEW if few else LEAST)  # fmt: skip
        if sum(once[name] for name in slow) > _LONG_ROUND:
            timings |= {name: Timing((once[name],)) for name in slow}
        else:
            timings |= alternate({name: calls[name] for name in slow}, place.clock, how.seconds * len(slow))
        peak = measure_roof(how.device, case.problem.dtype)
        for name, (row, variant) in right.items():
            row.ours, row.copy = timings[name], timings["copy"]
            row.peers = {peer: timings[peer] for peer in peers}
            row.peak_flops = peak
            if how.public and variant.file is None:
                call = _public_call(variant, case.problem, place.arrays, how.device)
                row.public = alternate({"": call}, host_clock, how.seconds / 4, least=_FEW, most=20)[""]


def _peer_calls(pass_name: str, case: Case, place: CpuStage, once: dict[str, float], how: Settings) -> dict[str, Call]:
    """Return the peers' ways to do the same job on the same arrays; `once` gets what one call took.

    Which peer has none, and why, is noted.
    """
    found: dict[str, Call] = {}
    for peer in how.peers:
        if reason := peer.why_not(pass_name, case.problem, how.device.kind):
            how.refused.setdefault((peer.name, reason), []).append(f"{pass_name} of {case.label}")
            continue
        for name, call in peer.calls(pass_name, case.problem, place.arrays, how.device.name).items():
            try:
                once[name] = place.clock(call)
            except RuntimeError as error:
                sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
                how.notes.append(f"{name} cannot do {pass_name} of {case.label}: {sentence}")
            else:
                found[name] = call
    return found


def _public_call(variant: Variant, p: ConvProblem, a: Mapping[str, Any], device: Device) -> Call:
    """Return a call of the public function that runs the variant, arrays of the host in and out."""
    common: dict[str, Any] = {
        name: getattr(p, name) for name in ("stride", "padding", "dilation", "groups", "activation")
    }
    common |= {"variant": variant.name, "device": device.name, "scale": a.get("scale")}
    if variant.pass_name == "forward":
        common |= {"residual": a.get("residual"), "save_mask": p.mask}
        return lambda: ops.conv2d(a["x"], a["w"], a.get("b"), **common)
    common[p.saved or "output"] = a.get("saved")
    if variant.pass_name == "input_grad":
        return lambda: ops.conv2d_input_grad(p.x_shape, a["w"], a["dy"], **common)
    if variant.pass_name == "backward":
        # Of x and w the one whose gradient is not wanted is not read, and has no array here.
        x, w = (a.get(name, np.empty(shape, a["dy"].dtype)) for name, shape in (("x", p.x_shape), ("w", p.w_shape)))
        return lambda: ops.conv2d_backward(a["dy"], x, w, needs=(p.dx, p.dw, p.bias), **common)
    return lambda: ops.conv2d_kernel_grad(a["x"], p.w_shape, a["dy"], with_bias=p.bias, **common)

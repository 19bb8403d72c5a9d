"""The suites of `convbackprop bench`, timed by pytest-benchmark: `make bench-suite ARGS="-k lab"`.

pytest-benchmark times the host, so each call ends with the device idle. What `bench` prints of a row stands in
`extra_info`; ``--benchmark-save`` and ``--benchmark-compare`` work as usual, and `make bench-compare` uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from convbackprop import check
from convbackprop.bench import timing
from convbackprop.bench.cases import Case, case_on_image
from convbackprop.bench.measure import Shared
from convbackprop.bench.roof import measure_roof
from convbackprop.bench.rows import Row
from convbackprop.bench.suites import SUITES
from convbackprop.bench.timing import Timing
from convbackprop.devices import get_device, usable_devices
from convbackprop.errors import EnvironmentProblem
from convbackprop.ladder.registry import VARIANTS, of_pass
from convbackprop.ladder.variant import Variant
from convbackprop.problem import DTYPES

#: What `make bench-compare` times, the highest rung of each pass: an image that leaves the caches, and a small one.
QUICK = ((1024, 5), (256, 3))


def quick() -> Iterator[tuple[str, Case, Variant]]:
    for extent, size in QUICK:
        case = case_on_image(None, extent, size, "float32")
        for pass_name in ("forward", "input_grad", "kernel_grad", "backward"):
            yield "quick", case, [v for v in of_pass(pass_name) if v.refusal(case.problem) is None][-1]


def entries(device_name: str) -> Iterator[Any]:
    """Yield every variant that a suite times, on each of its cases; the dtypes besides float32 on the suite `lab`."""
    kind = get_device(device_name).kind
    work = list(quick())
    for suite in SUITES.values():
        for dtype in DTYPES if suite.name == "lab" else ("float32",):
            try:
                cases = list(suite.cases(suite.filters, dtype, kind))
            except EnvironmentProblem:  # its photographs are not installed
                continue
            work += [(suite.name, case, variant) for case in cases for variant in suite.rungs(VARIANTS, case, kind)]
    for suite_name, case, variant in work:
        label = f"{suite_name}-{device_name}-{variant}-{case.label}-{case.problem.dtype}"
        if case.layer:
            label += f"-{case.problem}"
        yield pytest.param(device_name, suite_name, case, variant, id=label.replace(" ", "_"))


@pytest.fixture(scope="module")
def known() -> dict[str, Shared]:
    """The inputs and the reference's answers of the problem that was timed last."""
    return {}


@pytest.mark.parametrize(
    ("device_name", "suite_name", "case", "variant"), [e for name in usable_devices() for e in entries(name)]
)
def test_pass(benchmark, known, device_name, suite_name, case, variant):
    device, problem = get_device(device_name), case.problem
    if case.label + str(problem) not in known:
        known.clear()
        known[case.label + str(problem)] = Shared()
    shared = known[case.label + str(problem)]
    given = case.arrays(variant.pass_name, shared.arrays)
    expected = shared.answer(variant.pass_name, problem, given)
    outcome = check.check(variant, problem, device, given=given, expected=expected)
    assert outcome.ok, outcome.faults

    with timing.stage(device, variant.pass_name, problem, given) as stage:
        call, copy = stage.ours(variant), stage.copy()
        once = stage.clock(call)
        rounds = 40 if suite_name == "quick" else 7 if once < 0.5 else 1
        benchmark.pedantic(lambda: stage.clock(call), rounds=rounds, warmup_rounds=min(3, rounds - 1))
        copies = Timing(tuple(stage.clock(copy) for _ in range(7)))
    benchmark.group = f"{suite_name}: {variant.pass_name} {case.label} {problem} on {device.name}"
    row = Row(str(variant), problem, case.label, error=outcome.share, copy=copies,
              peak_flops=measure_roof(device, problem.dtype))  # fmt: skip
    if benchmark.stats:  # not under --benchmark-disable
        row.ours = Timing(tuple(benchmark.stats.stats.data))
    benchmark.extra_info |= {
        "suite": suite_name,
        "device": device.name,
        "tunables": variant.constants(device.kind, problem),
        **{name: value for name, value in row.as_json().items() if name not in ("peers", "public_ms", "refused")},
    }

"""Every variant of the registry on a few problems, timed by pytest-benchmark: `make bench-suite`.

pytest-benchmark times the host, so each call ends with the device idle. GB/s and the error stand in `extra_info`;
``--benchmark-save`` and ``--benchmark-compare`` work as usual.
"""

from __future__ import annotations

import pytest

from convbackprop import check, timing
from convbackprop.devices import get_device, usable_devices
from convbackprop.problem import DTYPES, PASSES, ConvProblem
from convbackprop.variants import VARIANTS

PROBLEMS = (
    "1,1,28,28,1,3,3,padding=same",
    "1,1,512,512,1,5,5,padding=same",
    "1,1,1024,1024,1,3,3,padding=same",
    "8,32,56,56,32,3,3,groups=32,padding=1",
    "1,16,56,56,32,3,3,padding=1",
)


@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("device_name", usable_devices())
def test_pass(benchmark, device_name, variant, dtype, text):
    problem = ConvProblem.parse(text, dtype=dtype, activation="relu", bias=True)
    if refusal := variant.refusal(problem):
        pytest.skip(refusal)
    device = get_device(device_name)
    outcome = check.check(variant, problem, device)
    assert outcome.ok, outcome.faults

    with timing.stage(device, variant.pass_name, problem, check.inputs(variant.pass_name, problem)) as stage:
        call = stage.ours(variant)
        benchmark.pedantic(lambda: stage.clock(call), rounds=7, warmup_rounds=1)
    least = PASSES[variant.pass_name].least_bytes(problem)
    benchmark.group = f"{variant.pass_name} {text} {dtype} on {device.name}"
    benchmark.extra_info |= {
        "variant": str(variant),
        "problem": str(problem),
        "device": device.name,
        "tunables": variant.constants(device.kind, problem),
        "error_share": outcome.share,
        "GB/s": least / benchmark.stats.stats.median / 1e9 if benchmark.stats else None,
    }

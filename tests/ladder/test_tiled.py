"""The variants that stage tiles in shared memory: what they refuse, and sizes that other problems do not reach."""

from __future__ import annotations

import dataclasses

import pytest

from convbackprop import check
from convbackprop.ladder import tiled
from convbackprop.ladder.registry import of_pass
from convbackprop.problem import DTYPES, ConvProblem

TILED = {name: next(v for v in of_pass(name) if v.name == "tiled") for name in ("forward", "input_grad", "kernel_grad")}


@pytest.mark.parametrize(
    ("pass_name", "text", "tile", "kib"),
    [
        ("forward", "1,1,400,400,1,3,3,stride=8x4", "59 x 127 inputs", 59),
        ("input_grad", "1,1,400,400,1,91,91", "98 x 122 outputs", 159),
        ("kernel_grad", "1,1,400,400,1,3,3,stride=4x7", "63 x 220 inputs", 117),
    ],
)
def test_refuses_what_does_not_fit(pass_name, text, tile, kib):
    """Forward's and input_grad's tiles are larger with the tunables of a GPU: they decide on every device."""
    sentence = TILED[pass_name].refusal(ConvProblem.parse(text, dtype="float64"))
    assert sentence == f"its tile of {tile} needs {kib} KiB of shared memory; at most 48 KiB fit"


@pytest.mark.parametrize("variant", TILED.values(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fits_is_what_is_launched(variant, dtype):
    """The limit is that of the launch: with either set of tunables it asks for at most 48 KiB."""
    computed = set()
    for size in range(1, 130):
        problem = ConvProblem.parse(f"1,1,200,200,1,{size},{size},stride=2", dtype=dtype)
        if variant.refusal(problem) is None:
            computed.add(size)
            for kind in ("cpu", "cuda"):
                assert variant.launches[0].shared_bytes(problem, variant.constants(kind, problem)) <= 48 * 1024
    assert computed == set(range(1, len(computed) + 1))
    assert 9 < len(computed) < 129


@pytest.mark.parametrize("tunables", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("pass_name", "text"),
    [
        ("forward", "1,1,1,400,1,1,150"),  # a row of the filter is more than a run of plain additions
        ("input_grad", "1,1,1,400,1,1,150"),
        ("input_grad", "1,1,1,900,1,1,150,stride=2"),
        ("kernel_grad", "1,2,40,9,2,8,8,padding=2"),  # more taps than threads; one less leaves the bias no room
        ("kernel_grad", "1,2,40,9,2,4,8,padding=2"),
        ("kernel_grad", "1,2,40,9,2,3,21,padding=9"),
        ("kernel_grad", "9,1,200,200,1,3,3"),  # several tiles a slice
        ("input_grad", "2,2,40,39,2,5,3,stride=4x6,dilation=6x4,padding=5"),  # a common factor
        ("input_grad", "1,1,40,39,1,2,2,stride=2147483647,dilation=7"),
    ],
)
@pytest.mark.parametrize("data", ["constant", "integers"])
def test_sizes_beyond_a_limit(device, pass_name, text, data, tunables):
    problem = ConvProblem.parse(text, bias=True, activation="relu")
    assert TILED[pass_name].refusal(problem) is None
    assert check.check(TILED[pass_name], problem, device, data, tunables=tunables).faults == []


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_more_planes_than_a_grid_has_blocks_along_y(device, pass_name, monkeypatch):
    monkeypatch.setattr(tiled, "_MAX_GRID_YZ", 7)
    problem = ConvProblem.parse("5,4,9,40,4,3,3,padding=1", bias=True)
    fresh = dataclasses.replace(TILED[pass_name])  # plans are kept: this one's has the grid of now
    assert fresh.launches[0].grid(problem, fresh.constants("cpu", problem))[1:] == (7, 3)
    assert check.check(fresh, problem, device).faults == []

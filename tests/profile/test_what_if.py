"""`profile --what-if`: other values of tunables are checked, and both times stand beside each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from convbackprop.errors import CompilerNotFound
from convbackprop.profile import report
from tests.profile.test_profile import PROBLEM, made_by_hand
from tests.support.machine_code import needs_cuobjdump

TILED = ("profile", "forward/tiled", "--problem", PROBLEM, "--device", "cpu")


@pytest.fixture
def by_hand(monkeypatch):
    """Figures of addresses that are made up, and no nvcc."""

    def find():
        raise CompilerNotFound("nvcc was not found; install it")

    monkeypatch.setattr(report, "traffic", made_by_hand)
    monkeypatch.setattr(report, "find_nvcc", find)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["forward/tiled", "--what-if", "ROWS=8"], "'ROWS'; it should be a tunable of forward/tiled: TILE_P, TILE_Q"),
        (["forward/tiled", "--what-if", "TILE_P=3"], "has TILE_P=3; it should be one of 2, 4, 8, 16"),
        (["forward/tiled", "--what-if", "TILE_P"], "has TILE_P=; it should be one of"),
        (["forward/tiled", "--what-if", "TILE_P=2,TILE_P=4"], "names TILE_P twice"),
        (["forward/tiled", "--what-if", ""], "names ''; it should be"),
        (["forward", "--what-if", "THREADS=32"], "--what-if is of one variant; name it"),
        (["forward/tiled", "--machine-code", "--what-if", "TILE_P=2"], "--what-if goes with a report on one problem"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(run, arguments, says):
    code, out, err = run("profile", *arguments)
    assert code == 2 and not out and says in err


def test_two_values_of_a_tunable(run, by_hand):
    code, out, _ = run(*TILED, "--what-if", "TILE_P=2", "--json")
    found = json.loads(out)
    assert code == 0 and found["what_if"]["tunables"] == {"TILE_P": {"now": 8, "what_if": 2}}
    (now,), other = found["reports"], found["what_if"]["report"]
    assert [each["launches"][0]["grid"][0] for each in (now, other)] == [256, 1024]
    assert [each["launches"][0]["block"][:2] for each in (now, other)] == [[32, 8], [32, 2]]
    assert now["expected_us"] is None and now["expected_parts"] is None  # without nvcc
    out = run(*TILED, "--what-if", "TILE_P=2")[1]
    assert re.search(r"TILE_P=8 +TILE_P=2\n", out) and "TILE_P 2 instead of 8: at least " in out
    assert out.count("forward/tiled on ") == 1
    assert "nothing would change" in run(*TILED, "--what-if", "TILE_P=8")[1]


def test_a_report_alone_has_no_comparison(run, by_hand):
    assert "what_if" not in json.loads(run(*TILED, "--json")[1])
    assert "instead of" not in run(*TILED)[1]


@needs_cuobjdump
def test_the_expected_time(run):
    """Blocks of 2 rows load the rows around them more often than blocks of 8."""
    found = json.loads(run(*TILED, "--what-if", "TILE_P=2", "--json")[1])
    (now,), other = found["reports"], found["what_if"]["report"]
    for each in (now, other):
        assert each["expected_us"] > each["predicted_us"]
        assert sum(each["expected_parts"].values()) == pytest.approx(each["expected_us"])
        assert all(after < each["expected_us"] for after in each["expected_with"].values())
    assert other["expected_parts"]["L2 cache"] > now["expected_parts"]["L2 cache"]
    out = run(*TILED, "--what-if", "TILE_P=2")[1]
    assert f"Expected: {now['expected_us']:.1f} us, " in out
    assert f"TILE_P 2 instead of 8: expected {now['expected_us']:.1f} us -> {other['expected_us']:.1f} us." in out
    run(*TILED, "--html", "page.html")
    assert "Expected: " in Path("page.html").read_text()

"""bench --against opencv: the same filter, on the same arrays, and a clear sentence where it is missing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from convbackprop.bench.peers import PEERS
from convbackprop.check import inputs, reference
from convbackprop.cli import main
from convbackprop.problem import ConvProblem

QUICK = ("--seconds", "0.01", "--device", "cpu", "--against", "opencv")


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2", reason="OpenCV, a peer, is not installed")


@pytest.mark.usefixtures("cv2")
@pytest.mark.parametrize("size", ["3,3", "5,5", "7,7", "3,5", "1,1", "13,13"])
def test_filter2d_does_the_same_job(size):
    problem = ConvProblem.parse(f"1,1,33,47,1,{size},padding=same")
    given = inputs("forward", problem)
    call = PEERS["opencv"].calls("forward", problem, given, "cpu")["opencv"]
    result = call()
    assert np.shares_memory(result, call())  # it writes into an array that is there
    expected = reference.correlate(problem, given["x"], given["w"])[0, 0]
    assert np.allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("cv2")
def test_bench_beside_opencv(capfd):
    one, two = "1,1,33,47,1,3,3,padding=1", "2,1,33,47,1,3,3,padding=1"
    assert main(["bench", "--problem", one, "--problem", two, *QUICK, "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert not err and found["environment"]["opencv"] and "torch" not in found["environment"]
    for row in found["rows"]:
        assert row["variant"].startswith("forward/")
        if row["label"] == one and not row["refused"]:
            (peer,) = row["peers"].values()
            assert peer["ratio"] == pytest.approx(peer["median_ms"] / row["median_ms"])
        else:
            assert row["peers"] == {}
    assert any("opencv is not timed on forward of 2,1,33,47" in note for note in found["notes"])
    assert main(["bench", "forward", "--problem", one, *QUICK]) == 0
    out, _ = capfd.readouterr()
    assert "vs opencv" in out and "vs torch" not in out and "filter2D" in out


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("1,1,9,9,1,3,5,padding=same", False),
        ("1,1,9,9,1,4,3,padding=same", True),
        ("1,1,9,9,1,3,3", True),
        ("1,2,9,9,1,3,3,padding=1", True),
        ("1,1,9,9,1,3,3,padding=1,stride=2", True),
        ("1,1,9,9,1,3,3,padding=1,dtype=float64", True),
    ],
)
def test_what_is_compared(text, refused):
    assert (PEERS["opencv"].why_not("forward", ConvProblem.parse(text), "cpu") is not None) == refused
    assert PEERS["opencv"].why_not("input_grad", ConvProblem.parse(text), "cpu") is not None
    assert PEERS["opencv"].why_not("forward", ConvProblem.parse(text), "cuda") is not None


def test_without_opencv(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install opencv-python-headless" in PEERS["opencv"].missing("cpu")
    assert main(["bench", "--problem", "1,1,9,9,1,3,3", *QUICK]) == 1
    out, err = capfd.readouterr()
    assert not out and "pip install opencv-python-headless" in err and len(err.splitlines()) == 1

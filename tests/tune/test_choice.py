"""What "auto" makes of tuned choices, and `tuning`, which makes them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import convbackprop
from convbackprop import ops
from convbackprop.errors import CompileError, InvalidArgument
from convbackprop.ladder import registry
from convbackprop.launch import calls
from convbackprop.problem import ConvProblem
from convbackprop.tune import choice, session, table
from tests.support.quick import QUICK_ENVIRONMENT

ON = "1,1,20,24,1,3,3,padding=1"
PROBLEM = ConvProblem.parse(ON)


@pytest.fixture(autouse=True)
def quickly(quick_commands):
    """Kernels are compiled quickly."""


@pytest.fixture
def cpu():
    return convbackprop.devices.get_device("cpu")


@pytest.fixture
def launched(monkeypatch):
    """The variants that calls have used."""
    used = []
    plan = calls.plan
    monkeypatch.setattr(calls, "plan", lambda variant, *more: used.append(variant) or plan(variant, *more))
    return used


def arrays(shape=(20, 24)):
    rng = np.random.default_rng(3)
    return tuple(rng.standard_normal(size).astype(np.float32) for size in (shape, (3, 3), shape))


def forward(**options):
    x, w, _ = arrays()
    return convbackprop.conv2d(x, w, padding=1, device="cpu", **options)


# -- auto ------------------------------------------------------------------------------------------------------------
def test_auto_takes_what_was_tuned(tuned, entry, cpu, launched):
    table.update(cpu.title, [entry("forward/vectorised", ON, {"ROWS": 8})])
    y = forward()
    (used,) = launched
    assert used.rule is registry.select("forward/vectorised")[0] and used.tunables["ROWS"].cpu == 8
    untuned = forward(variant="untuned")
    named = forward(variant="vectorised")
    assert launched[1:] == [used.rule, used.rule] and np.array_equal(untuned, named)
    np.testing.assert_allclose(y, untuned, rtol=1e-5, atol=1e-5)


def test_auto_takes_the_nearest_that_computes_the_problem(tuned, entry, cpu):
    """Up to three octaves off, and not what refuses it."""
    far = ConvProblem.parse("1,1,40,24,1,3,3,padding=1")
    table.update(cpu.title, [entry("forward/naive", ON)])
    assert choice.choose("forward", "auto", far, cpu).name == "naive"
    assert choice.choose("forward", "auto", far, "cpu").name == "vectorised"  # of a kind alone nothing is known
    assert choice.choose("forward", "untuned", far, cpu).name == "vectorised"
    assert choice.choose("forward", "auto", far.with_(H=400), cpu).name == "vectorised"
    table.update(cpu.title, [entry("forward/coalesced", ON)])
    refused = PROBLEM.with_(padding=((0, 2**30), (1, 1)))  # which its indices do not reach
    assert registry.select("forward/coalesced")[0].refusal(refused) is not None
    assert choice.choose("forward", "auto", PROBLEM, cpu).name == "coalesced"
    assert choice.choose("forward", "auto", refused, cpu).name != "coalesced"


def test_the_rule_may_be_the_fastest(tuned, entry, cpu, launched):
    table.update(cpu.title, [entry(f"forward/{table.UNTUNED}", ON)])
    forward()
    assert launched == [registry.choose("forward", "untuned", PROBLEM, "cpu")]


@pytest.mark.parametrize(
    "kept, expected",
    [
        ((), ["backward/vectorised"]),
        (["backward/separate"], ["input_grad/vectorised", "kernel_grad/vectorised"]),
        (["backward/separate", "input_grad/naive"], ["input_grad/naive", "kernel_grad/vectorised"]),
        (["backward/fused", "input_grad/naive"], ["backward/fused"]),
        ([f"backward/{table.UNTUNED}"], ["backward/vectorised"]),
    ],
)
def test_backward(tuned, entry, cpu, launched, kept, expected):
    if kept:
        table.update(cpu.title, [entry(target, ON) for target in kept])
    x, w, dy = arrays()
    dx, dw, db = convbackprop.conv2d_backward(dy, x, w, padding=1, device="cpu")
    assert list(map(str, launched)) == expected
    untuned = convbackprop.conv2d_backward(dy, x, w, padding=1, device="cpu", variant="untuned")
    assert list(map(str, launched[len(expected) :])) == ["backward/vectorised"]
    for got, want in zip((dx, dw, db), untuned, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_choice_that_cannot_be_used_here(tuned, entry, cpu, monkeypatch):
    """It was measured on another problem: the rung's own constants are taken."""
    table.update(cpu.title, [entry("forward/vectorised", ON, {"ROWS": 8})])
    plan = calls.plan

    def failing(variant, *more):
        if variant.rule is not None:
            raise CompileError("a static_assert\nand more")
        return plan(variant, *more)

    monkeypatch.setattr(calls, "plan", failing)
    with pytest.warns(
        UserWarning, match="tuned choice of forward/vectorised cannot be used on 1,1,20.*: a static_assert$"
    ):
        y = forward()
    assert np.array_equal(y, forward(variant="untuned"))
    with pytest.raises(CompileError):
        monkeypatch.setattr(calls, "plan", lambda *_: (_ for _ in ()).throw(CompileError("broken")))
        calls.forget()
        forward(variant="untuned")


# -- tuning ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def searches(monkeypatch):
    """What was searched for; a search ends at once and finds nothing."""
    found = []
    tune = session.tune

    def counted(pass_name, problem, *more):
        found.append((pass_name, problem))
        return tune(pass_name, problem, *more)

    monkeypatch.setattr(session, "tune", counted)
    return found


def test_what_is_called_inside_is_tuned_once(tuned, cpu, searches):
    x, w, dy = arrays()
    before = forward()
    assert not tuned.exists()
    with convbackprop.tuning(seconds=0.001):
        np.testing.assert_allclose(forward(), before, rtol=1e-5, atol=1e-5)
        forward()
        forward(variant="naive")  # a rung by name is not tuned
        convbackprop.conv2d_input_grad((20, 24), w, dy, padding=1, device="cpu")
        convbackprop.conv2d_backward(dy, x, w, padding=1, device="cpu")
    parts = ops.parts_of_backward(PROBLEM.with_(bias=True))
    assert [name for name, _ in searches] == ["forward", "input_grad", "backward", "kernel_grad"]
    assert parts[1] in searches
    _, entries = table.read(table.file_of(cpu.title))
    assert sorted(entry.pass_name for entry in entries) == ["backward", "forward", "input_grad", "kernel_grad"]
    x, w, _ = arrays((64, 64))
    convbackprop.conv2d(x, w, device="cpu")
    assert len(searches) == 4  # outside nothing is tuned


def test_threads_are_tuned_one_after_the_other(tuned, cpu, searches):
    results = []
    with convbackprop.tuning(seconds=0.001):
        threads = [threading.Thread(target=lambda: results.append(forward())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(searches) == 1 and len(results) == 4 and all(np.array_equal(results[0], y) for y in results)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "10", True])
def test_seconds_that_are_none(tuned, seconds):
    with (
        pytest.raises(InvalidArgument, match=r"seconds is .*; it should be a number above 0"),
        convbackprop.tuning(seconds),
    ):
        pass


def test_nothing_can_be_kept():
    with pytest.raises(InvalidArgument, match="CONVBACKPROP_TUNED is 'off', so that nothing"), convbackprop.tuning():
        pass


LATER = f"""
import sys
import numpy as np
from convbackprop import conv2d, ops
from convbackprop.devices import get_device
from convbackprop.problem import ConvProblem
from convbackprop.tune.choice import choose
conv2d(np.ones((20, 24), np.float32), np.ones((3, 3), np.float32), padding=1, device="cpu")
print(choose("forward", "auto", ConvProblem.parse({ON!r}), get_device("cpu")).tunables["ROWS"].cpu)
print(*sorted(name for name in sys.modules if name in ("convbackprop.tune.search", "convbackprop.bench.timing")))
"""


def test_a_later_process_times_nothing(tuned, entry, cpu):
    table.update(cpu.title, [entry("forward/vectorised", ON, {"ROWS": 8})])
    root = str(Path(convbackprop.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": root, **QUICK_ENVIRONMENT})  # fmt: skip
    assert done.stderr == "" and done.stdout.split() == ["8"]

"""make bench-compare: the first run is saved, the next is compared with it, and a pass that became slower fails it."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "bench_compare.py"


@pytest.fixture(autouse=True)
def _benchmark():
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark, of the extra dev, is not installed")
    if not TOOL.exists():
        pytest.skip("the tests run outside a checkout")


def bench_compare(storage, *arguments, **environment):
    few = ("-k", "quick and 256 and (forward or kernel_grad)")
    return subprocess.run(
        [sys.executable, str(TOOL), "--storage", str(storage), *arguments, *few],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "CONVBACKPROP_DEVICE": "cpu", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


#: A clock for pytest-benchmark that goes on by a millisecond a call of ours; by SLOW, of the kernel gradient.
TICKS = """\
import os
from convbackprop.bench import timing
now = 0.0
def clock():
    global now
    now += 1e-9
    return now
ours = timing.CpuStage.ours
def ticking(self, variant):
    call, takes = ours(self, variant), float(os.environ["SLOW"]) if variant.pass_name == "kernel_grad" else 1e-3
    def ticked():
        global now
        now += takes
        return call()
    return ticked
timing.CpuStage.ours = ticking
"""


@pytest.mark.slow
def test_a_slower_pass_fails(tmp_path):
    (tmp_path / "ticks.py").write_text(TICKS)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    clock = ("-p", "ticks", "--benchmark-timer=ticks.clock")
    first = bench_compare(tmp_path, *clock, PYTHONPATH=path, SLOW="1e-3")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "There was no run of this machine to compare with." in first.stdout and "saved as" in first.stdout
    (saved,) = tmp_path.glob("*/*.json")
    benchmarks = json.loads(saved.read_text())["benchmarks"]
    assert len(benchmarks) == 2
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        assert info["suite"] == "quick" and info["ok"] and info["error"] <= 1
        assert info["median_ms"] == pytest.approx(1e3 * benchmark["stats"]["median"])
        assert info["gb_per_s"] > 0 and info["floor_ms"] > 0 and info["tunables"]

    second = bench_compare(tmp_path, "--slower", "900", "--save", *clock, PYTHONPATH=path, SLOW="11e-3")
    assert second.returncode == 1, second.stdout + second.stderr
    (sentence,) = (line for line in second.stdout.splitlines() if line.startswith("SLOWER: "))
    assert re.match(r"SLOWER: kernel_grad/\w+ on 256x256 3x3 takes 11 ms, 11.00 times as long as before", sentence)
    assert "a copy of as many bytes" in sentence
    assert "bench-compare FAILED: more than 900 % slower than" in second.stdout
    assert [file.name for file in saved.parent.iterdir()] == ["0001_passes.json"]  # a run that failed is not saved


def test_which_runs_are_saved(tmp_path, monkeypatch, capsys):
    """Without timing: what pytest would write is given."""
    main = runpy.run_path(str(TOOL))["main"]
    codes, median = [0], [1.0]

    def run(command, **_):
        (option,) = (word for word in command if word.startswith("--benchmark-json="))
        info = {"variant": "v", "label": "l", "copy_gb_per_s": 1.0}
        benchmark = {"fullname": "a", "stats": {"median": median[0]}, "extra_info": info}
        Path(option.partition("=")[2]).write_text(json.dumps({"benchmarks": [benchmark]}))
        return subprocess.CompletedProcess(command, codes[0])

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "cpu")

    def bench(*arguments):
        code = main(["--storage", str(tmp_path), *arguments])
        return code, capsys.readouterr().out, len(list(tmp_path.glob("*/*.json")))

    codes[0] = 1  # a kernel that is wrong
    assert bench()[::2] == (1, 0)
    codes[0] = 0
    assert bench()[::2] == (0, 1)
    median[0] = 1.1
    code, out, saved = bench()
    assert (code, saved) == (0, 1) and "No pass takes over 15 % longer" in out
    assert bench("--save")[::2] == (0, 2)
    median[0] = 1.2  # 20 % over the first, 9 % over the one that was saved last
    assert bench()[::2] == (0, 2)
    assert bench("--slower", "5")[::2] == (1, 2)


def test_what_is_slower(tmp_path):
    slower = runpy.run_path(str(TOOL))["slower"]

    def run(name, **medians):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"benchmarks": [
            {"fullname": key, "stats": {"median": median},
             "extra_info": {"variant": key, "label": "here", "copy_gb_per_s": 10.0}}
            for key, median in medians.items()
        ]}))  # fmt: skip
        return file

    before = run("before", a=1.0, b=2.0)
    assert slower(before, run("same", a=1.1, b=0.5), 0.15) == []
    assert slower(before, run("new", a=1.0, b=2.0, c=9.0), 0.15) == []
    (sentence,) = slower(before, run("slow", a=1.2, b=2.0), 0.15)
    assert sentence.startswith("SLOWER: a on here takes 1.2e+03 ms, 1.20 times as long as before")
    assert slower(before, run("gone", a=1.0), 0.15) == ["GONE: b, which the saved run has, was not timed"]


def test_a_bad_share():
    done = subprocess.run(
        [sys.executable, str(TOOL), "--slower", "-3"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and "it should be a percentage above 0" in done.stderr

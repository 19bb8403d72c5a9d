"""tools/gpu_parts.py: the parts of a recorded run become tables, and what is not in it leaves no trace."""

from __future__ import annotations

import json
import types

import pytest

from convbackprop.tune import table

pytest.importorskip("torch", reason="needs torch, which is not installed: the GPU report compares with it")

from benchmarks.report.rows import Row
from tools import gpu_parts


def row(part, job, who, microseconds, clock="cold", **more):
    return Row(job, who, **{clock: microseconds and {"median": microseconds}}, part=part, **more)


def shown(*rows, steps=()):
    return gpu_parts.parts(types.SimpleNamespace(rows=rows, steps=dict(steps)))


def test_a_run_of_rows_alone():
    assert shown(Row("4096 3x3/float32/forward", "forward/coalesced", ours=True, cold={"median": 9.0})) == []
    assert shown(steps={"ncu": {"data": {"kernels": []}}}) == []  # skipped


def test_calls():
    job = "28 3x3/float32/host"
    for part in ("rows", "host"):  # of older runs, and of newer ones
        (text,) = shown(row(part, job, "conv2d, out given", 17.8, "host"), row(part, job, "torch eager", 31.0, "host"))
        assert text.endswith("| conv2d, out given | 17.8 |\n| torch eager | 31.0 |")


def test_graphs():
    times = {"ours, called": 20.0, "ours, replayed": 3.0, "torch, called": 31.0, "torch, replayed": None}
    job = "28 3x3/float32/graphs input_grad"
    rows = [row("graphs", job, who, us, "host", failed=None if us else "no capture") for who, us in times.items()]
    (text,) = shown(*rows)
    assert text.endswith("| 28 3x3 | input_grad | 20.0 | 3.00 | 31.0 | no capture |")


def test_training_and_the_split_layer():
    job = "4096 3x3/float32/{}"
    ours, theirs = "convbackprop.torch", "torch.nn"
    rows = [row("training", job.format("training"), who, us, ours=who.startswith(ours)) for who, us in
            ((ours, 100.0), (theirs, 250.0), (f"{ours}, compiled", 90.0), (f"{theirs}, compiled", 45.0))]  # fmt: skip
    rows += [row("nccl", job.format("nccl"), who, us) for who, us in
             (("SpatialConv2d, one process", 120.0), ("Conv2d", 99.0))]  # fmt: skip
    training, split = shown(*rows)
    assert "| 4096 3x3 | eager | 100 | 250 | 2.5x |\n| 4096 3x3 | compiled | 90.0 | 45.0 | 0.50x |" in training
    assert split.endswith("| 4096 3x3 | 120 | 99.0 |")


def test_what_was_tuned_is_shown_and_shipped():
    entry = {"pass": "forward", "problem": "1,1,64,64,1,3,3,padding=1", "variant": "coalesced", "tunables": {"ROWS": 8},
             "us": 30.0, "rule_us": 45.0, "version": "0.1.0", "code": "beef", "date": "2026-12-01"}  # fmt: skip
    run = types.SimpleNamespace(rows=[], steps={"tune": {"data": {"title": "A GPU", "minutes": 2, "entries": [entry]}}})
    (text,) = gpu_parts.parts(run)
    assert "found in 2.0 minutes" in text
    assert text.endswith("| forward | 1,1,64,64,1,3,3,padding=1 | coalesced, ROWS 8 | 30.0 | 45.0 | 1.5x |")
    ((path, written),) = gpu_parts.shipped_table(run).items()
    assert path == table.shipped("A GPU") and json.loads(written)["entries"] == [entry]
    run.steps["tune"]["data"] = {}  # it failed, or was skipped
    assert gpu_parts.parts(run) == [] and gpu_parts.shipped_table(run) == {}


def test_counters():
    counted = {"time": [48.9e-6, "s"], "DRAM": [1.4e8, "B"], "registers a thread": [128.0, ""],
               "warps: long scoreboard": [0.61, "%"], "warps: wait": [0.2, "%"]}  # fmt: skip
    kernel = {"job": "4096 3x3/float32/forward", "who": "forward/coalesced", "problem": "", "counted": counted}
    (text,) = shown(steps={"ncu": {"data": {"kernels": [kernel]}}})
    assert "| variant | job | time | DRAM | registers a thread | warps wait for |" in text
    assert text.endswith("| 48.9 us | 140 MB | 128 | long scoreboard 61 %, wait 20 % |")

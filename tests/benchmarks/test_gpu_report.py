"""benchmarks/gpu_report.py: what it concludes, and that one failure does not stop it; no GPU takes part."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import selectors
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from convbackprop import errors
from convbackprop.bench import torch_calls
from convbackprop.check import inputs, reference
from convbackprop.devices import compiler
from convbackprop.ladder.registry import select
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.profile.configurations import configurations

pytest.importorskip("torch", reason="needs torch, which is not installed: the GPU report compares with it")

from benchmarks import gpu_report
from benchmarks.report import counters, exact, jobs, layers, measure, parts, public, stand_in, steps, tuning, worker
from benchmarks.report.goals import GOALS, Goal, evaluate, evaluate_all, evaluate_deepbench, floor_us
from benchmarks.report.rows import Row, spread
from convbackprop.bench import roof
from tests.support.children import PATIENCE

ROOT = Path(__file__).parents[2]
FACTS = {"copy_bytes_per_s": 4e12, "ffma_flops_per_s": 6e13}
GOAL = Goal("1", "forward", "job", over_floor=1.1, times_torch=3)
PROBLEM = "1,1,1000,1000,1,3,3,padding=same"


def timed(who, microseconds, **more):
    same = dict.fromkeys(("min", "p5", "p20", "median", "p80", "p95"), float(microseconds))
    return Row("job", who, cold={**same, "repetitions": 5}, problem=PROBLEM, least_bytes=8_000_000, **more)


def ours(microseconds, **more):
    return timed("forward/coalesced", microseconds, ours=True, **more)


# -- goals -----------------------------------------------------------------------------------------------------------
def test_a_goal_that_is_met():
    rows = [ours(2.1), timed("forward/naive", 9, ours=True), timed("copy", 2), timed("torch", 8)]
    rows += [timed("torch channels_last", 7), timed("torch TF32", 1), Row("other", "torch", failed="no")]
    verdict = evaluate(GOAL, rows, FACTS)
    assert (verdict.met, verdict.why, verdict.who) == (True, "", "forward/coalesced")
    assert verdict.floor_us == pytest.approx(2) and verdict.over_floor == pytest.approx(1.05)
    assert verdict.times_torch == pytest.approx(7 / 2.1)  # torch's best format, in full float32
    assert verdict.times_torch_tf32 == pytest.approx(1 / 2.1)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([ours(2.3), timed("torch", 7)], "1.15 floors"),
        ([ours(2.1), timed("torch", 6)], "2.86x torch"),
        ([ours(2.3)], "1.15 floors; torch was not timed: it was not run"),
    ],
)
def test_a_goal_that_is_not_met(rows, why):
    verdict = evaluate(GOAL, rows, FACTS)
    assert (verdict.met, verdict.why) == (False, why)


@pytest.mark.parametrize(
    ("rows", "facts", "why"),
    [
        ([], FACTS, "not measured: it was not run"),
        ([Row("job", "forward/coalesced", True, failed="wrong")], FACTS, "not measured: wrong"),
        ([ours(2.1)], FACTS, "torch was not timed: it was not run"),
        ([ours(2.1), Row("job", "torch", failed="no engine")], FACTS, "torch was not timed: no engine"),
        ([ours(2.1), timed("torch", 7)], {}, "the ceilings were not measured"),
    ],
)
def test_a_goal_of_which_nothing_can_be_said(rows, facts, why):
    verdict = evaluate(GOAL, rows, facts)
    assert (verdict.met, verdict.why) == (None, why)


def test_a_row_that_failed_does_not_count():
    rows = [ours(1, failed="wrong at full size"), timed("forward/tiled", 5, ours=True), timed("torch", 99)]
    assert evaluate(GOAL, rows, FACTS).who == "forward/tiled"


def test_the_other_limits():
    facts = {**FACTS, "ffma_flops_per_s": 1e12}
    assert floor_us(8_000_000, 9_000_000, facts) == pytest.approx(9)
    layer = Goal("4", "layer", "job", microseconds=7, copies=3)  # a copy of the image takes 2 us
    assert evaluate(layer, [ours(5.9)], FACTS).met is True
    assert evaluate(layer, [ours(6.1)], FACTS).why == "3.05 copies"
    assert evaluate(layer, [ours(7.1)], FACTS).why == "7.1 us; 3.55 copies"
    same = Goal("2", "kernel_grad", "job", over_floor=2, deterministic=True)
    assert evaluate(same, [ours(3, deterministic=True)], FACTS).met is True
    assert evaluate(same, [ours(3, deterministic=False)], FACTS).why == "the second run gave other bits"


def test_the_cost_of_a_call():
    goal = next(goal for goal in GOALS if goal.host)
    call, bare = goal.host

    def host(who, microseconds, **more):
        return Row(goal.job, who, host={"median": microseconds}, **more)

    verdict = evaluate(goal, [host(call, 6.5), host(bare, 4), host("torch eager", 65)], {})
    assert (verdict.met, verdict.figure_us, verdict.times_torch) == (True, 2.5, 10)
    assert evaluate(goal, [host(call, 8), host(bare, 4), host("torch eager", 90)], {}).why == "4 us"
    assert evaluate(goal, [host(call, 6), Row(goal.job, bare, failed="no")], {}).why == "not measured: no"
    assert evaluate(goal, [], {}).met is None


def test_every_goal_is_of_a_job_that_is_run():
    by_name = {job.name: job for job in jobs.all_jobs()}
    assert {goal.job for goal in GOALS} <= set(by_name)
    assert {goal.number for goal in GOALS} == {"1", "2", "3", "3 stretch", "4", "5", "9", "10"}
    assert len(by_name) == len(jobs.all_jobs())
    assert all(goal.wanted for goal in GOALS)
    assert all(verdict.met is None for verdict in evaluate_all([], {}))


def test_percentiles():
    found = spread(np.arange(101) * 1e-6)
    assert found == pytest.approx(
        {"min": 0, "p5": 5, "p20": 20, "median": 50, "p80": 80, "p95": 95, "repetitions": 101}
    )


# -- the same kernels ------------------------------------------------------------------------------------------------
def test_small_problems_run_the_kernels_that_are_timed():
    from convbackprop.launch.plan import constants_of

    for job in jobs.all_jobs():
        for variant in job.variants:
            assert variant.refusal(jobs.shrunk(job.problem)) is None
            small = constants_of(jobs.as_for(variant, job.problem), jobs.shrunk(job.problem), "cuda")
            assert constants_of(variant, job.problem, "cuda") == small, (job.name, str(variant))


@pytest.mark.slow
def test_what_is_launched_is_among_what_is_looked_at_for_spills():
    launched = set(jobs.sources(jobs.all_jobs(), sanitizer=True)) - {jobs.FFMA, jobs.SPIN}
    assert launched <= set(configurations())


def test_the_full_size_check_agrees_with_the_reference():
    import torch

    for pass_name in PASSES:
        for mask in (False, True):
            text = "2,3,9,20,3,3,5,groups=3,padding=same,activation=relu,bias=1"
            problem = ConvProblem.parse(text, mask=mask)
            given = inputs(pass_name, problem)
            tensors = {name: torch.from_numpy(array) for name, array in given.items()}
            expected = reference.answer(pass_name, problem, given)
            found = exact.exact(torch, pass_name, problem, tensors)
            assert set(found) == set(expected)
            for name, pair in expected.items():
                for mine, right in zip(found[name], pair, strict=True):
                    assert np.allclose(mine.numpy(), right, rtol=1e-13, atol=1e-13)
                bound = reference.error_bound(name, problem, *pair)
                wrong = torch.from_numpy(pair[0].copy())
                wrong.view(-1)[3 % wrong.numel()] += 2 * bound.flat[3 % wrong.numel()]
                assert exact.share_of_bound(torch, name, problem, wrong, *found[name]) == pytest.approx(2, rel=1e-6)
                wrong.view(-1)[0] = float("nan")
                assert exact.share_of_bound(torch, name, problem, wrong, *found[name]) > 1
    y = torch.randn(2, 3, 4, 13)
    packed = np.packbits(y.numpy() > 0, axis=-1, bitorder="little")
    assert np.array_equal(exact.packed_mask(torch, y).numpy(), packed)


@pytest.mark.parametrize("name", ["forward/winograd", "input_grad/winograd"])
def test_the_full_size_check_has_the_bound_of_transforms(name):
    """Which is wider than that of sums where large pixels cancel."""
    import torch

    (variant,) = select(name)
    problem = ConvProblem.parse("2,3,6,8,3,3,3,activation=relu,bias=1")
    given = inputs(variant.pass_name, problem)
    given["w"][..., 2] = 0
    given["x" if "x" in given else "dy"][..., 2::4] *= 2.0**6
    tensors = {operand: torch.from_numpy(array) for operand, array in given.items()}
    wider = exact.transformed(torch, variant.pass_name, problem, tensors, variant.transforms)
    right = reference.transformed_error(variant.pass_name, problem, given, variant.transforms)
    assert np.array_equal(wider.numpy(), right)
    ((result, (value, magnitude)),) = exact.exact(torch, variant.pass_name, problem, tensors).items()
    bound = torch.from_numpy(reference.error_bound(result, problem, value.numpy(), magnitude.numpy(), right))
    shares = [
        exact.share_of_bound(torch, result, problem, value + bound, value, magnitude, *by) for by in ((), (wider,))
    ]
    assert shares[1] == pytest.approx(1, rel=1e-6) and shares[0] > 2


@pytest.mark.parametrize("options", ["", ",dx=0", ",dw=0", ",bias=0", ",dw=0,bias=0", ",padding=0:1x2:0"])
def test_torch_computes_all_gradients_at_once(options):
    problem = ConvProblem.parse(
        "2,4,9,8,6,3,2,groups=2,stride=2x1,dtype=float64,activation=tanh" + options,
        **({} if "bias" in options else {"bias": True}),
    )
    given = inputs("backward", problem)
    expected = reference.answer("backward", problem, given)
    results = torch_calls.calls("backward", problem, given)["torch"]()
    assert len(results) == len(expected)
    for (value, _), got in zip(expected.values(), results, strict=True):
        assert np.allclose(got.numpy(), value, rtol=1e-12, atol=1e-12)


# -- the public functions and the layers -----------------------------------------------------------------------------
SMALL = ConvProblem.parse("2,3,9,20,4,3,3,padding=1,activation=relu,bias=1")


@pytest.fixture
def on_cpu():
    import torch

    return types.SimpleNamespace(torch=torch, where="cpu", synchronize=lambda: None)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_layer_is_held_against_exact_sums(on_cpu, dtype):
    layer, _ = layers.layers(SMALL, on_cpu)
    row = Row("job", "convbackprop.torch")
    layers.Step(layer, SMALL.with_(dtype=dtype), on_cpu).check(row)
    assert 0 < row.full_share <= 1

    class Wrong(on_cpu.torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x * 1.01)

    with pytest.raises(ArithmeticError, match="times its bound"):
        layers.Step(Wrong(), SMALL.with_(dtype=dtype), on_cpu).check(row)


@pytest.mark.parametrize("pass_name", list(PASSES))
def test_a_public_function_and_its_replay(on_cpu, pass_name):
    torch = on_cpu.torch
    tensors = measure.Place.tensors(on_cpu, pass_name, SMALL, {})
    for out in (True, False):
        row = Row("job", "ours")
        public.checked(row, pass_name, SMALL, on_cpu, tensors, public.public_call(pass_name, SMALL, tensors, out))
        assert 0 < row.full_share <= 1
    call = public.public_call(pass_name, SMALL, tensors, True)
    public.same_bits(row, pass_name, SMALL, on_cpu, tensors, call, call)
    assert row.deterministic
    result = tensors[measure.results_of(pass_name, SMALL)[-1]]

    def other_bits():
        call()
        result.view(-1)[0] = torch.nextafter(result.view(-1)[0], torch.tensor(9.0))

    with pytest.raises(ArithmeticError, match="the replay writes other bits than the call"):
        public.same_bits(row, pass_name, SMALL, on_cpu, tensors, call, other_bits)
    found = public.torch_eager(pass_name, SMALL, tensors, torch)()
    found = found if isinstance(found, tuple) else (found,)
    call()
    names = measure.results_of(pass_name, SMALL)
    for name, theirs in zip(names, (each for each in found if each is not None), strict=True):
        assert torch.allclose(tensors[name], theirs, rtol=1e-4, atol=1e-4)


# -- isolation -------------------------------------------------------------------------------------------------------
FOUR = [job for job in jobs.all_jobs() if job.name.startswith("4096 5x5/float32")][:4]
JOBS = tuple(dataclasses.replace(job, name=name) for name, job in zip("abcd", FOUR, strict=True))


class Place:
    """What `work` needs of a place; `lost` says whether the GPU is."""

    def __init__(self):
        self.lost = False
        self.device = types.SimpleNamespace(active=lambda: io.StringIO())

    def synchronize(self):
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")


def messages(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_job_that_raises_is_reported_and_the_rest_goes_on():
    def carry_out(job, place):
        if job.name == "b":
            raise ValueError("no luck")
        return measure.Outcome([Row(job.name, "x")], {"of": job.name})

    out = io.StringIO()
    assert worker.work(JOBS, Place(), out, carry_out) == 0
    found = [message for message in messages(out) if "done" in message]
    assert [message["done"] for message in found] == list("abcd")
    assert [row["failed"] for message in found for row in message["rows"]].count(None) == 3
    assert found[1]["rows"][0]["failed"] == "ValueError: no luck"


def test_a_gpu_that_is_lost_ends_the_worker():
    place = Place()

    def carry_out(job, place):
        place.lost = job.name == "b"
        return measure.Outcome()

    out = io.StringIO()
    assert worker.work(JOBS, place, out, carry_out) == 3
    assert messages(out)[-1]["done"] == "b" and "illegal memory access" in messages(out)[-1]["lost"]


WORKER = """
import json, os, sys, time
jobs, out = json.loads(sys.argv[-2]), os.fdopen(int(sys.argv[-1]), "w")
def row(job, who, failed=None):
    return {"job": job, "who": who, "ours": True, "failed": failed}
def say(**message):
    print(json.dumps(message), file=out, flush=True)
for name, skipped in jobs:
    say(begin=name)
    if name == "b":
        os.abort()
    if name == "c":
        time.sleep(10**6)
    first = "forward/naive"
    if name == "a" and first not in skipped:
        say(done=name, rows=[row(name, first, "lost"), row(name, "other", "lost")], facts={}, lost="illegal")
        os._exit(3)
    say(done=name, rows=[row(name, "fine")], facts={name: 1}, lost=None)
"""


def test_a_worker_that_crashes_hangs_or_loses_the_gpu(tmp_path, monkeypatch):
    """The limit of silence passes at once in job c, which is silent for ever, and nowhere else."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    begun, silences = [], []

    class Selector(selectors.DefaultSelector):
        def select(self, timeout=None):
            if begun[-1:] != ["c"] or silences:
                return super().select(PATIENCE)
            silences.append(timeout)
            return []

    monkeypatch.setattr(worker.selectors, "DefaultSelector", Selector)
    found = worker.supervise(JOBS, [sys.executable, str(script)], worker.Limits(10**6, 3), begun.append)
    rows = {(row.job, row.who): row.failed for row in found.rows}
    assert rows[("a", "forward/naive")] == "lost" and rows[("a", "fine")] is None and ("a", "other") not in rows
    assert {why for (job, _), why in rows.items() if job == "b"} == {"the process ended with exit code -6"}
    assert {why for (job, _), why in rows.items() if job == "c"} == {"no answer for 3 s"}
    assert rows[("d", "fine")] is None and found.facts == {"a": 1, "d": 1}
    assert begun == list("aabcd") and len(silences) == 1 and silences[0] <= 3


def test_workers_that_do_not_start_or_take_too_long(tmp_path):
    found = worker.supervise(JOBS, [sys.executable, "-c", "raise SystemExit(5)"], worker.Limits(10**6, 10**6))
    assert {row.job for row in found.rows} == set("abcd")
    assert {row.failed for row in found.rows} == {"the worker ended with exit code 5 before it began"}
    found = worker.supervise(JOBS, [sys.executable, "-c", "import time; time.sleep(10**6)"], worker.Limits(0.5, 10**6))
    assert {row.failed for row in found.rows} == {"out of time"}


def test_a_step_that_raises_is_reported():
    def broken(step):
        raise OSError("no such thing")

    step = steps.carry_out("broken", broken)
    assert (step.status, step.detail) == ("failed", "OSError: no such thing")


WAITS = """
import pathlib, sys, time
try:
    print(1, flush=True)
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(10**6)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_commands_are_stopped_at_their_limit(tmp_path, monkeypatch):
    """Which passes here as soon as the command is at work."""
    assert steps.run_limited([sys.executable, "-c", "print(7)"], PATIENCE) == steps.Ended(0, "7\n")
    at_work, communicate, limit = tmp_path / "at work", subprocess.Popen.communicate, 2.0

    def until_it_is_at_work(process, input=None, timeout=None):
        if timeout != limit:
            return communicate(process, input, PATIENCE)
        while not at_work.exists():
            assert process.poll() is None
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", until_it_is_at_work)
    ended = steps.run_limited([sys.executable, "-c", WAITS, str(at_work)], limit)
    assert ended.code is None and ended.output == "1\ninterrupted\n"


@pytest.fixture
def quick(monkeypatch):
    """The report on the rows of one job, in this process and without its slow steps."""
    from convbackprop.cli import common

    monkeypatch.setattr(stand_in, "why_not", lambda: None)  # no row is run
    monkeypatch.setattr(steps, "environment", lambda step, device: step.data.update(device=None, commit="c0ffee"))
    monkeypatch.setattr(steps, "compile_all", lambda step, *rest: step.data.update(kernels=[]))

    def report(supervised, *options):
        """`supervised`: what the workers gave, or a function of the jobs that says it."""

        def supervise(todo, command, limits, begun, gathered):
            given = supervised([job.name for job in todo]) if callable(supervised) else supervised
            gathered.rows += given.rows
            gathered.facts |= given.facts

        monkeypatch.setattr(parts, "supervise", supervise)
        arguments = gpu_report.arguments_of(["--dry-run", *(options or ("--jobs", "4096 3x3/float32/forward$"))])
        return gpu_report.report(arguments, common.console())

    return report


def test_a_row_that_failed_fails_the_report(quick, capsys, monkeypatch):
    name = "4096 3x3/float32/forward"
    good = dataclasses.replace(ours(2.1), job=name)
    assert (
        quick(worker.Gathered([good, dataclasses.replace(timed("torch", 9), job=name)], FACTS | {"empty_us": 1})) == 0
    )
    shown = capsys.readouterr().out
    assert re.search(r"forward 3x3 .* met", shown) and "nothing was measured" in shown
    assert quick(worker.Gathered([good, Row(name, "torch", failed="no engine")], {})) == 1
    assert f"FAILED {name}, torch: no engine" in capsys.readouterr().out
    monkeypatch.setattr(steps, "compile_all", lambda *arguments: 1 / 0)
    assert quick(worker.Gathered([good], {})) == 1
    assert "FAILED step compile: ZeroDivisionError" in capsys.readouterr().out


# -- what is left behind, and taken over ------------------------------------------------------------------------------
WANTED = ("--jobs", "4096 3x3/float32/(forward|backward)$")
FORWARD, BACKWARD = "4096 3x3/float32/forward", "4096 3x3/float32/backward"


def left_behind(path):
    return json.loads(path.read_text())


def test_an_interrupted_report_leaves_what_it_has(quick, tmp_path):
    path = tmp_path / "report.json"

    def interrupted(names):
        assert left_behind(path)["steps"][-1]["name"] == "compile"  # it is there before the first row
        raise KeyboardInterrupt

    assert quick(interrupted, *WANTED, "--out", str(path)) == 1
    found = left_behind(path)
    assert found["failures"] == ["step rows: interrupted"] and found["ok"] is False


def test_rows_are_written_while_they_come(tmp_path):
    now = gpu_report.Run(True, None, tmp_path / "report.json", 60)
    now.gathered.rows.append(Row("a", "b"))
    now.write(at_once=False)
    now.gathered.rows.append(Row("a", "c"))
    now.write(at_once=False)  # a moment later: not again
    assert [row["who"] for row in left_behind(now.path)["rows"]] == ["b"]


def test_what_is_done_is_taken_over(quick, tmp_path, monkeypatch):
    def first(names):
        assert names == [FORWARD, BACKWARD]
        rows = [Row(FORWARD, "forward/coalesced", failed="no answer"), Row(BACKWARD, "backward/fused", ours=True)]
        return worker.Gathered(rows, {"l2_bytes": 1})

    def second(names):
        assert names == [FORWARD]
        return worker.Gathered([Row(FORWARD, "forward/coalesced", ours=True)])

    path, later = str(tmp_path / "first.json"), tmp_path / "second.json"
    monkeypatch.setattr(gpu_report, "print_rows", lambda *arguments: None)
    assert quick(first, *WANTED, "--out", path) == 1
    assert quick(second, *WANTED, "--out", str(later), "--skip-done", path) == 0
    found = left_behind(later)
    assert [(row["job"], row["failed"]) for row in found["rows"]] == [(FORWARD, None), (BACKWARD, None)]
    assert found["ceilings"] == {"l2_bytes": 1} and found["ok"] is True
    assert quick(lambda names: pytest.fail("all is done"), *WANTED, "--out", path, "--skip-done", str(later)) == 0
    assert left_behind(Path(path))["rows"] == found["rows"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dry_run": False}, "is of a dry run, or this is"),
        ({"steps": [{"name": "environment", "data": {"device": None, "commit": "beef"}}]}, "is of the commit beef"),
        ({"rows": 3}, "is no report: TypeError"),
    ],
)
def test_what_is_not_taken_over(quick, tmp_path, capsys, change, sentence):
    path = tmp_path / "first.json"
    quick(worker.Gathered(), *WANTED, "--out", str(path))
    path.write_text(json.dumps(left_behind(path) | change))
    assert quick(worker.Gathered(), *WANTED, "--skip-done", str(path)) == 1
    assert sentence in capsys.readouterr().out


def test_time_that_is_up(quick, tmp_path, monkeypatch):
    """A part that there is no time for is skipped, and compiling ends, too."""
    monkeypatch.setattr(gpu_report.Run, "left", 1.0)
    path = tmp_path / "report.json"
    given = [*WANTED, "--only", "rows", "--out", str(path)]
    assert quick(lambda names: pytest.fail("there is no time"), *given) == 0
    assert left_behind(path)["steps"][-1]["detail"] == "no time was left"


def test_compiling_that_takes_too_long(monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(steps.compiler, "cubin", lambda source, architecture: free.wait(10))
    bar = types.SimpleNamespace(add_task=lambda *a, **o: 0, advance=lambda task: 0, refresh=lambda: 0)
    step = steps.carry_out("compile", lambda step: steps.compile_all(step, [jobs.FFMA, jobs.SPIN], "sm_90a", bar, 0.05))
    free.set()
    assert step.status == "failed" and step.data["failures"] == ["2 were not compiled within 0 s"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--only", "rows,row"), "--only is 'rows,row'; it should be of launches, rows, host"),
        (("--jobs", "nothing such"), "which is in the name of no job"),
    ],
)
def test_mistakes(options, sentence, capsys):
    from convbackprop.cli.common import console

    assert gpu_report.report(gpu_report.arguments_of(["--dry-run", *options]), console()) == 1
    assert sentence in capsys.readouterr().out.replace("\n", " ")


def test_parts_and_jobs():
    def chosen(*options):
        wanted, own = gpu_report.chosen(gpu_report.arguments_of(options))
        return [part.name for part in wanted], {job.part for job in own}

    names = [part.name for part in parts.PARTS]
    assert chosen() == (names, {"rows", "host", "graphs", "training", "nccl"})
    assert chosen("--only", "nccl,host") == (["host", "nccl"], {"host", "nccl"})
    assert chosen("--only", "tests") == (["tests"], set())
    assert chosen("--jobs", "DeepBench") == (["rows"], {"rows"})
    assert all(part.action or any(job.part == part.name for job in jobs.all_jobs()) for part in parts.PARTS)


# -- counters --------------------------------------------------------------------------------------------------------
COUNTED = [counters.ncu.Counted("forward", {"gpu__time_duration.sum": 3e-6, "launch__registers_per_thread": 40.0})]


@pytest.fixture
def missing():
    """A run on a made-up GPU whose forward 3x3 misses its goal, and whose 5x5 meets it."""
    now = gpu_report.Run(False, types.SimpleNamespace(name="cuda:0", target="cuda"), None, 60)
    now.gathered.facts = {"copy_bytes_per_s": 4e12, "ffma_flops_per_s": 6e13}
    for size, microseconds in ((3, 9.0), (5, 1.0)):
        job = f"4096 {size}x{size}/float32/forward"
        now.gathered.rows.append(dataclasses.replace(ours(microseconds), job=job))
        now.gathered.rows.append(dataclasses.replace(timed("torch", 99), job=job))
    return now


def test_what_misses_its_goal_is_counted(missing, monkeypatch):
    asked = []
    monkeypatch.setattr(counters.ncu, "collect", lambda arguments, seconds: asked.append(arguments) or COUNTED)
    step = steps.carry_out("ncu", lambda step: counters.counters(step, missing, 60))
    assert step.status == "ok", step.detail
    assert asked == [["forward/coalesced", "--problem", PROBLEM, "--device", "cuda:0"]]
    (kernel,) = step.data["kernels"]
    assert (kernel["job"], kernel["who"]) == ("4096 3x3/float32/forward", "forward/coalesced")
    assert kernel["counted"] == {"time": [3e-6, "s"], "registers a thread": [40.0, ""]}
    assert steps.carry_out("ncu", lambda step: counters.counters(step, missing, 0.5)).data["kernels"] == []
    missing.gathered.rows.clear()  # alone: every goal's kernel
    assert len(counters.missed(missing)) > 10


def test_without_ncu_nothing_is_counted(missing, monkeypatch):
    def find():
        raise errors.EnvironmentProblem("ncu is not on PATH; install it")

    monkeypatch.setattr(counters.ncu, "find_ncu", find)
    step = steps.carry_out("ncu", lambda step: counters.counters(step, missing, 60))
    assert (step.status, step.detail) == ("skipped", "ncu is not on PATH; install it")
    missing.dry = True
    step = steps.carry_out("ncu", lambda step: counters.counters(step, missing, 60))
    assert (step.status, step.detail) == ("skipped", "1 kernels to count; there is no GPU that counts")


# -- tuning ----------------------------------------------------------------------------------------------------------
ENTRY = tuning.table.Entry("forward", ConvProblem.parse(PROBLEM), "coalesced", {"ROWS": 8}, 2.0, 3.0, date="2026-12-01")


@pytest.mark.parametrize(
    ("code", "entries", "status", "detail"),
    [
        (0, [ENTRY], "ok", "1 choices of A GPU, 1 of them faster than the rule's"),
        (None, [ENTRY], "ok", "1 choices of A GPU, 1 of them faster than the rule's; stopped after 50 s"),
        (1, [ENTRY], "failed", "convbackprop: error: no luck"),
        (None, [], "failed", "convbackprop: error: no luck; stopped after 50 s"),
    ],
)
def test_tuning(missing, monkeypatch, code, entries, status, detail):
    """In a folder of its own; what was found before the limit is kept."""

    def run_limited(command, seconds, environment):
        kept = Path(environment["CONVBACKPROP_TUNED"])
        assert command[2:] == ["convbackprop", "tune", "--device", "cuda:0", "--minutes", "0.5", "--json"]
        if entries:
            (kept / "A-GPU.json").write_text(tuning.table.text_of("A GPU", entries))
        return steps.Ended(code, "convbackprop: error: no luck\n")

    monkeypatch.setattr(tuning, "run_limited", run_limited)
    step = steps.carry_out("tune", lambda step: tuning.tune(step, missing, 50))
    assert (step.status, step.detail) == (status, detail)
    assert step.data["entries"] == [entry.as_json() for entry in entries]


# -- the dry run -----------------------------------------------------------------------------------------------------
@pytest.fixture
def can_stand_in():
    """A dry run is possible here."""
    if reason := stand_in.why_not():
        pytest.skip(f"the GPU report's dry run needs the stand-in for a driver: {reason}")


def test_a_variant_that_is_wrong_gets_no_time(can_stand_in):
    """In a process of its own, for the stand-in stays."""
    text = """
import dataclasses, sys
from benchmarks.report import stand_in
stand_in.install()
from benchmarks.report import jobs, measure
from convbackprop.devices import get_device
from benchmarks.report.kinds import measure as carry_out
honest = measure.check
def check(variant, *arguments):
    outcome = honest(variant, *arguments)
    if variant.name == "naive":
        outcome.faults.append("y[0] is wrong")
    return outcome
measure.check = check
job = next(job for job in jobs.all_jobs() if job.name == "4096 5x5/float32/forward")
own = [v for v in job.variants if v.name in ("naive", "coalesced")]
job = dataclasses.replace(job, variants=own, problem=job.problem.with_(H=192, W=192))
device = get_device("cuda")
with device.active():
    place = measure.Place(device, measure.DRY)
rows = {row.who: row for row in carry_out(job, place).rows}
naive, coalesced = rows["forward/naive"], rows["forward/coalesced"]
assert "y[0] is wrong" in naive.failed and naive.cold is None and naive.warm is None, naive
assert coalesced.failed is None and coalesced.cold and coalesced.warm and coalesced.deterministic, coalesced
assert coalesced.small_share <= 1 and coalesced.full_share <= 1
assert rows["torch TF32"].cold and rows["torch TF32"].warm is None and rows["copy"].cold
assert not place.torch.backends.cudnn.allow_tf32

def raise_():
    raise MemoryError("no more")
measure.torch_calls.calls_on = lambda *arguments, **options: raise_()
rows = {row.who: row for row in carry_out(job, place).rows}
assert rows["torch"].failed == "MemoryError: no more" and rows["forward/coalesced"].cold and rows["copy"].cold
place.clock = lambda call, cold: raise_()
rows = {row.who: row for row in carry_out(job, place).rows}
assert "timing ended with MemoryError" in rows["forward/coalesced"].failed
assert "y[0] is wrong" in rows["forward/naive"].failed
"""
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dry_run_without_a_stand_in(monkeypatch, capsys):
    from convbackprop.cli.common import console

    monkeypatch.setattr(stand_in, "why_not", lambda: "it is Sunday")
    assert gpu_report.report(gpu_report.arguments_of(["--dry-run"]), console()) == 1
    assert "a dry run needs the stand-in for a driver, which cannot be used: it is Sunday" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "named",
    [
        pytest.param("ceilings|^28 3x3.*(/host|graphs forward|/training|nccl)$", id="one of each part"),
        pytest.param("ceilings|^28 3x3", id="every pass, and torch.compile"),
    ],
)
def test_dry_run(tmp_path, can_stand_in, named):
    try:
        compiler.find_nvcc()
    except errors.CompilerNotFound as error:
        pytest.skip(f"the GPU report's dry run compiles for a GPU: {error}")
    out = tmp_path / "report.json"
    before = set(ROOT.glob("benchmarks/results/*"))
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_report.py", "--dry-run", "--out", str(out),
         "--jobs", named],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was measured" in done.stdout
    assert set(ROOT.glob("benchmarks/results/*")) == before
    found = json.loads(out.read_text())
    assert found["dry_run"] is True and found["ok"] is True and found["failures"] == []
    assert {step["name"]: step["status"] for step in found["steps"]} == {
        name: "ok" for name in ("environment", "compile", "rows", "host", "graphs", "training", "nccl")
    }  # fmt: skip
    kernels = next(step["data"]["kernels"] for step in found["steps"] if step["name"] == "compile")
    assert all(kernel["registers"] and not kernel["spill_bytes"] for kernel in kernels)
    assert {"fma_peak.cu", "spin.cu"} <= {kernel["file"].split("/")[1] for kernel in kernels}
    assert set(found["ceilings"]) >= {"copy_bytes_per_s", "ffma_flops_per_s", "empty_us"}
    assert len(found["goals"]) == len(GOALS) + 1  # and DeepBench's
    for row in found["rows"]:
        assert row["failed"] is None and (row["cold"] or row["host"])
    documented = set(re.findall(r"\w+", gpu_report.__doc__))
    assert set(found) <= documented and {key for key in found["rows"][0]} <= documented
    assert {key for key in found["goals"][0]} <= documented and set(found["settings"]) - documented <= {"both"}


def test_without_a_gpu_it_says_so(capsys):
    from convbackprop.cli.common import console
    from convbackprop.devices import why_not_cuda

    if why_not_cuda() is None:
        pytest.skip("this machine has a GPU, so the GPU report does not refuse")
    assert gpu_report.report(gpu_report.arguments_of([]), console()) == 1
    assert "--dry-run walks through it without one" in capsys.readouterr().out


def test_fma_peak_is_made_of_ffma(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH, so the PTX of fma_peak.cu cannot be looked at")
    ptx = tmp_path / "peak.ptx"
    command = [nvcc, "-std=c++17", "-I", "cuda_src", *jobs.FFMA.defines, "-arch=sm_90", "-ptx", "-o", str(ptx)]
    subprocess.run([*command, str(jobs.FFMA.path)], cwd=ROOT, check=True)
    multiply_adds = ptx.read_text().count("fma.rn.f32")
    assert multiply_adds >= roof.CHAINS * roof.STEPS


# -- DeepBench -------------------------------------------------------------------------------------------------------
def deep_rows(ratios):
    """Return rows of layers whose times have these ratios to torch; the first has one input channel."""
    rows = []
    for i, ratio in enumerate(ratios):
        job = f"{jobs.DEEPBENCH_LABEL} {i:02} x/float32/forward"
        problem = f"1,{1 if i == 0 else 64},9,9,64,3,3"
        times = {"forward/implicit_gemm": 10.0, "torch": 10.0 * ratio, "torch channels_last": 30.0 * ratio}
        for who, us in times.items():
            rows.append(Row(job, who, ours=who.startswith("forward"), problem=problem, cold={"median": us}))
    return rows


@pytest.mark.parametrize(
    ("ratios", "met", "why"),
    [
        ([8, 2, 1], True, ""),
        ([4, 2, 3], False, "1 of 3 below: DeepBench 00 x/float32/forward 4.00x"),
        ([8, 2, 0.9], False, "1 of 3 below: DeepBench 02 x/float32/forward 0.90x"),
        ([5, 1, 0.95, 0.95], False, "mean 1.46x"),
    ],
)
def test_deepbench(ratios, met, why):
    verdict = evaluate_deepbench(deep_rows(ratios))
    assert (verdict.met, verdict.why) == (met, why)
    assert verdict.times_torch == pytest.approx(np.prod(ratios) ** (1 / len(ratios)))


def test_deepbench_without_torch_is_not_met():
    rows = deep_rows([8, 2, 2])
    verdict = evaluate_deepbench([row for row in rows if row.ours or "00" in row.job])
    assert verdict.met is None and verdict.why == "2 not timed"
    assert "no layer" in evaluate_deepbench([]).why

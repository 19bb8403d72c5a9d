"""Minutes of abuse: the cache in a storm, threads, Ctrl-C, little memory and ends at any moment. `make hardening`."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convbackprop import check
from convbackprop.devices import cache
from convbackprop.ladder import registry
from tests import test_process
from tests.cpu_runtime import test_cpu_runtime
from tests.support.children import PATIENCE
from tests.support.figures import record
from tests.support.problems import CURATED

pytestmark = pytest.mark.hardening
ROOT = Path(__file__).parents[1]


def test_cache_in_a_storm(tmp_path, monkeypatch):
    """Processes are killed and files damaged: no wrong result, no failure, nobody hangs, all is built."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-m", "tests.support.storm", str(folder), "200", str(random.getrandbits(32))]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=test_process.ENVIRONMENT)
    assert process.returncode == 0, process.stderr
    counts = json.loads(process.stdout.splitlines()[-1])
    print(counts)
    assert not process.stderr
    assert (counts["wrong"], counts["failed"], counts["hung"]) == (0, 0, 0)
    assert counts["started"] == counts["killed"] + counts["finished"]
    assert counts["killed"] > 150 and counts["damaged"] > 50 and counts["finished"] >= 16
    monkeypatch.setenv("CONVBACKPROP_CACHE_DIR", str(folder))
    assert len([path for path in folder.glob("*.so") if cache._kept(path)]) >= 4  # the runtime and three kernels
    record("storm", **counts)


def test_sixteen_threads():
    """A thousand calls in each of 16 threads, on mixed problems: bit for bit what one thread computes."""
    cpu = test_cpu_runtime.cpu_device()
    problems = {entry.problem(activation="relu"): entry.data for entry in CURATED[:24]}
    work = []
    for variant in registry.VARIANTS:
        for problem in sorted(check.within_budget(variant, problems, "cpu", 3), key=str):
            given = check.inputs(variant.pass_name, problem, problems[problem], seed=1)
            work.append((variant, problem, given))

    def bits(item):
        variant, problem, given = item
        return [block.array.tobytes() for block in check.launch(variant, problem, given, cpu).values()]

    expected = [bits(item) for item in work]
    differing = Counter()

    def thousand(seed):
        for number in random.Random(seed).choices(range(len(work)), k=1000):
            differing[bits(work[number]) != expected[number]] += 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(thousand, range(16)))
    assert differing == {False: 16_000}
    record("threads", threads=16, calls=16_000, differing=differing[True], problems=len(work))


INTERRUPTED = """\
import random, signal, sys, numpy as np, convbackprop, convbackprop.devices.cpu
convbackprop.devices.cpu._TIME_SLICE_MS = 1  # so that most launches are interrupted in the middle
rng = random.Random(int(sys.argv[1]))
x = np.random.default_rng(0).integers(-4, 4, (1, 8, 80, 80)).astype(np.float32)
w = np.random.default_rng(1).integers(-4, 4, (8, 8, 3, 3)).astype(np.float32)
def call(): return convbackprop.conv2d(x, w, device="cpu", variant="naive")
def interrupt(number, frame):
    global shots
    shots += 1
    if shots >= wanted: signal.setitimer(signal.ITIMER_REAL, 0)
    if shots > wanted: return  # it was on its way already
    while frame:
        if frame.f_code is call.__code__: raise KeyboardInterrupt
        frame = frame.f_back
expected = call()
interrupted = wrong = 0
signal.signal(signal.SIGALRM, interrupt)
for _ in range(int(sys.argv[2])):
    shots, wanted = 0, rng.choice((1, 2, 3))
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 0.01), rng.choice((1e-5, 1e-4, 2e-3)))
    while shots < wanted:
        try: wrong += not np.array_equal(call(), expected)
        except KeyboardInterrupt: interrupted += 1
    wrong += not np.array_equal(call(), expected)
print(interrupted, wrong)
"""


def interrupts(rounds):
    """Interrupt launches so often, up to three times in a row; return how often that was, and wrong results."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(random.getrandbits(32)), str(rounds)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=test_process.ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return map(int, done.stdout.split())


def test_ctrl_c_at_any_moment():
    """The next call is right, also where a second and third one come while the first is attended to."""
    interrupted, wrong = interrupts(500)
    assert interrupted > 250 and wrong == 0
    record("interrupts", interrupts=interrupted, wrong=wrong)


def test_memory_of_any_size():
    """A call that finds 0 to 300 MB of address space, before and after the device was first used."""
    ends = Counter()
    for stage in ("later", "first"):
        for megabytes in (*np.arange(0, 5, 0.5), *range(5, 30, 2), *range(30, 300, 30)):
            ends[test_process.with_little_memory(megabytes, stage).partition(":")[0]] += 1
    print(ends)
    assert ends["right"] > 10 and ends["ProblemTooLarge"] > 10  # both ends of the range
    assert ends.keys() <= {"right", "ProblemTooLarge", "MemoryError"}
    record("memory", calls=ends.total(), **ends)


def test_compiler_with_memory_of_any_size(tmp_path):
    """A process and its compilers under one limit, with an empty cache."""
    ends = Counter()
    for number, megabytes in enumerate((1, 5, 20, 60, 100, 150, 200, 300, 500)):
        folder = tmp_path / str(number)
        ended = test_process.with_little_memory(megabytes, "first", CONVBACKPROP_CACHE_DIR=str(folder))
        ends[ended.partition(":")[0]] += 1
        shutil.rmtree(folder, ignore_errors=True)
    print(ends)
    assert ends.keys() <= {"right", "ProblemTooLarge", "MemoryError", "CompileError"}
    assert ends["right"] and ends.total() > ends["right"]
    record("compiler_memory", calls=ends.total(), **ends)


ON_A_DISK = """\
import subprocess, sys, numpy as np, convbackprop
folder, kilobytes = sys.argv[1:]
def mount(*options): subprocess.run(["mount", "-t", "tmpfs", *options, "none", folder], check=True)
mount("-o", f"size={kilobytes}k,mode=700")
def call(): return convbackprop.conv2d(np.ones((5, 5), np.float32), np.ones((3, 3), np.float32), device="cpu")
try: print("right" if (call() == 9).all() else "wrong")
except convbackprop.ConvBackpropError as error: print(type(error).__name__, "make room" in str(error))
mount("-o", "remount,size=128m,mode=700")
print((call() == 9).all())
"""


def test_disk_of_any_size(tmp_path):
    """A cache on a file system that is full at once, in the middle of what is written, or not at all."""
    alone = ["unshare", "--map-root-user", "--mount"]  # a process that sees mounts of its own
    if not shutil.which("unshare") or subprocess.run([*alone, "mount", "-t", "tmpfs", "none", tmp_path]).returncode:
        pytest.skip("no file system can be mounted here, not even in a namespace of one's own")
    ends = Counter()
    for kilobytes in (4, 8, 64, 512, *range(2048, 20000, 1500), 65536):
        done = subprocess.run([*alone, sys.executable, "-c", ON_A_DISK, tmp_path, str(kilobytes)], timeout=PATIENCE,
                              capture_output=True, text=True,
                              env={**test_process.ENVIRONMENT, "CONVBACKPROP_CACHE_DIR": str(tmp_path)})  # fmt: skip
        assert done.returncode == 0, (kilobytes, done.stderr)
        end, again = done.stdout.splitlines()
        assert again == "True"
        ends[end] += 1
        print(kilobytes, end, done.stderr)
    assert ends.keys() <= {"right", "CompileError True", "EnvironmentProblem True"}
    assert ends["right"] and ends["CompileError True"] and ends["EnvironmentProblem True"]
    record("disk", calls=ends.total(), **{end.split()[0]: count for end, count in ends.items()})


def test_interpreter_ends_at_any_moment():
    for number in range(30):
        assert test_process.exit_at_work(number * 0.01) == (0, "leaving\n", "")
    record("exits", processes=30)


def test_forks_while_other_threads_launch():
    for _ in range(20):
        assert test_process.python(test_process.FORK_WHILE_BUSY) == str([0] * 10)
    record("forks", children=200)


@pytest.fixture
def busy():
    """Other programs that take the machine's time: threads start late, and in the middle of things."""
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    yield
    for process in load:
        process.kill()
        process.wait()


def test_ucontext_on_a_busy_machine(busy, tmp_path):
    for _ in range(20):
        test_cpu_runtime.test_ucontext_has_the_same_results_as_assembly(tmp_path)
    record("ucontext", processes=20)

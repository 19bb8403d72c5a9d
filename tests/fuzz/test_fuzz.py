"""Random cases in a short form; that each way of trying fails on something wrong, and what it leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from convbackprop import check, cli, ops
from convbackprop.errors import InvalidArgument
from convbackprop.fuzz import arguments
from convbackprop.fuzz.cases import Called, Compared, Lawful
from convbackprop.fuzz.crashes import crashes, shrink, smaller
from convbackprop.fuzz.laws import LAWS, LAYOUTS, Subject, applies, other_device
from convbackprop.fuzz.problems import spelled
from convbackprop.fuzz.rounds import PARTS, Fuzzer
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import VARIANTS, of_pass
from convbackprop.problem import ConvProblem
from tests import driver
from tests.support.children import PATIENCE
from tests.support.figures import record
from tests.support.mutations import MUTATIONS, NAIVE, replaced

pytest.importorskip("hypothesis", reason="needs hypothesis, which is not installed: random cases")

WRONG_FILE = Path(__file__).parents[1] / "wrong" / "forward_border_off_by_one.cu"

#: For each law a kernel that breaks it: a mutation of forward/naive, or what is added to each of its results.
BREAKS = {
    "linear": "s_sum.value() * s_sum.value()",
    "shift": "forward/naive: a column outside the image is read from the row above or below",
    "flip": "forward/naive: the last column of the image counts as padding",
    "adjoint": "forward/naive: the filter is flipped",
    "agree": "forward/naive: the filter's rows and columns are exchanged",
    "devices": "Acc(size_t(&turn) / 4096 % 1048576)",  # where the kernel was loaded
    "batch": "Acc(n)",
    "workers": "Acc(atomicAdd(&turn, 1))",
}
SEEDS = range(6)


def wrong_variant(what, folder):
    """Return a mutation, or forward/naive with something added."""
    if what in MUTATIONS:
        return MUTATIONS[what].applied(folder)
    old, new = "y[i] = from_acc(activate(s", f"y[i] = from_acc(activate(s + {what}"
    return replaced("forward/naive", "naive.cu", old, f"static __device__ int turn;\n    {new}", folder)


def faults(law, variant, text, device, tunables=None):
    problem = ConvProblem.parse(text)
    assert applies(law, variant, problem, device)
    return [sentence for seed in SEEDS for sentence in LAWS[law](Subject(variant, problem, device, tunables, seed))]


# -- laws ------------------------------------------------------------------------------------------------------------
TEXT = "3,2,12,15,3,3,4,padding=1"


@pytest.mark.parametrize("law", BREAKS)
def test_each_law_fails_on_something_wrong_and_holds_otherwise(device, law, tmp_path):
    naive = of_pass("forward")[0]
    if (law == "workers" and device.kind != "cpu") or (law == "devices" and other_device(device) is None):
        pytest.skip("a GPU has no workers" if law == "workers" else "there is no other device")
    assert faults(law, naive, TEXT, device) == []
    assert faults(law, wrong_variant(BREAKS[law], tmp_path), TEXT, device)


def test_no_law_on_integers_says_anything_of_rounded_gradients(quick):
    """The factors of GELU's are no integers: the naive kernel's own sums differ in their last bits then."""
    problem = ConvProblem.parse(TEXT, activation="gelu")
    laws = ("linear", "shift", "flip", "agree")
    gradients = [of_pass(pass_name)[0] for pass_name in ("input_grad", "kernel_grad")]
    assert not any(applies(law, variant, problem, quick) for law in laws for variant in gradients)
    assert all(applies(law, variant, problem.with_(activation="tanh"), quick) for law in laws for variant in gradients)
    assert LAWS["linear"](Subject(gradients[0], problem, quick, None, 0)) != []


def test_the_law_on_devices_compares_with_the_other_one(stand_in, tmp_path):
    naive, wrong = of_pass("forward")[0], wrong_variant(BREAKS["devices"], tmp_path)
    assert faults("devices", naive, TEXT, driver.device()) == []
    assert "beside device cpu" in faults("devices", wrong, TEXT, driver.device())[0]


def test_another_device_has_constants_of_its_own(stand_in, monkeypatch, quick):
    """What is tried on the CPU is not what a GPU is to be given; here the stand-in passes for one."""
    driver.pass_for_gpu(monkeypatch, stand_in, 1)
    launched, launch = [], check.launch

    def recorded(variant, problem, given, device, tunables):
        launched.append((device.name, tunables))
        return launch(variant, problem, given, device, tunables)

    monkeypatch.setattr(check, "launch", recorded)
    assert faults("devices", of_pass("forward")[0], TEXT, quick, "cpu") == []
    assert launched == [("cpu", "cpu"), ("cuda:0", None)] * len(SEEDS)


def test_the_law_on_layouts_fails_where_a_layout_is_misread(quick, monkeypatch):
    naive = of_pass("forward")[0]
    assert faults("layout", naive, TEXT, quick) == []
    right = ops.conv2d

    def misread(x, *others, **options):
        is_misread = isinstance(x, np.ndarray) and not x.flags.c_contiguous
        return right(np.ascontiguousarray(x[..., ::-1]) if is_misread else x, *others, **options)

    monkeypatch.setattr(ops, "conv2d", misread)
    assert faults("layout", naive, TEXT, quick)


def test_every_law_has_something_that_breaks_it():
    assert {*BREAKS, "layout"} == set(LAWS)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (7,), (0, 2, 3, 4)], ids=str)
def test_layouts_hold_the_same_numbers(shape):
    array = np.random.default_rng(0).standard_normal(shape)
    lying = {how: place(array) for how, place in LAYOUTS.items()}
    assert all(np.array_equal(array, other) for other in lying.values())
    if array.size > 100:
        assert sum(not other.flags.c_contiguous for other in lying.values()) >= 4


# -- arguments -------------------------------------------------------------------------------------------------------
def test_calls_that_end_badly_are_found(monkeypatch):
    call = "cb.conv2d(np.zeros((5, 5), 'float32'), np.zeros((3, 3), 'float32'), device='cpu')"
    assert arguments.fault(call) is None
    assert arguments.fault("cb.conv2d(np.zeros((5, 5), 'float32'), 3, device='cpu')") is None

    def ends_in(error):
        def conv2d(*_, **__):
            raise error

        monkeypatch.setattr(arguments.convbackprop, "conv2d", conv2d)
        return arguments.fault(call)

    assert ends_in(InvalidArgument("stride is 0; it should be at least 1")) is None
    assert "KeyError" in ends_in(KeyError("stride"))
    assert "ValueError" in ends_in(ValueError("numpy's own"))
    assert "1,000 characters" in ends_in(InvalidArgument("x" * 1000))
    assert "several lines" in ends_in(InvalidArgument("an array:\n1\n2"))
    monkeypatch.setattr(arguments.convbackprop, "conv2d", lambda *_, **__: 3)
    assert arguments.fault(call) == "it returns a int"


def test_arguments_that_are_not_expected(quick):
    fuzzer = Fuzzer((), [quick], 0, ("arguments",))
    fuzzer.round()
    assert fuzzer.findings.failures == []
    assert fuzzer.findings.parts["arguments"].cases > 150


# -- rounds ----------------------------------------------------------------------------------------------------------
def commands(fuzzer):
    return [failure.case.command() for failure in fuzzer.findings.failures]


def test_a_failing_case_is_made_small_and_can_be_repeated(quick, capfd):
    variant = variant_from_file(WRONG_FILE, "forward")
    fuzzer = Fuzzer([variant], [quick], 3, ("reference",))
    fuzzer.round()
    (failure,) = fuzzer.findings.failures
    problem = failure.case.problem
    assert (problem.N, problem.C, problem.H, problem.W, problem.K) == (1, 1, 1, 1, 1), (
        "hypothesis could make it smaller"
    )
    name, *words = shlex.split(failure.case.command())
    assert name == "convbackprop" and cli.main(words) == 1
    assert failure.sentences[0] in capfd.readouterr().out
    before = fuzzer.findings.cases
    fuzzer.round()
    assert fuzzer.findings.cases == before, "a variant that has failed is left alone"


def test_right_variants_pass(quick):
    fuzzer = Fuzzer(of_pass("forward")[:1], [quick], 0)
    fuzzer.round(0.2)
    assert fuzzer.findings.failures == []
    assert fuzzer.findings.cases > 60 and fuzzer.findings.parts["reference"].cases >= 20


def test_the_same_seed_draws_the_same_cases(quick):
    drawn = []
    for _ in range(2):
        cases = []
        Fuzzer((), [quick], 3, ("arguments",), cases.append).round(0.1)
        drawn.append([case.call for case in cases if case])
    assert drawn[0] == drawn[1] and len(drawn[0]) >= 20


def test_commands_leave_nothing_to_defaults(quick):
    problem = ConvProblem.parse("1,1,9,9,1,3,3,padding=1")
    assert ConvProblem.parse(spelled(problem), bias=True, dtype="float16", activation="relu") == problem
    variant = of_pass("forward")[0]
    compared = Compared(variant, problem, quick, "positive", 7, "cuda", 3).command()
    assert all(words in compared for words in ("--data positive", "--seed 7", "--tunables cuda", "--offset 3"))
    lawful = Lawful("flip", Subject(variant, problem, quick, None, 7)).command()
    assert cli.main(shlex.split(lawful)[1:]) == 0
    assert shlex.split(Called("cb.conv2d('x')").command())[-1].endswith("cb.conv2d('x')")


# -- crashes ---------------------------------------------------------------------------------------------------------
def test_smaller_problems_are_valid_and_end():
    problem = ConvProblem.parse("3,4,12,15,6,3,4,padding=1:0x2:1,stride=2,dilation=1x2,groups=2")
    count = 0
    while candidates := list(smaller(problem)):
        problem, count = candidates[-1], count + 1
    sizes = (problem.N, problem.C, problem.H, problem.W, problem.K, problem.R, problem.S, problem.groups)
    assert sizes == (1,) * 8 and count < 100


CRASHES = "Acc(n > 0 && shape.P > 4 ? *(volatile int *)8 : 0)"  # with two images and five rows


def crashing(folder):
    """Return a file of one's own, for other processes."""
    path = wrong_variant(CRASHES, folder).path
    launched = [line for line in WRONG_FILE.read_text().splitlines(keepends=True) if line.startswith("//@")]
    launched = [line.replace("(x, w, b, y)", "(x, w, scale, b, residual, y)") for line in launched]
    path.write_text("".join(launched) + path.read_text())
    return path


def test_a_crash_is_seen(tmp_path):
    case = ["convbackprop", "check", str(crashing(tmp_path)), "--pass", "forward", "--device", "cpu", "--problem"]
    assert crashes([*case, "2,1,5,1,1,1,1"], PATIENCE)
    assert not crashes([*case, "1,1,5,1,1,1,1"], PATIENCE)


def test_a_crash_is_made_small():
    """Down to the smallest problem of which `crashes` says that it does, and no further than time allows."""
    tried = []

    def says(words, seconds):
        problem = ConvProblem.parse(words[words.index("--problem") + 1])
        tried.append(problem)
        return problem.N > 1 and problem.P > 4 and problem.C * problem.groups >= 4

    case = ["convbackprop", "check", "x.cu", "--problem", "5,8,12,15,6,3,4,padding=1:0x2:1,groups=2", "--seed", "3"]
    *_, last = shrink(case, PATIENCE, says)
    assert ConvProblem.parse(last[4]) == ConvProblem.parse("2,4,5,1,1,1,1,dtype=float32")
    assert last[:4] + last[5:] == case[:4] + case[5:]
    assert len(tried) < 60
    tried.clear()
    assert list(shrink(case, 0, says)) == [] and not tried


@pytest.mark.hardening
def test_command_with_a_crash(tmp_path):
    """The run ends, and what is kept is small and crashes again."""
    path = str(crashing(tmp_path))
    patient = f"from convbackprop.cli import fuzz, main; fuzz._SHRINK_SECONDS = {PATIENCE}; raise SystemExit(main())"
    command = [sys.executable, "-c", patient, "fuzz", path, "--pass", "forward", "--device", "cpu"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run([*command, "--minutes", "60", "--seed", "1"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=2 * PATIENCE, env={**os.environ, "PYTHONPATH": root})  # fmt: skip
    assert done.returncode == 1 and "ended in a crash" in done.stderr
    about, sentence, kept = (tmp_path / "fuzz-failures.txt").read_text().splitlines()
    assert about.startswith("# convbackprop fuzz --seed 1") and sentence.startswith("# ended in a crash")
    assert kept in done.stderr
    words = shlex.split(kept)
    problem = ConvProblem.parse(words[words.index("--problem") + 1])
    assert (problem.N, problem.P) == (2, 5) and problem.C * problem.K * problem.R * problem.S * problem.Q == 1
    assert crashes(words, PATIENCE)


# -- the command -----------------------------------------------------------------------------------------------------
def run(capfd, *words):
    code = cli.main(["fuzz", "--device", "cpu", *words])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_command(capfd, tmp_path, monkeypatch):
    """For a minute, of which each look at the clock takes a second."""
    ticks = itertools.count()
    monkeypatch.setattr("convbackprop.fuzz.rounds.time", types.SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, "--minutes", "1", "--only", "arguments", "--seed", "5")
    assert (code, err) == (0, "")
    assert "seed 5" in out and "nothing was wrong" in out and "arguments" in out
    assert not list(tmp_path.iterdir())
    found = json.loads(run(capfd, "--minutes", "1", "--only", "arguments", "--json")[1])
    assert found["ok"] and {part["part"] for part in found["parts"]} == set(PARTS)
    assert found["cases"] == 20  # three looks a case: whether time is left, when it begins, and when it ends


def test_command_keeps_what_fails(capfd, tmp_path):
    file = tmp_path / "kept.txt"
    wrong = [str(WRONG_FILE), "--pass", "forward", "--only", "reference"]
    for _ in range(2):  # not an hour: what has failed is not tried again, and nothing else is
        code, out, _ = run(capfd, *wrong, "--minutes", "60", "--seed", "1", "--failures", str(file))
        assert code == 1 and "convbackprop check" in out
    lines = file.read_text().splitlines()
    assert sum(line.startswith("# convbackprop fuzz --seed 1") for line in lines) == 2
    assert sum(line.startswith("convbackprop check") for line in lines) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--minutes", "0"], "--minutes is 0.0"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--only", "everything"], "--only is 'everything'; it should be one of reference, linear"),
        (["--seed", "-1"], "--seed is -1"),
        (["--law", "flip"], "name one variant, --problem and --seed"),
        (["--problem", TEXT], "--problem belongs to --law"),
        (
            ["forward/naive", "--law", "linear", "--problem", f"{TEXT},dtype=float16", "--seed", "1"],
            "says nothing about",
        ),
        (["forward/coalesced", "--law", "flip", "--problem", f"{TEXT},stride=2", "--seed", "1"], "stride is 2x2"),
    ],
)
def test_command_refuses(capfd, words, sentence):
    code, _, err = run(capfd, *words)
    assert code in (1, 2)
    assert sentence in err


@pytest.fixture(params=["cpu", "cpu and stand-in"])
def fuzzed(request, quick):
    """The devices that have rounds in turn."""
    if request.param == "cpu":
        return [quick]
    request.getfixturevalue("stand_in")
    return [quick, driver.device()]


@pytest.mark.hardening
@pytest.mark.parametrize("seed", [2026, 2027])
def test_fuzz_at_length(fuzzed, seed):
    fuzzer = Fuzzer(VARIANTS, fuzzed, seed)
    findings = fuzzer.run(150)
    record(f"fuzz.{len(fuzzed)}.{seed}", **{name: part.cases for name, part in findings.parts.items()})
    assert commands(fuzzer) == []
    assert findings.cases > 500
    assert findings.parts["devices"].cases or len(fuzzed) == 1


@pytest.mark.hardening
@pytest.mark.parametrize("name", NAIVE)
def test_fuzz_rejects_every_wrong_kernel(quick, name, tmp_path):
    variant = MUTATIONS[name].applied(tmp_path)
    fuzzer = Fuzzer([variant], [quick], 0, [part for part in PARTS if part != "arguments"])
    for _ in range(12):
        fuzzer.round()
        if fuzzer.findings.failures:
            break
    assert fuzzer.findings.failures

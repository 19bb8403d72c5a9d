"""What `bench` is made of: suites, peers, the floor, noise, and saved runs that are read as data."""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from convbackprop.bench import machine, peers, roof, runs
from convbackprop.bench.machine import Noise, spread_of
from convbackprop.bench.peers import PEERS
from convbackprop.bench.rows import ARITHMETIC, MEMORY, Row
from convbackprop.bench.suites import CPU_CUT, SUITES
from convbackprop.bench.timing import Timing
from convbackprop.check import inputs, reference
from convbackprop.cli import main
from convbackprop.devices.cpu import cpu_device, set_num_threads
from convbackprop.devices.cpu_level import cpu_vector_bytes
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.ladder.registry import VARIANTS, choose, of_pass
from convbackprop.problem import PASSES, ConvProblem
from tests.support import saved_runs

SMALL = "2,3,9,8,4,3,2,padding=0:1x2:0"
QUICK = ("--seconds", "0.01", "--device", "cpu")


# -- suites ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SUITES)
def test_suites(name):
    suite = SUITES[name]
    if name in ("lab", "photos"):
        pytest.importorskip("skimage", reason="scikit-image, of the extra data, is not installed: its photographs")
    assert suite.name == name and suite.reason
    for kind in ("cpu", "cuda"):
        cases = list(suite.cases(suite.filters, "float32", kind))
        assert len({str(case.problem) + case.label for case in cases}) == len(cases) > 1
        for case in cases:
            p, layer = case.problem, case.layer
            assert p.bias and p.activation == "relu" and p.dtype == "float32"
            if layer is None:
                assert p.N == 1 and f"{p.R}x{p.S}" in case.label
            elif kind == "cuda" or layer.batch == 1:
                assert layer.batch == p.N and case.label == layer.network
            else:  # cut by a factor that the label states
                factor = layer.batch / p.N
                assert (
                    max(1, layer.batch // CPU_CUT) == p.N
                    and case.label == f"{layer.network} (N {layer.batch}/{factor:g})"
                )
            rungs = suite.rungs(VARIANTS, case, kind)
            assert rungs and all(rung.refusal(p) is None for rung in rungs)
            if suite.beside_naive:
                for pass_name in suite.passes:
                    mine = [rung for rung in rungs if rung.pass_name == pass_name]
                    assert mine[0].name == "naive" and mine[-1] == choose(pass_name, "auto", p, kind)
    assert {rung.pass_name for rung in suite.rungs(of_pass("forward"), cases[0], "cpu")} == {"forward"}


# -- peers -----------------------------------------------------------------------------------------------------------
ONE_FILTER = ("1,1,9,11,1,3,5,padding=same", "2,3,9,8,3,5,5,groups=3,padding=2,dtype=float64", "1,1,6,7,1,1,1,bias=0")


def right(pass_name, problem, given, results):
    """Whether results are the reference's; peers need not obey the bound of our own kernels."""
    expected = [value for value, _ in reference.answer(pass_name, problem, given).values()]
    assert len(results) == len(expected)
    return all(np.allclose(got, value, rtol=1e-3, atol=1e-3) for got, value in zip(results, expected, strict=True))


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("text", ONE_FILTER)
@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_scipy_does_the_same_job(pass_name, text, activation):
    pytest.importorskip("scipy", reason="scipy, a peer, is not installed")
    problem = ConvProblem.parse(text, **{"bias": True, "activation": activation})
    given = inputs(pass_name, problem)
    assert PEERS["scipy"].why_not(pass_name, problem, "cpu") is None
    call = PEERS["scipy"].calls(pass_name, problem, given, "cpu")["scipy"]
    first = [array.copy() for array in call()]
    assert right(pass_name, problem, given, first) and right(pass_name, problem, given, call())
    given["w"] = given["w"] + 1
    assert not right(pass_name, problem, given, first)


@pytest.mark.parametrize(
    "text",
    ["1,2,9,9,1,3,3,padding=1", "1,1,9,9,1,4,3,padding=same", "1,1,9,9,1,3,3", "1,1,9,9,1,3,3,padding=1,stride=2",
     "1,1,9,9,1,3,3,padding=1,dtype=float16", "1,1,9,9,1,3,3,padding=1,activation=tanh"],
)  # fmt: skip
def test_what_scipy_is_not_compared_on(text):
    assert PEERS["scipy"].why_not("forward", ConvProblem.parse(text), "cpu")


def test_torch_has_both_formats_where_they_differ():
    pytest.importorskip("torch", reason="torch, the peer, is not installed")
    for text, names in (("1,1,9,9,1,3,3", {"torch"}), ("1,2,9,9,2,3,3", {"torch", "torch channels_last"})):
        problem = ConvProblem.parse(text)
        given = inputs("forward", problem)
        calls = PEERS["torch"].calls("forward", problem, given, "cpu")
        assert set(calls) == names
        assert all(right("forward", problem, given, [t.numpy() for t in call()]) for call in calls.values())


@pytest.fixture
def cupy(monkeypatch):
    """As much of CuPy as the peer uses, on numpy; its cuDNN computes what CuPy's signature says, by the reference."""
    made = types.ModuleType("cupy")
    made.asarray, made.empty, made.empty_like = np.asarray, np.empty, np.empty_like
    made.add, made.maximum = np.add, np.maximum

    class Device:
        def __init__(self, ordinal):
            assert ordinal == 0

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    made.cuda = types.SimpleNamespace(Device=Device, runtime=types.SimpleNamespace(getDeviceCount=lambda: 1))
    cudnn = types.ModuleType("cupy.cudnn")

    def like(x_shape, w_shape, pad, stride, dilation, groups):
        sizes = ",".join(map(str, (*x_shape, w_shape[0], *w_shape[2:])))
        return ConvProblem.parse(sizes, padding=pad, stride=stride, dilation=dilation, groups=groups)

    def forward(x, w, b, y, pad, stride, dilation, groups, *, auto_tune, tensor_core):
        y[...] = reference.correlate(like(x.shape, w.shape, pad, stride, dilation, groups), x, w)
        if b is not None:
            y += b[:, None, None]

    def data(w, gy, b, gx, pad, stride, dilation, groups, *, deterministic, auto_tune, tensor_core):
        assert b is None
        gx[...] = reference.correlate_back(like(gx.shape, w.shape, pad, stride, dilation, groups), gy, w)

    def weights(x, gy, gw, pad, stride, dilation, groups, *, deterministic, auto_tune, tensor_core):
        gw[...] = reference.correlate_images(like(x.shape, gw.shape, pad, stride, dilation, groups), x, gy)

    cudnn.convolution_forward, cudnn.convolution_backward_data = forward, data
    cudnn.convolution_backward_filter = weights
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setitem(sys.modules, "cupy.cudnn", cudnn)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.ndimage", pytest.importorskip("scipy.ndimage"))
    for name in ("cupyx", "cupyx.scipy"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return made


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("text", [*ONE_FILTER, "2,4,9,8,6,3,2,groups=2,stride=2x1,dilation=1x2,padding=1x2"])
def test_cupy_does_the_same_job_on_a_stand_in(pass_name, text):
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu"})
    given = inputs(pass_name, problem)
    peer = PEERS["cupy"]
    assert peer.missing("cuda") is None and peer.why_not(pass_name, problem, "cuda") is None
    calls = peer.calls(pass_name, problem, given, "cuda:0")
    in_ndimage = text in ONE_FILTER and pass_name in ("forward", "input_grad")
    assert set(calls) == {"cupy cudnn", *(["cupy ndimage"] if in_ndimage else [])}
    for call in calls.values():
        call()
        assert right(pass_name, problem, given, call())  # nothing is added to what was there


def test_cupy_without_cudnn(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy.cudnn", None)
    sentence = PEERS["cupy"].why_not("forward", ConvProblem.parse("1,2,9,9,2,3,3"), "cuda")
    assert "this CuPy comes without cuDNN" in sentence and "one filter a channel" in sentence
    one = ConvProblem.parse("1,1,9,9,1,3,3,padding=1")
    assert set(PEERS["cupy"].calls("forward", one, inputs("forward", one), "cuda:0")) == {"cupy ndimage"}
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    assert "finds no GPU" in PEERS["cupy"].missing("cuda")


def test_which_peers_are_found(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    notes = []
    found = peers.found(peers.named("all"), "cpu", "cpu", notes)
    assert "opencv" not in [peer.name for peer in found] and "cupy" not in [peer.name for peer in found]
    assert any("pip install opencv-python-headless" in note for note in notes)
    assert peers.found(peers.named("none"), "cpu", "cpu", []) == ()
    assert [peer.name for peer in peers.named("opencv,torch,opencv")] == ["opencv", "torch"]
    with pytest.raises(EnvironmentProblem, match="leave it out of --against"):
        peers.found(peers.named("opencv"), "cpu", "cpu", [])
    with pytest.raises(InvalidArgument, match="compares on cpu, not on cuda:0; add --device cpu"):
        peers.found(peers.named("scipy"), "cuda", "cuda:0", [])


# -- the floor -------------------------------------------------------------------------------------------------------
def test_the_floor_is_the_longer_of_two():
    problem = ConvProblem.parse("1,1,64,64,1,3,3,padding=1")
    row = Row("forward/naive", problem, "", ours=Timing((4e-3,)), copy=Timing((1e-3,)))
    assert row.floor == (1e-3, MEMORY) and row.share_of_floor == 0.25  # no peak: memory alone
    row.peak_flops = row.flops / 2e-3
    assert row.floor == (pytest.approx(2e-3), ARITHMETIC) and row.share_of_floor == pytest.approx(0.5)
    row.peak_flops = row.flops / 0.5e-3
    assert row.floor == (1e-3, MEMORY)
    assert row.gflops == pytest.approx(2 * 9 * 64 * 64 / 4e-3 * 1e-9)
    row.peers = {"torch": Timing((8e-3,)), "torch channels_last": Timing((6e-3,)), "scipy": Timing((5e-3,))}
    assert row.over(row.peer("torch")) == pytest.approx(1.5) and row.over(row.peer()) == pytest.approx(1.25)
    assert row.peer("opencv") is None


def test_the_peak_rate_is_the_operations_over_the_time(monkeypatch, workers):
    """On a clock on which each launch takes a millisecond."""
    taken = [1e-3]
    monkeypatch.setattr(roof, "_highest", {})
    monkeypatch.setattr(roof, "host_clock", lambda call: call() or taken[0])
    set_num_threads(2)
    peak, double = (roof.measure_roof(cpu_device(), dtype) for dtype in ("float32", "float64"))
    blocks, operations = 4 * 2, 2 * roof._CPU_CHAINS * roof.STEPS * roof._ROUNDS["cpu"]
    assert peak == pytest.approx(blocks * operations * (cpu_vector_bytes() // 4) / 1e-3)
    assert double == pytest.approx(peak / 2)  # half as many numbers in a vector
    taken[0] = 2e-3
    assert roof.measure_roof(cpu_device(), "float16") == peak  # added up in float32, and the highest seen so far


def test_the_peak_rate_is_that_of_multiply_adds(cpu):
    """The loop that is timed is made of them, and of next to nothing else."""
    if platform.machine() != "x86_64" or cpu_vector_bytes() < 32:
        pytest.skip("reads AVX2's and AVX-512's names of instructions")
    lanes = cpu_vector_bytes() // 4
    library = cpu.compile(roof.source("float32", 1, lanes, roof._CPU_CHAINS))
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [(int(at, 16), words) for at, words in re.findall(r"^ +([0-9a-f]+):\t(.*)$", listing, re.MULTILINE)]
    loops = [
        [words for other, words in code if int(jump[1], 16) <= other <= at]
        for at, words in code
        if (jump := re.match(r"j\w+ +([0-9a-f]+)", words)) and int(jump[1], 16) < at
    ]
    register = {32: "ymm", 64: "zmm"}[cpu_vector_bytes()]
    pure = re.compile(rf"vfmadd\d+ps +%{register}\d+,%{register}\d+,%{register}\d+")
    wanted = roof._CPU_CHAINS * roof.STEPS
    assert any(sum(map(bool, map(pure.match, loop))) == wanted >= len(loop) - 4 for loop in loops)


# -- noise -----------------------------------------------------------------------------------------------------------
def test_a_noisy_machine_is_said():
    assert Noise(0.1, 1.9, 2.0, 0.05).sentence is None  # timing itself makes load
    assert "load was 1.5 before timing" in Noise(1.5, 1.9, 2.0, 0.05).sentence
    sentence = Noise(0.0, None, None, 0.4).sentence
    assert "spread by more than 40 %" in sentence and "--seconds" in sentence and "load" not in sentence
    assert Noise(None, None, None, None).as_json()["noisy"] is False
    quiet, wild = saved_runs.run(), saved_runs.run()
    for row in wild.rows:
        row.ours = Timing((1e-3, 2e-3, 3e-3, 9e-3))
    assert spread_of(quiet.rows) < machine.SPREAD < spread_of(wild.rows)
    assert spread_of([Row("forward/naive", quiet.rows[0].problem, "", ours=Timing((1.0,)))]) is None


def test_bench_says_that_the_machine_is_noisy(monkeypatch, capfd):
    command = ["bench", "forward/naive", "--problem", SMALL, "--against", "none", *QUICK]
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 3.0, 3.0))
    assert main([*command, "--json"]) == 0
    noise = json.loads(capfd.readouterr().out)["noise"]
    assert noise["noisy"] and noise["load_before"] == noise["load_during"] == 3 and noise["spread"] >= 0
    assert main(command) == 0
    assert "NOISY machine: its load was 3 before timing began" in capfd.readouterr().out


# -- saved runs ------------------------------------------------------------------------------------------------------
def test_save_and_read(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = ["bench", "forward", "--problem", SMALL, "--against", "none", *QUICK, "--save", "mine"]
    assert main([*command, "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert not err and found["saved"] == ".convbackprop/runs/mine.json" and runs.saved_runs() == ["mine"]
    run = runs.read("mine")
    assert run.name == "mine" and run.environment == found["environment"] and run.settings == found["settings"]
    assert found["settings"]["dtype"] == "float32" and found["settings"]["problems"] == [SMALL]
    assert len(run.rows) == len(found["rows"]) == len(of_pass("forward"))
    for row, printed in zip(run.rows, found["rows"], strict=True):
        again = row.as_json()
        if printed["refused"]:
            assert again["refused"] == printed["refused"] and again["repetitions"] == 0
            continue
        assert again["repetitions"] == printed["repetitions"] > 0  # every repetition is there
        for key, value in printed.items():
            assert again[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key

    before = Path(found["saved"]).read_bytes()
    assert main(command) == 2  # what is there is left as it is
    assert "mine.json exists and is left as it is" in capfd.readouterr().err
    assert Path(found["saved"]).read_bytes() == before and len(list(Path(".convbackprop/runs").iterdir())) == 1
    assert main([*command[:-1], "sub/other.json"]) == 0
    assert "saved as sub/other.json" in capfd.readouterr().out and runs.read("sub/other.json").name == "other"
    with pytest.raises(InvalidArgument, match=r"run nix was not found .*; saved runs here are mine"):
        runs.read("nix")


def test_what_is_saved_is_what_is_read(tmp_path):
    run = saved_runs.run()
    run.rows[0].ours, run.rows[0].faults, run.rows[0].error = None, ["it is wrong"], math.inf
    run.rows[1].refusal = "it is Sunday"
    runs.save(run, tmp_path / "a.json")
    again = runs.read(str(tmp_path / "a.json"))
    assert [row.key for row in again.rows] == [row.key for row in run.rows]
    assert again.rows[0].ours is None and again.rows[0].faults == ["it is wrong"] and math.isnan(again.rows[0].error)
    assert again.rows[1].refusal == "it is Sunday"
    assert again.rows[2].ours.seconds == pytest.approx(run.rows[2].ours.seconds, rel=1e-3)
    assert set(again.rows[2].peers) == {"torch", "scipy"}


def damaged(value, path, new):
    *way, last = path
    for key in way:
        value = value[key]
    if new is KeyError:
        del value[last]
    else:
        value[last] = new


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        (("kind",), "song", "kind is 'song'; it should be 'convbackprop run'"),
        (("kind",), KeyError, "it has no key kind"),
        (("format",), 2, "format is 2; it should be 1, which this version of convbackprop writes"),
        (("date",), 7, "date is 7; it should be a text"),
        (("environment", "machine"), KeyError, "it has no key environment.machine"),
        (("environment", "threads"), True, "environment.threads is True; it should be a number of threads"),
        (("settings",), [], "settings is []; it should be an object"),
        (("noise", "noisy"), "no", "noise.noisy is 'no'; it should be true or false"),
        (("rows",), {}, "rows is {}; it should be a list of rows"),
        (
            ("rows", 3, "variant"),
            "sideways/naive",
            "rows[3].variant is 'sideways/naive'; it should be a variant of one",
        ),
        (("rows", 1, "problem"), "1,2", "rows[1].problem is '1,2'; it should be a problem"),
        (("rows", 1, "label"), None, "rows[1].label is None; it should be a text"),
        (("rows", 0, "error"), -1, "rows[0].error is -1; it should be a number that is not negative"),
        (("rows", 0, "seconds"), 3, "rows[0].seconds is 3; it should be an object"),
        (("rows", 0, "seconds", "ours"), [], "rows[0].seconds.ours is []; it should be a list of at least one time"),
        (("rows", 0, "seconds", "ours"), [0.0], "rows[0].seconds.ours is [0.0]; it should be a list of at least one"),
        (("rows", 0, "seconds", "copy", 4), "x", "rows[0].seconds.copy[4] is 'x'; it should be a number"),
        (("rows", 0, "seconds", "peers", "torch"), None, "rows[0].seconds.peers.torch is None; it should be a list"),
        (("rows", 2, "faults"), "bad", "rows[2].faults is 'bad'; it should be a list of texts"),
        (("goals",), [1], "goals[0] is 1; it should be an object"),
    ],
)
def test_a_malformed_run_is_refused(tmp_path, path, new, words):
    file = tmp_path / "a.json"
    runs.save(saved_runs.run(), file)
    value = json.loads(file.read_text())
    damaged(value, path, new)
    file.write_text(json.dumps(value))
    with pytest.raises(InvalidArgument) as caught:
        runs.read(str(file))
    assert str(caught.value).startswith(f"{file} is no saved run: {words}")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, "NaN"])
def test_what_is_no_run_at_all(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InvalidArgument, match=r"a\.json is no saved run: it"):
        runs.read(str(tmp_path / "a.json"))


def test_nothing_half_written(tmp_path, monkeypatch):
    from convbackprop.files import write_whole

    write_whole(tmp_path / "new" / "a.txt", "first")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InvalidArgument, match=r"a\.txt cannot be written: No space left on device"):
        write_whole(tmp_path / "new" / "a.txt", "second")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "first"

"""What the `//@` lines of a file of one's own say, and what is said of a mistake in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convbackprop.errors import InvalidArgument
from convbackprop.ladder.expression import InvalidLaunch
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.problem import ConvProblem

KERNEL = """#include "activation.cuh"
extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    const Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < shape.y_size()) y[i] = from_acc(to_acc(x[i]) * to_acc(w[0]));
}
"""
LAUNCH = "launch forward(x, w, b, y) grid=[ceil_div(N * K * P * Q, 64)] block=[64]"


def write(*lines, path=Path("mine.cu")):
    path.write_text("".join(f"//@ {line}\n" for line in lines) + KERNEL)
    return path.absolute()


# -- a launch that CUDA does not make --------------------------------------------------------------------------------
LAUNCHES = [
    (("constant THREADS = 64", "launch forward(x, w, b, y) grid=[N * K * P * Q / THREADS] block=[THREADS]"),
     "mine.cu:2: grid=[N * K * P * Q / THREADS] is [0] with N = 1, K = 1, P = 2, Q = 3, THREADS = 64; it should have at"
     " least 1 block along each axis"),
    (("let rows = P - 2", "launch forward(x, w, b, y) grid=[1, max(0, min(rows, 5))] block=[1]"),
     "mine.cu:2: grid=[1, max(0, min(rows, 5))] is [1, 0] with rows = 0; it should have at least 1 block along each "
     "axis"),
    (("launch forward(x, w, b, y) grid=[N / (P - 2)] block=[1]",),
     "mine.cu:1: N / (P - 2) divides by zero with N = 1, P = 2"),
    (("constant THREADS = 4096", "launch forward(x, w, b, y) grid=[1] block=[THREADS]"),
     "mine.cu:2: block=[THREADS] is [4,096] with THREADS = 4,096; it should have 1 to 1,024 threads, at most 64 along "
     "z"),
    (("launch forward(x, w, b, y) grid=[1] block=[32, 33]",),
     "mine.cu:1: block=[32, 33] is [32, 33]; it should have 1 to 1,024 threads, at most 64 along z"),
    (("launch forward(x, w, b, y) grid=[1] block=[1, 1, 65]",),
     "mine.cu:1: block=[1, 1, 65] is [1, 1, 65]; it should have 1 to 1,024 threads, at most 64 along z"),
    (("launch forward(x, w, b, y) grid=[1] block=[1] shared=[P * 200000]",),
     "mine.cu:1: shared=[P * 200000] is [400,000] with P = 2; a block has at most 232,448 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [pytest.param(*each, marks=pytest.mark.slow if i % 2 else ()) for i, each in enumerate(LAUNCHES)],
)
def test_a_launch_that_cuda_refuses(run, lines, sentence):
    write(*lines)
    code, out, err = run("run", "mine.cu", "--pass", "forward", "--problem", "1,1,2,3,1,1,1", "--device", "cpu")
    problem = "1,1,2,3,1,1,1,activation=relu,bias=1"
    assert (code, out, err) == (1, "", f"convbackprop: error: {sentence}; the problem is {problem}\n")
    code, out, err = run("sanitize", "mine.cu", "--pass", "forward", "--problem", "1,1,2,3,1,1,1")
    assert code == 1 and not err and f"not launched in forward, on {problem}\n    {sentence}\n" in out


def test_the_other_problems_are_checked_nonetheless(run):
    write("launch forward(x, w, b, y) grid=[N * P * Q / 64] block=[64]")
    small, large = "1,1,2,3,1,1,1,bias=0,activation=identity", "1,1,8,16,1,1,1,bias=0,activation=identity"
    command = ("check", "mine.cu", "--pass", "forward", "--dtype", "float32", "--data", "normal", "--device", "cpu")
    code, out, err = run(*command, "--problem", small, "--problem", large, "--json")
    found = json.loads(out)
    assert code == 1 and not err and found["checks"] == 2 * len(found["faults"]) > 0
    for fault in found["faults"]:
        assert fault["problem"] == "1,1,2,3,1,1,1"
        assert fault["sentences"][0].startswith("mine.cu:1: grid=[N * P * Q / 64] is [0] with N = 1, P = 2, Q = 3; ")
    assert run(*command, "--problem", large)[0] == 0
    bench = ("bench", "mine.cu", "--pass", "forward", "--against", "none", "--seconds", "0.01", "--device", "cpu")
    code, out, err = run(*bench, "--problem", small, "--problem", large, "--json")
    rows = [row for row in json.loads(out)["rows"] if row["variant"] == "forward/mine.cu"]
    assert code == 1 and not err and [row["ok"] for row in rows] == [False, True]
    assert rows[0]["faults"][0].startswith("mine.cu:1: grid=[N * P * Q / 64] is [0] with N = 1, P = 2, Q = 3; ")
    assert rows[0]["median_ms"] is None and rows[1]["median_ms"] > 0


def test_threads_that_wait_for_each_other_are_a_fault_of_their_problem(run):
    Path("mine.cu").write_text("//@ pass forward\n" + f"//@ {LAUNCH}\n" + KERNEL.replace(
        "    if (i <", "    if (shape.Q == 3) { if (threadIdx.x % 2) __syncthreads(); else __syncwarp(0xffffffff); }\n"
        "    if (i <"))  # fmt: skip
    code, out, err = run("check", "mine.cu", "--dtype", "float32", "--data", "normal", "--device", "cpu", "--json",
                         "--problem", "1,1,2,3,1,1,1,bias=0,activation=identity,mask=0",
                         "--problem", "1,1,8,16,1,1,1,bias=0,activation=identity,mask=0")  # fmt: skip
    found = json.loads(out)
    assert (code, err, found["checks"], len(found["faults"])) == (1, "", 2, 1)
    assert "deadlock" in found["faults"][0]["sentences"][0] and found["faults"][0]["problem"].startswith("1,1,2,3,")


def test_fuzz_ends_where_nothing_can_be_launched(run):
    """Before its time is over: what fails is left alone, and laws that say nothing of the file hold nobody up."""
    write("pass forward", "launch forward(x, w, b, y) grid=[1] block=[2048]")
    code, out, err = run("fuzz", "mine.cu", "--minutes", "5", "--seed", "1", "--device", "cpu", "--json")
    found = json.loads(out)
    assert code == 1 and not err and found["seconds"] < 100
    for failure in found["failures"]:
        assert "mine.cu:2: block=[2048] is [2,048]; it should have 1 to 1,024 threads" in failure["sentences"][0]
    assert {failure["part"] for failure in found["failures"]} >= {"reference", "shift", "workers"}


def test_an_empty_batch_needs_no_block(tmp_path):
    found = variant_from_file(write(LAUNCH, path=tmp_path / "mine.cu"), "forward")
    empty = ConvProblem.parse("0,1,2,3,1,1,1")
    assert found.launches[0].grid(empty, found.constants("cpu", empty)) == (0,)
    found = variant_from_file(write(LAUNCH.replace("64)", "64) - 9"), path=tmp_path / "mine.cu"), "forward")
    with pytest.raises(InvalidLaunch, match=r"is \[-9\] with N = 0"):
        found.launches[0].grid(empty, found.constants("cpu", empty))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("launch forward(x, w, b, y) grid=[1, 2, 3, 4] block=[1]", "grid has 4 numbers; it should have 1 to 3"),
        ("launch forward(x, w, b, y) grid=[1] block=[ ]", "block has 0 numbers; it should have 1 to 3"),
        ("launch forward(x, w, b, y) grid=[1] block=[1] shared=[1, 2]", "shared has 2 numbers; it should have 1 to 1"),
        ("launch forward(x, w, b, y) grid=[N +] block=[1]", "'N +' is not a list of expressions with commas between"),
        ("let rows = P +", "'P +' is not an expression"),
        ("lunch forward", "'//@ lunch forward' is not understood; it should be one of '//@ pass forward'"),
    ],
)
def test_a_line_that_is_not_understood(tmp_path, line, sentence):
    with pytest.raises(InvalidArgument) as caught:
        variant_from_file(write(line, path=tmp_path / "mine.cu"), "forward")
    assert str(caught.value).startswith(f"mine.cu:1: {sentence}") and "\n" not in str(caught.value)


# -- constants' names ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("N", "a word of conv2d.cuh that would be replaced by 3 there; choose another name, such as MY_N"),  # a field
        ("K", "a word of activation_grad.cuh that"),
        ("W", "a word of conv2d.cuh that"),
        ("ACTIVATION", "a word of activation.cuh that"),  # what the command line chooses
        ("SAVED_MASK", "a word of activation_grad.cuh that"),
        ("SLOPE", "a word of activation.cuh that"),  # a macro
        ("RELU", "a word of activation.cuh that"),
        ("CONVBACKPROP_ON_CPU", "a word of cuda_on_cpu.h that"),
        ("BARRIER_PLAIN", "a word of device_calls.h that"),
        ("FILE", "which the C++ compiler's own headers define; choose another name, such as MY_FILE"),
        ("NULL", "which the C++ compiler's own headers define"),
        ("M_PI", "which the C++ compiler's own headers define"),
        ("x", "a constant, which the compilers get, is named in capitals (THREADS), and what only //@ lines need is "
         "'//@ let x = 3'"),
        ("i", "a constant, which the compilers get, is named in capitals"),
        ("Index", "a constant, which the compilers get, is named in capitals"),
        ("__AVX__", "a constant, which the compilers get, is named in capitals"),
    ],
)  # fmt: skip
def test_a_constant_that_is_a_word_of_the_headers(run, name, sentence):
    write("let rows = 1", f"constant {name} = 3", LAUNCH)
    code, out, err = run("check", "mine.cu", "--pass", "forward", "--problem", "1,1,2,3,1,1,1", "--device", "cpu")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    between = "; " if sentence.startswith("a constant") else ", "
    assert err.startswith(f"convbackprop: error: mine.cu:2: the constant is named {name}{between}{sentence}")


def test_what_no_header_has_is_a_constant(tmp_path):
    """Also what the ladder's own files define for the headers, and words of headers that are not included."""
    lines = [f"constant {name} = 64" for name in ("THREADS", "MY_T", "RUN", "TILE_M", "ROWS")]
    found = variant_from_file(write(*lines, LAUNCH, path=tmp_path / "mine.cu"), "forward")
    assert set(found.tunables) == {"THREADS", "MY_T", "RUN", "TILE_M", "ROWS"}
    path = tmp_path / "mine.cu"
    path.write_text(path.read_text().replace("activation.cuh", "long_sum.cuh"))
    with pytest.raises(InvalidArgument, match=r"mine.cu:3: the constant is named RUN, a word of long_sum.cuh that"):
        variant_from_file(path, "forward")


def test_a_header_of_one_s_own_may_have_the_constant(tmp_path):
    (tmp_path / "mine.cuh").write_text("constexpr int EDGE = 2 * MY_TILE;")
    path = write("constant MY_TILE = 3", LAUNCH, path=tmp_path / "mine.cu")
    path.write_text(path.read_text() + '#include "mine.cuh"\n')
    assert set(variant_from_file(path, "forward").tunables) == {"MY_TILE"}


@pytest.mark.parametrize("name", ["N", "stride_h", "min", "THREADS"])
def test_a_let_has_a_name_of_its_own(tmp_path, name):
    with pytest.raises(InvalidArgument, match=f"mine.cu:2: {name} has a meaning already; choose another name"):
        variant_from_file(
            write("constant THREADS = 64", f"let {name} = 3", LAUNCH, path=tmp_path / "mine.cu"), "forward"
        )


def test_scratch_memory_is_not_negative(tmp_path):
    found = variant_from_file(write("scratch = P - 9", LAUNCH, path=tmp_path / "mine.cu"), "forward")
    problem = ConvProblem.parse("1,1,2,3,1,1,1")
    with pytest.raises(InvalidLaunch, match=r"mine.cu:1: scratch=\[P - 9\] is \[-7\] with P = 2; it should be at"):
        found.scratch(problem, found.constants("cpu", problem))


# -- the pass --------------------------------------------------------------------------------------------------------
def test_the_pass_is_said_once(tmp_path):
    path = write("pass forward", LAUNCH, path=tmp_path / "mine.cu")
    assert variant_from_file(path).pass_name == variant_from_file(path, "forward").pass_name == "forward"
    with pytest.raises(InvalidArgument) as caught:
        variant_from_file(path, "input_grad")
    assert str(caught.value) == (
        "mine.cu:1 says that the file computes forward, but --pass is input_grad; leave one of them out"
    )
    with pytest.raises(InvalidArgument, match=r"mine.cu:1: pass is 'forwards'; it should be one of forward, input_"):
        variant_from_file(write("pass forwards", LAUNCH, path=path))
    with pytest.raises(InvalidArgument, match=r"does not say what it computes; add a line '//@ pass forward', or say"):
        variant_from_file(write(LAUNCH, path=path))


@pytest.mark.parametrize(
    "command",
    [("check", "--device", "cpu"), ("sanitize",), ("profile",), ("run", "--device", "cpu"),
     ("fuzz", "--law", "linear", "--seed", "0", "--device", "cpu"),
     ("bench", "--against", "none", "--seconds", "0.01", "--device", "cpu")],
    ids=lambda words: words[0],
)  # fmt: skip
def test_no_command_needs_the_pass_of_a_file_that_says_it(run, command):
    write("pass forward", LAUNCH)
    name, *options = command
    problem = "1,1,2,3,1,1,1,bias=0,activation=identity"
    code, out, err = run(name, "mine.cu", "--problem", problem, *options)
    assert code == 0, out + err
    code, out, err = run(name, "mine.cu", "--pass", "backward", "--problem", problem, *options)
    assert (code, out) == (2, "") and "says that the file computes forward, but --pass is backward" in err

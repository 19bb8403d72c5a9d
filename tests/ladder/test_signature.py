"""A file of one's own whose CUDA kernel is not one of its pass: what is expected is said before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from convbackprop.errors import InvalidArgument
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.signature import pass_signature
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.sources import Parameter, parameters
from tests.support.machine_code import needs_nvcc

PROBLEM = "1,1,9,9,1,3,3"


def write(signature, launch="forward(x, w, b, y)", path=Path("mine.cu"), body="{}"):
    """Write a file with one kernel of these parameters."""
    entry = launch.partition("(")[0]
    path.write_text(
        f'//@ launch {launch} grid=[1] block=[32]\n#include "activation.cuh"\n#include "conv2d.cuh"\n'
        f'extern "C" __global__ void __launch_bounds__(32)\n{entry}({signature}) {body}\n'
    )
    return path.absolute()


def variant(tmp_path, signature, launch="forward(x, w, b, y)", pass_name="forward"):
    return variant_from_file(write(signature, launch, tmp_path / "mine.cu"), pass_name)


FORWARD = "const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape"
EXPECTED = f'expected: extern "C" __global__ void forward({FORWARD})'


def test_the_signature_of_each_pass():
    assert pass_signature("forward") == f'extern "C" __global__ void forward({FORWARD})'
    assert pass_signature("kernel_grad") == (
        'extern "C" __global__ void kernel_grad(const Scalar* dy, const Saved* saved, const Scalar* x, Scalar* dw, '
        "Scalar* db, Conv2dShape shape)"
    )
    assert all(f" {name}(" in pass_signature(name) for name in PASSES)


def test_parameters_of_a_file(tmp_path):
    path = tmp_path / "mine.cu"
    path.write_text(
        '/* extern "C" __global__ void old(int* a) */ extern "C" __global__ void __launch_bounds__(THREADS, f(1))\n'
        "kernel(const Scalar* __restrict__ x,  // in\n"
        "       unsigned char *mask, const Conv2dShape shape, int n, Acc a[4])"
    )
    assert parameters(path) == {
        "kernel": (
            Parameter("Scalar", True, "x"), Parameter("unsigned char", True, "mask"),
            Parameter("Conv2dShape", False, "shape"), Parameter("int", False, "n"), Parameter("Acc", True, "a"),
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    "signature",
    [
        FORWARD,
        "const Scalar* __restrict__ in, const Scalar* k, const Scalar* bias, Scalar* out, const Conv2dShape s",
        "const T* x, const T* w, const T* b, T* y, Conv2dShape shape",  # of a type that only the compiler knows
    ],
)
def test_what_fits_is_taken(tmp_path, signature):
    found = variant(tmp_path, signature)
    assert found.refusal(ConvProblem.parse(PROBLEM, dtype="float16", bias=True)) is None


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "const Scalar* x, const Scalar* w, Scalar* y, Conv2dShape shape",  # no bias
        "const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y",  # no shape
        "const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape, int n",
        "const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, int n",
        "const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, const Conv2dShape* shape",
        "const Scalar* w, const Scalar* x, const Scalar* b, Scalar* y, Conv2dShape shape",  # exchanged
        "Conv2dShape shape, const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y",
        "const int* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape",
        "const Saved* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape",
        "Scalar x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape",
    ],
)
def test_another_signature_is_refused(tmp_path, signature):
    with pytest.raises(InvalidArgument) as caught:
        variant(tmp_path, signature)
    text = str(caught.value)
    assert text.startswith("mine.cu:1: forward takes (") and text.endswith(EXPECTED) and "\n" not in text


def test_integers_come_after_the_shape(tmp_path):
    launch = "forward(x, w, b, y; N, P / 2)"
    assert variant(tmp_path, f"{FORWARD}, int a, int b_", launch)
    for wrong in (FORWARD, f"{FORWARD}, int a", f"{FORWARD}, int a, float b_"):
        with pytest.raises(InvalidArgument, match="Conv2dShape shape, int i0, int i1"):
            variant(tmp_path, wrong, launch)


def test_a_type_of_numbers_restricts_the_dtype(tmp_path):
    found = variant(tmp_path, FORWARD.replace("Scalar", "float"))
    assert found.refusal(ConvProblem.parse(PROBLEM)) is None
    sentence = found.refusal(ConvProblem.parse(PROBLEM, dtype="float16"))
    assert sentence == "its x is an array of float, and should be one of float16"
    found = variant(tmp_path, FORWARD.replace("Scalar* y", "Acc* y"))
    assert found.refusal(ConvProblem.parse(PROBLEM, dtype="float64")) is None
    assert "its y is an array of Acc" in found.refusal(ConvProblem.parse(PROBLEM, dtype="bfloat16"))


@pytest.mark.parametrize(
    ("name", "parameter"), [("scratch", "scratch"), ("scratch", "partial"), ("partial", "partial")]
)
def test_scratch_memory_holds_accumulators(tmp_path, name, parameter):
    """It may also be called partial."""

    def of(kind):
        launch = f"kernel_grad(dy, x, dw, db, {name})"
        arrays = "const Scalar* dy, const Scalar* x, Scalar* dw, Scalar* db"
        return variant(tmp_path, f"{arrays}, {kind}* {parameter}, Conv2dShape s", launch, "kernel_grad")

    half, double = (ConvProblem.parse(PROBLEM, dtype=dtype) for dtype in ("float16", "float64"))
    assert of("Acc").refusal(half) is of("float").refusal(half) is of("double").refusal(double) is None
    assert of("Scalar").refusal(half) and of("float").refusal(double) and of("Scalar").refusal(double) is None


@pytest.mark.parametrize("name", ["scratch", "partial"])
def test_scratch_memory_is_asked_for(tmp_path, name):
    path = tmp_path / "mine.cu"
    launch = f"//@ {name} = 2 * K\n//@ launch kernel_grad(dy, x, dw, db, {name}) grid=[1] block=[32]\n"
    takes = "const Scalar* dy, const Scalar* x, Scalar* dw, Scalar* db, Acc* sums, Conv2dShape s"
    path.write_text(f'#include "activation.cuh"\n{launch}extern "C" __global__ void kernel_grad({takes}) {{}}\n')
    found = variant_from_file(path, "kernel_grad")
    assert found.launches[0].operands[-1] == "scratch"
    assert found.scratch(ConvProblem.parse(PROBLEM), found.constants("cpu", ConvProblem.parse(PROBLEM))) == 2


def test_what_is_saved(tmp_path):
    def of(kind):
        arrays = f"const Scalar* dy, const {kind}* saved, const Scalar* w, Scalar* dx, Conv2dShape s"
        return variant(tmp_path, arrays, "input_grad(dy, saved, w, dx)", "input_grad")

    output = ConvProblem.parse(PROBLEM, activation="relu")
    mask, neither = output.with_(mask=True), output.with_(activation="identity")
    assert of("Saved").refusal(output) is of("Saved").refusal(mask) is None
    assert of("Scalar").refusal(output) is None and "the problem saves bits" in of("Scalar").refusal(mask)
    assert of("float").refusal(output) is None and of("float").refusal(output.with_(dtype="float64"))
    assert of("MaskByte").refusal(mask) is None and "saves float32" in of("unsigned char").refusal(output)
    assert all(of(kind).refusal(neither) is None for kind in ("Saved", "Scalar", "MaskByte"))


def test_every_result_is_written(tmp_path):
    arrays = "const Scalar* dy, const Scalar* x, Scalar* out, Conv2dShape s"
    with pytest.raises(InvalidArgument, match=r"has no launch that writes dw; .*Scalar\* dw, Scalar\* db"):
        variant(tmp_path, arrays, "kernel_grad(dy, x, db)", "kernel_grad")
    found = variant(tmp_path, arrays, "kernel_grad(dy, x, dw)", "kernel_grad")
    assert found.refusal(ConvProblem.parse(PROBLEM)) is None
    assert found.refusal(ConvProblem.parse(PROBLEM, bias=True)) == "it writes no db"
    found = variant(tmp_path, FORWARD)
    assert found.refusal(ConvProblem.parse(PROBLEM, activation="relu", mask=True)) == "it writes no mask"


# -- every command that takes a file ---------------------------------------------------------------------------------
COMMANDS = (("check", "--device", "cpu"), ("bench", "--device", "cpu", "--against", "none"), ("profile",),
            ("profile", "--machine-code"), ("run", "--device", "cpu"))  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_takes_a_file_that_is_not_of_its_pass(run, command):
    name, *options = command
    write("const float* in, float* out")
    code, out, err = run(name, "mine.cu", "--pass", "forward", *options)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "Traceback" not in err
    assert "mine.cu:1: forward takes (float* in, float* out)" in err and EXPECTED in err

    Path("mine.cu").write_text("//@ launch forward(x, w, b, y) grid=[1] block=[32]\n__global__ void forward() {}\n")
    code, out, err = run(name, "mine.cu", "--pass", "forward", *options)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert 'has no CUDA kernel: it should define an extern "C" __global__ void function, such as extern "C"' in err
    assert EXPECTED.removeprefix("expected: ") in err


@pytest.mark.parametrize("command", [*COMMANDS[:2], COMMANDS[4]], ids=" ".join)
def test_a_file_that_does_not_compile(run, command):
    name, *options = command
    write(FORWARD, body="{\n    undefined(y);\n}")
    code, _, err = run(name, "mine.cu", "--pass", "forward", "--problem", f"{PROBLEM},activation=relu", *options)
    assert code == 1 and "Traceback" not in err and "mine.cu:6:" in err and "undefined" in err


@needs_nvcc
@pytest.mark.parametrize("options", [(), ("--emit", "ptx")], ids=" ".join)
def test_nvcc_says_where_a_file_does_not_compile(run, options):
    write(FORWARD, body="{\n    undefined(y);\n}")
    code, out, err = run("profile", "mine.cu", "--pass", "forward", "--problem", PROBLEM, *options)
    assert (code, out) == (1, "") and "Traceback" not in err
    assert 'mine.cu(6): error: identifier "undefined" is undefined' in err

"""nvcc and g++: every kernel compiles, without a spill or warning; errors name the .cu file's line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest

import convbackprop
from convbackprop.activations import COMMON
from convbackprop.devices import compiler
from convbackprop.devices.compiler import ARCHITECTURES, Source
from convbackprop.errors import CompileError, CompilerNotFound, EnvironmentProblem
from convbackprop.ladder.registry import VARIANTS
from convbackprop.ladder.variant import ALIGNED, Alignment
from convbackprop.launch.plan import constants_of
from convbackprop.problem import DTYPES, PASSES, ConvProblem
from convbackprop.profile.configurations import configurations, sample
from tests.support.machine_code import needs_nvcc

#: The newest of those whose machine code is looked at, and the oldest of those that have what the rungs to come need.
FULL, ALSO = "sm_90a", "sm_80"
ALL = (ARCHITECTURES[0], ALSO, FULL, ARCHITECTURES[-1])


def some():
    """Yield (source, architecture): as few as compile each variant for one architecture, and each rung for several.

    Of each variant the configuration with the rarest constants, for another architecture in each pass; and, where it
    takes that, a transposed convolution for the newest.
    """
    names = list(dict.fromkeys(variant.name for variant in VARIANTS))
    gelu = ("OUTPUT_ACTIVATION", "GELU")
    transposed = {of: source for source, of in configurations().items() if gelu in source.constants}
    for source in sample(1):
        variant = configurations()[source]
        if variant in transposed:
            yield transposed[variant], FULL
        # Before sm_80 the products of tensor_core are right, and slow: there it may spill.
        among = variant.architectures or (ALL[1:] if variant.name == "tensor_core" else ALL)
        yield source, among[(names.index(variant.name) + list(PASSES).index(variant.pass_name)) % len(among)]


def everything():
    """Yield (source, architecture): all configurations for two architectures, a few for all of them."""
    pairs = (*product(configurations(), (FULL, ALSO)), *product(sample(2), ARCHITECTURES))
    yield from (pair for pair in pairs if configurations()[pair[0]].is_for(pair[1]))


def test_what_is_compiled_by_default():
    """Each variant that runs on a GPU, each dtype and activation; rungs of three passes meet three architectures."""
    wanted = list(some())
    assert {source.path for source, _ in wanted} == {v.path for v in VARIANTS if "cuda" in v.runs_on}
    met = [dict(source.constants) for source, _ in wanted]
    assert {each["SCALAR"] for each in met} == set(DTYPES)
    assert {each["ACTIVATION"].lower() for each in met} == {*COMMON, "gelu"}
    assert {each["SAVED"] for each in met} == {"Scalar", "MaskByte"}
    rungs = {source.path for source, _ in wanted if "OUTPUT_ACTIVATION" in dict(source.constants)}
    assert rungs == {v.path for v in VARIANTS if v.takes_transposed and "cuda" in v.runs_on}
    for rung in ("naive", "tiled", "coalesced", "implicit_gemm", "tensor_core"):
        met_by = {architecture for source, architecture in wanted if source.path.stem == rung}
        assert met_by <= set(ALL) and len(met_by) >= 3 and FULL in met_by, rung


@needs_nvcc
@pytest.mark.parametrize("which", [some, pytest.param(everything, marks=pytest.mark.slow)])
def test_nvcc_compiles_without_a_spill_or_warning(which):
    """All of them: two hours on two cores."""
    assert spilling(which()) == []


def spilling(pairs):
    """Return what is wrong with those of (source, architecture) that spill or have a warning."""
    wanted = sorted(set(pairs), key=str)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = list(pool.map(lambda each: compiler.cubin(*each)[1], wanted))
    found = []
    for (made_from, architecture), log in zip(wanted, logs, strict=True):
        name = f"{made_from.path.parent.name}/{made_from.path.name} {' '.join(made_from.defines)} {architecture}"
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
        assert len(spills) >= 2, f"{name}: ptxas says nothing of spills"
        if any(map(int, spills)):
            found.append(f"{name}: spills")
        if "warning" in log.lower() or "Potential Performance Loss" in log:
            found.append(f"{name}: {log}")
    return found


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_tallest_filters_of_a_block_spill_nothing(dtype):
    """kernel_grad/coalesced deals filters out by what registers hold: at that limit, columns read in each way."""
    variant = next(v for v in VARIANTS if str(v) == "kernel_grad/coalesced")
    one_by_one = Alignment(DTYPES[dtype], DTYPES[dtype])
    limits = []
    for cols, (width, alignment) in product(range(1, 17), ((33, one_by_one), (34, ALIGNED), (36, ALIGNED))):
        texts = [f"2,1,40,{width},1,{rows},{cols},padding=same" for rows in range(1, 32)]
        tall = [ConvProblem.parse(text, dtype=dtype, activation="relu", bias=True) for text in texts]
        constants = [constants_of(variant, problem, "cuda", alignment) for problem in tall]
        whole = [each for problem, each in zip(tall, constants, strict=True) if each["TAP_ROWS"] == problem.R]
        limits.append(Source.of(variant.path, max(whole, key=lambda each: each["TAP_ROWS"])))
    assert spilling((source, FULL) for source in limits) == []


@needs_nvcc
def test_a_spill_is_seen(tmp_path):
    """The log of a kernel that needs more registers than it may have does tell of spills."""
    kernel = tmp_path / "spills.cu"
    kernel.write_text(
        'extern "C" __global__ void __maxnreg__(16) spills(float* x) {\n'
        "    float v[64];\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 64; ++i) v[i] = x[i * 97];\n"
        "    __syncthreads();\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 64; ++i) x[i] = v[i] * v[63 - i];\n"
        "}\n"
    )
    _, log = compiler.cubin(Source.of(kernel, {}), "sm_80")
    assert any(map(int, re.findall(r"(\d+) bytes spill", log))), log


BROKEN = """\
#include "conv2d.cuh"
extern "C" __global__ void broken(const Scalar* x, Scalar* y, Conv2dShape shape) {
    y[0] = x[0] + undeclared;
}
"""


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.cu"
    path.write_text(BROKEN)
    return Source.of(path, {"SCALAR": "float32", "ACTIVATION": "IDENTITY", "SAVED": "Scalar"})


def test_error_of_the_cxx_compiler_names_the_line(broken):
    with pytest.raises(CompileError) as caught:
        compiler.shared_object(broken)
    assert f"{broken.path}:3" in str(caught.value)
    assert "undeclared" in str(caught.value)
    assert isinstance(caught.value, EnvironmentProblem)


def test_flags_of_the_user_prevail_and_are_part_of_the_name(tmp_path, monkeypatch):
    """Here -O0, under which the compiler's own __OPTIMIZE__ is not defined, and a macro with a space in it."""
    path = tmp_path / "flags.cu"
    path.write_text(
        "#ifndef __OPTIMIZE__\nstatic const char* kinds[] = {WORDS};\n#endif\n"
        'extern "C" __global__ void flags(int* y) {\n#ifndef __OPTIMIZE__\n  *y = sizeof(kinds[0][0]);\n#endif\n}\n'
    )
    monkeypatch.delenv("CONVBACKPROP_CXXFLAGS", raising=False)
    shipped = compiler.shared_object(Source.of(path, {}))
    monkeypatch.setenv("CONVBACKPROP_CXXFLAGS", """-O0 '-DWORDS="a", "b"'""")
    other = compiler.shared_object(Source.of(path, {}))
    assert other != shipped
    assert other == compiler.shared_object(Source.of(path, {}))
    monkeypatch.setenv("CONVBACKPROP_CXXFLAGS", "-O0")  # without the macro it does not compile
    with pytest.raises(CompileError, match=r"WORDS.*\n(.*\n)*CONVBACKPROP_CXXFLAGS added: -O0$"):
        compiler.shared_object(Source.of(path, {}))
    assert compiler.cxx_name().endswith(" with -O0 (CONVBACKPROP_CXXFLAGS)")


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ("--no-such-flag", CompileError, r"--no-such-flag.*\n(.*\n)*CONVBACKPROP_CXXFLAGS added: --no-such-flag$"),
        ("'-O1", convbackprop.InvalidArgument, """CONVBACKPROP_CXXFLAGS is "'-O1": no closing quotation; it should"""),
    ],
)
def test_bad_flags(monkeypatch, broken, flags, error, words):
    monkeypatch.setenv("CONVBACKPROP_CXXFLAGS", flags)
    with pytest.raises(error, match=words):
        compiler.shared_object(broken)


@needs_nvcc
def test_error_of_nvcc_names_the_line(broken):
    with pytest.raises(CompileError) as caught:
        compiler.cubin(broken, "sm_80")
    assert f"{broken.path}(3)" in str(caught.value)
    assert "undeclared" in str(caught.value)


def test_an_error_is_not_cached(broken):
    for _ in range(2):
        with pytest.raises(CompileError):
            compiler.shared_object(broken)
    broken.path.write_text(BROKEN.replace("undeclared", "x[0]"))
    assert compiler.shared_object(broken).is_file()


@pytest.mark.parametrize("name", ["g++", "some-compiler"])
def test_no_cxx_compiler(monkeypatch, name):
    monkeypatch.delenv("CONVBACKPROP_CXX", raising=False)
    if name != "g++":
        monkeypatch.setenv("CONVBACKPROP_CXX", name)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CompilerNotFound) as caught:
        compiler.find_cxx()
    assert str(caught.value) == (
        f"the C++ compiler {name} was not found for the cpu device; install g++ 12 or later (Debian: apt install g++) "
        "or name it in CONVBACKPROP_CXX"
    )


def test_no_nvcc(monkeypatch):
    for name in ("CONVBACKPROP_NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CompilerNotFound) as caught:
        compiler.find_nvcc()
    assert str(caught.value) == (
        "nvcc was not found; install the CUDA toolkit, or its wheels (pip install 'convbackprop[toolchain]'), or name "
        "nvcc in CONVBACKPROP_NVCC"
    )


def test_a_user_without_a_compiler_is_told(tmp_path):
    """Through the public function, in a process of its own."""
    code = (
        "import numpy as np, convbackprop\n"
        "x = np.ones((4, 4), np.float32)\n"
        "try: convbackprop.conv2d(x, x, device='cpu')\n"
        "except convbackprop.CompilerNotFound as error: print(error)\n"
    )
    environment = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/nonexistent",
        "CONVBACKPROP_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("the C++ compiler g++ was not found for the cpu device; install g++"), done.stderr


def test_constants_reach_the_compiler():
    assert Source.of(VARIANTS[0].path, {"B": 2, "A": np.int64(1)}).defines == ["-DA=1", "-DB=2"]

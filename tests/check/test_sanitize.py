"""The checks of `convbackprop sanitize`: what is wrong is found at its line, and what is right is left alone.

A file of tests/seeded has mistakes, marked at the end of a line by what should be found there: `//! race`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from convbackprop import check
from convbackprop.check import sanitize as sanitizer
from convbackprop.check.sanitize import sanitize
from convbackprop.cli import main
from convbackprop.devices import compiler
from convbackprop.devices.compiler import Source
from convbackprop.fuzz.problems import is_product
from convbackprop.lab.mistakes import recognise_findings
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import VARIANTS, select
from convbackprop.problem import ConvProblem
from tests.support.levels import FOLLOW_THE_LEVEL, OTHER_LEVELS, checked_at
from tests.support.mutations import replaced
from tests.support.problems import is_costly
from tests.support.turns import first_of_each

#: Of what mistake each seeded file's findings come.
RECOGNISED = {
    "array_index": "index_beyond_extent",
    "barrier_after_return": "barrier_not_for_all",
    "copy_not_waited_for": "not_written_before",
    "deadlock": "threads_stuck",
    "divergent_barrier": "barrier_not_for_all",
    "dynamic_memory_too_short": "shared_memory_too_small",
    "mask_of_returned_lanes": "lanes_missing",
    "misaligned_float4": "vector_not_aligned",
    "no_barrier": "barrier_missing",
    "no_row_bound": "read_out_of_bounds",
    "no_syncwarp": "barrier_missing",
    "null_pointer": "no_array_there",
    "plus_in_shared_memory": "not_atomic",
    "plus_instead_of_atomic": "not_atomic",
    "static_array_too_small": "shared_memory_too_small",
    "syncwarp_of_one_half": "barrier_missing",
    "tile_not_filled": "not_written_before",
    "write_to_input": "input_written",
}

SEEDED = sorted((Path(__file__).parents[1] / "seeded").glob("*.cu"))


def marks(path):
    """Return what a file says should be found: (kind, line)."""
    lines = path.read_text().splitlines()
    return {
        (kind.strip(), number)
        for number, line in enumerate(lines, 1)
        for kind in line.partition("//! ")[2].split(",")
        if kind
    }


def found(outcome):
    """Return what was found, a race at either of its two lines: (kind, lines)."""
    return [(each.kind, {number for _, number in each.lines[:1] + each.other_lines[:1]}) for each in outcome.findings]


def check_seeded(path):
    pass_name = re.search(r"//@ launch (\w+)", path.read_text())[1]
    problem = ConvProblem.parse("1,1,20,40,1,3,3,padding=same", bias=path.stem != "null_pointer", activation="relu")
    variant = variant_from_file(path, pass_name)
    outcome = sanitize(variant, problem)
    block = (*variant.launches[0].block(problem, variant.constants("cuda", problem)), 1, 1)[:3]
    for each in outcome.findings:  # the author's line comes first, and the thread is there
        assert all(lines[0][0] == path for lines in (each.lines, each.other_lines) if lines)
        assert (each.thread is None) == (each.kind in ("stopped", "wrong result"))
        assert each.thread is None or all(0 <= i < extent for i, extent in zip(each.thread, block, strict=True))
    got, wanted = found(outcome), marks(path)
    for each in outcome.findings:
        print(each.kind, each.lines, each.other_lines, each.sentence)
    assert all(any(kind == k and line in lines for k, lines in got) for kind, line in wanted)
    assert all(any(k == kind and line in lines for kind, line in wanted) for k, lines in got)
    mistake = recognise_findings(outcome.findings)
    assert (mistake and mistake.kind) == RECOGNISED.get(path.stem)


@pytest.mark.parametrize("path", SEEDED, ids=lambda path: path.stem)
def test_seeded_bugs_are_found_at_their_lines(path):
    check_seeded(path)


@pytest.fixture
def sanitizer_at(level, monkeypatch):
    """Sanitize kernels that are compiled for another level of x86-64."""
    monkeypatch.setattr(sanitizer, "checked_device", lambda: checked_at(level))


@pytest.mark.parametrize("path", SEEDED, ids=lambda path: path.stem)
def test_seeded_bugs_are_found_at_their_lines_at_other_levels(sanitizer_at, path):
    check_seeded(path)


# -- the package's own kernels, each with one mistake ------------------------------------------------------------------
class Mistake(NamedTuple):
    """A text replaced in a variant's files; what should be found, at a line that has `at` in it."""

    variant: str
    file: str
    old: str
    new: str
    kind: str
    at: str
    problem: str = "2,3,9,21,4,3,3,padding=1"


GEMM, DEPTHWISE = "1,5,9,8,70,3,3,padding=1", "2,3,9,40,3,3,3,padding=1,groups=3"
LARGE, HALO = "1,1,21,165,1,5,7,padding=same", "1,32,3,5,32,2,2,padding=1"
MISTAKES = (
    # -- memcheck
    Mistake("forward/naive", "naive.cu", "if (!shape.row_inside(h)) continue;", "", "out of bounds",
            "s_sum.add(to_acc(x["),
    Mistake("forward/naive", "naive.cu", "if (i >= shape.y_size()) return;", "", "out of bounds", "y[i] = "),
    Mistake("forward/coalesced", "columns.cuh", "exists && 0 <= column", "exists", "out of bounds",
            "*reinterpret_cast<const Vector<VECTOR>*>(row + column)", DEPTHWISE),
    Mistake("input_grad/naive", "naive.cu", "p >= shape.P) continue", "p > shape.P) continue", "out of bounds",
            "pre_activation_grad(dy"),
    Mistake("kernel_grad/naive", "naive.cu", "for (int q = 0; q < shape.Q; ++q)", "for (int q = 0; q <= shape.Q; ++q)",
            "out of bounds", "pre_activation_grad(dy"),
    Mistake("kernel_grad/implicit_gemm", "window_reader.cuh", "unsigned(row + offset.row) < unsigned(rows)",
            "unsigned(row + offset.row) <= unsigned(rows)", "out of bounds", "__pipeline_memcpy_async(to, rein", GEMM),
    Mistake("backward/fused", "fused.cu", "if (NEED_DX && first_w + j < shape.W)", "if (NEED_DX)", "out of bounds",
            "store_vector<X_VECTOR>(dx + ", "1,1,9,44,1,3,3,padding=1"),
    # -- initcheck
    Mistake("forward/naive", "pack_mask.cuh", "q < first_q + 8 && q < shape.Q", "q < first_q + 8", "out of bounds",
            "const bool open = ", "1,1,9,21,1,3,3,padding=1,mask=1"),
    Mistake("input_grad/tiled", "tiled.cu", "for (int row = threadIdx.y; row < rows;",
            "for (int row = threadIdx.y; row < rows - 1;", "uninitialised read", "add_products(dx_sum"),
    Mistake("kernel_grad/coalesced", "coalesced.cu", "part == 0 && c == 0", "false", "uninitialised read",
            "sum.add(partial["),
    Mistake("backward/fused", "fused.cu", "mine[t < TAPS ?", "if (t > 0) mine[t < TAPS ?", "uninitialised read",
            "sum.add(partial[", DEPTHWISE),
    Mistake("forward/implicit_gemm", "slices.cuh", "a.put(next.a);", "", "uninitialised read",
            "AccVector*>(rows + d", GEMM),
    # -- racecheck
    Mistake("forward/naive", "naive.cu", "y[i] = ", "y[i / 2] = ", "race", "y[i / 2] = "),
    Mistake("forward/tiled", "tiled.cu", "__syncthreads();  // the tile is complete", "", "race", "x_tile[row * cols"),
    Mistake("input_grad/tiled", "tiled.cu", "__syncthreads();  // nobody reads the tile any more", "", "race",
            "g_tile[row * cols + col] ="),
    Mistake("kernel_grad/tiled", "tiled.cu", "__syncthreads();  // every part's sum is there", "", "race",
            "part_sums[threadIdx.x] = "),
    Mistake("kernel_grad/naive", "naive.cu", "partial[blockIdx.y * taps + tap]", "partial[tap]", "race between blocks",
            "partial[tap] = "),
    Mistake("input_grad/coalesced", "coalesced.cu", "min(first_h + ROWS, shape.H)", "min(first_h + ROWS + 1, shape.H)",
            "race", "store_vector<X_VECTOR>(dx + row", "1,1,130,21,1,3,3,padding=1"),
    Mistake("forward/implicit_gemm", "slices.cuh",
            "__syncthreads();  // the next slice is there, and nobody reads this one any more", "", "race",
            "AccVector*>(rows + d", GEMM),
    Mistake("input_grad/implicit_gemm", "filter_rows.cuh", "(slice) + threadIdx.x;",
            "(slice) + threadIdx.x / 2;", "race", "__pipeline_memcpy_async(to + i * THREADS", GEMM),
    Mistake("forward/implicit_gemm", "run_parts.cuh",
            "first_slice / run_slices * THREAD_VECTORS<Product> * THREADS) {}", "0) {}", "race between blocks",
            "*totals = total", "1,300,5,6,3,3,3"),
    Mistake("backward/fused", "block_sum.cuh", "__syncthreads();  // every warp's sums are there", "", "race",
            "sum += warp_sums[warp]", DEPTHWISE),
    Mistake("backward/vectorised", "partial_sums.cuh", "__syncthreads();  // every thread's column is there", "",
            "race", "sum += thread_sums[i][thread]", DEPTHWISE),
    # -- copies that are under way
    Mistake("forward/pipelined", "pipelined.cu", "__pipeline_wait_prior(STAGES - 2);", "", "uninitialised read",
            "row + first + i", "1,1,20,160,1,3,3,padding=1"),
    Mistake("input_grad/pipelined", "pipelined.cu", "__pipeline_wait_prior(STAGES - 2);",
            "if (p + 1 < end_p) __pipeline_wait_prior(STAGES - 2);", "uninitialised read", "row + first + i",
            "1,1,40,160,1,3,3"),
    Mistake("kernel_grad/pipelined", "pipelined.cu", "__pipeline_wait_prior(STAGES - 2);",
            "__pipeline_wait_prior(STAGES - 1);", "uninitialised read", "row + first + i",
            "1,1,20,160,1,3,3,padding=1"),
    Mistake("backward/pipelined", "pipelined.cu", "ask(i + STAGES - 1, stage ? stage - 1 : STAGES - 1);",
            "ask(i + STAGES - 1, stage);", "uninitialised read", "row + first + i", "1,1,20,160,1,3,3,padding=1"),
    Mistake("forward/pipelined", "pipelined.cu", "__syncwarp();  // row h", "// row h", "race",
            "__pipeline_memcpy_async(place", "1,1,20,160,1,3,3,padding=1"),
    Mistake("input_grad/pipelined", "grad_ring.cuh", "        __syncwarp();", "", "race",
            "Quad<T>*>(row + first + i) = vector", "1,1,20,160,1,3,3,padding=1"),
    Mistake("forward/banded", "banded.cu", "__pipeline_wait_prior(STAGES - 2);", "__pipeline_wait_prior(STAGES - 1);",
            "uninitialised read", "const float value = float(*at) * SCALE;", LARGE),
    Mistake("forward/banded", "banded.cu", "__syncwarp();  // row h", "// row h", "race",
            "__pipeline_memcpy_async(place", LARGE),
    Mistake("forward/banded", "banded.cu", "__syncthreads();  // the filter is there", "", "race", "words[i] = ",
            LARGE),
    Mistake("input_grad/banded", "banded.cu", "ask(p + STAGES - 1, stage ? stage - 1 : STAGES - 1);",
            "ask(p + STAGES - 1, stage);", "uninitialised read", "row + first + i", LARGE),
    Mistake("input_grad/banded", "band.cuh", "if (col + 1 < columns)", "", "race", "row[col + 1]", LARGE),
    Mistake("forward/tensor_core", "halo.cuh", "__pipeline_wait_prior(0);", "", "uninitialised read",
            "const Chunk chunk = from.chunks[part]", HALO),
    Mistake("input_grad/tensor_core", "halo.cuh", "memory.halos[block + 1 & 1];", "memory.halos[block & 1];", "race",
            "load_matrices", HALO),
    Mistake("kernel_grad/tensor_core", "slices.cuh", "a.put(next.a);", "", "uninitialised read",
            "add_slices(product, grads", "2,9,5,7,33,2,2"),
    Mistake("forward/winograd", "winograd.cuh", "__syncthreads();  // nobody reads the slice any more", "", "race",
            "*reinterpret_cast<const AccVector*>", "1,9,3,4,5,3,3,padding=1"),
    Mistake("input_grad/winograd", "winograd.cuh", "__syncthreads();  // the elements are there", "//", "race",
            "from[e][r][column]", "1,3,3,4,5,3,3,padding=1"),
    # -- synccheck
    Mistake("forward/tiled", "tiled.cu", "if (plane >= Index(shape.N) * shape.K) return;",
            "if (plane >= Index(shape.N) * shape.K || int(threadIdx.y) >= shape.P) return;",
            "barrier without all threads", "// the tile is complete", "2,3,5,21,4,3,3,padding=1"),
    Mistake("kernel_grad/tiled", "tiled.cu", "__syncthreads();  // every part's sum is there",
            "if (part != 0) return;\n    __syncthreads();  // every part's sum is there", "barrier without all threads",
            "// every part's sum is there"),
    Mistake("kernel_grad/implicit_gemm", "slices.cuh", "__syncthreads();  // the first slice is there",
            "if (threadIdx.x < 32)\n            __syncthreads();\n        else\n            __syncthreads();  // other",
            "divergent barrier", "__syncthreads()", GEMM),
)  # fmt: skip


def mistakes():
    """Yield the mistakes; but for one of each technique and one of each kind they are slow tests."""
    techniques, kinds = set(), set()
    for m in MISTAKES:
        technique = m.variant.partition("/")[2]
        is_new = technique not in techniques or m.kind not in kinds
        yield pytest.param(m, id=f"{m.variant}: {m.kind} at {m.at}", marks=() if is_new else pytest.mark.slow)
        techniques.add(technique), kinds.add(m.kind)


@pytest.mark.parametrize("mistake", list(mistakes()))
def test_a_mistake_in_a_kernel_is_found_at_its_line(mistake, tmp_path):
    variant = replaced(mistake.variant, mistake.file, mistake.old, mistake.new, tmp_path)
    problem = ConvProblem.parse(mistake.problem, bias=True, activation="relu")
    assert variant.refusal(problem) is None
    outcome = sanitize(variant, problem, orders=["as numbered"])
    lines = [
        (
            each.kind,
            (tmp_path / path.name if path.is_relative_to(tmp_path) else path).read_text().splitlines()[line - 1],
        )
        for each in outcome.findings
        for path, line in each.lines + each.other_lines
    ]
    assert any(kind == mistake.kind and mistake.at in line for kind, line in lines), outcome.findings


# -- what is right ---------------------------------------------------------------------------------------------------
#: A few of the curated problems; `make sanitize` runs them all.
SAMPLE = (
    "2,2,13,17,3,3,5,stride=3x2,padding=1x2",
    "2,6,9,8,4,3,3,groups=2,padding=1",
    "2,5,9,8,5,3,3,groups=5,padding=1",
    "1,16,5,6,64,3,3,padding=1",
    "2,64,4,6,64,1,1",
    "2,1,33,65,1,5,5,padding=same",
)


@pytest.mark.parametrize(
    # What takes long to compile is met in the first pass that has it; the others are slow tests.
    "variant",
    [
        pytest.param(variant, id=str(variant), marks=marks)
        for variant, marks in first_of_each(VARIANTS, lambda v: v.name if is_costly(v) else str(v))
    ],
)
def test_published_variants_are_clean(variant):
    runs = 0
    for text in SAMPLE:
        for mask in (False, True) if variant.name in ("naive", "tiled") else (False,):
            problem = ConvProblem.parse(text, bias=True, activation="relu", mask=mask)
            if variant.name == "hopper":
                problem = problem.with_(dtype="float16")  # of float32 it takes TF32 alone
            if variant.specialised and text == SAMPLE[-1] and runs:
                continue  # compiled once more, for nothing that is new
            if is_product(variant) and runs:
                continue  # it takes long to compile
            if variant.refusal(problem) is None and is_product(variant) == (problem.K > 9):
                assert sanitize(variant, problem).findings == []
                runs += 1
    assert runs


@pytest.mark.parametrize(
    # Of four variants one at v2 and one at v3; the others are slow tests.
    ("level", "variant"),
    [
        pytest.param(level, v, id=f"{level}-{v}", marks=() if i % 4 == turn else pytest.mark.slow)
        for i, v in enumerate(FOLLOW_THE_LEVEL)
        for turn, level in enumerate(OTHER_LEVELS)
    ],
    indirect=["level"],
)
def test_what_follows_the_level_is_clean_at_other_levels(sanitizer_at, variant):
    problem = ConvProblem.parse(SAMPLE[3] if is_product(variant) else SAMPLE[2], bias=True, activation="relu")
    assert sanitize(variant, problem, tunables="cpu", orders=["as numbered"]).findings == []


def test_half_the_memory_is_looked_at_element_by_element():
    """Two threads that write neighbours of 2 bytes, and bits of a mask beside each other, do not race."""
    for name in ("forward/naive", "input_grad/naive"):
        problem = ConvProblem.parse("1,2,5,9,3,3,3,padding=1", dtype="float16", activation="relu", mask=True)
        assert sanitize(select(name)[0], problem).findings == []


def test_a_missing_barrier_shows_in_the_result_of_another_order(tmp_path):
    """Also where the checks see nothing."""
    path = tmp_path / "hidden.cu"
    path.write_text(HIDDEN)
    problem = ConvProblem.parse("1,1,1,64,1,1,1")
    variant = variant_from_file(path, "forward")
    assert sanitize(variant, problem, orders=["as numbered"]).findings == []
    found = sanitize(variant, problem).findings
    assert found and {each.kind for each in found} == {"wrong result"}
    assert "start last to first" in found[0].sentence


#: All threads look at what the last one sets, by atomics: which are no race, and no order either.
HIDDEN = """\
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    __shared__ int is_set;
    const int i = threadIdx.x;
    if (i == 0) is_set = 0;
    __syncthreads();
    if (i == 63) atomicExch(&is_set, 1);
    y[i] = atomicOr(&is_set, 0) ? x[i] * w[0] : 0;
}
"""


# -- the command -----------------------------------------------------------------------------------------------------
def test_command(capfd, tmp_path):
    seeded = Path(__file__).parents[1] / "seeded" / "no_syncwarp.cu"
    command = ["sanitize", str(seeded), "--pass", "forward", "--problem", "1,1,8,8,1,1,1"]
    assert main(command) == 1
    out = capfd.readouterr().out
    assert "race in forward" in out and "no_syncwarp.cu:9:  y[i] = numbers[i ^ 1];" in out and "the other: " in out
    assert "__threadfence" in out  # a limit of what it sees
    assert main([*command, "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert not found["ok"] and found["notes_bytes"] > 0 and found["limits"]
    race = next(each for each in found["findings"] if each["kind"] == "race")
    assert (
        race["tool"] == "racecheck"
        and race["file"].endswith("seeded/no_syncwarp.cu")
        and 8 in (race["line"], race["other_line"])
    )
    assert main(["sanitize", "forward/naive", "--problem", "1,1,8,8,1,3,3"]) == 0
    assert "clean" in capfd.readouterr().out


RETURNS = """\
//@ pass forward
//@ launch conv(x, w, b, y) grid=[ceil_div(Q, 16)] block=[16, 16]
#include "conv2d.cuh"
extern "C" __global__ void conv(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    int q = blockIdx.x * 16 + threadIdx.x;
    if (q >= shape.Q) return;
    __syncthreads();
    if (threadIdx.y == 0) y[q] = x[q];
}
"""


@pytest.mark.parametrize(
    ("leaves", "block"),
    [("q >= shape.Q", 1), ("threadIdx.x >= 4 + 4 * blockIdx.x", 0)],
    ids=["one block", "each block another number"],
)
def test_the_author_s_line_comes_before_a_header_s(run, leaves, block):
    Path("mine.cu").write_text(RETURNS.replace("q >= shape.Q", leaves))
    code, out, err = run("sanitize", "mine.cu", "--problem", "1,1,1,20,1,1,1,bias=0,activation=identity")
    assert code == 1 and not err
    assert re.search(
        rf"thread \(3, 15, 0\) of block \({block}, 0, 0\) waits at a __syncthreads that 192 threads .*\n"
        r"    mine.cu:7:  __syncthreads\(\);\n    in cuda_on_cpu.h:\d+:  ",
        out,
    )


def test_another_checkout_s_headers_are_not_taken_for_this_one_s(tmp_path, monkeypatch):
    """Checkouts share a cache: what one has precompiled says where its own headers stand."""
    elsewhere = Path(shutil.copytree(compiler.RUNTIME, tmp_path / "elsewhere"))
    (tmp_path / "mine.cu").write_text('extern "C" __global__ void conv(int* y) { __syncthreads(); y[0] = 1; }')
    source, flags = Source(tmp_path / "mine.cu", ()), (f"-DNEW={tmp_path}",)
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "RUNTIME", elsewhere)
        compiler.checked_object(source, flags)
    lines = compiler.checked_object(source, flags).read_bytes()
    assert str(compiler.RUNTIME).encode() in lines and str(elsewhere).encode() not in lines


def test_a_line_with_two_mistakes_is_no_second_problem(run):
    Path("mine.cu").write_text(RETURNS.replace("y[q] = x[q];", "y[q] = x[q + shape.Q] * w[q + 1];"))
    problems = ("1,1,1,16,1,1,1,bias=0,activation=identity", "1,1,1,32,1,1,1,bias=0,activation=identity")
    for count, more in ((1, ""), (2, " and 1 more")):
        code, out, err = run(
            "sanitize", "mine.cu", *(word for each in problems[:count] for word in ("--problem", each))
        )
        assert code == 1 and not err and f"out of bounds in conv, on 1,1,1,16,1,1,1{more}, 16 times\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forward/fast"], "variant of forward is 'fast'"),
        (["forward/naive", "--problem", "1,1,8"], "problem"),
        (["forward/naive", "--tunables", "gpu"], "--tunables is 'gpu'; it should be one of cpu, cuda"),
        (["backward", "--problem", "1,2,8,8,2,3,3"], "nothing is left to run: backward/fused refuses"),
        (["missing.cu", "--pass", "forward"], "missing.cu does not exist"),
    ],
)
def test_bad_arguments(capfd, arguments, message):
    assert main(["sanitize", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_it_is_beside_the_plain_device(cpu):
    """Both runtimes in one process: each kernel calls its own."""
    variant, problem = select("kernel_grad/tiled")[0], ConvProblem.parse("2,3,9,21,4,3,3,padding=1", bias=True)
    for _ in range(2):
        assert check.check(variant, problem, cpu).faults == []
        assert sanitize(variant, problem).findings == []

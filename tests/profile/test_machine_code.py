"""`profile --machine-code`: what ptxas and cuobjdump say is read rightly, and no published configuration spills."""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
from pathlib import Path

import pytest

from convbackprop.bench.layers import WHOLE
from convbackprop.cli import profile as profile_command
from convbackprop.devices import compiler
from convbackprop.devices.compiler import Source
from convbackprop.errors import CompileError, CompilerNotFound, EnvironmentProblem
from convbackprop.ladder.registry import select
from convbackprop.ladder.variant import Launch, Variant
from convbackprop.launch.plan import constants_of
from convbackprop.profile import hot_loop, sass
from convbackprop.profile.machine_code import FILTERS, Configuration, Usage, kernels, problem_of, usage
from convbackprop.profile.occupancy import LIMITS, Occupancy, occupancy
from tests.support.machine_code import listing, needs_cuobjdump, needs_nvcc
from tests.support.turns import every_other

# -- ptxas -----------------------------------------------------------------------------------------------------------
LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'backward' for 'sm_90a'
ptxas info    : Function properties for backward
    1424 bytes stack frame, 40 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 13416 bytes smem, 1424 bytes cumulative stack size
ptxas info    : Compile time = 983.059 ms
ptxas info    : Compiling entry function 'total' for 'sm_90a'
ptxas info    : Function properties for total
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 400 bytes cmem[0]
ptxas info    : Function properties for called
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""


def test_the_log_of_ptxas():
    assert usage(LOG) == {"backward": Usage(255, 13416, 1424, 40, 36), "total": Usage(32, 0, 8, 4, 4)}
    assert usage("ptxas info    : 0 bytes gmem") == {}
    with pytest.raises(CompileError, match="nothing of the registers of total"):
        usage("Compiling entry function 'total' for 'sm_90a'\n")


# -- occupancy -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "expected"),
    [
        ("sm_90a", 128, 32, 0, Occupancy(16, 64, ("warps", "registers"))),
        ("sm_90a", 128, 33, 0, Occupancy(12, 48, ("registers",))),  # 33 * 32 is rounded up to 5 * 256
        ("sm_90a", 128, 200, 13416, Occupancy(2, 8, ("registers",))),
        ("sm_90a", 32, 16, 0, Occupancy(32, 32, ("blocks",))),
        ("sm_90a", 128, 32, 31 * 1024, Occupancy(7, 28, ("shared memory",))),  # 32 KiB with the system's own
        ("sm_90a", 128, 32, 227 * 1024, Occupancy(1, 4, ("shared memory",))),
        ("sm_90a", 128, 32, 227 * 1024 + 1, Occupancy(0, 0, ("shared memory",))),
        ("sm_80", 128, 32, 40 * 1024, Occupancy(4, 16, ("shared memory",))),  # 164 KiB hold four of 41
        ("sm_100", 96, 255, 0, Occupancy(2, 6, ("registers",))),  # a part holds 2 warps, so all hold 8
        ("sm_90a", 544, 96, 0, Occupancy(1, 17, ("registers",))),
        ("sm_90a", 576, 120, 0, Occupancy(0, 0, ("registers",))),  # 18 warps count as 20
        ("sm_75", 1024, 64, 0, Occupancy(1, 32, ("warps", "registers"))),
        ("sm_75", 64, 32, 64 * 1024, Occupancy(1, 2, ("shared memory",))),  # nothing is kept back
        ("sm_120", 33, 16, 0, Occupancy(24, 48, ("warps", "blocks"))),  # two warps
    ],
)
def test_occupancy(architecture, threads, registers, shared, expected):
    assert occupancy(LIMITS[architecture], threads, registers, shared) == expected


def test_every_architecture_has_its_limits():
    assert set(compiler.ARCHITECTURES) <= set(LIMITS)


CALCULATOR = """\
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
    int major, minor, warps, threads, registers;
    unsigned long sm_bytes, reserved, shared;
    while (scanf("%d %d %d %lu %lu %d %d %lu", &major, &minor, &warps, &sm_bytes, &reserved, &threads, &registers,
                 &shared) == 8) {
        cudaOccDeviceProp device;
        device.computeMajor = major, device.computeMinor = minor, device.warpSize = 32;
        device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * warps;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.numSms = 1;
        device.sharedMemPerBlock = 48 * 1024, device.sharedMemPerMultiprocessor = sm_bytes;
        device.sharedMemPerBlockOptin = sm_bytes - reserved, device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
        kernel.maxDynamicSharedSizeBytes = shared, kernel.numBlockBarriers = 1;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
        printf("%d\\n", status == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -status);
    }
}
"""


@needs_nvcc
def test_occupancy_is_that_of_nvidias_own_calculator(tmp_path):
    """Which the CUDA toolkit has as a header for the host."""
    dry = subprocess.run([compiler.find_nvcc(), "-dryrun", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", dry, re.MULTILINE)
    folders = [Path(top[1].strip()) / part / "include" for part in (".", "targets/x86_64-linux")] if top else []
    header = next((folder for folder in folders if (folder / "cuda_occupancy.h").is_file()), None)
    if header is None:
        pytest.skip("this CUDA toolkit has no cuda_occupancy.h")
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    program = tmp_path / "calculator"
    subprocess.run([compiler.find_cxx(), "-w", "-I", header, tmp_path / "calculator.cpp", "-o", program], check=True)
    chance = random.Random(0)
    cases = [
        (architecture, chance.randint(1, 1024), chance.randint(16, 255), chance.choice((0, chance.randint(0, most))))
        for architecture in LIMITS
        for most in [LIMITS[architecture].shared_bytes - LIMITS[architecture].reserved_bytes]
        for _ in range(2000)
    ]
    text = "".join(
        f"{number[:-1]} {number[-1]} {limits.warps} {limits.shared_bytes} {limits.reserved_bytes} "
        f"{threads} {registers} {shared}\n"
        for architecture, threads, registers, shared in cases
        for number, limits in [(re.sub(r"\D", "", architecture), LIMITS[architecture])]
    )
    theirs = subprocess.run([program], input=text, capture_output=True, text=True, check=True).stdout.split()
    ours = [occupancy(LIMITS[architecture], *rest).blocks for architecture, *rest in cases]
    assert [case for case, a, b in zip(cases, ours, map(int, theirs), strict=True) if a != b] == []
    assert min(ours) == 0 and max(ours) > 16


# -- instructions ----------------------------------------------------------------------------------------------------
LOOPS = listing(
    "MOV R1, c[0x0][0x28]",  # 0x00
    "LDG.E.CONSTANT R4, desc[UR8][R2.64]",  # 0x10
    "LDG.E.128.CONSTANT R8, desc[UR8][R2.64+0x10]",  # 0x20: the outer loop
    "@P1 | LDG.E.U16.CONSTANT R6, desc[UR8][R2.64]",  # 0x30: the inner loop
    "HFMA2.MMA R27, -RZ, RZ, 0, 0",  # 0x40: moves a constant
    "FFMA R5, R8, R9.reuse, R5",  # 0x50
    "FFMA R5, R10, R11, R5",  # 0x60
    "BRA.DIV UR4, 0xe0",  # 0x70: out of the way, and back
    "LDG.E.64 R6, desc[UR8][R2.64]",  # 0x80
    "@!P0 | BRA 0x30",  # 0x90: the inner loop's end
    "STG.E.128 desc[UR8][R82.64], R24",  # 0xa0
    "FFMA R5, R10, R11, R5",  # 0xb0
    "BRA P3, 0x20",  # 0xc0: the outer loop's end
    "EXIT",  # 0xd0
    "STL.64 [R1], R4",  # 0xe0
    "LDL R4, [R1]",  # 0xf0
    "BRA 0x80",  # 0x100
    "STG.E.U8 desc[UR8][R82.64], R24",  # 0x110: never reached
    "BRA 0x120",  # 0x120: padding
)


def test_the_listing_of_cuobjdump():
    (code,) = sass.functions(LOOPS).values()
    found = sass.Instructions.of(code)
    assert found.whole == sass.Mix(19, 3, {32: 1, 128: 1, 16: 1, 64: 1}, {128: 1, 8: 1}, 1, 1)
    # Seven in a row and three out of the way; the outer loop has one multiply-add of its own.
    assert found.loop == sass.Mix(10, 2, {16: 1, 64: 1}, {}, 1, 1)
    assert found.loop.share == 0.2


def test_the_listing_of_nvdisasm():
    """Its labels become the addresses of what comes after them, on both sides of a branch."""
    text = """\
.text.forward:
.L_x_0:
\t//## File "/somewhere/forward/mine.cu", line 27
        /*0000*/               @P0 BRA `(.L_x_2) ;
.L_x_1:
.L_x_2:
        /*0010*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
        /*0020*/              @!P6 BRA `(.L_x_0) ;
.text.total:
        /*0000*/                   RET.REL.NODEC R10 `(total) ;
"""
    assert sass.functions(text) == {
        "forward": [
            sass.Instruction(0, "@P0", "BRA", "0x10"),
            sass.Instruction(0x10, "", "CALL.REL.NOINC", "0x0"),
            sass.Instruction(0x20, "@!P6", "BRA", "0x0"),
        ],
        "total": [sass.Instruction(0, "", "RET.REL.NODEC", "R10 0x0")],
    }


@needs_cuobjdump
def test_both_listings_tell_the_same():
    """But for the target of a call, which nobody looks at."""
    (variant,) = select("kernel_grad/implicit_gemm")
    path, _ = compiler.cubin(Source.of(variant.path, constants_of(variant, WHOLE.problem(), "cuda")), "sm_90a")
    cuobjdump = sass.find_cuobjdump()

    def read(text):
        return {
            name: [i._replace(operands="") if i.base == "CALL" else i for i in code]
            for name, code in sass.functions(text).items()
        }

    found = read(hot_loop.listing_with_lines(cuobjdump, path))
    assert "kernel_grad" in found and found == read(sass.dump(cuobjdump, path))


def test_a_loop_with_a_rare_one_in_it():
    """The rest of a loop counts as innermost where a loop within it has few multiply-adds."""
    (code,) = sass.functions(
        listing("FFMA R1, R2, R3, R1", "DFMA R2, R4, R6, R2", "FFMA R1, R2, R3, R1", "@P0 | BRA 0x20",
                "FFMA2 R2, R4.F32x2.HI_LO, R6.F32x2.HI_LO, R2.F32x2.HI_LO", "BRA.U !UP0, 0x0", "EXIT")
    ).values()  # fmt: skip
    assert sass.Instructions.of(code).loop == sass.Mix(4, 3)


def test_code_without_a_loop():
    (code,) = sass.functions(listing("FFMA R1, R2, R3, R1", "@P0 | EXIT", "EXIT", "BRA 0x30")).values()
    assert sass.Instructions.of(code) == sass.Instructions(sass.Mix(4, 1), None)
    assert sass.Instructions.of([]) == sass.Instructions(sass.Mix(), None)
    assert sass.functions("") == {}


def test_cuobjdump_is_found(monkeypatch, tmp_path):
    def program(*names):
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("#!/bin/sh\necho 'cuobjdump fatal: broken'; exit 3\n")
            file.chmod(0o755)
        return tmp_path / names[0]

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sass.sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(sass.importlib.util, "find_spec", lambda name: None)
    for name in ("CONVBACKPROP_CUOBJDUMP", "CONVBACKPROP_NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sass, "find_nvcc", lambda: tmp_path / "toolkit" / "nvcc")
    if not Path("/usr/local/cuda/bin/cuobjdump").exists():
        with pytest.raises(EnvironmentProblem, match=r"install the CUDA toolkit, .*convbackprop\[sass\]"):
            sass.find_cuobjdump()
    wheel = program("site/nvidia/cu13/bin/cuobjdump", "site/nvidia/cu13/bin/nvdisasm")
    assert sass.find_cuobjdump() == wheel
    beside = program("toolkit/cuobjdump")
    assert sass.find_cuobjdump() == wheel  # it cannot work without nvdisasm
    program("toolkit/nvdisasm")
    assert sass.find_cuobjdump() == beside
    on_path = program("bin/cuobjdump", "bin/nvdisasm")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert sass.find_cuobjdump() == on_path
    named = program("named/cuobjdump", "named/nvdisasm")
    monkeypatch.setenv("CONVBACKPROP_CUOBJDUMP", str(named))
    assert sass.find_cuobjdump() == named
    with pytest.raises(EnvironmentProblem, match="cuobjdump fails: cuobjdump fatal: broken"):
        sass.dump(named, Path("x.cubin"))


# -- the kernels -----------------------------------------------------------------------------------------------------
def test_the_published_problem():
    problem = problem_of("float16", 5)
    assert str(problem).startswith("1,1,4096,4096,1,5,5") and (problem.P, problem.Q) == (4096, 4096)
    assert (problem.dtype, problem.activation, problem.bias, problem.mask) == ("float16", "relu", True, False)


#: Of the ladder's top: which image-sized array a thread writes row by row, if any.
WIDE = {
    "forward/coalesced": True, "input_grad/coalesced": True, "kernel_grad/coalesced": False, "backward/fused": True
}  # fmt: skip


@needs_nvcc
@needs_cuobjdump
@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", every_other(WIDE))
def test_images_are_loaded_and_stored_128_bits_at_a_time(name, dtype):
    """In the hot loop, which also holds the way of threads at a row's end: these may load numbers one by one."""
    (variant,) = select(name)
    kernel = kernels(Configuration(variant, dtype, 5, "sm_90a"), sass.find_cuobjdump())[0]
    assert kernel.instructions.loop is not None
    loads, stores = kernel.instructions.loop.global_loads, kernel.instructions.loop.global_stores
    assert loads.get(128, 0) > 0, loads
    if WIDE[name]:
        assert stores.get(128, 0) > 0, stores
        assert set(stores) <= {128, 8}, stores  # 8: of the bit mask
    else:
        assert stores == {}
    assert kernel.instructions.whole.local_loads == kernel.instructions.whole.local_stores == 0


@needs_nvcc
@needs_cuobjdump
@pytest.mark.parametrize(
    ("pass_name", "arrive"),
    [("forward", {"DEPBAR"}), ("input_grad", {"STS", "DEPBAR"}), ("kernel_grad", {"STS", "DEPBAR"})],
)
def test_a_slice_is_on_its_way_while_the_one_before_is_multiplied(pass_name, arrive):
    """Left alone, ptxas moves its loads behind the multiply-adds, to where they are wanted.

    What needs arithmetic is loaded to registers and stored after the multiply-adds (LDG, STS); the rest is copied past
    the registers and waited for after them (LDGSTS, DEPBAR). forward's LDG tells where the
    window's numbers lie.
    """
    (variant,) = select(f"{pass_name}/implicit_gemm")
    made_from = Source.of(variant.path, constants_of(variant, WHOLE.problem(), "cuda"))
    path, _ = compiler.cubin(made_from, "sm_90a")
    loop = sass.hot_loop(sass.functions(sass.dump(sass.find_cuobjdump(), path))[pass_name])
    assert loop is not None
    watched = ("LDG", "LDGSTS", "FFMA", "STS", "DEPBAR")
    kinds = [each.base for each in loop.instructions if each.base in watched]
    first, last = kinds.index("FFMA"), len(kinds) - kinds[::-1].index("FFMA")
    assert set(kinds[:first]) == {"LDG", "LDGSTS"} and set(kinds[last:]) == arrive
    assert set(kinds[first:last]) == {"FFMA"}


# -- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def run(run):
    return functools.partial(run, "profile")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "as in 'convbackprop profile --machine-code'"),
        ("--machine-code nix", "target is 'nix'"),
        ("--machine-code --arch sm_1", "--arch is 'sm_1'; it should be one of sm_75, sm_80"),
        ("--machine-code --dtype int8", "--dtype is 'int8'; it should be one of float32"),
        ("--machine-code --filter 3.5", "--filter is '3.5'; it should be an integer from 1 to 9999"),
    ],
)
def test_a_mistake_gets_one_sentence(run, command, words):
    code, out, err = run(*command.split())
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert err.startswith("convbackprop: error: ") and words in err


def test_without_nvcc(run, monkeypatch):
    def find():
        raise CompilerNotFound("nvcc was not found; install it")

    monkeypatch.setattr(profile_command, "find_nvcc", find)
    assert run("--machine-code") == (1, "", "convbackprop: error: nvcc was not found; install it\n")


ONE = ("forward/naive", "--machine-code", "--arch", "sm_90a", "--dtype", "float32")


@needs_nvcc
def test_without_cuobjdump(run, monkeypatch):
    def find():
        raise EnvironmentProblem("no cuobjdump; install it")

    monkeypatch.setattr(profile_command, "find_cuobjdump", find)
    code, out, err = run(*ONE)
    assert code == 0 and not err and "FMA" not in out
    assert "The instructions are left out: no cuobjdump; install it." in out
    assert run(*ONE, "--sass") == (1, "", "convbackprop: error: no cuobjdump; install it\n")
    found = json.loads(run(*ONE, "--json")[1])
    assert found["cuobjdump"] is None and found["rows"][0]["whole"] is None


@needs_nvcc
def test_json(run):
    code, out, err = run(*ONE, "--json")
    found = json.loads(out)
    words = set(re.findall(r"\w+", profile_command.EPILOG))
    assert set(found) <= words and set(found["rows"][0]) <= words
    assert code == 0 and not err and found["ok"] and found["spilling"] == [] and found["refused"] == []
    rows = [row for row in found["rows"] if row["main"]]
    assert found["configurations"] == len(rows) == len(FILTERS)
    assert [row["filter"] for row in rows] == list(FILTERS)
    for row in rows:
        assert (row["variant"], row["kernel"], row["arch"]) == ("forward/naive", "forward", "sm_90a")
        assert 16 <= row["registers"] <= 255 and row["blocks_per_sm"] * row["threads"] == 32 * row["warps_per_sm"]
        if found["cuobjdump"]:
            assert set(row["whole"]) <= words and row["whole"]["instructions"] > row["loop"]["instructions"] > 0


@needs_nvcc
def test_tables(run):
    """Filter sizes that make no difference share a row, lines have room on a terminal, and columns stand in line."""
    code, out, err = run(*ONE)
    assert code == 0 and not err and "\x1b" not in out
    assert "4 configurations, 0 spill" in out
    rows = [line for line in out.splitlines() if line.startswith(("dtype ", "float32 "))]
    assert max(map(len, rows)) <= 100
    head, row, *_ = rows
    assert row.split()[:6] == ["float32", "sm_90a", "3", "5", "7", "15"]
    for name in ("threads", "regs", "spill", "warps"):
        end = head.index(name) + len(name)
        assert head[end] == " " and row[end - 1] != " " and row[end] == " "


@needs_nvcc
def test_refused_configurations(run):
    refusing = ("backward/fused", "--machine-code", "--arch", "sm_90a", "--dtype", "float32", "--filter", "15")
    code, out, err = run(*refusing)
    assert code == 1 and not err and "backward/fused refuses 15x15: " in out and "0 configurations" in out
    found = json.loads(run(*refusing, "--json")[1])
    assert not found["ok"] and found["rows"] == []
    assert [(each["variant"], each["filter"]) for each in found["refused"]] == [("backward/fused", 15)]


SPILLS = """\
#include "conv2d.cuh"
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const Scalar* x, Scalar* y, Conv2dShape shape) {
    float v[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) v[i] = x[i * 97];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; ++i) y[i] = v[i] * v[63 - i];
}
"""


@needs_nvcc
def test_a_spill_is_an_error(run, monkeypatch, tmp_path):
    (tmp_path / "spills.cu").write_text(SPILLS)
    launch = Launch("spills", ("x", "y"), lambda p, t: (1,), lambda p, t: (32, 32), shared_bytes=lambda p, t: 4096)
    variant = Variant("forward", "spills", launches=(launch,), file=tmp_path / "spills.cu")
    monkeypatch.setattr(profile_command, "variants_of", lambda target, pass_name: (variant,))
    of_file = ("--machine-code", "--arch", "sm_80", "--dtype", "float32")
    code, out, err = run(*of_file)
    assert code == 1 and not err
    assert "forward/spills.cu" in out and "4 configurations, 4 spill" in out
    found = json.loads(run(*of_file, "--filter", "3", "--json")[1])
    (row,) = found["rows"]
    assert not found["ok"] and found["spilling"] == ["forward/spills float32 3x3 sm_80"]
    assert row["spill_store_bytes"] > 0 and row["spill_load_bytes"] > 0 and row["stack_bytes"] > 0
    assert (row["threads"], row["dynamic_shared_bytes"], row["limited_by"]) == (1024, 4096, ["warps", "registers"])

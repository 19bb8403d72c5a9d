"""`profile` on one problem, and `run`: what is gathered is shown rightly, as text, as JSON and as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from convbackprop.bench.timing import Timing
from convbackprop.check import Outcome
from convbackprop.cli import profile as profile_command, profile_report
from convbackprop.devices.cpu import CpuKernel
from convbackprop.devices.gpus import GPUS, gpu
from convbackprop.errors import CompilerNotFound, EnvironmentProblem
from convbackprop.ladder.registry import of_pass, select
from convbackprop.problem import ConvProblem
from convbackprop.profile import annotate, hot_loop, report, sass
from convbackprop.profile.hot_loop import HotLoop, LineCode
from convbackprop.profile.page import page
from convbackprop.profile.report import Report, launches_of, score
from convbackprop.profile.roofline import Bound, Verdict
from convbackprop.profile.tables import array_rows, cache_sentence, replay_sentence, share_sentence
from convbackprop.profile.traffic import ArrayTraffic, KernelTraffic, LineTraffic
from convbackprop.sources import source_root
from tests.support.machine_code import listing, needs_cuobjdump, needs_nvcc

PROBLEM = "1,1,256,256,1,5,5,padding=2"
(TILED,) = select("forward/tiled")


# -- instructions ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("FFMA R1, R2, R3, R1", "FFMA"),
        ("DFMA R2, R4, R6, R2", "DFMA"),
        ("HFMA2.MMA R2, R3, R4, R2", "HFMA2"),
        ("HFMA2.MMA R27, -RZ, RZ, 0, 0", "move"),
        ("LDG.E.128.CONSTANT R8, desc[UR8][R2.64+0x10]", "LDG.128"),
        ("LDG.E.U16 R8, desc[UR8][R2.64]", "LDG.16"),
        ("STG.E.64 desc[UR8][R82.64], R24", "STG.64"),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "LDGSTS"),
        ("LDS.128 R4, [R1]", "LDS.128"),
        ("STS [R1], R4", "STS.32"),
        ("LDL R4, [R1]", "local"),
        ("LDC R1, c[0x0][0x28]", "constant"),
        ("ULDC.64 UR4, c[0x0][0x208]", "constant"),
        ("ATOMG.E.ADD R1, [R2], R3", "atomic"),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2], R3", "atomic"),
        ("HGMMA.64x128x16.F32 R24, gdesc[UR4], R24", "HGMMA.64x128x16"),
        ("HMMA.16816.F32 R4, R12, R20, R4", "HMMA.16816"),
        ("LDSM.16.M88.4 R8, [R2]", "LDS.128"),
        ("IMAD.WIDE R2, R0, 0x4, R2", "integer"),
        ("IMAD.MOV.U32 R2, RZ, RZ, R4", "move"),
        ("IADD3 R0, R1, R2, RZ", "integer"),
        ("UIADD3 UR4, UR4, 0x1, URZ", "integer"),
        ("ISETP.GE.AND P0, PT, R0, R1, PT", "integer"),
        ("LOP3.LUT R0, R0, 0x1, RZ, 0xc0, !PT", "integer"),
        ("FADD R0, R1, R2", "float"),
        ("FSETP.GT.AND P0, PT, R0, RZ, PT", "float"),
        ("F2FP.BF16.F32.PACK_AB R0, R1, R2", "float"),
        ("MUFU.RCP R0, R0", "float"),
        ("BRA 0x0", "control"),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "control"),
        ("SHFL.BFLY PT, R0, R1, 0x1, 0x1f", "move"),
        ("FOOBAR R0", "other"),
    ],
)
def test_kinds_of_instructions(text, kind):
    (code,) = sass.functions(listing(text)).values()
    assert [hot_loop.kind(instruction) for instruction in code] == [kind]


def test_the_leanest_way_round_a_loop():
    """Threads inside the image jump over the loads one by one."""
    (code,) = sass.functions(
        listing(
            "MOV R1, R2",  # 0x00
            "@P0 | BRA 0x40",  # 0x10: the loop
            "LDG.E R4, desc[UR8][R2.64]",  # 0x20
            "LDG.E.128 R4, desc[UR8][R2.64]",  # 0x30
            "FFMA R1, R2, R3, R1",  # 0x40
            "FFMA R1, R2, R3, R1",  # 0x50
            "@P1 | BRA 0x10",  # 0x60
            "EXIT",
        )
    ).values()
    loop = HotLoop.of(code, {0x40: ("a.cu", 3), 0x50: ("a.cu", 3), 0x20: ("b.cuh", 9), 0x00: ("a.cu", 1)})
    assert loop.is_loop and loop.kinds == {"control": 2, "LDG.32": 1, "LDG.128": 1, "FFMA": 2}
    assert loop.leanest == {"control": 2, "FFMA": 2}
    assert (loop.instructions, loop.multiply_adds, loop.share) == (4, 2, 0.5)
    assert (loop.bytes, loop.loaded_bytes) == (6 * 16, 4 + 16)
    assert loop.lines == (LineCode("a.cu", 3, 2, 2), LineCode("b.cuh", 9, 1, 0))


def test_a_way_with_fewer_multiply_adds_may_be_the_leanest():
    (code,) = sass.functions(
        listing("@P0 | BRA 0x50", "FFMA R1, R2, R3, R1", *["IADD3 R0, R1, R2, RZ"] * 3, "FFMA R1, R2, R3, R1",
                "@P1 | BRA 0x0", "EXIT")
    ).values()  # fmt: skip
    assert HotLoop.of(code, {}).leanest == {"control": 2, "FFMA": 1}  # 1 of 3, not 2 of 7
    # What a loop in it takes is not counted: it may have no turn. Then its own multiply-adds are not, either.
    (code,) = sass.functions(
        listing("FFMA R1, R2, R3, R1", "FFMA R1, R2, R3, R1", "FFMA R1, R2, R3, R1", "IADD3 R0, R1, R2, RZ",
                "@P0 | BRA 0x20", "FFMA R1, R2, R3, R1", "@P1 | BRA 0x0", "EXIT")
    ).values()  # fmt: skip
    assert HotLoop.of(code, {}).leanest == {"FFMA": 3, "control": 1}


def test_code_without_a_loop():
    (code,) = sass.functions(listing("FFMA R1, R2, R3, R1", "LDG.E R4, desc[UR8][R2.64]", "EXIT", "BRA 0x30")).values()
    loop = HotLoop.of(code, {})
    assert not loop.is_loop and loop.leanest == {"FFMA": 1, "LDG.32": 1, "control": 1}


def test_lines_of_nvdisasm():
    text = """\
//--------------------- .text.forward             --------------------------
.text.forward:
\t//## File "/somewhere/forward/mine.cu", line 27
        /*0000*/                   LDC R1, c[0x0][0x28] ;
\t//## File "/somewhere/conv2d.cuh", line 5 inlined at "/somewhere/forward/mine.cu", line 30
        /*0010*/                   IADD3 R1, R1, R2, RZ ;
.L_x_0:
        /*0020*/                   EXIT ;
.text.total:
        /*0000*/                   EXIT ;
"""
    assert hot_loop.places(text) == {
        "forward": {0: ("mine.cu", 27), 0x10: ("conv2d.cuh", 5), 0x20: ("conv2d.cuh", 5)}, "total": {}
    }  # fmt: skip


def test_the_loop_beside_the_instruction_cache():
    def sentence(size, on):
        return cache_sentence(HotLoop(True, {"FFMA": size // 16}, {"FFMA": size // 16}, size, 0), gpu(on))

    assert "fits the L0 instruction cache (12 KiB, estimated" in sentence(12 * 1024, "H200")
    assert "does not fit the L0 instruction cache (12 KiB), but the next one (128 KiB" in sentence(
        12 * 1024 + 16, "H200"
    )
    assert "fits neither" in sentence(128 * 1024 + 16, "H200")
    assert "fits the L0 instruction cache (16 KiB)." in sentence(16 * 1024, "T4")
    half = HotLoop(True, {}, {"FFMA": 1, "integer": 1}, 32, 0)
    assert "50 % are multiply-adds: at most 50 % of the H200's" in share_sentence(half, gpu("H200"), "float32")
    assert "50 % are multiply-adds: at most 100 % of the A100's" in share_sentence(half, gpu("A100"), "float32")


# -- addresses, made by hand -----------------------------------------------------------------------------------------
def where(file, text):
    """Return a file and the first line of it with this text."""
    path = (source_root() / file).resolve()
    return path, next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def made_by_hand(variant, problem, blocks=64, target="cuda"):
    """Return what a replay of half the blocks might have found: conflicts of two on what add_products reads."""
    found = []
    for launch in launches_of(variant, problem):
        n = launch.blocks // 2
        lines = (
            LineTraffic(*where("forward/tiled.cu", "x_tile[row * cols + col] ="), "global", "load", 4, 32 * n, 960 * n,
                        160 * n, 128 * n, 0, 0),
            LineTraffic(*where("forward/tiled.cu", "x_tile[row * cols + col] ="), "shared", "store", 4, 32 * n, 960 * n,
                        0, 0, 32 * n, 32 * n),
            LineTraffic(*where("add_products.cuh", "sum.run +="), "shared", "load", 4, 400 * n, 12_800 * n, 0, 0,
                        800 * n, 400 * n),
        )  # fmt: skip
        arrays = (
            ArrayTraffic("x", 3840 * n, 0, 60 * n, 0),
            ArrayTraffic("w", 25_600 * n, 0, 4 * n, 0),
            ArrayTraffic("y", 0, 1024 * n, 0, 32 * n),
        )
        found.append(KernelTraffic(launch.entry, launch.grid, launch.block, n, lines, arrays))
    return tuple(found)


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.setattr(report, "traffic", made_by_hand)


@pytest.fixture
def no_nvcc(monkeypatch):
    def find():
        raise CompilerNotFound("nvcc was not found; install it")

    monkeypatch.setattr(report, "find_nvcc", find)


@pytest.fixture
def no_replay(monkeypatch):
    def replay(variant, problem, blocks, target):
        raise EnvironmentProblem("no compiler")

    monkeypatch.setattr(report, "traffic", replay)


def test_the_verdict_from_addresses(run, by_hand, no_nvcc):
    code, out, err = run("profile", "forward/tiled", "--problem", PROBLEM)
    assert code == 0 and not err
    assert "Machine code is left out: nvcc was not found; install it." in out
    (sentence,) = (line for line in out.splitlines() if line.startswith("forward/tiled is limited by"))
    # 256 blocks, 2 on the busiest of 132 multiprocessors: 2 * (800 + 32) clocks at 1.98 GHz
    assert (
        "limited by shared memory" in sentence and "in 0.84 us; change first: the bank conflicts of add_products.cuh:"
    )
    assert "in 0.84 us" in sentence and "2.0 wavefronts a request where 1.0 would do" in sentence
    assert "the floor on the H200 is 0.12 us (memory: 524 kB at 4.30 TB/s)" in sentence
    assert "A launch takes microseconds" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("x ", "w ", "y ", "all "))}
    assert rows["x"] == ["x", "983", "kB", "-", "492", "kB", "-", "262", "kB", "1.88"]  # 60 sectors of 256 blocks
    assert rows["y"][-4:] == ["kB", "262", "kB", "1.00"]


def test_lines_by_cost(run, by_hand, no_nvcc):
    out = run("profile", "forward/tiled", "--problem", PROBLEM)[1]
    lines = [line for line in out.splitlines() if re.match(r"\S+\.cuh?:\d+ ", line)]
    assert [line.split()[1:3] for line in lines] == [["shared", "load"], ["global", "load"], ["shared", "store"]]
    assert lines[0].split()[-4:] == ["1.0", "wavefronts", "92", "%"]  # 800 of 800 + 40 + 32 clocks


def test_annotated_source(run, by_hand, no_nvcc):
    code, out, _ = run("profile", "forward/tiled", "--problem", PROBLEM, "--annotate")
    assert code == 0
    text = (source_root() / "forward" / "tiled.cu").read_text().splitlines()
    _, number = where("forward/tiled.cu", "x_tile[row * cols + col] =")
    shown = [line for line in out.splitlines() if f"| {number:>4} " in line]
    assert shown[0].split()[:6] == ["global", "load", "4", "B", "5.0", "4.0"] and text[number - 1] in shown[0]
    assert out.splitlines()[out.splitlines().index(shown[0]) + 1].split()[:2] == ["shared", "store"]
    assert all(line in out for line in text)  # the file is there whole; of the header there is what is near
    header = (source_root() / "add_products.cuh").read_text().splitlines()
    _, number = where("add_products.cuh", "sum.run +=")
    assert header[number - 1] in out and header[0] not in out
    assert "activation_grad.cuh" not in [line.strip() for line in out.splitlines()]  # it has no figures


def test_figures_of_arrays():
    found = report_of(launches=made_by_hand(TILED, ConvProblem.parse(PROBLEM)))
    heads, rows = array_rows(found)
    assert heads[-1] == "times least" and [row[0] for row in rows] == ["x", "w", "y", "all"]
    assert rows[-1][-1] == f"{found.own_bytes / found.least_bytes:,.2f}" == "1.50"


def test_a_sample_is_called_one(run, by_hand, no_nvcc):
    """In the terminal, as JSON and on the page: how many of how many blocks."""
    sentence = "The addresses are those of a sample, scaled up to the grid: 128 of 256 blocks of forward."
    code, out, _ = run("profile", "forward/tiled", "--problem", PROBLEM, "--html", "page.html")
    assert code == 0 and sentence in " ".join(out.split()) and sentence in Path("page.html").read_text()
    (launch,) = json.loads(run("profile", "forward/tiled", "--problem", PROBLEM, "--json")[1])["reports"][0]["launches"]
    assert (launch["traffic"]["blocks"], launch["traffic"]["of_blocks"]) == (128, 256)
    whole = [replace(each, blocks=256) for each in made_by_hand(TILED, ConvProblem.parse(PROBLEM))]
    assert replay_sentence(report_of(launches=whole)) == "All blocks were replayed."


def report_of(seconds=1e-4, measured=None, launches=()):
    """Return a report with one bound of its own."""
    problem = ConvProblem.parse(PROBLEM)
    facts = launches_of(TILED, problem)
    if launches:
        facts = tuple(type(facts[0])(**{**vars(f), "traffic": t}) for f, t in zip(facts, launches, strict=True))
    bounds = (Bound("memory", 5e-5, "5 kB"), Bound("arithmetic", 1e-6, ""), Bound("shared memory", seconds, "much"))
    verdict = Verdict(bounds[0], bounds[2], "the <tile>", True)
    timing = Timing((measured,) * 5) if measured else None
    return Report(TILED, problem, GPUS[0], facts, bounds, verdict, ("a <remark>",), timing)


def test_what_cannot_be_found_out_is_said(run, no_nvcc, no_replay):
    code, out, err = run("profile", "forward/tiled", "--problem", PROBLEM, "--json")
    (found,) = json.loads(out)["reports"]
    assert code == 0 and not err
    assert found["remarks"][:2] == [
        "Machine code is left out: nvcc was not found; install it.", "The addresses are left out: no compiler."
    ]  # fmt: skip
    assert [bound["limit"] for bound in found["bounds"]] == ["memory", "arithmetic"]
    assert found["own_bytes"] is found["measured_us"] is found["launches"][0]["code"] is None
    assert found["verdict"].endswith("of forward/tiled itself nothing is known.")


def test_each_variant_of_a_pass(run, by_hand, no_nvcc):
    code, out, _ = run("profile", "forward", "--problem", PROBLEM)
    assert code == 0 and "forward/implicit_gemm refuses the problem: a group has one channel" in out
    table = out[out.rindex("variant  ") :].splitlines()
    rungs = [f"forward/{name}" for name in ("naive", "tiled", "register_tiled", "few_channels", "coalesced")]
    assert [line.split()[0] for line in table[1:6]] == rungs
    found = json.loads(run("profile", "forward", "--problem", PROBLEM, "--annotate", "--json")[1])
    words = set(re.findall(r"\w+", profile_command.EPILOG))
    assert set(found) <= words and set(found["reports"][0]) <= words
    assert {key for each in found["reports"] for launch in each["launches"] for key in launch} <= words
    assert {key for each in found["reports"] for line in each["source"] for key in line} <= words


def test_a_file_of_one_s_own(run, by_hand, no_nvcc):
    assert run("new", "forward/mine")[0] == 0
    code, out, err = run("profile", "mine.cu", "--pass", "forward", "--problem", PROBLEM, "--annotate")
    assert code == 0 and not err and "forward/mine.cu is limited by shared memory" in out
    assert all(line in out for line in Path("mine.cu").read_text().splitlines())


# -- machine code ----------------------------------------------------------------------------------------------------
@needs_nvcc
@needs_cuobjdump
def test_machine_code_of_a_variant(run, no_replay):
    code, out, err = run("profile", "forward/tiled", "--problem", PROBLEM, "--annotate", "--json", "--gpu", "a100")
    assert code == 0 and not err
    (found,) = json.loads(out)["reports"]
    limits = [bound["limit"] for bound in found["bounds"]]
    assert limits[:3] == ["memory", "arithmetic", "instruction issue"]
    (launch,) = found["launches"]
    assert launch["grid"] == [256, 1, 1] and launch["block"] == [32, 8, 1] and launch["main"]
    assert 16 <= launch["code"]["registers"] <= 255 and launch["code"]["limited_by"]
    loop = launch["hot_loop"]
    assert loop["kinds"]["FFMA"] >= 1 and loop["kinds"]["LDS.32"] >= 2 and loop["is_loop"]
    # The instructions of the hot loop are those of the line that multiplies.
    _, number = where("add_products.cuh", "sum.run +=")
    (line,) = (each for each in found["source"] if (each["file"], each["line"]) == ("add_products.cuh", number))
    assert line["multiply_adds"] == loop["kinds"]["FFMA"]
    out = run("profile", "forward/tiled", "--problem", PROBLEM)[1]
    assert "limited by" in out and "leanest way" in out and "The hot loop is" in out


@needs_nvcc
@pytest.mark.parametrize("kind", ["ptx", "cubin"])
def test_emitted_code(run, tmp_path, kind):
    command = ("profile", "kernel_grad/naive", "--problem", PROBLEM, "--emit", kind)
    code, out, err = run(*command, "-o", "code/out.bin")
    assert code == 0 and not out and not err
    written = (tmp_path / "code" / "out.bin").read_bytes()
    if kind == "ptx":
        text = written.decode()
        assert ".target sm_90a" in text and "fma.rn.f32" in text
        assert set(re.findall(r"\.entry (\w+)\(", text)) == {"kernel_grad", "kernel_grad_total"}
        assert run(*command)[1] == text
        assert ".target sm_75" in run(*command, "--arch", "sm_75")[1]
        assert ".target sm_89" in run(*command, "--gpu", "L4")[1]
    else:
        assert written.startswith(b"\x7fELF") and b"kernel_grad_total" in written
    assert list((tmp_path / "code").iterdir()) == [tmp_path / "code" / "out.bin"]


@needs_nvcc
@needs_cuobjdump
def test_emitted_sass(run):
    code, out, _ = run("profile", "kernel_grad/naive", "--problem", PROBLEM, "--emit", "sass")
    assert code == 0 and set(sass.functions(out)) == {"kernel_grad", "kernel_grad_total"} and "FFMA" in out


# -- on a GPU, which is made up --------------------------------------------------------------------------------------
class MadeUp:
    name, kind, title, architecture = "cuda:0", "cuda", "NVIDIA H200", "sm_90a"


@pytest.fixture
def on_a_gpu(monkeypatch, by_hand, no_nvcc):
    """Measures twice what is predicted of forward/tiled; gives what was timed, and the device."""
    device, asked = MadeUp(), []

    def measure(variant, problem, where, given):
        assert where is device
        asked.append(str(variant))
        return Timing((1.68e-6,) * 5)

    monkeypatch.setattr(profile_report, "why_not_cuda", lambda: None)
    monkeypatch.setattr(profile_report, "get_device", lambda name: device)
    monkeypatch.setattr(profile_report, "check", lambda variant, problem, device, given: Outcome("", problem, ""))
    monkeypatch.setattr(profile_report, "measure", measure)
    return asked, device


def test_predictions_are_scored_on_a_gpu(run, on_a_gpu):
    asked, _ = on_a_gpu
    code, out, _ = run("profile", "forward/tiled", "--problem", PROBLEM)
    assert code == 0 and asked == ["forward/tiled"]
    assert "Measured: 1.68 us (1.68 us to 1.68 us), 2.00 times the greatest bound." in out
    found = json.loads(run("profile", "forward", "--problem", PROBLEM, "--json")[1])
    able = [rung for rung in of_pass("forward") if rung.refusal(ConvProblem.parse(PROBLEM), "cuda") is None]
    assert [each["measured_us"] for each in found["reports"]] == [pytest.approx(1.68)] * len(able)
    assert found["reports"][1]["ratio"] == pytest.approx(2.0, rel=0.01)
    out = run("profile", "forward", "--problem", PROBLEM, "--html", "page.html")[1]
    assert "times expected" in out and re.search(r"Measured times are [\d.]+ times the least ones", out)
    assert "It was not timed" not in Path("page.html").read_text()


def test_without_a_gpu_nothing_is_measured(run, on_a_gpu, monkeypatch):
    asked, _ = on_a_gpu
    out = run("profile", "forward/tiled", "--problem", PROBLEM, "--device", "cpu")[1]
    monkeypatch.setattr(profile_report, "why_not_cuda", lambda: "there is none")
    out += run("profile", "forward/tiled", "--problem", PROBLEM)[1]
    monkeypatch.setattr(profile_report, "why_not_cuda", lambda: None)
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "cpu")
    out += run("profile", "forward/tiled", "--problem", PROBLEM)[1]
    assert asked == [] and "easured" not in out


def test_another_gpu_is_not_timed(run, on_a_gpu):
    asked, device = on_a_gpu
    out = run("profile", "forward/tiled", "--problem", PROBLEM, "--gpu", "L4")[1]
    assert "Nothing is timed: cuda:0 is NVIDIA H200, and this is of the L4." in out
    device.title = "NVIDIA B200"
    assert (
        "There is no data of NVIDIA B200, so nothing is timed"
        in run("profile", "forward/tiled", "--problem", PROBLEM)[1]
    )
    assert asked == []


def test_a_wrong_kernel_gets_no_time(run, on_a_gpu, monkeypatch):
    asked, _ = on_a_gpu
    monkeypatch.setattr(
        profile_report, "check", lambda variant, problem, device, given: Outcome("", problem, "", 9, ["y[0] is wrong"])
    )
    code, out, _ = run("profile", "forward/tiled", "--problem", PROBLEM)
    assert code == 1 and asked == [] and "forward/tiled is wrong and gets no time: y[0] is wrong" in out


def test_scores():
    slow, fast = report_of(4e-4, measured=8e-4), report_of(1e-4, measured=2e-4)
    found = score([slow, fast, report_of()])
    assert found.mean == pytest.approx(2) and (found.pairs, found.right, found.broken) == (1, 1, ())
    found = score([report_of(4e-4, measured=1e-4), report_of(1e-4, measured=4e-4)])
    assert found.mean == pytest.approx(1) and (found.pairs, found.right) == (1, 0)
    assert found.broken == ("forward/tiled",)
    assert score([report_of()]) is None


# -- the page --------------------------------------------------------------------------------------------------------
class Tags(HTMLParser):
    """Checks that every tag is closed in turn, and collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page(run, by_hand, no_nvcc):
    code, out, _ = run("profile", "forward/tiled", "--problem", PROBLEM, "--html", "page.html")
    assert code == 0 and "wrote page.html" in out
    text = Path("page.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not re.search(r"https?:|<script|<link|src=|@import|url\(", text)  # it stands alone
    words = "".join(tags.text)
    sentence = next(line for line in out.splitlines() if line.startswith("forward/tiled is limited by"))
    assert sentence in words and "It was not timed" in words
    assert "@media print" in text and "<svg" in text
    for line in (source_root() / "forward" / "tiled.cu").read_text().splitlines():
        assert line in words
    assert "shared memory, 0.84 us" in words  # in the picture, too


def test_what_the_page_quotes_is_escaped():
    text = page([report_of()], ["a <note>"])
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and "<tile>" not in text and "a &lt;note&gt;" in text and "a &lt;remark&gt;" in text


def test_the_picture_is_to_scale():
    """A doubled time is always the same step down, and what was measured lies below what was predicted."""
    heights = {}
    for seconds in (1e-4, 2e-4, 4e-4):
        text = page([report_of(seconds, measured=8e-4)])
        places = {
            name: float(y) for name, y in re.findall(r'<circle class="(\w+)" cx="[\d.]+" cy="([\d.]+)" r="5"><t', text)
        }
        assert places["floor"] < places["point"] < places["measured"]
        (height,) = re.findall(r'<line class="binding" [^>]*y1="([\d.]+)"', text)
        assert float(height) == places["point"]  # the limit that binds goes through it
        heights[seconds] = (places["measured"] - places["point"]) / (places["measured"] - places["floor"])
    assert heights[1e-4] == pytest.approx(3 / 4, abs=0.01)  # of 5e-5, 1e-4 ... 8e-4
    assert heights[2e-4] == pytest.approx(2 / 4, abs=0.01) and heights[4e-4] == pytest.approx(1 / 4, abs=0.01)


def test_excerpts_of_a_header():
    lines = [annotate.Line(i, "", instructions=int(i in (10, 13, 30))) for i in range(1, 41)]
    source = annotate.Source("a.cuh", Path("a.cuh"), tuple(lines))
    assert [(part[0].number, part[-1].number) for part in source.excerpts(whole=False)] == [(8, 15), (28, 32)]
    assert source.excerpts(whole=True) == [source.lines]


# -- run -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def launched(monkeypatch):
    """Count launches on the cpu device."""
    count = []
    launch = CpuKernel.launch

    def counting(self, pointers, stream=None):
        count.append(list(pointers))
        launch(self, pointers, stream)

    monkeypatch.setattr(CpuKernel, "launch", counting)
    return count


@pytest.mark.parametrize("name", ["forward/naive", "input_grad/naive", "kernel_grad/naive", "backward/fused"])
def test_run_only_launches(run, launched, name):
    text = "2,2,9,8,2,3,3,padding=1,groups=2,activation=relu,bias=1"
    code, out, err = run("run", name, "--problem", text, "--repeat", 3, "--device", "cpu")
    assert code == 0 and not err and len(out.splitlines()) == 1
    assert f"{name} on {text}: launched 3 times on cpu (blocks x threads: " in out
    (variant,) = select(name)
    expected = launches_of(variant, ConvProblem.parse(text), "cpu")
    assert all(f"{each.entry} " in out for each in expected)
    assert len(launched) == 3 * len(expected) and launched[: len(expected)] * 3 == launched


def test_run_with_a_mask(run, launched):
    code, _, err = run("run", "input_grad/naive", "--problem", "2,2,9,8,2,3,3,mask=1", "--device", "cpu")
    assert code == 0 and not err and len(launched) == 1
    dy, saved, w, scale, b, dx = launched[0]
    assert all((dy, saved, w, dx)) and not scale and not b  # which is a transposed convolution's


def test_run_on_a_gpu(run, stand_in):
    """No memory is flushed and nothing is timed: a profiler sees the launches alone."""
    stand_in.record()
    code, out, err = run("run", "kernel_grad/naive", "--problem", "1,1,9,8,1,3,3", "--repeat", 2, "--device", "cuda")
    assert code == 0 and not err and "launched 2 times on cuda:0" in out
    queued = stand_in.recorded("cuLaunchKernel|cuMem.*Async|cuEvent|cuCtxSynchronize")
    assert queued == ["cuLaunchKernel kernel_grad", "cuLaunchKernel kernel_grad_total"] * 2 + ["cuCtxSynchronize"]
    assert stand_in.counts().allocations == 0


# -- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("profile", 2, "as in 'convbackprop profile forward/coalesced'"),
        ("profile nix", 2, "target is 'nix'"),
        (
            "profile forward --gpu Voodoo2",
            2,
            "GPU is 'Voodoo2'; it should be one of H200, H100, A100, L4, RTX 4090, T4",
        ),
        ("profile forward --problem 1,2", 2, "it should begin with seven integers"),
        ("profile forward --problem 0,1,9,9,1,3,3", 2, "there is nothing to look at"),
        ("profile forward --problem 1,1,9,9,1,3,3 --filter 3", 2, "--filter goes with the default problem"),
        ("profile forward --filter 3 5", 2, "--filter is 3 5; without --machine-code it takes one value"),
        ("profile forward --filter 0", 2, "--filter is '0'"),
        ("profile forward --dtype int8", 2, "--dtype is 'int8'"),
        ("profile forward --blocks 0", 2, "--blocks is 0; it should be at least 1"),
        ("profile forward --arch sm_90", 2, "--arch goes with --machine-code and --emit"),
        ("profile forward --sass", 2, "--sass goes with --machine-code"),
        ("profile forward -o a", 2, "--output says where --emit writes"),
        (
            "profile forward --emit sass",
            2,
            "--emit writes one variant; name it, as in 'profile forward/naive --emit sass'",
        ),
        ("profile forward/naive --emit exe", 2, "--emit is 'exe'; it should be one of ptx, sass, cubin"),
        ("profile forward/naive --emit ptx --json", 2, "leave out --json"),
        ("profile forward/naive --emit ptx --arch sm_1", 2, "--arch is 'sm_1'"),
        ("profile forward/naive --emit ptx --arch sm_90 --gpu L4", 2, "both name an architecture"),
        ("profile forward/implicit_gemm --emit ptx", 1, "does not compute this problem: a group has one channel"),
        ("profile forward/implicit_gemm", 1, "nothing computes this problem: forward/implicit_gemm: a group has"),
        ("profile forward --html nowhere.cu/page.html", 2, "page.html cannot be written"),
        ("profile --machine-code --html a", 2, "--html goes with a report on one problem"),
        ("run", 2, "run launches one variant; name it"),
        ("run forward", 2, "name it, as in 'convbackprop run forward/naive'"),
        ("run forward/naive --repeat 0", 2, "--repeat is 0; it should be at least 1"),
        ("run forward/implicit_gemm", 1, "forward/implicit_gemm does not compute this problem"),
        ("run forward/naive --device gpu --problem 1,1,9,9,1,3,3", 2, "device is 'gpu'"),
    ],
)
def test_a_mistake_gets_one_sentence(run, no_nvcc, no_replay, tmp_path, command, code, words):
    (tmp_path / "nowhere.cu").touch()
    got, out, err = run(*command.split())
    assert (got, out) == (code, "") and len(err.splitlines()) == 1
    assert err.startswith("convbackprop: error: ") and words in err


def test_a_cubin_does_not_go_to_a_terminal(run, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, _, err = run("profile", "forward/naive", "--emit", "cubin")
    assert code == 2 and "a cubin is no text; say with --output where it goes" in err


def test_emit_needs_nvcc(run, monkeypatch):
    def find():
        raise CompilerNotFound("nvcc was not found; install it")

    monkeypatch.setattr("convbackprop.devices.compiler.find_nvcc", find)
    for kind in profile_report.EMITTED:
        code, out, err = run("profile", "forward/naive", "--emit", kind)
        assert (code, out) == (1, "") and len(err.splitlines()) == 1

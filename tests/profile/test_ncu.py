"""`profile --ncu`: what ncu prints is read rightly, shown beside the model, and its refusals are told in a sentence.

ncu.csv was made by hand after the format of `ncu --csv --page raw` (a launch a line, units in the second line); nothing
in it was measured.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from convbackprop.cli import profile as profile_command, profile_report
from convbackprop.errors import CompilerNotFound, EnvironmentProblem, InvalidArgument
from convbackprop.ladder.registry import select
from convbackprop.problem import ConvProblem
from convbackprop.profile import ncu
from convbackprop.profile.expected import Expected
from convbackprop.profile.report import launches_of
from tests.profile.test_profile import PROBLEM, TILED, MadeUp, made_by_hand, report_of

CSV = Path(__file__).with_name("ncu.csv")
REPORT = report_of(1.68e-6, launches=made_by_hand(TILED, ConvProblem.parse(PROBLEM)))

DETAILS = """\
==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Context","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","void forward(const float *, float *)","1","Command line profiler metrics","gpu__time_duration.sum","us","1,205.00"
"0","1","void forward(const float *, float *)","1","Command line profiler metrics","dram__bytes_read.sum","Mbyte","2.5"
"0","1","void forward(const float *, float *)","1","Command line profiler metrics","dram__bytes_write.sum","Kbyte","500"
"0","1","void forward(const float *, float *)","1","Command line profiler metrics","lts__t_sectors_srcunit_tex.sum","","n/a"
"1","1","void forward(const float *, float *)","1","Command line profiler metrics","gpu__time_duration.sum","us","1,195.00"
"1","1","void forward(const float *, float *)","1","Command line profiler metrics","dram__bytes_read.sum","Mbyte","2.5"
"1","1","void forward(const float *, float *)","1","Command line profiler metrics","dram__bytes_write.sum","Kbyte","500"
==PROF== Disconnected from process 1
"""  # noqa: E501


def cells(quantities):
    return {each.name: each.cells[1:] for each in quantities}


def test_counters_beside_the_model():
    shown = cells(ncu.beside(REPORT, ncu.read(CSV)))
    assert shown["time"] == ("3.36 us", "1.68 us", "2.00")
    assert shown["DRAM"] == ("524 kB", "524 kB", "1.00")
    assert shown["L2 cache"] == ("786 kB", "786 kB", "1.00")  # sectors of 32 bytes
    assert shown["L1 cache, requests"] == ("10.2 k requests", "8.19 k requests", "1.25")  # the model: loads only
    assert shown["L1 cache, sectors"] == ("49.2 k sectors", "41.0 k sectors", "1.20")
    assert shown["shared memory"] == ("224 k wavefronts", "213 k wavefronts", "1.05")
    assert shown["instructions"] == ("614 k of warps", "-", "-")  # without nvcc nothing is known of them
    assert shown["registers a thread"] == ("40", "-", "-") and shown["warps a multiprocessor"][0] == "13.2"
    stalls = {name: figures[0] for name, figures in shown.items() if name.startswith("warps: ")}
    assert list(stalls.items()) == [
        ("warps: long scoreboard", "50 %"), ("warps: mio throttle", "20 %"), ("warps: short scoreboard", "15 %"),
        ("warps: barrier", "5 %"),
    ]  # fmt: skip


def test_the_expected_time_where_one_is_known():
    report = replace(REPORT, expected=Expected(2.4e-6, {"memory": 2.4e-6}, {}))
    assert cells(ncu.beside(report, ncu.read(CSV)))["time"] == ("3.36 us", "2.40 us", "1.40")


def test_a_counter_a_line_and_a_launch_repeated():
    """As on the page "details", with units of their own; two launches of one count for their mean."""
    launches = ncu.parse(DETAILS)
    assert [each.kernel for each in launches] == ["forward", "forward"]
    shown = cells(ncu.beside(REPORT, launches))
    assert shown["time"][0] == "1.20 ms" and shown["DRAM"][0] == "3.00 MB"
    assert shown["L2 cache"] == ("-", "786 kB", "-") and not any(name.startswith("warps: ") for name in shown)


def test_launches_of_several_kernels_add_up():
    (variant,) = select("kernel_grad/naive")
    problem = ConvProblem.parse(PROBLEM)
    report = replace(REPORT, variant=variant, launches=launches_of(variant, problem))
    counted = [
        ncu.Counted("kernel_grad", {"gpu__time_duration.sum": 3e-6, "launch__registers_per_thread": 40}),
        ncu.Counted("kernel_grad_total", {"gpu__time_duration.sum": 1e-6, "launch__registers_per_thread": 16}),
    ]
    shown = cells(ncu.beside(report, counted))
    assert shown["time"][0] == "4.00 us" and shown["registers a thread"][0] == "40" and shown["DRAM"][0] == "-"


def test_counters_of_something_else():
    with pytest.raises(InvalidArgument, match="no launch of forward, which is needed, but of saxpy"):
        ncu.beside(REPORT, [ncu.Counted("saxpy", {})])


# -- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def profile(run, monkeypatch):
    """`profile forward/tiled` on a made-up report; given --device cuda, on a made-up GPU."""
    monkeypatch.setattr(profile_report, "report", lambda variant, problem, chosen, blocks: REPORT)
    monkeypatch.setattr(profile_report, "get_device", lambda name: MadeUp())
    monkeypatch.setattr(profile_report, "_timed", lambda report, device, wrong: report)
    return lambda *arguments: run("profile", "forward/tiled", "--problem", PROBLEM, *arguments)


def test_a_recorded_csv(profile):
    code, out, err = profile("--ncu", str(CSV))
    assert code == 0 and not err
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    assert ["quantity", "counted", "model", "counted / model"] in lines
    assert ["DRAM", "524 kB", "524 kB", "1.00"] in lines and ["warps: long scoreboard", "50 %", "-", "-"] in lines
    found = json.loads(profile("--ncu", str(CSV), "--json")[1])["reports"][0]["ncu"]
    assert found[0] == {"quantity": "time", "unit": "s", "counted": pytest.approx(3.36e-6), "model": 1.68e-6}
    assert {key for each in found for key in each} <= set(re.findall(r"\w+", profile_command.EPILOG))
    assert "ncu" not in json.loads(profile("--json")[1])["reports"][0]


NCU = """#!/bin/sh
echo "$@" >{folder}/asked
{says}
"""


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Puts an ncu on PATH that does what a shell's line says; returns what it was asked."""

    def install(says):
        program = tmp_path / "bin" / "ncu"
        program.parent.mkdir(exist_ok=True)
        program.write_text(NCU.format(folder=tmp_path, says=says))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent) + ":/bin:/usr/bin")
        return tmp_path / "asked"

    return install


def test_ncu_is_run(profile, installed):
    asked = installed(f"cat {CSV}")
    code, out, _ = profile("--device", "cuda", "--ncu")
    assert code == 0 and "warps: long scoreboard" in out
    words = asked.read_text().split()
    assert words[words.index(sys.executable) :] == [
        sys.executable, "-m", "convbackprop", "run", "forward/tiled", "--device", "cuda:0", "--problem", PROBLEM
    ]  # fmt: skip
    metrics = words[words.index("--metrics") + 1].split(",")
    columns = CSV.read_text().splitlines()[4].replace('"', "").split(",")
    assert set(metrics) <= set(columns) and words[words.index("--page") + 1] == "raw"


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("echo '==ERROR== ERR_NVGPUCTRPERM - The user does not have permission'; exit 1", "run it as root, or have"),
        ("echo '==ERROR== Failed to find metric x' >&2; exit 1", "ncu fails: ==ERROR== Failed to find metric x"),
        ("echo '==WARNING== No kernels were profiled.'", "ncu fails: ==WARNING== No kernels were profiled."),
        ("exit 7", "ncu fails: exit status 7"),
    ],
)
def test_ncu_refuses(profile, installed, says, sentence):
    installed(says)
    code, out, err = profile("--device", "cuda", "--ncu")
    assert code == 1 and not out and sentence in err and len(err.splitlines()) == 1


def test_without_ncu(profile, monkeypatch):
    def find():
        raise CompilerNotFound("nvcc was not found")

    monkeypatch.setattr(ncu, "find_nvcc", find)
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = profile("--device", "cuda", "--ncu")
    assert code == 1 and not out and "ncu is not on PATH; install Nsight Compute" in err
    with pytest.raises(EnvironmentProblem, match="did not end within 0 s"):
        monkeypatch.setattr(ncu, "find_ncu", lambda: Path("/bin/sleep"))
        monkeypatch.setattr(ncu, "command", lambda arguments: ["/bin/sleep", "9"])
        ncu.collect([], seconds=0.01)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--ncu", "--device", "cpu"), "--ncu runs ncu on the GPU that the report is of"),
        (("--ncu", "missing.csv"), "--ncu is missing.csv, which cannot be read: No such file"),
        (
            ("--ncu", str(Path(__file__).with_name("__init__.py"))),
            "which holds no counters; it should be what 'ncu --csv' printed",
        ),
        (("--ncu", "--emit", "ptx"), "leave out --ncu"),
    ],
)
def test_mistakes(profile, arguments, sentence):
    code, out, err = profile(*arguments)
    assert code == 2 and not out and sentence in err and len(err.splitlines()) == 1

"""The command line: what it prints, what it returns, and what it says to a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convbackprop import check as checking, cli
from convbackprop.activations import COMMON
from convbackprop.bench import layer_goals, layers, peers, suites, timing, torch_calls
from convbackprop.bench.cases import Case
from convbackprop.bench.rows import Row
from convbackprop.check import curated, inputs, reference
from convbackprop.cli import check as check_command, goals
from convbackprop.devices.cpu import cpu_device
from convbackprop.ladder.registry import VARIANTS, choose, of_pass, select, why_not
from convbackprop.launch.plan import constants_of
from convbackprop.problem import DTYPES, PASSES, ConvProblem
from tests import driver
from tests.support.commands import documented, epilog
from tests.support.quick import QUICK_ENVIRONMENT
from tests.support.turns import in_turn

SMALL = "2,3,9,8,4,3,2,padding=0:1x2:0"
QUICK = ("--seconds", "0.01", "--device", "cpu")


@pytest.fixture
def run(run, quick_commands):
    return run


def in_a_process(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "convbackprop", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL,
        env={**os.environ, **QUICK_ENVIRONMENT, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **environment},
    )  # fmt: skip


# -- help, version, JSON ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", [(), *((name,) for name in cli.COMMANDS)])
def test_help_has_examples(run, command):
    code, out, err = run(*command, "--help")
    assert code == 0 and not err
    assert f"convbackprop {' '.join(command)}" in out and "examples:" in out
    assert max(map(len, epilog(command[0]).splitlines() if command else [""])) <= 80


def test_version_and_nothing(run):
    import convbackprop

    assert run("--version")[:2] == (0, f"convbackprop {convbackprop.__version__}\n")
    code, out, err = run()
    assert (code, out) == (2, "") and "COMMAND" in err


def test_doctor(run):
    code, out, err = run("doctor", "--json")
    found = json.loads(out)
    documented("doctor", found)
    items = {finding["item"]: finding for finding in found["findings"]}
    assert code == 0 and not err and found["usable"]
    assert items["cpu device"]["usable"] and items["cache"]["usable"]
    assert items["cuobjdump"]["usable"] or "convbackprop[sass]" in items["cuobjdump"]["todo"]
    assert all(finding["usable"] or finding["todo"] for finding in found["findings"])
    code, out, _ = run("doctor")
    assert code == 0 and "usable devices:" in out and "Traceback" not in out


def test_doctor_without_a_compiler(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("CONVBACKPROP_CXX", "CXX", "CONVBACKPROP_NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    found = json.loads(run("doctor", "--json")[1])
    compiler = next(finding for finding in found["findings"] if finding["item"] == "C++ compiler")
    assert not compiler["usable"] and "install g++" in compiler["todo"]


def test_doctor_with_an_unwritable_cache(tmp_path):
    (tmp_path / "file").touch()
    done = in_a_process("doctor", CONVBACKPROP_CACHE_DIR=str(tmp_path / "file"))
    assert done.returncode == 0
    assert done.stderr.startswith("convbackprop: warning: the kernel cache") and len(done.stderr.splitlines()) == 1


def test_list(run):
    code, out, err = run("list")
    assert code == 0 and not err
    for variant in VARIANTS:
        assert str(variant) in out
    code, out, err = run("list", "--json")
    found = json.loads(out)
    documented("list", found)
    assert [f"{v['pass']}/{v['name']}" for v in found["variants"]] == [str(v) for v in VARIANTS]
    assert [p["name"] for p in found["passes"]] == list(PASSES)
    for variant in found["variants"]:
        assert Path(variant["file"]).is_file() and variant["summary"].endswith(".")
        for tunable in variant["tunables"].values():
            assert tunable["cpu"] in (None, *tunable["legal"]) and tunable["cuda"] in (None, *tunable["legal"])
    code, out, _ = run("list", "forward", "--json")
    assert {v["pass"] for v in json.loads(out)["variants"]} == {"forward"}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "text", ["1,1,28,28,1,5,5,padding=2", "2,3,9,8,4,3,2,stride=2", "1,1,28,28,1,3,3,dx=0,padding=1"]
)
def test_list_tells_what_computes_a_problem(run, monkeypatch, kind, text):
    code, out, err = run("list", "--problem", text, "--device", kind, "--json")
    found = json.loads(out)
    documented("list", found)
    assert code == 0 and not err and found["device"] == kind
    problem = ConvProblem.parse(text, bias=True, activation="relu")
    assert found["problem"] == str(problem)
    rows = {(row["pass"], row["variant"]): row for row in found["choices"]}
    assert set(rows) == {(v.pass_name, v.name) for v in VARIANTS}
    for variant in VARIANTS:
        row = rows[variant.pass_name, variant.name]
        assert row["auto"] == (row["why_not"] is None)
        if refusal := variant.refusal(problem, kind):
            assert row["why_not"] == refusal
    for pass_name in ("forward", "input_grad", "kernel_grad"):
        (auto,) = (name for (of, name), row in rows.items() if of == pass_name and row["auto"])
        assert auto == choose(pass_name, "auto", problem, kind).name
    if problem.stride != (1, 1):
        assert [name.split("/")[0] for name in found["conv2d_backward"]] == ["input_grad", "kernel_grad"]
    else:
        assert len(found["conv2d_backward"]) == 1

    code, out, _ = run("list", "--problem", text, "--device", kind)
    assert code == 0 and f"conv2d_backward runs {', then '.join(found['conv2d_backward'])}" in out
    assert all(row["why_not"] in out for row in rows.values() if row["why_not"])
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "cpu")
    assert json.loads(run("list", "forward", "--problem", text, "--json")[1])["device"] == "cpu"


# -- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "command, code, words",
    [
        ("frobnicate", 2, "invalid choice: 'frobnicate'"),
        ("check nix", 2, "target is 'nix'; it should be one of forward, input_grad, kernel_grad"),
        ("check forward/nix", 2, "variant of forward is 'nix'; it should be one of naive"),
        ("list nix", 2, "pass is 'nix'; it should be one of forward"),
        ("check nix.cu --pass forward", 2, "nix.cu does not exist"),
        ("check folder.cu --pass forward", 2, "folder.cu is a directory"),
        ("check text.txt --pass forward", 2, "text.txt is no CUDA source; its name should end in .cu"),
        ("check empty.cu --pass forward", 2, 'it should define an extern "C" __global__ void function'),
        ("check nolaunch.cu --pass forward", 2, "does not say how it is launched"),
        (
            "check empty.cu",
            2,
            "empty.cu does not say what it computes; add a line '//@ pass forward', or say it with --",
        ),
        ("check empty.cu --pass nix", 2, "pass is 'nix'"),
        ("check forward --pass forward", 2, "--pass says what a FILE.cu computes"),
        ("check --dtype int8", 2, "--dtype is 'int8'; it should be one of float32"),
        ("check --activation mish", 2, "activation is 'mish'; it should be one of identity"),
        ("check --data nix", 2, "--data is 'nix'"),
        ("check --tunables tpu", 2, "--tunables is 'tpu'; it should be one of cpu, cuda"),
        ("check --device gpu", 2, "device is 'gpu'; it should be 'cpu', 'cuda' or 'cuda:N'"),
        ("check --problem 1,2,3", 2, "it should begin with seven integers N,C,H,W,K,R,S"),
        ("check --problem 1,1,2,2,1,3,3", 2, "the filter is 3 high"),
        ("check --problem 1,1,9,9,1,3,3,stride=0", 2, "stride is 0"),
        ("check --problem 1,1,9,9,1,3,3,padding=-1", 2, "padding is -1"),
        ("check --problem 1,3,9,9,4,3,3,groups=2", 2, "groups is 2, which does not divide the 3 input channels"),
        ("check --problem 1,1,9,9,1,3,3,colour=1", 2, "problem option is 'colour=1'"),
        ("check --problem 1,1,900000,900000,1,3,3", 1, "bytes with its float64 reference"),
        ("bench --problem 1,1,9,9,1,3,3 --filter 3", 2, "--filter goes with an image"),
        ("bench --problem 1,1,9,9,1,3,3 --pictures d", 2, "--pictures goes with an image"),
        ("bench --problem 1,1,9,9,1,3,3 --suite lab", 2, "not allowed with argument"),
        ("bench --suite nix", 2, "--suite is 'nix'; it should be one of lab, photos, sizes, depthwise, resnet, vgg, u"),
        ("bench --suite depthwise --filter 3", 2, "--suite depthwise has problems of its own; leave out --filter"),
        ("bench --suite deepbench --pictures x", 2, "--suite deepbench has problems of its own; leave out --pictures"),
        ("bench --save a/b", 2, "--save is 'a/b'; it should be a name of letters, digits"),
        ("bench --save text.txt/a.json", 2, "text.txt/a.json cannot be written: "),
        ("bench --save taken.json", 2, "taken.json exists and is left as it is; choose another name"),
        ("bench --problem 0,1,9,9,1,3,3", 2, "there is nothing to time"),
        ("bench --problem 1,1,9,9,1,3,3 --image a.png", 2, "not allowed with argument"),
        ("bench --filter 0", 2, "--filter is '0'; it should be an integer of at least 1"),
        ("bench --filter 3.5", 2, "--filter is '3.5'"),
        ("bench --seconds 0", 2, "--seconds is 0.0; it should be above 0"),
        ("bench --seconds much", 2, "invalid float value"),
        ("bench --against jax", 2, "--against is 'jax'; it should be one of torch, scipy, opencv, cupy, all, none"),
        ("bench --against torch,jax", 2, "--against is 'jax'; it should be one of torch"),
        ("bench --against cupy --device cpu", 2, "--against cupy compares on cuda, not on cpu; add --device cuda"),
        ("bench kernel_grad --against opencv", 2, "--against opencv times forward, not kernel_grad"),
        ("bench --goals --suite lab", 2, "--goals has a problem of its own; leave out --suite"),
        ("bench --goals --filter 3", 2, "--goals has a problem of its own; leave out --filter"),
        ("bench --ladder", 2, "--ladder goes with a FILE.cu; without one every variant is timed"),
        ("bench --goals --against none", 2, "--goals compares the public functions with torch"),
        ("list --device cpu", 2, "--device goes with --problem"),
        ("list --problem 1,1,9,9,1,3,3 --device cuda:1", 2, "--device is 'cuda:1'; it should be one of cpu, cuda"),
        ("list --problem 1,1,9", 2, "it should begin with seven integers"),
        ("bench --image nix.png", 2, "image nix.png cannot be read: No such file"),
        ("bench --image text.txt", 2, "image text.txt cannot be read: cannot identify"),
        ("bench --image folder.cu", 2, "image folder.cu cannot be read: Is a directory"),
        ("bench --image truncated.png", 2, "image truncated.png cannot be read"),
        ("compare nix nix", 2, "run nix was not found as .convbackprop/runs/nix.json; none is saved here"),
        ("compare nix nix --least -1", 2, "--least is -1; it should be a percentage"),
        ("compare text.txt nix", 2, "run text.txt was not found as .convbackprop/runs/text.txt.json"),
        ("compare a/b nix", 2, "run is 'a/b'; it should be a name of letters"),
        ("plot nix", 2, "run nix was not found"),
        ("plot nix pie", 2, "kind is 'pie'; it should be one of ladder, roofline, size"),
        ("plot nix --format gif", 2, "--format is 'gif'; it should be one of png, svg"),
        ("plot nix --output a.png", 2, "--output is one file; say which KIND goes there: ladder, roofline, size"),
        ("plot nix ladder --output a.gif", 2, "--output is a.gif; its name should end in .png or .svg"),
        ("plot nix ladder --output a.svg --format png", 2, "--format is png, but --output ends in .svg"),
        ("report nix --output a.pdf", 2, "--output is a.pdf; its name should end in .html or .md"),
        ("report nix", 2, "run nix was not found"),
        ("demo nix", 2, "demo is 'nix'; it should be one of edge"),
        ("demo edge --output a.gif", 2, "--output is a.gif; its name should end in .png or .svg"),
        ("demo edge --image nix.png", 2, "image nix.png cannot be read: No such file"),
        ("new forward/naive", 2, "forward/naive is a variant of the package"),
        ("new forward", 2, "name is ''; it should be made of letters"),
        ("new forward/a-b", 2, "name is 'a-b'"),
        ("new nix/mine", 2, "pass is 'nix'"),
        ("new forward/text --output text.txt", 2, "its name should end in .cu"),
        ("new forward/mine --output empty.cu", 2, "empty.cu exists and is left as it is"),
        ("new forward/mine --output nowhere/mine.cu", 2, "nowhere/mine.cu cannot be written: No such file"),
    ],
)
def test_a_mistake_gets_one_sentence(run, tmp_path, command, code, words):
    if "--image" in command:
        image = pytest.importorskip("PIL.Image", reason="pillow, of the extra data, is not installed: image files")
        image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "truncated.png")
        (tmp_path / "truncated.png").write_bytes((tmp_path / "truncated.png").read_bytes()[:60])
    (tmp_path / "empty.cu").touch()
    (tmp_path / "taken.json").touch()
    (tmp_path / "nolaunch.cu").write_text('extern "C" __global__ void f(float* x) {}')
    (tmp_path / "text.txt").write_text("no image, no CUDA")
    (tmp_path / "folder.cu").mkdir()
    got, out, err = run(*command.split())
    assert got == code and out == ""
    assert err.startswith("convbackprop: error: ") and words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("missing", ["PIL", "skimage"])
def test_a_missing_data_package(run, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, f"{missing}.data", None)
    code, out, err = run("bench", *(("--image", "a.png") if missing == "PIL" else ()))
    assert code == 1 and not out and "convbackprop[data]" in err and len(err.splitlines()) == 1


def test_ctrl_c_and_a_closed_pipe(run, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("convbackprop.cli.list.run", interrupted)
    assert run("list") == (130, "", "")

    process = subprocess.Popen(
        [sys.executable, "-m", "convbackprop", "list", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )  # fmt: skip
    process.stdout.close()
    assert process.wait() == 1 and process.stderr.read() == ""
    process.stderr.close()


# -- terminals and pipes ---------------------------------------------------------------------------------------------
def on_a_terminal(arguments, columns, **environment):
    """Return what a command writes to a terminal of so many columns."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    unset = ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {**QUICK_ENVIRONMENT, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "TERM": "xterm-256color"}
    env |= environment
    process = subprocess.Popen(
        [sys.executable, "-m", "convbackprop", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait() == 0, text.decode()
    return text.decode()


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_a_terminal(columns):
    command = ["bench", "kernel_grad", "--problem", SMALL, "--against", "none", *QUICK]
    text = on_a_terminal(command, columns)
    assert "\x1b[" in text  # colours, and a progress bar that was erased
    assert "\x1b[3" not in on_a_terminal(command, columns, NO_COLOR="1").replace("\x1b[?", "")
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines()
    heads = next(line for line in lines if line.startswith("pass/variant"))
    for head in ("ms", "20-80 %", "rate", "of floor", "error"):  # none of them is cut
        assert head in heads
    where = f"{of_pass('kernel_grad')[0]} " if columns >= 120 else ""  # a column, or a heading
    assert any(re.match(rf"{where}\s*{re.escape(SMALL)}", line) for line in lines)
    for variant in of_pass("kernel_grad"):
        row = next(line for line in lines if line.startswith(f"{variant} "))
        assert len(row.rstrip()) <= columns and "…" not in row


def test_a_pipe_gets_plain_text():
    done = in_a_process("bench", "forward", "--problem", SMALL, "--against", "none", *QUICK)
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    assert "…" not in done.stdout
    assert re.search(rf"^forward/naive +{re.escape(SMALL)} +[\d.]+ +[\d.]+-[\d.]+", done.stdout, re.MULTILINE)


# -- check -----------------------------------------------------------------------------------------------------------
def default_tasks():
    import argparse

    parser = argparse.ArgumentParser()
    check_command.add_arguments(parser)
    return check_command.tasks(parser.parse_args([]))


def test_check_covers_what_it_says():
    checked = {(task.problem, task.data) for task in default_tasks()}
    for dtype in DTYPES:
        for problem in curated.CURATED:
            for activation, mask in (("identity", False), ("relu", False), ("relu", True)):
                assert (problem.problem(dtype=dtype, activation=activation, mask=mask), problem.data) in checked
        for activation in COMMON:
            assert any(p.dtype == dtype and p.activation == activation for p, _ in checked)
    for problem in curated.CURATED:  # each activation on each problem, in one dtype or another
        for activation in COMMON:
            assert any((problem.problem(dtype=d, activation=activation), problem.data) in checked for d in DTYPES)


@in_turn(0)
def test_the_budget_of_compilations(variant):
    problems = list(dict.fromkeys(task.problem for task in default_tasks()))
    chosen = checking.within_budget(variant, problems, "cpu")
    assert chosen == checking.within_budget(variant, reversed(problems), "cpu")
    assert not any(variant.refusal(problem) for problem in chosen)

    def sets(some):
        return {tuple(constants_of(variant, problem, "cpu").items()) for problem in some}

    computed = [problem for problem in problems if variant.refusal(problem) is None]
    kinds = {(p.dtype, p.activation, p.mask) for p in computed}
    if not variant.specialised:

        def sets_of(kind, some):
            return sets(p for p in some if (p.dtype, p.activation, p.mask) == kind)

        # Of each kind those that most problems share, and of one kind all.
        alike = checking.compiled_alike(variant, computed, "cpu")
        for kind in kinds:
            of_kind = [some for some in alike if kind in {(p.dtype, p.activation, p.mask) for p in some}]
            most = max(map(len, of_kind))
            assert any(len(some) == most and chosen >= set(some) for some in of_kind)
        assert any(len(sets_of(kind, chosen)) == len(sets_of(kind, computed)) for kind in kinds)
    elif len(sets(computed)) <= len(kinds):
        assert chosen == set(computed)
    else:
        assert len(sets(chosen)) == checking.BUDGET
        left = [problem for problem in computed if problem not in chosen]
        assert left and not sets(left) & sets(chosen)
        for dtype in {problem.dtype for problem in computed}:  # which take turns
            assert len(sets(problem for problem in chosen if problem.dtype == dtype)) >= 2
        larger = checking.within_budget(variant, problems, "cpu", 2 * checking.BUDGET)
        assert chosen < larger


def test_check_says_what_the_budget_left_out(run, monkeypatch):
    some = [c for c in curated.CURATED if c.text.startswith(("1,1,28,28", "2,1,33,65"))]
    monkeypatch.setattr(check_command, "CURATED", some)
    monkeypatch.setattr(check_command, "within_budget", lambda *a: checking.within_budget(*a, budget=1))
    command = ("check", "input_grad", "--dtype", "float32", "--activation", "relu", "--device", "cpu")
    found = json.loads(run(*command, "--json")[1])
    documented("check", found)
    rows = {row["variant"]: row for row in found["rows"]}
    assert [rows[f"input_grad/{name}"]["left_out"] for name in ("naive", "tiled")] == [0, 0]
    names = ("coalesced", "register_tiled", "few_channels", "pipelined", "vectorised")
    assert [rows[f"input_grad/{name}"]["left_out"] for name in names] == [6] * 5 and found["left_out"] == 30
    code, out, _ = run(*command)
    assert code == 0 and "30 left out: " in out
    code, out, _ = run(*command, "--all")
    assert code == 0 and "left out: " not in out


def test_check_of_one_problem(run):
    command = ("check", "--problem", SMALL, "--dtype", "float32", "--device", "cpu", "--json")
    code, out, err = run(*command, "--activation", "relu")
    found = json.loads(out)
    documented("check", found)
    assert code == 0 and not err and found["ok"] and found["faults"] == []
    assert [row["variant"] for row in found["rows"]] == [str(variant) for variant in VARIANTS]
    for row in found["rows"]:  # with and without the mask, and each also with NaN and infinities
        assert row["checks"] + row["refused"] == 4 and 0 <= row["error"] <= 1
    (row,) = json.loads(run(command[0], "kernel_grad/naive", *command[1:])[1])["rows"]
    assert row["checks"] == 2 * 5  # four activations, and the ReLU once more with its mask
    code, out, err = run(
        "check", "forward", "--problem", f"{SMALL},activation=tanh", "--dtype", "float32", "--device", "cpu"
    )
    assert code == 0 and not err and " 0 failed" in out
    row = json.loads(
        run("check", "forward/naive", "--problem", f"{SMALL},activation=tanh", "--device", "cpu", "--json")[1]
    )
    assert row["checks"] == 2 * len(DTYPES)


@pytest.mark.parametrize("option", [("--tunables", "cuda"), ("--data", "integers"), ("--activation", "sigmoid")])
def test_check_options(run, option):
    command = ("check", "kernel_grad/tiled", "--problem", SMALL, "--dtype", "float16", "--device", "cpu")
    code, out, _ = run(*command, *option)
    assert code == 0 and " 0 failed" in out


def test_check_counts_what_is_refused(run, monkeypatch):
    ladder = [variant for variant in VARIANTS if variant.refusal(ConvProblem.parse(SMALL)) is None]
    refusal = type(ladder[0]).refusal
    monkeypatch.setattr(type(ladder[0]), "refusal", lambda self, p, kind=None: "no" if p.mask else refusal(self, p))
    command = ("check", "--problem", SMALL, "--dtype", "float32", "--activation", "relu", "--device", "cpu", "--json")
    found = json.loads(run(*command)[1])
    assert found["ok"] and found["checks"] == 2 * len(ladder)
    assert found["refused"] == 2 * len(ladder) + 4 * (len(VARIANTS) - len(ladder))
    code, out, _ = run("check", "--problem", f"{SMALL},mask=1", "--device", "cpu")
    assert code == 1 and "nothing was checked: no\n" in out  # exit 0 only when something is right


# -- a file of one's own ---------------------------------------------------------------------------------------------
#: The first pass; the others are slow tests.
PASSES_BRIEFLY = [pytest.param(p, marks=() if p == "forward" else pytest.mark.slow) for p in PASSES]


@pytest.mark.parametrize("pass_name", PASSES_BRIEFLY)
def test_new_then_check_then_bench(run, pass_name):
    code, out, err = run("new", f"{pass_name}/mine")
    assert code == 0 and not err
    for command in ("check", "bench"):
        assert f"convbackprop {command} mine.cu\n" in out
    before = Path("mine.cu").read_text()
    assert run("new", f"{pass_name}/mine")[0] == 2 and Path("mine.cu").read_text() == before
    assert run("new", f"{pass_name}/other", "--output", "renamed.cu")[0] == 0 and Path("renamed.cu").is_file()

    every = [word for c in curated.CURATED if c.data != "normal" for word in ("--problem", c.text)]
    code, out, err = run("check", "mine.cu", *every, "--activation", "relu", "--device", "cpu")
    assert code == 0 and not err, out + err
    assert f"{pass_name}/mine.cu" in out

    code, out, err = run("bench", "mine.cu", "--problem", SMALL, "--against", "none", *QUICK, "--json")
    rows = json.loads(out)["rows"]
    best = [str(rung) for rung, reason in why_not(pass_name, ConvProblem.parse(SMALL), "cpu").items() if reason is None]
    naive = [] if pass_name == "backward" else [f"{pass_name}/naive"]
    assert code == 0 and [row["variant"] for row in rows] == [*naive, *best, f"{pass_name}/mine.cu"]
    assert all(row["median_ms"] > 0 for row in rows)


@pytest.mark.parametrize(
    "pass_name", [pytest.param(p, marks=pytest.mark.slow if p == "backward" else ()) for p in PASSES]
)
def test_new_is_right_on_every_curated_problem(run, pass_name):
    run("new", f"{pass_name}/mine")
    code, out, err = run("check", "mine.cu", "--dtype", "bfloat16", "--device", "cpu")
    assert code == 0, out + err


def test_a_file_of_one_s_own_for_backward(run):
    """The two gradients' kernels in one file are one."""
    for pass_name in ("input_grad", "kernel_grad"):
        run("new", f"{pass_name}/{pass_name}_part")
    parts = [Path(f"{pass_name}_part.cu").read_text() for pass_name in ("input_grad", "kernel_grad")]
    text = "\n".join(parts)
    Path("mine.cu").write_text(text)
    code, out, err = run("check", "mine.cu", "--device", "cpu")
    assert (code, out) == (2, "") and "says that the file computes kernel_grad, but mine.cu:9 says input_grad" in err
    Path("mine.cu").write_text(re.sub("//@ pass .*", "", text))
    command = ("mine.cu", "--pass", "backward", "--problem", "2,3,9,8,3,3,3,groups=3,padding=1")
    code, out, err = run("check", *command, "--dtype", "float32", "--device", "cpu")
    assert code == 0 and not err, out + err
    code, out, err = run("bench", *command, "--against", "none", "--ladder", *QUICK, "--json")
    rows = json.loads(out)["rows"]
    assert code == 0 and [row["variant"] for row in rows] == [*map(str, of_pass("backward")), "backward/mine.cu"]
    assert all(row["median_ms"] > 0 for row in rows)
    assert all(row["public_ms"] > 0 for row in rows[:-1])


def test_bench_of_a_file_is_about_the_file(run, monkeypatch):
    """Torch beside it where it is installed, no goals, and each refusal once."""
    monkeypatch.setattr(goals, "SIZE", 40)
    run("new", "forward/mine")
    problems = ("--problem", "1,1,40,40,1,3,3", "--problem", "1,1,28,28,1,3,3", "--problem", "1,1,40,40,1,3,3,mask=1")
    code, out, err = run("bench", "mine.cu", *problems, *QUICK, "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and not err and found["goals"] == []
    assert set(found["settings"]["peers"]) <= {"torch"}
    code, out, err = run("bench", "mine.cu", "--ladder", *problems, *problems[-2:], "--against", "none", *QUICK)
    assert code == 0 and "goals" not in out
    assert out.count("forward/mine.cu refuses 1,1,40,40,1,3,3,mask=1: it writes no mask") == 1
    sentences = [line.partition(": ")[2] for line in out.splitlines() if re.search(r" refuses? 1,1,", line)]
    assert len(sentences) == len(set(sentences)) > 1


WRONG = {
    "without the bias": ("b ? to_acc(b[k]) : Acc(0)", "0", "y[0,0,0,0]"),
    # the first outputs of a row see only padding
    "the filter flipped": ("w_at(k, c, r, s)", "w_at(k, c, shape.R - 1 - r, shape.S - 1 - s)", "y[0,0,0,1]"),
    "the last element left out": ("i >= shape.y_size()", "i >= shape.y_size() - 1", "y[1,3,7,8] is nan"),
    "accumulating": ("from_acc(activate(sum))", "from_acc(to_acc(y[i]) + activate(sum))", "y[0,0,0,0] is nan"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_file_is_found(run, mistake):
    run("new", "forward/mine")
    text = Path("mine.cu").read_text()
    right, wrong, first = WRONG[mistake]
    assert right in text
    Path("mine.cu").write_text(text.replace(right, wrong))
    problem = f"{SMALL},activation=identity"
    code, out, err = run(
        "check", "mine.cu", "--pass", "forward", "--problem", problem, "--dtype", "float32", "--device", "cpu"
    )
    assert code == 1 and not err and "FAILED" in out
    assert f"elements of y are wrong: first {first}" in out and "instead of" in out

    code, out, err = run("bench", "mine.cu", "--pass", "forward", "--problem", problem, "--against", "none", *QUICK)
    assert code == 1 and "forward/mine.cu on " in out and f"first {first}" in out
    row = next(line for line in out.splitlines() if line.startswith("forward/mine.cu "))
    assert "WRONG" in row and "%" not in row  # it gets no time

    code, out, _ = run(
        "bench", "mine.cu", "--pass", "forward", "--problem", problem, "--against", "none", *QUICK, "--json"
    )
    *rungs, row = json.loads(out)["rows"]
    assert code == 1 and all(rung["ok"] and rung["median_ms"] for rung in rungs if not rung["refused"])
    assert row["faults"] and not row["ok"] and row["median_ms"] is None and row["repetitions"] == 0
    assert (row["error"] is None) == ("nan" in first)  # JSON has no infinity


def test_a_file_that_does_not_compile(run):
    run("new", "forward/mine")
    text = Path("mine.cu").read_text()
    line = text[: text.index("Acc sum")].count("\n") + 1
    Path("mine.cu").write_text(text.replace("Acc sum", "Acd sum"))
    problem = f"{SMALL},activation=relu,dtype=float32,mask=0"
    code, _, err = run("check", "mine.cu", "--pass", "forward", "--problem", problem, "--device", "cpu")
    assert code == 1 and f"mine.cu:{line}:" in err and "Acd" in err and "Traceback" not in err


def test_a_file_that_crashes(tmp_path):
    assert in_a_process("new", "forward/mine", cwd=tmp_path).returncode == 0
    text = (tmp_path / "mine.cu").read_text()
    (tmp_path / "mine.cu").write_text(text.replace("y[i] =", "y[i + (Index(1) << 42)] ="))
    problem = f"{SMALL},activation=relu,dtype=float32,mask=0"
    done = in_a_process("check", "mine.cu", "--pass", "forward", "--problem", problem, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"error: forward/mine.cu on 2,3,9,8.* ended in a crash .*outside its arrays", done.stderr)


def test_a_forward_file_need_not_write_the_mask(run):
    run("new", "forward/mine")
    command = ("check", "mine.cu", "--pass", "forward", "--dtype", "float32", "--device", "cpu", "--json", "--problem")
    code, out, _ = run(*command, SMALL)
    assert code == 0 and json.loads(out)["refused"] == 2  # with normal data, and with a NaN among them
    assert run(*command, f"{SMALL},mask=1")[0] == 1


# -- bench -----------------------------------------------------------------------------------------------------------
def test_bench(run):
    code, out, err = run(
        "bench", "--problem", SMALL, "--problem", "1,1,28,28,1,3,3", "--against", "none", *QUICK, "--json"
    )
    found = json.loads(out)
    documented("bench", found)
    assert code == 0 and not err and found["ok"]
    assert len(found["rows"]) == 2 * len(VARIANTS) and found["goals"] == []
    assert found["choice"] == "device cpu: asked for" and found["environment"]["threads"] >= 1
    for row in found["rows"]:
        problem = ConvProblem.parse(row["problem"])
        assert problem.bias and problem.activation == "relu"
        (variant,) = select(row["variant"])
        assert row["refused"] == variant.refusal(problem, "cpu")
        if row["refused"]:
            assert row["median_ms"] is None and row["ok"] is None
            continue
        assert row["ok"] and 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert timing.LEAST <= row["repetitions"] <= timing.MOST and row["error"] <= 1
        assert row["least_bytes"] == PASSES[row["variant"].split("/")[0]].least_bytes(problem)
        assert row["gb_per_s"] == pytest.approx(row["least_bytes"] / row["median_ms"] * 1e-6)
        assert row["share_of_copy"] == pytest.approx(row["gb_per_s"] / row["copy_gb_per_s"])
        assert row["gflop_per_s"] == pytest.approx(row["flops"] / row["median_ms"] * 1e-6)
        floors = {
            "memory": row["least_bytes"] / row["copy_gb_per_s"] * 1e-6,
            "arithmetic": row["flops"] / row["peak_gflop_per_s"] * 1e-6,
        }
        assert row["floor_is"] == max(floors, key=floors.get)
        assert row["floor_ms"] == pytest.approx(max(floors.values()))
        assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["median_ms"])
        assert row["peers"] == {} and row["public_ms"] > 0


def test_bench_main_job_is_the_lab_s_layer(monkeypatch):
    pytest.importorskip("skimage", reason="scikit-image, of the extra data, is not installed: its photograph")
    import argparse

    from convbackprop.cli import bench, bench_work

    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    cases = bench_work.cases_of(parser.parse_args([]), "cpu")
    sizes = [(case.problem.H, case.problem.W, case.problem.R, case.problem.S) for case in cases]
    assert sizes == [(n, n, r, r) for n in (512, 1024) for r in (3, 5, 7)]
    for case in cases:
        p = case.problem
        assert (p.N, p.C, p.K, p.P, p.Q, p.activation, p.bias) == (1, 1, 1, p.H, p.W, "relu", True)
    given = cases[2].arrays("forward", {})
    assert given["x"].min() >= 0 and 0.5 < given["x"].max() <= 1
    assert 0.1 < (reference.answer("forward", cases[2].problem, given)["y"][0] > 0).mean() < 0.9


def test_bench_beside_torch(run):
    pytest.importorskip("torch", reason="torch, the peer, is not installed")
    command = ("bench", "forward", "--problem", SMALL, "--dtype", "bfloat16", "--against", "torch", *QUICK)
    code, out, err = run(*command, "--json")
    found = json.loads(out)
    assert code == 0 and not err
    rows = [row for row in found["rows"] if not row["refused"]]
    for row in rows:
        assert set(row["peers"]) == {"torch", "torch channels_last"}
        for peer in row["peers"].values():
            assert peer["ratio"] == pytest.approx(peer["median_ms"] / row["median_ms"])
    environment = found["environment"]
    assert environment["torch_threads"] == environment["threads"] and environment["OMP_WAIT_POLICY"]
    code, out, _ = run(*command)
    assert code == 0 and re.search(r"\dx +\S+$", out, re.MULTILINE) and "ready-made" in out and "vs torch" in out


def test_the_goals(run, monkeypatch):
    pytest.importorskip("torch", reason="torch, the peer, is not installed")
    monkeypatch.setattr(goals, "SIZE", 40)
    command = ("bench", "--goals", *QUICK)
    code, out, err = run(*command, "--json")
    found = json.loads(out)
    documented("bench", found)
    assert code == 0 and not err and found["rows"] == []
    assert [row["pass"] for row in found["goals"]] == list(PASSES)
    for row in found["goals"]:
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
        assert row["met"] == (row["ratio"] >= row["goal"])
    code, out, err = run("bench", "kernel_grad", "--goals", *QUICK)
    assert code == 0 and "goals: 40 x 40" in out and " met" in out and "conv2d_input_grad" not in out
    code, out, err = run("bench", "forward/naive", "--problem", "1,1,40,40,1,3,3", *QUICK)  # part of the main job, too
    assert code == 0 and "goals: 40 x 40" in out


def small_suite(*texts):
    made = [layers.Layer("small", 32, text) for text in texts]
    return suites.Suite("deepbench", "", suites._of_layers(*made), passes=suites._THREE, beside_naive=True)


def test_layers(run, monkeypatch):
    suite = small_suite("8,9,9,70,3,3,padding=1", "1,9,9,4,3,3,stride=2")
    monkeypatch.setitem(suites.SUITES, "deepbench", suite)
    code, out, err = run("bench", "--suite", "deepbench", *QUICK, "--json")
    found = json.loads(out)
    documented("bench", found)
    assert code == 0 and not err and len(found["layers"]) == 6
    for row, beside in zip(found["layers"], found["rows"][1::2], strict=True):
        problem = ConvProblem.parse(row["problem"])
        pass_name = row["variant"].split("/")[0]
        assert row["variant"] == beside["variant"] == str(choose(pass_name, "auto", problem, "cpu"))
        assert row["batch"] == 32 and problem.N == 32 // suites.CPU_CUT and row["layer"] == "small (N 32/32)"
        flops = PASSES[pass_name].flops(problem)
        assert row["gflop_per_s"] == pytest.approx(1e-6 * flops / beside["median_ms"])
        assert row["times_naive"] > 0 and (row["times_torch"] or 1) > 0
    for naive in found["rows"][::2]:
        assert naive["variant"].endswith("/naive") and naive["repetitions"] == 1 and naive["error"] <= 1
    code, out, err = run("bench", "input_grad", "--suite", "deepbench", *QUICK)
    assert code == 0 and "small (N 32/32) 1,8,9,9,70,3,3,padding=1" in out and "forward/" not in out
    assert re.search(r"goals of layers: .* \d of 2 meet them", out) and " once " in out


@pytest.mark.parametrize(
    ("layer", "ms", "torch_ms", "naive_ms", "misses"),
    [
        (layers.WHOLE, 30, 10, 500, []),
        (layers.WHOLE, 50, 10, 500, ["below 40 GFLOP/s"]),
        (layers.WHOLE, 30, 4, 20, ["over 6x torch", "slower than naive"]),
        (layers.RESNET_3X3[0], 30, 4, 500, []),
        (layers.RESNET_3X3[3], 30, 3, 500, ["over 8x torch"]),
        (layers.DEEPBENCH[0], 30, 1, 500, []),
        (layers.DEEPBENCH[0], 30, None, 29, ["slower than naive"]),
    ],
)
def test_what_is_wanted_of_layers(layer, ms, torch_ms, naive_ms, misses):
    problem = layer.problem(1)
    naive, chosen = of_pass("forward")[0], of_pass("forward")[-1]
    rows = [
        Row(str(rung), problem, layer.network, ours=timing.Timing((1e-3 * t,)))
        for rung, t in ((naive, naive_ms), (chosen, ms))
    ]
    if torch_ms:  # of its ways the fastest counts
        rows[1].peers = {
            "torch": timing.Timing((1.0,)),
            "torch channels_last": timing.Timing((1e-3 * torch_ms,)),
        }
    (result,) = layer_goals.results_of(rows, {str(problem): layer})
    assert result.misses == misses
    said = layer_goals.sentences([result])
    assert f"{0 if misses else 1} of 1 meet them" in said[0] and all(miss in said[1] for miss in misses)


def test_the_goals_compare_the_same_job(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch, the peer, is not installed")
    for ours, theirs in goals._calls(30).values():
        results, others = ours(), theirs()
        if torch.is_tensor(others):  # torch's functions give one gradient each; ours db, too
            others = (others,)
            results = (results,) if torch.is_tensor(results) else results[:1]
        for result, other in zip(results, others, strict=True):
            assert torch.allclose(result, other.detach(), rtol=1e-4, atol=1e-4)


def test_the_goals_need_torch(run, monkeypatch):
    monkeypatch.setattr(torch_calls, "import_torch", lambda: __import__("torch"))
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = run("bench", "--goals", *QUICK)
    assert code == 1 and not out and "pip install 'convbackprop[torch]'" in err and len(err.splitlines()) == 1


def test_bench_without_torch(run, monkeypatch):
    monkeypatch.setattr(torch_calls, "import_torch", lambda: __import__("torch"))
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = run("bench", "forward", "--problem", SMALL, *QUICK)
    assert code == 0 and "vs torch" not in out and out.count("pip install 'convbackprop[torch]'") == 1


@pytest.mark.parametrize("text", [c.text for c in curated.CURATED if c.data == "normal"])
@pytest.mark.parametrize("pass_name", PASSES)
def test_torch_does_the_same_job(pass_name, text):
    pytest.importorskip("torch", reason="torch, the peer, is not installed")
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "logistic", "dtype": "float64"})
    if problem.scale or problem.residual:
        assert (
            peers.PEERS["torch"].why_not(pass_name, problem, "cpu") == "its convolution takes no scale and no residual"
        )
        return
    given = inputs(pass_name, problem)
    expected = reference.answer(pass_name, problem, given)
    results = torch_calls.calls(pass_name, problem, given)["torch"]()
    assert len(results) == len(expected)
    for (name, (value, magnitude)), got in zip(expected.items(), results, strict=True):
        # g is rounded to float64 before torch gets it: one round-off more than the bound allows
        bound = reference.error_bound(name, problem, value, magnitude) + 2.0**-53 * magnitude
        assert (abs(got.numpy() - value) <= bound).all()


def test_bench_refuses_and_says_so(run, monkeypatch):
    first, refusal = VARIANTS[0], type(VARIANTS[0]).refusal
    sunday = lambda self, p, kind=None: "it is Sunday" if self is first else refusal(self, p, kind)  # noqa: E731
    monkeypatch.setattr(type(first), "refusal", sunday)
    code, out, _ = run("bench", "--problem", SMALL, "--against", "none", *QUICK)
    assert code == 0 and f"{first} refuses {SMALL}: it is Sunday" in out
    code, out, _ = run("bench", str(first), "--problem", SMALL, "--against", "none", *QUICK)
    assert code == 1  # nothing was timed


def test_alternate():
    seen = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    timings = timing.alternate(calls, lambda call: call() or len(seen), 0, least=3, most=7)
    assert seen == [*"abc", *"abc", *"bca", *"cab"]  # one untimed round; who begins changes
    assert timings["a"].seconds == (4, 9, 11)
    assert timings["a"].median == 9
    assert len(timing.alternate(calls, timing.host_clock, 60, least=3, most=7)["b"].seconds) == 7
    assert timing.Timing(tuple(range(101))).range == (20, 80)


@pytest.mark.parametrize("size", [1, 1000, 64 << 10, (64 << 10) + 1, 1_000_003])
def test_the_copy_that_timings_are_compared_with(size):
    source, target = (timing.aligned((size + 64,), np.dtype(np.uint8)) for _ in range(2))
    assert source.ctypes.data % 64 == 0
    source[:] = np.random.default_rng(0).integers(0, 256, size + 64)
    target[:] = 9
    cpu_device().copy(target.ctypes.data, source.ctypes.data, size)
    assert (target[:size] == source[:size]).all() and (target[size:] == 9).all()


#: What is on the GPU between two repetitions: flush, event, launches or a copy, event; then the wait and the time.
TIMED = re.compile(
    r"cuMemsetD8Async (?P<flushed>\d+)\ncuEventRecord\n(?P<what>(cuLaunchKernel \w+\n)+|cuMemcpyDtoDAsync \d+\n)"
    r"cuEventRecord\ncuEventSynchronize\ncuEventElapsedTime\n"
)


def test_bench_on_a_stand_in_for_a_gpu(run, stand_in, monkeypatch):
    """The host code of the cuda path: contexts, memory, events and the flush between repetitions.

    The stand-in passes for a GPU here, which it does for nobody else, and any two events are 2.5 ms apart: nothing is
    measured.
    """
    driver.pass_for_gpu(monkeypatch, stand_in, 2.5)
    monkeypatch.setattr("convbackprop.bench.roof._ROUNDS", {"cuda": 2})
    monkeypatch.setattr("convbackprop.bench.timing._LEAST_FLUSHED", 0)  # nothing but what the driver says of the cache
    stand_in.record()
    command = ("bench", "kernel_grad", "--problem", SMALL, "--against", "none", "--json", "--device", "cuda")
    code, out, err = run(*command, "--seconds", "0.01")
    found = json.loads(out)
    assert code == 0 and not err and found["device"] == "cuda:0"
    assert found["environment"]["machine"] == "stand-in (no GPU)"
    rows = [row for row in found["rows"] if not row["refused"]]
    assert all(row["median_ms"] == pytest.approx(2.5) and row["error"] <= 1 for row in rows)
    peak = {row["peak_gflop_per_s"] for row in rows}  # 2 operations, 8 chains, 16 steps, 2 rounds, 8 blocks of 256
    assert len(peak) == 1 and peak.pop() == pytest.approx(2 * 8 * 16 * 2 * 8 * 256 / 2.5e-3 * 1e-9)
    queued = "".join(f"{line}\n" for line in stand_in.recorded("cuLaunchKernel|cuMem.*Async|cuEvent(?!Create|Destroy)"))
    timed = list(TIMED.finditer(queued))
    assert {int(each["flushed"]) for each in timed} == {4 * stand_in.L2_BYTES}
    copies, ours = (sum(each["what"].startswith(name) for each in timed) for name in ("cuMemcpy", "cuLaunch"))
    assert copies > 5 and ours >= 6 * len(rows)
    left = TIMED.sub("", queued)  # the roof's launches, and those of the checks
    assert left.count("cuEventElapsedTime") == left.count("cuLaunchKernel fma_peak") == 12
    assert "cuMemsetD8Async" not in left and "cuMemcpyDtoDAsync" not in left
    assert stand_in.counts().allocations == 0 and not stand_in.has_context()


# -- photographs -----------------------------------------------------------------------------------------------------
@pytest.fixture
def photo(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pillow, of the extra data, is not installed: image files")
    rng = np.random.default_rng(3)
    values = (np.add.outer(np.arange(40), 2 * np.arange(56)) + rng.integers(0, 60, (40, 56))).astype(np.uint8)
    image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", values


def test_pictures(run, photo):
    from PIL import Image

    from convbackprop.bench.photograph import Photograph

    file, values = photo
    code, out, err = run(
        "bench", "forward", "--image", file, "--filter", 5, "--pictures", "pictures", "--against", "none", *QUICK
    )
    assert code == 0 and not err and "photo.png 5x5" in out
    pictures = {}
    for name in ("input", "s", "output", "dx"):
        assert f"{name}.png: " in out
        with Image.open(f"pictures/{name}.png") as picture:
            assert picture.size == (56, 40) and picture.mode == "L"
            pictures[name] = np.asarray(picture).astype(float)
    assert abs(pictures["input"] / pictures["input"].max() - values / values.max()).max() < 0.01

    problem = ConvProblem.parse("1,1,40,56,1,5,5,padding=same,activation=relu,bias=1")
    given = Case("", problem, Photograph("", values / 255)).arrays("forward", {})
    s = reference.correlate(problem, given["x"], given["w"]) + float(given["b"][0])
    y = np.maximum(s, 0)
    dx = reference.correlate_back(problem, y, given["w"])
    for name, expected in (("s", s), ("dx", dx)):  # 0 is mid-grey
        grey = 128 + 127 * expected[0, 0] / abs(expected).max()
        assert abs(pictures[name] - grey).max() <= 0.501
    assert abs(pictures["output"] - 255 * y[0, 0] / y.max()).max() <= 0.501
    numbers = [[float(word) for word in line.split()] for line in
               Path("pictures/kernel_grad.txt").read_text().splitlines() if line and line[0] != "#"]  # fmt: skip
    dw = reference.correlate_images(problem, given["x"], y)[0, 0]
    assert np.allclose(numbers[:5], dw, rtol=1e-5) and numbers[5][0] == pytest.approx(y.sum(), rel=1e-5)


def test_pictures_refuse_a_file(run, photo):
    Path("taken").touch()
    code, out, err = run("bench", "--image", photo[0], "--pictures", "taken")
    assert (code, out) == (2, "") and "--pictures is taken, which exists and is no directory" in err


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1", "I;16", "CMYK", "LA"])
def test_images_are_made_grey(tmp_path, mode):
    image = pytest.importorskip("PIL.Image", reason="pillow, of the extra data, is not installed: image files")
    from convbackprop.bench.photograph import read_image

    if mode == "I;16":
        picture = image.fromarray(np.full((3, 5), 65535 // 2, np.uint16))
    else:
        picture = image.new("RGB", (5, 3), (128, 128, 128)).convert(mode)
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(file)
    grey = read_image(str(file)).grey
    assert grey.shape == (3, 5) and grey.dtype == np.float64
    assert grey.min() >= 0 and grey.max() <= 1 and abs(grey.mean() - 0.5) < (0.2 if mode == "1" else 0.02)


def test_photographs_are_upright_and_on_white(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pillow, of the extra data, is not installed: image files")
    from convbackprop.bench.photograph import read_image

    black = image.new("RGB", (5, 3))
    black.putpixel((0, 0), (255, 255, 255))  # at the upper left, where the camera was turned
    exif = image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    black.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(str(tmp_path / "turned.png"))
    assert turned.name == "turned.png" and np.argwhere(turned.grey > 0.5).tolist() == [[0, 2]]
    assert turned.grey.shape == (5, 3)

    clear = image.new("RGBA", (2, 1))  # black that is wholly transparent, and half so
    clear.putpixel((1, 0), (0, 0, 0, 128))
    clear.save(tmp_path / "clear.png")
    white = read_image(str(tmp_path / "clear.png"))
    assert white.name == "clear.png (on white)" and white.grey.tolist() == [[1, pytest.approx(127 / 255)]]


def test_given_arrays_and_answers_are_used():
    """`check` with arrays and answers that the caller has finds what it finds without."""
    problem = ConvProblem.parse(SMALL, bias=True, activation="relu")
    variant = of_pass("input_grad")[0]
    given = inputs("input_grad", problem, own={"w": np.ones(problem.w_shape, np.float32)})
    assert (given["w"] == 1).all()
    expected = reference.answer("input_grad", problem, given)
    assert checking.check(variant, problem, cpu_device(), given=given, expected=expected).ok
    wrong = {"dx": (expected["dx"][0] + 1, expected["dx"][1])}
    assert not checking.check(variant, problem, cpu_device(), given=given, expected=wrong).ok


def test_what_keeps_a_gpu_from_use_is_told_by_doctor_alone(run, monkeypatch):
    monkeypatch.setattr("convbackprop.devices.why_not_cuda", lambda: "PyCUDA is missing")
    for command in (
        ("check", "forward/naive", "--problem", "1,1,9,9,1,3,3"),
        ("bench", "forward/naive", "--problem", "1,1,9,9,1,3,3", "--against", "none", "--seconds", "0.01"),
        ("list", "--problem", "1,1,9,9,1,3,3"),
        ("list",),
    ):
        code, out, err = run(*command)
        assert code == 0 and "PyCUDA" not in out + err and "'convbackprop doctor' says why" in out

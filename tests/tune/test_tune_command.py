"""The command `tune`: from a new machine to a file that a lab shares, and what it says to a mistake."""

from __future__ import annotations

import json
import sys

import pytest

from convbackprop.cli import tune as command
from convbackprop.devices import get_device
from convbackprop.problem import ConvProblem
from convbackprop.tune import table

ON = "1,1,20,24,1,3,3,padding=1"
FULL = f"{ON},activation=relu,bias=1"
NOW = ("--minutes", "0.0001", "--device", "cpu")


@pytest.fixture
def run(run, quick_commands):
    return run


@pytest.fixture
def title():
    return get_device("cpu").title


def test_from_nothing_to_a_shared_file(run, tuned, title, tmp_path):
    code, out, err = run("tune", "--show")
    assert (code, out) == (2, "") and err.startswith(f"convbackprop: error: nothing has been tuned on {title}; 'convb")
    code, out, err = run("tune", "--problem", ON, *NOW)
    path = table.file_of(title)
    assert code == 0 and f"kept in {path}" in out and "geometric mean" in out and not err
    assert [line.split()[:2] for line in out.splitlines() if FULL in line] == [
        [name, FULL] for name in ("forward", "input_grad", "kernel_grad", "backward")
    ]
    code, out, _ = run("tune", "--show", "--json")
    shown = json.loads(out)
    assert [entry["pass"] for entry in shown["entries"]] == ["forward", "input_grad", "kernel_grad", "backward"]
    assert shown["file"] == str(path) and all(entry["stale"] is None for entry in shown["entries"])
    whole = path.read_text()
    assert run("tune", "--export", "lab.json")[1] == f"4 choices for {title} written to lab.json\n"
    assert run("tune", "forward", "--forget")[1] == f"1 choice removed from {path}\n"
    assert len(table.read(path)[1]) == 3
    assert run("tune", "--import", "lab.json")[1] == f"4 choices for {title} added to {path}\n"
    assert path.read_text() == whole == (tmp_path / "lab.json").read_text()


def test_what_is_imported_may_be_of_another_machine(run, tuned, entry, tmp_path):
    entries = [entry("forward/coalesced", ON), entry("input_grad/naive", ON, version="0.0.1")]
    (tmp_path / "lab.json").write_text(table.text_of("NVIDIA H100", entries))
    code, out, _ = run("tune", "--import", "lab.json")
    first, second = out.splitlines()
    assert code == 0 and first == f"2 choices for NVIDIA H100 added to {tuned / 'NVIDIA-H100.json'}"
    assert second == "1 of them are ignored here: it is of version 0.0.1"


def test_list_says_which_and_why(run, tuned, entry, title):
    kept = [entry(name, FULL) for name in ("forward/naive", "backward/separate", "kernel_grad/untuned")]
    table.update(title, [*kept, entry("input_grad/vectorised", FULL, {"ROWS": 8})])
    code, out, _ = run("list", "--problem", ON, "--json")
    found = json.loads(out)
    auto = {c["pass"]: c for c in found["choices"] if c["auto"]}
    assert code == 0 and {name: c["variant"] for name, c in auto.items()} == {
        "forward": "naive", "input_grad": "vectorised", "kernel_grad": "vectorised",
    }  # fmt: skip
    sentence = f"tuned: naive; 1.50x the rule on {FULL} (this class), 2026-11-28"
    assert auto["forward"]["tuned"] == sentence
    assert "vectorised, ROWS 8" in auto["input_grad"]["tuned"] and "the rule's" in auto["kernel_grad"]["tuned"]
    assert found["conv2d_backward"] == ["input_grad/vectorised", "kernel_grad/vectorised"]
    why = {(c["pass"], c["variant"]): c["why_not"] for c in found["choices"]}
    assert why["forward", "vectorised"] == "naive was measured to be faster"
    assert why["backward", "vectorised"].startswith("tuned: input_grad, then kernel_grad; 1.50x the rule")
    _, out, _ = run("list", "forward", "--problem", ON.replace("20,24", "40,24"))
    assert "(the nearest, 1 octave off)" in " ".join(out.split())
    _, out, _ = run("list", "forward", "--problem", ON, "--device", "cpu")
    assert "tuned" not in out and "the rule chooses it" in out


@pytest.mark.parametrize(
    "arguments, sentence",
    {
        ("sideways",): "PASS is 'sideways'; it should be one of forward, input_grad, kernel_grad, backward",
        ("--suite", "nothing"): "--suite is 'nothing'; it should be one of lab,",
        ("--minutes", "0"): "--minutes is 0.0; it should be above 0",
        ("--minutes", "nan"): "--minutes is nan; it should be above 0",
        ("--dtype", "int8"): "--dtype is 'int8'; it should be one of",
        ("--problem", "1,1"): "problem is '1,1'; it should begin with seven integers",
        ("--model", "nothing.pt2"): "--model nothing.pt2 does not exist; it should be a file that torch.export.save",
        ("--model", "nothing"): "--model is 'nothing'; it should be FILE.pt2 or module:function",
        ("--model", "no_such_module:f"): "--model no_such_module:f: ModuleNotFoundError",
        ("--import", "nothing.json"): "nothing.json cannot be read: No such file or directory",
        ("--export", "lab.json"): "nothing has been tuned on",
        ("--forget",): "nothing has been tuned on",
    }.items(),
)
def test_mistakes(run, tuned, arguments, sentence):
    code, out, err = run("tune", "--device", "cpu", *arguments)
    assert (code, out) == (2, "") and err.startswith(f"convbackprop: error: {sentence}") and err.count("\n") == 1
    assert not tuned.exists()


def test_off(run):
    code, out, err = run("tune", "--problem", ON, *NOW)
    assert (code, out) == (2, "") and "CONVBACKPROP_TUNED is 'off'; unset it, or name a folder" in err


def test_goal_problems(cpu):
    """A class once, and only what a variant computes."""
    arguments = command.argparse.Namespace(target=None, model=None, problem=None, suite=None, dtype="float32",
                                           precision="ieee")  # fmt: skip
    jobs = command._jobs(arguments, cpu)
    assert len(jobs) == len({table.class_of(*job) for job in jobs}) and len({p.C for _, p in jobs}) == 3
    assert [name for name, problem in jobs if problem.C == 1] == ["forward", "input_grad", "kernel_grad", "backward"]


# -- models ----------------------------------------------------------------------------------------------------------
MODEL = """
import torch
import convbackprop.torch as cbt

def network():
    model = torch.nn.Sequential(
        cbt.nn.Conv2d(1, 2, 3, padding=1, activation="relu"), torch.nn.Conv2d(2, 4, 3, stride=2, bias=False),
        torch.nn.ConvTranspose2d(4, 2, 3, stride=2), torch.nn.Flatten(), torch.nn.LazyLinear(3),
    )
    return model, (torch.randn(5, 1, 12, 14),)

def frozen():
    model, inputs = network()
    model(*inputs)
    return model.requires_grad_(False), inputs

def none():
    return torch.nn.Linear(3, 2), (torch.randn(5, 3),)

def bare():
    return torch.nn.Conv2d(1, 2, 3)

def broken():
    return torch.nn.Conv2d(1, 2, 3), (torch.randn(5, 3),)
"""

FIRST = "5,1,12,14,2,3,3,padding=1,activation=relu,bias=1"
SECOND = "5,2,12,14,4,3,3,stride=2"
THIRD = "5,2,11,13,4,3,3,stride=2"  # the convolution that the transposed one is the input gradient of


@pytest.fixture
def model(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs torch, which is not installed: models")
    (tmp_path / "networks.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "networks", raising=False)


def jobs_of(text):
    from convbackprop.tune.model import jobs_of_model

    return [(name, str(problem)) for name, problem in jobs_of_model(text)]


FORWARD = [("forward", FIRST), ("forward", SECOND), ("input_grad", f"{THIRD},bias=1,transposed=1")]


@pytest.mark.usefixtures("model", "quick_commands")
def test_layers_of_a_model():
    found = jobs_of("networks:network")
    assert found[:3] == FORWARD
    assert sorted(found[3:]) == sorted([
        ("forward", THIRD), ("kernel_grad", THIRD),
        ("input_grad", SECOND), ("kernel_grad", SECOND), ("backward", SECOND),
        ("kernel_grad", f"{FIRST}"),
    ])  # fmt: skip
    assert jobs_of("networks:frozen") == FORWARD


@pytest.mark.usefixtures("model", "quick_commands")
def test_layers_of_an_exported_program():
    import torch
    from networks import network

    made, inputs = network()
    made(*inputs)
    torch.export.save(torch.export.export(made, inputs), "network.pt2")
    assert jobs_of("network.pt2")[:3] == FORWARD


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "function, sentence",
    {
        "none": "--model networks:none has no two-dimensional convolution",
        "bare": "--model networks:bare returns a Conv2d; it should return (model, inputs), the inputs a tuple",
        "broken": "--model networks:broken: running it fails: RuntimeError: ",
        "missing": "--model networks:missing: AttributeError: ",
    }.items(),
)
def test_models_that_are_none(run, tuned, function, sentence):
    code, out, err = run("tune", "--model", f"networks:{function}", "--device", "cpu")
    assert (code, out) == (2, "") and err.startswith(f"convbackprop: error: {sentence}")


@pytest.mark.usefixtures("model")
def test_a_model_is_tuned(run, tuned, title):
    code, out, _ = run("tune", "forward", "--model", "networks:network", *NOW, "--json")
    assert code == 0 and [entry["problem"] for entry in json.loads(out)["entries"]] == [FIRST, SECOND]
    assert table.class_of("forward", ConvProblem.parse(SECOND)) == table.class_of("forward", ConvProblem.parse(THIRD))

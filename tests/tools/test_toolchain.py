"""tools/toolchain.py: what is missing is installed, and nothing else; pip takes no part."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from convbackprop.errors import CompilerNotFound, EnvironmentProblem
from tools import toolchain


class Machine:
    """What is on a machine, and what pip was asked to bring; it succeeds where there is a network."""

    def __init__(self, *programs, network=True):
        self.programs, self.network, self.fetched = set(programs), network, []

    def finder(self, program, error):
        def find():
            if program not in self.programs:
                raise error(f"{program} was not found")
            return Path("/bin") / program

        return find

    def pip(self, command, **options):
        wheels = [word.partition("=")[0].partition(">")[0] for word in command if word.startswith("nvidia-")]
        assert not any(word.startswith("convbackprop") for word in command)  # it is here, and perhaps nowhere else
        self.fetched += wheels
        for program in ("nvcc", "cuobjdump"):
            if self.network and f"nvidia-cuda-{program}" in wheels:
                self.programs.add(program)
        return subprocess.CompletedProcess(command, 0 if self.network else 1)


@pytest.fixture
def on(monkeypatch, tmp_path):
    def on(machine, *arguments):
        monkeypatch.setattr(toolchain, "find_nvcc", machine.finder("nvcc", CompilerNotFound))
        monkeypatch.setattr(toolchain, "find_cuobjdump", machine.finder("cuobjdump", EnvironmentProblem))
        monkeypatch.setattr(toolchain, "fault", lambda nvcc, *architectures: None)
        monkeypatch.setattr(toolchain.subprocess, "run", machine.pip)
        monkeypatch.setattr(toolchain, "STAMP", tmp_path / "stamp")
        monkeypatch.setattr(toolchain.sys, "argv", ["toolchain.py", *arguments])
        return toolchain.main()

    return on


def test_what_is_missing_is_installed(on, capsys):
    bare = Machine()
    assert on(bare) == 0 and bare.programs == {"nvcc", "cuobjdump"}
    assert {"nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"} <= set(bare.fetched)
    assert "/bin/nvcc works; /bin/cuobjdump." in capsys.readouterr().out
    compiler_only = Machine("nvcc")
    assert on(compiler_only) == 0
    assert compiler_only.fetched == ["nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"]
    toolkit = Machine("nvcc", "cuobjdump")
    assert on(toolkit) == 0 and toolkit.fetched == []
    reported = Machine("nvcc")
    assert on(reported, "--report") == 0 and reported.fetched == []
    assert on(Machine(), "--report") == 1


def test_the_extra_brings_cuobjdump_as_well():
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml, which Python can from 3.11 on")
    extras = tomllib.loads((toolchain.CONSTRAINTS.parent / "pyproject.toml").read_text())["project"]
    assert "convbackprop[sass]" in extras["optional-dependencies"]["toolchain"]


def test_without_a_network_it_is_tried_once(on, capsys):
    machine = Machine("nvcc", network=False)
    assert on(machine, "--optional") == 0 and len(machine.fetched) == 2
    assert "no cuobjdump" in capsys.readouterr().out
    assert on(machine, "--optional") == 0 and len(machine.fetched) == 2
    machine.programs.add("cuobjdump")  # of another place: the stamp is no longer true
    assert on(machine, "--optional") == 0 and len(machine.fetched) == 2
    assert on(Machine(network=False)) == 1

"""A kernel that never ends, in each command that launches one: it is told, it can be ended, and nothing is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from convbackprop.cli import shield
from convbackprop.cli.shield import Shielded
from convbackprop.devices.cpu import cpu_device
from tests.support.children import PATIENCE
from tests.support.quick import QUICK_ENVIRONMENT

ENDLESS = """\
//@ pass forward
//@ launch endless(x, w, b, y) grid=[1] block=[32]
#include "conv2d.cuh"
extern "C" __global__ void endless(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    volatile int go = 1;
    while (go) {}
    y[threadIdx.x] = 0;
}
"""
PROBLEM = ("--problem", "1,1,4,4,1,1,1")
CHECK = ("check", "mine.cu", *PROBLEM, "--dtype", "float32", "--device", "cpu")
COMMANDS = [
    CHECK,
    ("sanitize", "mine.cu", *PROBLEM),
    ("bench", "mine.cu", *PROBLEM, "--against", "none", "--device", "cpu"),
    ("profile", "mine.cu", *PROBLEM),
    ("fuzz", "mine.cu", "--seed", "0", "--device", "cpu"),
    ("run", "mine.cu", *PROBLEM, "--device", "cpu"),
]

#: Of each process: that a launch takes long is told at once; the rest is a test's own.
PROGRAM = "import sys; from convbackprop.cli import main, shield; shield.LONG = 0.1; {}; sys.exit(main(sys.argv[1:]))"


@contextlib.contextmanager
def endless(command, folder, setting="pass"):
    """Run a command as a terminal does, in a process group of its own; give it when its launch has taken long."""
    (folder / "mine.cu").write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(setting), *command], cwd=folder, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, **QUICK_ENVIRONMENT, "PYTHONPATH": str(Path(shield.__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        line = process.stderr.readline()
        assert (
            "a launch of endless has been running for 0.1 s; Ctrl-C stops it within 3 s, a second one at once" in line
        )
        assert (
            "forward" in line and "--problem" in line
            if command[0] == "fuzz"
            else "forward/mine.cu on 1,1,4,4,1,1,1" in line
        )
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def members(group):
    """Return the processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_ctrl_c_ends_a_kernel_that_never_does(tmp_path, command):
    with endless(command, tmp_path, setting="shield.GRACE = 0.1") as process:
        os.killpg(process.pid, signal.SIGINT)
        err = process.communicate(timeout=PATIENCE)[1]  # until nobody is left who could write
        assert process.returncode == 130 and "did not stop by itself and was ended" in err and "Traceback" not in err


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    with endless(CHECK, tmp_path, setting="shield.GRACE = 1e6") as process:
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:  # signals that come together count as one
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.01)
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_the_child_ends_with_its_parent(tmp_path, number):
    with endless(CHECK, tmp_path) as process:
        assert len(members(process.pid)) == 2
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)  # until nobody is left who could write


def test_a_child_whose_parent_is_gone_already_does_nothing():
    """The parent may end between the fork and the child's asking to end with it."""
    program = (
        "import os\nfrom convbackprop.cli import shield\nparent = os.getpid()\nif os.fork() == 0:\n"
        "    while os.getppid() == parent: pass\n    shield._end_with(parent)\n    print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_stops_by_itself_says_how(tmp_path):
    """One Ctrl-C, to a child that Python can stop: its own exit code, and no word of being ended."""
    program = (
        "import os, signal, sys, time\nfrom convbackprop.cli.shield import Shielded\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever it was where the tests were started\n"
        "def command():\n    os.killpg(0, signal.SIGINT)\n    time.sleep(60)\n"
        "sys.exit(Shielded().run(command))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
                          start_new_session=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


def test_a_terminal_gets_its_cursor_back():
    """Which a progress bar has hidden, at a line's end."""
    program = (
        "import os, signal, sys\nfrom convbackprop.cli.shield import Shielded\nsys.stderr.isatty = lambda: True\n"
        "Shielded().run(lambda: os.kill(os.getpid(), signal.SIGSEGV))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.startswith("\n\x1b[?25hconvbackprop: error: the kernel ended in a crash")


def test_ctrl_c_means_afterwards_what_it_meant_before():
    before = signal.getsignal(signal.SIGINT)
    child = os.fork()
    if child == 0:
        os._exit(7)
    status, was_ended = shield._wait(child)
    assert (os.waitstatus_to_exitcode(status), was_ended) == (7, False)
    assert signal.getsignal(signal.SIGINT) is before


def test_many_short_launches_are_no_long_one(capfd, monkeypatch):
    """Each launch is another, also where the same kernel runs on the same arrays."""
    monkeypatch.setattr(shield, "LONG", 0.2)
    note = Shielded()
    data = bytearray(8 << 20)
    at = ctypes.addressof(ctypes.c_char.from_buffer(data))
    end = time.monotonic() + 1
    with note._watched("Ctrl-C stops it"):
        while time.monotonic() < end:
            cpu_device().copy(at, at + (4 << 20), 4 << 20)
    assert "has been running" not in capfd.readouterr().err


def test_without_a_child_it_is_told_that_the_process_must_end(capfd, monkeypatch):
    """As in a notebook: beside other threads, or torch, the command runs in the process that called it."""
    monkeypatch.setattr(shield, "LONG", 0.1)
    monkeypatch.setattr(shield, "_WAITS", {(__name__, "launch")})

    def launch():
        time.sleep(0.6)
        return os.getpid() % 251

    ended = threading.Event()
    threading.Thread(target=ended.wait, daemon=True).start()
    try:
        assert Shielded().run(launch) == os.getpid() % 251
    finally:
        ended.set()
    err = capfd.readouterr().err
    assert err.count("has been running for 0.1 s") == 1 and f"'kill -KILL {os.getpid()}' with this process" in err


def test_a_reader_who_has_seen_enough_gets_no_traceback():
    """rich ends the process with SystemExit where `head` has closed the pipe."""
    program = "import sys\nfrom convbackprop.cli.shield import Shielded\nprint(Shielded().run(lambda: sys.exit(1)))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")

"""What a confined command cannot do: hostile ones try."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from convbackprop.errors import EnvironmentProblem
from convbackprop.lab import confinement, restrictions, supervisor
from convbackprop.lab.confinement import Limits, run_confined
from tests.support.children import PATIENCE

pytestmark = pytest.mark.skipif(restrictions.why_not() is not None, reason=f"{restrictions.why_not()}")

#: By the clock nothing ends here, but for the test that says so.
LIMITS = Limits(cpu_seconds=60, seconds=PATIENCE, memory=1 << 30, files=64 << 20, processes=40)


@pytest.fixture
def folder():
    with confinement.workshop() as work:
        made = work / "folder"
        made.mkdir()
        yield made


def python(code, folder, **options):
    options.setdefault("limits", LIMITS)
    return run_confined([sys.executable, "-c", code], folder, **options)


def shell(code, folder, **options):
    options.setdefault("limits", LIMITS)
    return run_confined(["/bin/sh", "-c", code], folder, **options)


def test_an_honest_command(folder):
    code = "import os, sys; open('mine', 'w').write(os.environ['HOME']); print('said'); sys.exit(7)"
    outcome = python(code, folder)
    assert (outcome.code, outcome.stopped, outcome.output, outcome.errors) == (7, None, b"said\n", b"")
    assert (folder / "mine").read_text() == str(folder)
    assert 0 < outcome.cpu_seconds < 60


def test_the_protections_are_tried():
    assert confinement.what_is_missing() == []


def test_before_signals_could_be_scoped(folder):
    """Landlock of Linux 6.2: a confined command can then signal nobody, itself included."""
    assert confinement.what_is_missing(landlock=3) == []
    signals = "import os\ntry: os.kill(os.getpid(), 9)\nexcept PermissionError: print('no')"
    assert python(signals, folder, landlock=3).output == b"no\n"
    assert python(signals, folder).code == -signal.SIGKILL
    for owner, code in (("os.getppid()", 1), ("0", 1)):
        text = f"import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, {owner})"
        assert python(text, folder, landlock=3).code == code


def test_as_another_user():
    """Root's command becomes nobody; here the one that confines is no root either."""
    if os.geteuid():
        pytest.skip("needs root, to become another user; without root all other tests here show the same")
    code = "from convbackprop.lab import confinement, restrictions; restrictions.become(54321)\n"
    code += "print(confinement.what_is_missing())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_missing_protection_is_named(monkeypatch):
    """Each is tried without any confinement, and so each is found missing."""
    unconfined = run_confined
    monkeypatch.setattr(confinement, "run_confined", lambda *a, **k: unconfined(*a, **k, confined=False))
    missing = confinement.what_is_missing()
    for what in ("write outside its folder", "read a file outside", "open a connection", "signal other processes"):
        assert any(what in sentence for sentence in missing), what
    assert "a file outside the folder was changed" in missing
    monkeypatch.setattr(restrictions, "landlock_version", lambda: 1)
    (sentence,) = confinement.what_is_missing()
    assert "Linux has from 6.2 on" in sentence


def test_a_folder_that_all_can_read(folder):
    (sentence,) = confinement.what_is_missing(Path(sys.prefix, "hand_ins"))
    assert sentence.startswith("a hand-in could read the others: ")
    assert confinement.what_is_missing(folder) == []


def test_what_cannot_be_started(folder):
    with pytest.raises(EnvironmentProblem, match="a process cannot be confined: FileNotFoundError"):
        run_confined(["/nowhere/to/be/found"], folder)


# -- limits ----------------------------------------------------------------------------------------------------------
ENDLESS = {
    "computes": ("while True: pass", {"cpu_seconds": 1}, "did not end within 1 s of CPU time"),
    "sleeps": ("time.sleep(1e6)", {"seconds": 1}, "did not end within 1 s"),
    "prints": ("while True: print('x' * 1000)", {}, "printed more than 1,048,576 bytes"),
    "complains": ("while True: sys.stderr.write('x' * (1 << 20))", {}, "printed more than 1,048,576 bytes"),
    "forks": ("for _ in range(60): os.fork() or time.sleep(1e6)\ntime.sleep(1e6)", {}, "more than 40 processes"),
    "fork bomb": (
        "while True:\n    try: os.fork()\n    except OSError: pass",
        {"cpu_seconds": 5},
        "started more than 40 processes|did not end within 5 s of CPU time",
    ),
    "memory": (
        "b = bytearray(600 << 20)\nos.fork()\nb[::4096] = bytes(len(b[::4096]))\ntime.sleep(1e6)",
        {},
        "took more than 1,024 MiB of memory",
    ),
    "files": (
        "for i in range(5): open(str(i), 'w').write('x' * (20 << 20))\ntime.sleep(1e6)",
        {},
        "wrote more than 64 MiB of files",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_stopped(name, folder):
    code, limits, stopped = ENDLESS[name]
    outcome = python(f"import os, sys, time\n{code}", folder, limits=replace(LIMITS, **limits))
    assert outcome.code is None
    assert re.search(stopped, outcome.stopped)
    assert len(outcome.output) <= LIMITS.output
    assert len(outcome.errors) <= 1 << 16
    assert not left_in(folder)


def left_in(folder):
    """Return the processes that run in a folder."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(folder)):
                found.append(pid)
    return found


@pytest.mark.parametrize(
    "code, found",
    [
        ("bytearray(2 << 30)", b"MemoryError"),
        ("open('large', 'wb').write(bytes(40 << 20))", b"File too large"),
        ("import ctypes; ctypes.string_at(0)", b""),
    ],
    ids=["memory", "file", "null pointer"],
)
def test_ends_by_itself(code, found, folder):
    outcome = python(code, folder)
    assert outcome.stopped is None
    assert outcome.code == (1 if found else -signal.SIGSEGV)
    assert found in outcome.errors


def test_threads_are_bounded_between_two_looks(folder):
    printed = python("import resource; print(*resource.getrlimit(resource.RLIMIT_NPROC))", folder).output.split()
    others = sum(process.threads for process in supervisor._processes())
    assert {8 * LIMITS.processes <= int(limit) <= 8 * LIMITS.processes + 2 * others for limit in printed} == {True}


def test_a_daemon_is_ended_too(folder):
    code = "import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork(): open('up', 'w'); time.sleep(1e6)\n"
    code += "while not os.path.exists('up'): pass"
    assert python(code, folder).code == 0
    assert not left_in(folder)


def test_nothing_is_left(folder):
    """Of folders that nobody may enter, or that are too deep for a path."""
    with confinement.workshop() as work:
        made = work / "made"
        made.mkdir()
        code = "import os\nos.makedirs('shut/in')\nos.mkdir('shut/out', 0)\nos.umask(0o777)\nos.mkdir('x')\n"
        code += "os.umask(0)\nfor _ in range(1200): os.mkdir('deeper'); os.chdir('deeper')"
        assert python(code, made).code == 0
    assert not work.exists()


def test_endless_compilation(folder):
    """Each template asks for two more."""
    text = "template <int N> struct T { static int f() { return T<2 * N>::f() + T<2 * N + 1>::f(); } };"
    (folder / "endless.cpp").write_text(text + " int main() { return T<1>::f(); }")
    compile_it = "exec g++ -ftemplate-depth=1000000 -c endless.cpp"
    outcome = shell(compile_it, folder, limits=replace(LIMITS, cpu_seconds=1))
    assert outcome.stopped == "did not end within 1 s of CPU time" or outcome.code not in (0, None)


def test_its_owner_lets_go(folder):
    """As after Ctrl-C, or when the process that grades is killed."""
    code = "import time; open('up', 'w'); time.sleep(1e6)"
    owner = "import sys; from pathlib import Path; from convbackprop.lab.confinement import run_confined\n"
    owner += f"run_confined([sys.executable, '-c', {code!r}], Path({str(folder)!r}))"
    process = subprocess.Popen([sys.executable, "-c", owner])
    while not (folder / "up").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    while left_in(folder):
        time.sleep(0.01)


# -- what is out of reach --------------------------------------------------------------------------------------------
def test_the_network(folder):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
        assert b"PermissionError" in python(code, folder).errors
        assert python(code, folder, confined=False).code == 0, "the same is possible without confinement"


REFUSED = (
    "open('../secret').read()",
    "os.symlink('../secret', 'link'); open('link').read()",
    "os.link('../secret', 'another_link')",
    "os.rename('../secret', 'mine')",
    "os.truncate('../secret', 0)",
    "os.open('../secret', os.O_RDONLY | os.O_TRUNC)",
    "os.unlink('../secret')",
    "os.mkdir('../made')",
    "os.mkfifo('../made')",
    "os.kill(os.getppid(), 15)",
    "os.setpriority(os.PRIO_USER, os.getuid(), 19)",
    "os.sched_setaffinity(os.getppid(), {0})",
    "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))",
    "open('/proc/%d/environ' % os.getppid()).read()",
    "open('/proc/self/oom_score_adj', 'w').write('0')",
    "os.setxattr('../secret', 'user.x', b'y')",
    "open('/dev/shm/made', 'w')",
    "open('/dev/tty')",
    "os.memfd_create('hidden')",
    "socket.socketpair()",
)


def test_refused(folder):
    secret = folder.with_name("secret")
    secret.write_text("of another")
    secret.chmod(0o666)
    folder.parent.chmod(0o777)
    before = sorted(folder.parent.iterdir())
    tries = "import os, resource, socket\n" + "".join(
        f"try:\n    {code}\n    print({code!r})\nexcept OSError: pass\n" for code in REFUSED
    )
    outcome = python(tries, folder)
    assert (outcome.code, outcome.output.decode()) == (0, ""), "what is printed was allowed"
    assert sorted(folder.parent.iterdir()) == before
    assert secret.read_text() == "of another"


def test_is_left_undone(folder):
    """Linkers and `shutil` set modes and times, of their own files; they get no error."""
    those = folder.parent, folder.with_name("secret")
    those[1].touch()
    before = [os.stat(path)[:9] for path in those]
    code = "import os; os.chmod('../secret', 0); os.utime('../secret', (0, 0))\n"
    code += "os.fchmod(os.open('../secret', os.O_RDONLY), 0)"
    assert python(code, folder, also_readable=[folder.parent]).code == 0
    assert [os.stat(path)[:9] for path in those] == before


@pytest.mark.parametrize("landlock, calls", [(None, "_CALLS"), (restrictions.LEAST_LANDLOCK, "_SIGNALS")])
def test_every_call_that_is_refused(landlock, calls, folder):
    """Each is made with arguments that Linux itself would take for other errors, or that ask for what is refused."""
    code = f"""
import ctypes, platform
from convbackprop.lab.restrictions import {calls} as calls
libc = ctypes.CDLL(None, use_errno=True)
for name, call in calls.items():
    number = getattr(call, platform.machine())
    arguments = [ctypes.c_long(-1), ctypes.c_long(8 if name == "fcntl" else -1), *[ctypes.c_long(-1)] * 4]
    ctypes.set_errno(0)
    if number is not None:
        libc.syscall(ctypes.c_long(number), *arguments)
        assert ctypes.get_errno() == call.error, (name, ctypes.get_errno())
"""
    outcome = python(code, folder, landlock=landlock)
    assert (outcome.code, outcome.errors.decode()) == (0, "")


def test_signals_to_everybody_reach_nobody(folder):
    python("import os; os.kill(-1, 15)", folder)  # Linux tells of no error; else this process would have ended


def test_includes_of_another_file(folder):
    folder.with_name("other.cu").write_text("int other;\n")
    (folder / "mine.cpp").write_text('#include "../other.cu"\n')
    outcome = shell("g++ -c mine.cpp", folder)
    assert outcome.code == 1
    assert b"Permission denied" in outcome.errors
    assert run_confined(["/bin/sh", "-c", "g++ -c mine.cpp"], folder, also_readable=[folder.parent]).code == 0


def test_what_is_shared_can_be_read_only(folder):
    shared = folder.with_name("shared")
    shared.mkdir()
    (shared / "file").write_text("kept")
    (folder / "link").symlink_to(shared / "file")
    code = "print(open('link').read())\ntry: open('link', 'w')\nexcept OSError: print('no')"
    assert python(code, folder, also_readable=[shared]).output == b"kept\nno\n"


def test_its_group_is_its_own(folder):
    assert python("import os; os.kill(0, 15)", folder, confined=False).code == -signal.SIGTERM


def test_the_environment_is_bare(folder, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "1")
    seen = json.loads(python("import json, os; print(json.dumps(dict(os.environ)))", folder).output)
    assert "SECRET_TOKEN" not in seen
    assert {seen["HOME"], seen["TMPDIR"]} == {str(folder)}

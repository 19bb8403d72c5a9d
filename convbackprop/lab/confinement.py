"""One command in a process of its own that can harm nothing but itself: how the code of strangers is run.

What is enforced, by Linux itself and for any user, root included, without a container:

- Files. It can write, and make or remove files, in one folder only, and read there and in what it is given to read:
  neither the files of other hand-ins nor one's own. Modes, owners, times and attributes of files it can set nowhere;
  that is left undone without an error. It can learn the names and sizes of other files, and which processes run.
  (Landlock and seccomp.)
- Network. It has no sockets at all, Unix sockets included. (seccomp)
- Other processes. It can neither signal them, nor read or trace them, nor change their priority; it is given no keys
  and no System V memory, and sudo and its like give it no powers. (Landlock; before Linux 6.12 it cannot send any
  signal, not even to itself.) A command of root's becomes the user nobody, with the one power to read what it may.
- Time. It is ended with all that it has started, daemons included, when they have taken so many seconds of CPU time
  together, or so many by the clock.
- Memory. Each process has so much address space at most, and all together so much memory (looked at 10 times a second).
- Processes. All together so many (looked at 10 times a second), and whatever happens between two looks, Linux refuses
  the thread that is the eighth of that many times too many.
- Output. What is printed beyond a limit ends the command and is not kept. A file has half of the folder's limit at
  most, and all files together so much (looked at 10 times a second; one that is hidden does not count: removed and
  still open, or in a folder that cannot be listed).

Not enforced: how much of the CPU's cores, caches and disk it keeps busy meanwhile; and a defect of the Linux kernel
would let it out. Nothing of this holds on a GPU's memory: a confined command has no GPU.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import convbackprop
from convbackprop.errors import EnvironmentProblem
from convbackprop.lab import restrictions
from convbackprop.sources import source_root


@dataclass(frozen=True)
class Limits:
    """What a confined command may take, all its processes together.

    Attributes
    ----------
    cpu_seconds, seconds : int
        Of CPU time, and by the clock.
    memory : int
        Bytes: the address space of each process, and the resident memory of all.
    output : int
        Bytes on standard output and standard error.
    processes : int
        At a time.
    files : int
        Bytes in its folder.
    """

    cpu_seconds: int = 300
    seconds: int = 900
    memory: int = 4 << 30
    output: int = 1 << 20
    processes: int = 64 + 8 * (os.cpu_count() or 1)
    files: int = 1 << 30


class Outcome(NamedTuple):
    """How a confined command ended.

    Attributes
    ----------
    code : int or None
        Its exit code, less than 0 for a signal; None where it was stopped.
    stopped : str or None
        Which limit it passed: "did not end within 300 s of CPU time".
    output, errors : bytes
        What it printed on standard output, and the end of what it printed on standard error.
    cpu_seconds, seconds : float
        What it took.
    """

    code: int | None
    stopped: str | None
    output: bytes
    errors: bytes
    cpu_seconds: float
    seconds: float


#: What Python, the C++ compiler and the package read; of /etc what the dynamic linker needs, and no more.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/opt", "/etc/ld.so.cache", "/etc/localtime", "/etc/os-release",
           "/proc", "/sys/devices/system", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")  # fmt: skip


def readable() -> tuple[Path, ...]:
    """Return what this Python and this package need to read: no home directory, and nobody's hand-in."""
    package = Path(convbackprop.__file__).parent
    sites = [*site.getsitepackages(), site.getusersitepackages()]
    places: list[str | Path] = [*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, *sites, package, source_root()]
    for name in ("CONVBACKPROP_CXX", "CONVBACKPROP_NVCC"):
        if found := os.environ.get(name):
            places.append(Path(found).resolve().parent.parent)
    return tuple(dict.fromkeys(Path(place).resolve() for place in places))


def _home() -> Path:
    """Return the folder in which this package is found; Python lists it, and reads nothing else there."""
    return Path(convbackprop.__file__).parent.parent


#: What a confined command keeps of its owner's environment.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "CPATH", "CONVBACKPROP_CXX", "CONVBACKPROP_CXXFLAGS", "CONVBACKPROP_CPU_LEVEL",
         "CONVBACKPROP_NUM_THREADS", "CONVBACKPROP_NVCC", "CUDA_HOME", "CUDA_PATH")  # fmt: skip


def bare_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which all that is written goes to a folder, and the package is found."""
    return {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(_home()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",  # on many cores its threads alone would take the address space
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_confined(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    *,
    also_readable: Iterable[Path] = (),
    confined: bool = True,
    lifeline: int | None = None,
    landlock: int | None = None,
) -> Outcome:
    """Run a command in a folder, the only one that it can write to.

    Parameters
    ----------
    command : sequence of str
        Its first word is the path of a program.
    folder : Path
        It is given to the command: as root, to the user nobody.
    environment : mapping, optional
        All of it; default: `bare_environment`.
    limits : Limits, optional
        What it may take.
    also_readable : iterable of Path
        What it may read besides `readable`.
    confined : bool
        False leaves the limits and nothing else.
    lifeline : int, optional
        A pipe to read from; when it is closed at its other end, the command is stopped. It is closed when the process
        that holds that end dies, in any case.
    landlock : int, optional
        Do with an older version of Landlock than the kernel has.

    Raises
    ------
    EnvironmentProblem
        It cannot be confined; nothing has been run.
    """
    spec = {
        "command": [str(word) for word in command], "folder": str(folder), "limits": asdict(limits or Limits()),
        "environment": dict(environment if environment is not None else bare_environment(folder)),
        "readable": [str(path) for path in (*readable(), *also_readable)], "confined": confined, "landlock": landlock,
        "listable": [str(_home())],
    }  # fmt: skip
    watched, held = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.supervisor", json.dumps(spec)],
        stdin=watched if lifeline is None else lifeline,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(_home())},
        start_new_session=True,  # Ctrl-C is for its owner, who then lets go of the pipe
    )
    os.close(watched)
    try:
        printed, errors = process.communicate()
    finally:
        os.close(held)
        process.wait()
    if process.returncode:
        raise EnvironmentProblem(f"a process cannot be watched: {errors.decode(errors='replace').strip()}")
    told = json.loads(printed)
    if told["trouble"]:
        raise EnvironmentProblem(f"a process cannot be confined: {told['trouble']}")
    output, errors = base64.b64decode(told["output"]), base64.b64decode(told["errors"])
    return Outcome(told["code"], told["stopped"], output, errors, told["cpu_seconds"], told["seconds"])


@contextlib.contextmanager
def workshop(inside: Path | None = None) -> Iterator[Path]:
    """Make a place for the folders of confined commands, which other users may pass but not look into.

    It is removed with all that is in it: folders that nobody may enter, and such as lie deeper than Python can follow.
    """
    name = tempfile.mkdtemp(prefix="convbackprop-", dir=inside)
    try:
        os.chmod(name, 0o711)
        yield Path(name)
    finally:
        for remove in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*remove, "--", name], stdin=subprocess.DEVNULL, capture_output=True)


# -- tried before it is relied on ------------------------------------------------------------------------------------
def _attempts(outside: Path) -> dict[str, str]:
    """Return what a confined command should not be able to do, as Python, each by its sentence."""
    file = str(outside / "file")
    return {
        "write outside its folder": f"open({file!r}, 'a')",
        "empty a file outside its folder": f"os.truncate({file!r}, 0)",
        "remove a file outside its folder": f"os.unlink({file!r})",
        "make a folder outside its own": f"os.mkdir({file!r} + '-made')",
        "change the mode of a file outside its folder": (
            f"os.chmod({file!r}, 0o777); assert os.stat({file!r}).st_mode & 2"
        ),
        "write through a symbolic link in its folder": f"os.symlink({file!r}, 'link'); open('link', 'a')",
        "read a file outside its folder": f"open({file!r}).read()",
        "open a connection": "socket.socket()",
        "open a connection to a process of this machine": "socket.socket(socket.AF_UNIX)",
        "signal other processes": "os.kill(os.getppid(), 0)",
        "take all memory": f"mmap.mmap(-1, {Limits().memory})",
        "start any number of processes": "assert resource.getrlimit(resource.RLIMIT_NPROC)[1] < 0 or not os.geteuid()",
    }  # fmt: skip


_TRY = """\
import json, mmap, os, resource, socket, sys
if not os.access('.', os.W_OK):
    sys.exit(f"{os.getcwd()} cannot be entered by user {os.getuid()}; name another place in TMPDIR")
done = []
for what, code in json.loads(sys.argv[1]).items():
    try:
        exec(code)
        done.append(what)
    except (OSError, AssertionError):
        pass
print(json.dumps(done))
"""


def what_is_missing(secret: Path | None = None, landlock: int | None = None) -> list[str]:
    """Try whether a command is confined on this machine; return a sentence for each protection that is missing.

    `secret` is a folder that it should not be able to read.
    """
    if reason := restrictions.why_not():
        return [reason]
    if secret and (places := [str(place) for place in readable() if secret.resolve().is_relative_to(place)]):
        return [f"a hand-in could read the others: {secret} lies in {places[0]}, which all of them need to read"]
    with workshop() as work:
        inside, outside = work / "inside", work / "outside"
        inside.mkdir()
        outside.mkdir(mode=0o777)
        (outside / "file").write_text("kept\n")
        command = [sys.executable, "-c", _TRY, json.dumps(_attempts(outside))]
        try:
            outcome = run_confined(command, inside, landlock=landlock)
        except EnvironmentProblem as error:
            return [str(error)]
        if outcome.code != 0:
            return [f"a confined Python cannot run: {outcome.errors.decode(errors='replace').strip()[-500:]}"]
        found = [f"a hand-in could {what}" for what in json.loads(outcome.output)]
        if (outside / "file").read_text() != "kept\n":
            found.append("a file outside the folder was changed")
        return found

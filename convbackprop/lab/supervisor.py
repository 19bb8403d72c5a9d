"""The process that watches over one confined command: `python -m convbackprop.lab.supervisor SPEC`, in JSON.

It is the nearest ancestor that the command's processes fall to when their parents end, so that none gets away from it,
whatever it forks; it adds up what all of them take, and ends them all. Its standard input is a pipe from the one who
started it: when that is closed, or its owner dies, the command is ended too. It prints an outcome as JSON.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from convbackprop.lab import restrictions

#: How often it looks (seconds).
_EVERY = 0.1

#: Of what it keeps of the command's standard error: the end.
_KEPT_ERRORS = 16 << 10

#: The user that a command of root's becomes: nobody, on every Linux.
_NOBODY = 65534

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TICK, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


# -- who is there ----------------------------------------------------------------------------------------------------
class _Process(NamedTuple):
    pid: int
    state: str
    parent: int
    seconds: float
    threads: int
    memory: int


def _processes() -> Iterator[_Process]:
    """Yield every process of the machine."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                seconds = sum(map(int, fields[11:15])) / _TICK  # its own, and of children that it has waited for
                pages = int(fields[21])
                yield _Process(int(name), fields[0].decode(), int(fields[1]), seconds, int(fields[17]), pages * _PAGE)


def _descendants() -> list[_Process]:
    """Return the living processes that come from this one."""
    children: dict[int, list[_Process]] = {}
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
    found, left = [], [os.getpid()]
    while left:
        those = children.get(left.pop(), [])
        found += [process for process in those if process.state not in "ZX"]
        left += [process.pid for process in those]
    return found


def _end_all() -> None:
    """End every descendant: stopped first, a round at a time, so that none forks faster than it is ended."""
    stopped: set[int] = set()
    while fresh := {process.pid for process in _descendants()} - stopped:
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= fresh
    while True:
        for process in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


# -- the command -----------------------------------------------------------------------------------------------------
def _folder_bytes(folder: Path) -> int:
    """Return what the files below a folder take of the disk."""
    total, left = 0, [str(folder)]
    while left:
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
    return total


def _threads_of(user: int) -> int:
    count = 0
    for process in _processes():
        with contextlib.suppress(OSError):
            count += process.threads * (os.stat(f"/proc/{process.pid}").st_uid == user)
    return count


def _give_to(user: int, folder: Path) -> None:
    for at, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(Path(at, name), user, user, follow_symlinks=False)


def _confine(spec: dict[str, Any], user: int) -> None:
    """Give up, in the command's process, all that is not needed."""
    limits, version = spec["limits"], restrictions.landlock_version()
    if spec["landlock"] is not None:
        version = min(version, spec["landlock"])
    threads = _threads_of(user) + 8 * limits["processes"]
    # The first is for the case that nobody watches any more.
    restrictions.limit_resources(limits["cpu_seconds"] + 10, limits["memory"], limits["files"] // 2, threads)
    if not spec["confined"]:
        return
    if os.geteuid() == 0:
        restrictions.become(user)
    restrictions.give_up_new_powers()
    restrictions.restrict_files(Path(spec["folder"]), spec["readable"], spec["listable"], version)
    restrictions.restrict_calls(version)


def _start(spec: dict[str, Any], output: int, errors: int, trouble: int) -> int:
    """Start the command; why it could not be is written to `trouble`."""
    user = os.geteuid()
    if user == 0 and spec["confined"]:
        user = _NOBODY
        _give_to(user, Path(spec["folder"]))
    if child := os.fork():
        return child
    try:
        os.setsid()  # what it sends to its group does not reach this process
        os.umask(0o077)
        os.chdir(spec["folder"])
        for number, source in enumerate((os.open(os.devnull, os.O_RDONLY), output, errors)):
            os.dup2(source, number)
        with contextlib.suppress(OSError):  # when memory runs out, this one goes first
            Path("/proc/self/oom_score_adj").write_text("1000")
        _confine(spec, user)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.execve(spec["command"][0], spec["command"], spec["environment"])
    except BaseException as error:
        os.write(trouble, f"{type(error).__name__}: {error}".encode())
    os._exit(1)


class _Watch:
    """What a command prints and takes while it runs."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.limits, self.folder = spec["limits"], Path(spec["folder"])
        self.began, self.looked = time.monotonic(), 0.0
        self.printed, self.output, self.errors = 0, b"", b""

    def read(self, number: int, is_output: bool) -> bool:
        """Keep what has been printed; return False at its end."""
        data = os.read(number, 1 << 16)
        self.printed += len(data)
        if is_output:
            self.output += data[: max(0, self.limits["output"] - len(self.output))]
        else:
            self.errors = (self.errors + data)[-_KEPT_ERRORS:]
        return bool(data)

    def cpu_seconds(self, living: list[_Process]) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(process.seconds for process in living)

    def exceeded(self) -> str | None:
        """Return which limit has been passed."""
        limits, now = self.limits, time.monotonic()
        if self.printed > limits["output"]:
            return f"printed more than {limits['output']:,} bytes"
        if now - self.looked < _EVERY:
            return None
        self.looked = now
        living = _descendants()
        if len(living) > limits["processes"]:
            return f"started more than {limits['processes']} processes"
        if self.cpu_seconds(living) > limits["cpu_seconds"]:
            return f"did not end within {limits['cpu_seconds']:g} s of CPU time"
        if now - self.began > limits["seconds"]:
            return f"did not end within {limits['seconds']:g} s"
        if sum(process.memory for process in living) > limits["memory"]:
            return f"took more than {limits['memory'] >> 20:,} MiB of memory"
        if _folder_bytes(self.folder) > limits["files"]:
            return f"wrote more than {limits['files'] >> 20:,} MiB of files"
        return None


def _reaped(child: int) -> int | None:
    """Take leave of what has ended; return the exit code of the child, if it is among them."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                return os.waitstatus_to_exitcode(ended[1])
    return None


def supervise(spec: dict[str, Any], lifeline: int) -> dict[str, Any]:
    """Run a command to its end, or to that of a limit; see `confinement.run_confined`."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pipes = [os.pipe() for _ in range(3)]
    child = _start(spec, *(write for _, write in pipes))
    for _, write in pipes:
        os.close(write)
    (output, errors, trouble), watch = (read for read, _ in pipes), _Watch(spec)
    stopped: str | None = None
    code: int | None = None
    with selectors.DefaultSelector() as ready:
        ready.register(lifeline, selectors.EVENT_READ)
        ready.register(output, selectors.EVENT_READ)
        ready.register(errors, selectors.EVENT_READ)
        while code is None and stopped is None:
            for key, _ in ready.select(_EVERY):
                if key.fd == lifeline:
                    stopped = "was interrupted"
                elif not watch.read(key.fd, key.fd == output):
                    ready.unregister(key.fd)
            stopped = stopped or watch.exceeded()
            code = _reaped(child) if stopped is None else None
        _end_all()
        for number in (output, errors):  # what they still hold; nobody writes to them any more
            while stopped is None and watch.read(number, number == output):
                stopped = watch.exceeded() if watch.printed > watch.limits["output"] else None
    return {
        "code": code, "stopped": stopped, "trouble": os.read(trouble, 4096).decode(errors="replace") or None,
        "output": base64.b64encode(watch.output).decode(), "errors": base64.b64encode(watch.errors).decode(),
        "cpu_seconds": watch.cpu_seconds([]), "seconds": time.monotonic() - watch.began,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(supervise(json.loads(sys.argv[1]), sys.stdin.fileno())))

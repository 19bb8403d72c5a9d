"""A command in a child process: a user's kernel that crashes gets a sentence, and one that never ends can be ended."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

#: After Ctrl-C a child that is still there is ended after so many seconds; a second Ctrl-C ends it at once. Until its
#: memory is freed and the command has ended it takes up to 3: what `profile` records of an endless launch is gigabytes.
GRACE = 1.5

#: A launch that runs so many seconds is told, once.
LONG = 10.0

#: Of a launch that was ended since it took longer than it may.
ENDLESS = "has a launch that did not end within"

#: The functions in which a thread waits for a launch to end: by module and name.
_WAITS = frozenset((
    ("convbackprop.devices.cpu", "run"),
    ("convbackprop.devices.cuda", "download"),
    ("convbackprop.devices.cuda", "seconds"),
    ("convbackprop.bench.timing", "wait"),
))  # fmt: skip

_PR_SET_PDEATHSIG = 1


class Shielded:
    """Runs a command in a child process where that is possible.

    On the cpu device a kernel that reads far outside its arrays ends the process, and nothing in the process can stop
    one that runs for ever without a barrier. A launch that takes more than `longest` seconds ends the child; None: that
    it takes long is only told.
    """

    def __init__(self, longest: float | None = None) -> None:
        self._note = mmap.mmap(-1, 4096)  # shared with the child
        self._longest = longest
        self._is_child = False

    def doing(self, what: str) -> None:
        """Note what is being done, for the messages."""
        text = what.encode(errors="replace")[:4095]
        self._note[: len(text) + 1] = text + b"\0"

    @property
    def _what(self) -> str:
        return self._note[:].split(b"\0")[0].decode(errors="replace")

    def run(self, command: Callable[[], int], crashed: Callable[[str, str], None] | None = None) -> int:
        """Return the exit code of a command; after a crash `crashed` gets what was noted, if any, and how it ended."""
        if "torch" in sys.modules or threading.active_count() > 1:  # a fork would lose their threads
            with self._watched(f"Ctrl-C stops it at its next barrier, 'kill -KILL {os.getpid()}' with this process"):
                return command()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Of threads that Python did not start: numpy's and the runtime's, and both know what to do in a child.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _end_with(parent)
            self._is_child = True
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os._exit(_in_child(command, self._watched("Ctrl-C stops it within 3 s, a second one at once")))
        status, was_ended = _wait(child)
        if os.WIFSIGNALED(status) and sys.stderr.isatty():  # its progress bar has hidden the cursor, at a line's end
            print("\n\x1b[?25h", end="", file=sys.stderr)
        if was_ended:
            print(f"convbackprop: {self._what or 'the kernel'} did not stop by itself and was ended", file=sys.stderr)
            return 130
        if not os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status)
        number, what = os.WTERMSIG(status), self._what
        hint = "; it reads or writes outside its arrays" if number in (signal.SIGSEGV, signal.SIGBUS) else ""
        sentence = f"ended in a crash ({signal.strsignal(number) or f'signal {number}'}){hint}"
        if number == signal.SIGALRM:  # of its own watch
            sentence = f"{ENDLESS} {self._longest:g} s"
        print(f"convbackprop: error: {what or 'the kernel'} {sentence}", file=sys.stderr)
        if crashed is not None and what:
            crashed(what, sentence)
        return 1

    @contextlib.contextmanager
    def _watched(self, stop: str) -> Iterator[None]:
        """Tell of each launch made by this thread that takes long, and how to stop it."""
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(threading.get_ident(), stop, ended), daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()

    def _watch(self, thread: int, stop: str, ended: threading.Event) -> None:
        seen: FrameType | None = None
        since, told = 0.0, False
        while not ended.wait(min(1.0, LONG / 5)):
            frame = sys._current_frames().get(thread)
            while frame is not None and (frame.f_globals.get("__name__"), frame.f_code.co_name) not in _WAITS:
                frame = frame.f_back
            if frame is None or frame is not seen:  # as long as it is kept, no other frame takes its place in memory
                seen, since, told = frame, time.monotonic(), False
            elif not told and time.monotonic() - since >= LONG:
                told = True
                what = f"{self._what or 'the kernel'}: a launch{_of_kernel(frame)}"
                print(f"convbackprop: {what} has been running for {LONG:g} s; {stop}", file=sys.stderr, flush=True)
            elif self._is_child and self._longest and time.monotonic() - since >= self._longest:
                os.kill(os.getpid(), signal.SIGALRM)


def _of_kernel(frame: FrameType | None) -> str:
    """Return " of forward" where a caller of a frame is the kernel that it launches; a GPU's are waited for later."""
    while frame is not None:
        if entry := getattr(frame.f_locals.get("self"), "_entry", None):
            return f" of {entry}"
        frame = frame.f_back
    return ""


def _end_with(parent: int) -> None:
    """Have Linux end this process with its parent, which may have ended before."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _in_child(command: Callable[[], int], watched: AbstractContextManager[None]) -> int:
    """Return the exit code; nothing may escape into the code that called the parent."""
    from convbackprop.cli import guarded

    try:
        with watched:
            code = guarded(command)
        sys.stdout.flush()
        sys.stderr.flush()
        return code
    except SystemExit as stop:  # rich's, where the reader of standard output, such as `head`, has seen enough
        return int(stop.code or 0)
    except BaseException:  # a defect of the package
        traceback.print_exc()
        return 1


def _wait(child: int) -> tuple[int, bool]:
    """Return the status of a child, and whether it was ended after a Ctrl-C.

    Ctrl-C reaches it too, and it says how that ended, if it comes to that.
    """
    timer: threading.Timer | None = None
    reaped = was_ended = False

    def end() -> None:
        nonlocal was_ended
        if not reaped:
            was_ended = True
            os.kill(child, signal.SIGKILL)

    def interrupted(*_: Any) -> None:
        nonlocal timer
        if timer is not None:
            end()
            return
        timer = threading.Timer(GRACE, end)
        timer.daemon = True
        timer.start()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupted)
    try:
        status = os.waitpid(child, 0)[1]
        reaped = True
        return status, was_ended
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if timer is not None:
            timer.cancel()

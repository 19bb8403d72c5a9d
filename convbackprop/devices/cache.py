"""The on-disk cache of compiled kernels: files named by a hash of everything that they were made from.

They are code that this process will run, so they are believed only where no other user can have written them, and only
with a checksum that fits. What was checked is what is used: `entry` and `content` return bytes, and devices load these.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import platformdirs

from convbackprop.errors import CompileError, EnvironmentProblem

#: How long to wait for another process that builds the same entry (seconds), before building it as well.
_PATIENCE = 120.0

#: The folder within the cache where files are built.
_WORKSHOPS = "building"

#: How often an entry is built again that is damaged each time before it can be read.
_ATTEMPTS = 20


def digest(*parts: object) -> str:
    """Return a name for what was made from these parts: 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def directory() -> Path:
    """Return the directory of the cache: CONVBACKPROP_CACHE_DIR, else the user's cache directory.

    Where it cannot be written or another user can write to it, warns once and returns a directory that only this user
    can write to and that lives as long as the process.
    """
    return _usable(os.environ.get("CONVBACKPROP_CACHE_DIR") or platformdirs.user_cache_dir("convbackprop"), os.getpid())


@functools.cache
def _usable(wanted: str, process: int) -> Path:
    path = Path(wanted).expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if reason := _why_not_trusted(path.stat()):
            problem, advice = f"is not used: it {reason}, and what is in it is code", "only you can write to"
        else:
            with tempfile.TemporaryFile(dir=path):
                return path
    except OSError as error:
        problem, advice = f"cannot be written ({error.strerror})", "can"
    substitute = Path(tempfile.mkdtemp(prefix="convbackprop-"))
    atexit.register(_remove, substitute, process)
    warnings.warn(
        f"the kernel cache {path} {problem}; kernels are compiled again in each process. Set CONVBACKPROP_CACHE_DIR to "
        f"a directory that {advice}.",
        stacklevel=2,
    )
    return substitute


def _why_not_trusted(status: os.stat_result) -> str | None:
    """Return None if only this user (and root) can have written a file or directory, else why that is not so."""
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid} and not to you, user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(path, ignore_errors=True)


# -- entries ---------------------------------------------------------------------------------------------------------
class Entry(NamedTuple):
    """A file of the cache: where it lies, what else is known of it, and what it held when it was checked."""

    path: Path
    known: dict[str, Any]
    content: bytes


def entry(name: str, suffix: str, build: Callable[[Path], Mapping[str, Any]]) -> Entry:
    """Return the cached file `name` + `suffix`, building it first where needed.

    Any number of processes may ask at once: one builds, the others wait. A file is written under another name and
    moved into place, then a manifest with its checksum; a file without a manifest that fits it is built again.

    Parameters
    ----------
    name : str
        From `digest`.
    suffix : str
        Such as ".so".
    build : callable
        Gets the path to write to; returns what else is worth knowing (JSON).

    Raises
    ------
    EnvironmentProblem
        The cache cannot be written: the disk is full, or someone removes the directory meanwhile.
    """
    path = directory() / f"{name}{suffix}"
    if kept := _kept(path):
        return kept
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # someone may have emptied it since
        with _alone(path.with_suffix(".lock")) as alone:
            return _kept(path) or _build(path, build, alone)
    except FileNotFoundError as error:
        raise _emptied(path.parent) from error
    except OSError as error:
        raise EnvironmentProblem(
            f"the kernel cache {path.parent} cannot be written now ({error.strerror or error}); make room, or set "
            "CONVBACKPROP_CACHE_DIR to another directory, and call again"
        ) from error


def checked_once(name: str, suffix: str, build: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Return an entry's path, whose checksum is looked at once a process, and again if the file is another since."""
    path = directory() / f"{name}{suffix}"
    before = _identity(path)
    if before is None or _CHECKED.get(path) != before:
        entry(name, suffix, build)
        if before == _identity(path):
            _CHECKED[path] = before
    return path


_CHECKED: dict[Path, tuple[int, ...] | None] = {}


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or written to, or None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def discard(path: Path) -> None:
    """Forget a cached file that turned out to be unusable, so that it is built again."""
    with contextlib.suppress(OSError):
        path.with_suffix(".json").unlink()


def content(path: Path, again: Callable[[], object]) -> bytes:
    """Return what was built as an entry; where its file has been damaged since, `again` builds it again.

    Raises
    ------
    CompileError
        It is damaged each time.
    """
    for _ in range(_ATTEMPTS):
        if kept := _kept(path):
            return kept.content
        again()
    raise CompileError(f"the kernel cache does not keep what is written to it: {path} is damaged each time it is built")


def _kept(path: Path) -> Entry | None:
    """Return a cached file, or None where it is missing or not what was built."""
    try:
        manifest = json.loads(_read(path.with_suffix(".json")))
        found = Entry(path, manifest["known"], _read(path))
        if isinstance(found.known, dict) and manifest["sha256"] == _seal(found):
            return found
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return None


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        if reason := _why_not_trusted(os.fstat(file.fileno())):
            raise PermissionError(f"{path} {reason}")
        return file.read()


def _seal(made: Entry) -> str:
    """Return a checksum of all that an entry is: a sound file under another's name would be the wrong kernel."""
    checksum = hashlib.sha256(json.dumps([made.path.name, made.known], sort_keys=True).encode())
    checksum.update(made.content)
    return checksum.hexdigest()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Wait until no other process builds the same; tell whether that could be had.

    It saves work and nothing else: a process that is stopped while it builds holds up nobody for ever. The lock of one
    that has ended is free: the kernel of the operating system has let it go.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(lock, timeout=_PATIENCE))
            alone = True
        except (OSError, NotImplementedError):  # it takes too long, or this file system has no locks
            alone = False
        yield alone


def _build(path: Path, build: Callable[[Path], Mapping[str, Any]], alone: bool) -> Entry:
    prefix = f"{path.name}-"
    workshops = path.parent / _WORKSHOPS
    workshops.mkdir(mode=0o700, exist_ok=True)
    if alone:  # then what is there was left by a process that was killed
        for left in workshops.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
    else:
        prefix = f"unlocked-{prefix}"
    with tempfile.TemporaryDirectory(dir=workshops, prefix=prefix, ignore_cleanup_errors=True) as workshop:
        made = Path(workshop) / path.name
        try:
            known = json.loads(json.dumps(dict(build(made))))
        except CompileError as error:
            if Path(workshop).exists():
                raise
            raise _emptied(path.parent) from error
        built = Entry(path, known, made.read_bytes())
        manifest = Path(workshop) / "manifest"
        manifest.write_text(json.dumps({"sha256": _seal(built), "known": known}))
        for file, place in ((made, path), (manifest, path.with_suffix(".json"))):
            file.chmod(0o600)  # whatever the umask is: others must not write to it
            os.replace(file, place)
    return built


def _emptied(cache: Path) -> EnvironmentProblem:
    return EnvironmentProblem(f"the kernel cache {cache} was emptied while a kernel was compiled; call again")


def remembered(name: str, find: Callable[[], str]) -> str:
    """Return a short text that costs a process to find out, from the cache where it has been found before."""

    def build(path: Path) -> dict[str, Any]:
        path.write_text(find(), encoding="utf-8")
        return {}

    return entry(name, ".txt", build).content.decode()

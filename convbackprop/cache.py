"""The on-disk cache of compiled kernels: files named by a hash of everything that they were made from."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from convbackprop.errors import EnvironmentProblem


def digest(*parts: object) -> str:
    """Return a name for what was made from these parts: 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def directory() -> Path:
    """Return the directory of the cache: CONVBACKPROP_CACHE_DIR, else the user's cache directory.

    Where it cannot be written, warns once and returns a directory that lives as long as the process.
    """
    path = _writable(
        os.environ.get("CONVBACKPROP_CACHE_DIR") or platformdirs.user_cache_dir("convbackprop"), os.getpid()
    )
    with contextlib.suppress(OSError):  # entry() finds words for it
        path.mkdir(parents=True, exist_ok=True)  # it may have been removed since
    return path


@functools.cache
def _writable(wanted: str, process: int) -> Path:
    path = Path(wanted).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        substitute = Path(tempfile.mkdtemp(prefix="convbackprop-"))
        atexit.register(_remove, substitute, process)
        warnings.warn(
            f"the kernel cache {path} cannot be written ({error.strerror}); kernels are compiled again in each "
            "process. Set CONVBACKPROP_CACHE_DIR to a directory that can.",
            stacklevel=2,
        )
        return substitute


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(path, ignore_errors=True)


def entry(name: str, suffix: str, build: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the cached file `name` + `suffix` and what is known of it, building it first where needed.

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
    known = _manifest(path)
    if known is None:
        try:
            with filelock.FileLock(path.with_suffix(".lock")):
                known = _manifest(path)
                if known is None:
                    known = _build(path, build)
        except OSError as error:
            raise EnvironmentProblem(
                f"the kernel cache {path.parent} cannot be written now ({error.strerror or error}); make room, or set "
                "CONVBACKPROP_CACHE_DIR to another directory, and call again"
            ) from error
    return path, known


def discard(path: Path) -> None:
    """Forget a cached file that turned out to be unusable, so that it is built again."""
    with contextlib.suppress(OSError):
        path.with_suffix(".json").unlink()


def _manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a cached file, or None where the file is missing or not what was built."""
    try:
        manifest = json.loads(path.with_suffix(".json").read_bytes())
        if manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest():
            return dict(manifest["known"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def _build(path: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as workshop:
        made = Path(workshop) / path.name
        known = dict(build(made))
        manifest = Path(workshop) / "manifest"
        manifest.write_text(json.dumps({"sha256": hashlib.sha256(made.read_bytes()).hexdigest(), "known": known}))
        os.replace(made, path)
        os.replace(manifest, path.with_suffix(".json"))
    return known


def remembered(name: str, find: Callable[[], str]) -> str:
    """Return a short text that costs a process to find out, from the cache where it has been found before."""

    def build(path: Path) -> dict[str, Any]:
        path.write_text(find())
        return {}

    return entry(name, ".txt", build)[0].read_text()

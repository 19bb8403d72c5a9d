"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from convbackprop.errors import InvalidArgument


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name and move it into place; its folder is made where it is missing.

    Raises
    ------
    InvalidArgument
        It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's is for its owner alone
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror or error}") from None


def check_writable(path: Path) -> None:
    """Make the folder of a file that will be written much later; raises InvalidArgument where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror or error}") from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

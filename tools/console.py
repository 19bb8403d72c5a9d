"""Commands in a page, and what they print.

A page holds blocks of this form, in which each line that begins with "$ convbackprop" is a command:

    <!-- output: checked -->
    ```text
    $ convbackprop list --problem ...
    what it prints
    ```

The commands of a page run in one folder, in their order, on the CPU. "checked" is for commands that print the same on
each machine: `make readme` runs them anew, and the tests compare. "recorded" ones: `make readme ARGS=--commands`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from convbackprop.devices.cache import directory
from convbackprop.lab.exercises import EXERCISES
from tests.lab.solutions import solved

ROOT = Path(__file__).parent.parent
WIDTH = 112

#: What the commands find in their folder: runs that `bench --save` has kept, kernels that are wrong on purpose, and in
#: `mended` the exercises of the lab as a student has mended them.
RUNS = ("before", "after")
KERNELS = ("no_syncwarp.cu", "forward_border_off_by_one.cu")

_BLOCK = re.compile(r"(<!-- output: (checked|recorded) -->\n```text\n)(.*?)(```\n)", re.DOTALL)


def played(page: str, recorded: bool) -> str:
    """Return a page with the outputs of its commands made anew: the checked ones, or all.

    The checked ones use this machine's compiled kernels; the recorded ones tell of a first use.
    """
    cache = None if recorded else directory()
    with tempfile.TemporaryDirectory() as workshop:
        folder = Path(workshop).resolve()
        furnish(folder)
        return _BLOCK.sub(lambda block: block[0] if block[2] == "recorded" and not recorded else
                          f"{block[1]}{_play(block[3], folder, cache)}{block[4]}", page)  # fmt: skip


def furnish(folder: Path) -> None:
    """Put into a folder what the commands work on."""
    (folder / ".convbackprop" / "runs").mkdir(parents=True)
    (folder / "home").mkdir()
    for name in RUNS:
        shutil.copy(ROOT / "docs" / "data" / f"{name}.json", folder / ".convbackprop" / "runs")
    for name in KERNELS:
        (found,) = (ROOT / "tests").rglob(name)
        shutil.copy(found, folder)
    (folder / "mended").mkdir()
    for exercise in EXERCISES:
        (folder / "mended" / exercise.file).write_text(solved(exercise.number))


def _play(block: str, folder: Path, cache: Path | None) -> str:
    """Return the commands of a block, each followed by what it prints."""
    commands = re.findall(r"^\$ convbackprop (.*)", block, re.MULTILINE)
    return "\n".join(f"$ convbackprop {command}\n{output(command, folder, cache)}\n" for command in commands)


def output(command: str, folder: Path, cache: Path | None = None) -> str:
    """Return what a command prints in a folder: as wide as a page, without the names of this machine's folders.

    cache: of compiled kernels; without it one that is empty at first.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("CONVBACKPROP_")}
    home = folder / "home"
    own |= {"CONVBACKPROP_DEVICE": "cpu", "PYTHONPATH": str(ROOT), "COLUMNS": str(WIDTH), "HOME": str(home)}
    if cache is not None:
        own["CONVBACKPROP_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-m", "convbackprop", *shlex.split(command)],
        cwd=folder,
        env={**own, "XDG_CACHE_HOME": f"{home}/.cache", "XDG_DATA_HOME": f"{home}/.local/share"},
        stdout=subprocess.PIPE,
        text=True,
    )
    text = done.stdout.replace(str(home), "~").replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    return "\n".join(wrapped for line in text.strip().splitlines() for wrapped in _wrapped(line.rstrip()))


def _wrapped(line: str) -> list[str]:
    """Return a line as a terminal shows it: a sentence goes on in the next line."""
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def without_seconds(page: str) -> str:
    """Return a page in which how long a command took does not count."""
    return re.sub(r"\b\d[\d.,]* s\b", "... s", page)

"""Saved runs: what `bench --save NAME` writes, and what `compare`, `plot` and `report` read.

A run is one JSON file, `.convbackprop/runs/NAME.json` in the current directory, or a path that ends in .json. It holds
every repetition of every row. What is read is data: it is validated, and nothing in it is run or trusted to be a path.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbackprop.arguments import shown
from convbackprop.bench.rows import Row
from convbackprop.bench.timing import Timing
from convbackprop.errors import InvalidArgument
from convbackprop.files import check_writable, write_whole
from convbackprop.problem import PASSES, ConvProblem

FOLDER = Path(".convbackprop/runs")

_KIND, _VERSION = "convbackprop run", 1


@dataclass
class Run:
    """What a benchmark gave.

    Attributes
    ----------
    name : str
        As --save has it.
    date : str
        When it ended, ISO 8601.
    environment, settings, noise : mapping
        The machine, device, versions and commit; what was asked for; `machine.Noise`.
    notes : sequence of str
        What was said.
    rows : sequence of Row
        With every repetition.
    goals, layers : sequence of mapping
        As `bench --json` has them.
    """

    name: str
    date: str
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    noise: Mapping[str, Any]
    notes: Sequence[str] = ()
    rows: Sequence[Row] = ()
    goals: Sequence[Mapping[str, Any]] = field(default_factory=list)
    layers: Sequence[Mapping[str, Any]] = field(default_factory=list)


# -- where -----------------------------------------------------------------------------------------------------------
def path_of(name: str, argument: str = "run") -> Path:
    """Return the file of a run: a name in `.convbackprop/runs`, or a path that ends in .json.

    Raises
    ------
    InvalidArgument
        It is neither.
    """
    if name.endswith(".json"):
        return Path(name)
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII):
        raise InvalidArgument(
            f"{argument} is {name!r}; it should be a name of letters, digits, '.', '_' and '-', or a path that ends in "
            ".json"
        )
    return FOLDER / f"{name}.json"


def saved_runs() -> list[str]:
    """Return the names of the runs that were saved in this directory, the latest last."""
    files = sorted(FOLDER.glob("*.json"), key=lambda file: file.stat().st_mtime) if FOLDER.is_dir() else []
    return [file.stem for file in files]


def free_path(name: str) -> Path:
    """Return the file that --save NAME writes, which is not there yet and can be written.

    Raises
    ------
    InvalidArgument
        It is there, and is left as it is; or it cannot be written.
    """
    path = path_of(name, "--save")
    if path.exists():
        raise InvalidArgument(f"--save is {name}, but {path} exists and is left as it is; choose another name")
    check_writable(path)
    return path


# -- writing ---------------------------------------------------------------------------------------------------------
def save(run: Run, path: Path) -> None:
    """Write a run as a file that is there whole or not at all."""
    rows = [_row_as_json(row) for row in run.rows]
    found = {"kind": _KIND, "format": _VERSION, "date": run.date, "environment": run.environment,
             "settings": run.settings, "noise": run.noise, "notes": list(run.notes), "goals": list(run.goals),
             "layers": list(run.layers)}  # fmt: skip
    head = json.dumps(_finite(found), indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(_finite(row), separators=(",", ":")) for row in rows)  # a row a line
    write_whole(path, f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')


def _row_as_json(row: Row) -> dict[str, Any]:
    samples: dict[str, Any] = {
        name: _samples(getattr(row, name)) for name in ("ours", "copy", "public") if getattr(row, name)
    }
    return {
        "variant": row.name,
        "problem": str(row.problem),
        "label": row.label,
        "refused": row.refusal,
        "faults": list(row.faults),
        "error": row.error,
        "peak_flops": row.peak_flops,
        "seconds": {**samples, "peers": {name: _samples(timing) for name, timing in row.peers.items()}},
    }


def _samples(timing: Timing) -> list[float]:
    """Return repetitions to 4 digits, which is finer than any clock here is steady."""
    return [float(f"{seconds:.4g}") for seconds in timing.seconds]


def _finite(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {name: _finite(item) for name, item in part.items()}
    if isinstance(part, list | tuple):
        return [_finite(item) for item in part]
    return None if isinstance(part, float) and not math.isfinite(part) else part


# -- reading ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Part:
    """A part of a file, and where in it it stands; what it should be is asked for by name."""

    file: Path
    at: str
    value: Any

    def wrong(self, should: str) -> InvalidArgument:
        what = f"{self.at or 'its content'} is {shown(self.value)}; it should be {should}"
        return InvalidArgument(f"{self.file} is no saved run: {what}")

    def of(self, kind: type | tuple[type, ...], should: str) -> Any:
        """Return the value if it is of a type."""
        if not isinstance(self.value, kind) or (isinstance(self.value, bool) and kind is not bool):
            raise self.wrong(should)
        return self.value

    def child(self, key: str | int) -> _Part:
        """Return a part of this part, which has to be there."""
        if isinstance(key, int):
            return _Part(self.file, f"{self.at}[{key}]", self.value[key])
        at = f"{self.at}.{key}" if self.at else key
        if key not in self.of(dict, "an object"):
            raise InvalidArgument(f"{self.file} is no saved run: it has no key {at}")
        return _Part(self.file, at, self.value[key])

    def items(self, should: str) -> list[_Part]:
        """Return the parts of a list."""
        return [self.child(i) for i in range(len(self.of(list, should)))]

    def text(self, key: str) -> str:
        return str(self.child(key).of(str, "a text"))

    def maybe(self, key: str, read: Callable[[_Part], Any]) -> Any:
        """Return what `read` makes of a part that may be null."""
        part = self.child(key)
        return None if part.value is None else read(part)

    def number(self) -> float:
        value = float(self.of((int, float), "a number"))
        if not (math.isfinite(value) and value >= 0):
            raise self.wrong("a number that is not negative")
        return value

    def texts(self, key: str) -> list[str]:
        return [str(part.of(str, "a text")) for part in self.child(key).items("a list of texts")]

    def objects(self, key: str) -> list[dict[str, Any]]:
        return [part.of(dict, "an object") for part in self.child(key).items("a list of objects")]

    def timing(self) -> Timing:
        seconds = [part.number() for part in self.items("a list of seconds")]
        if not seconds or not all(seconds):
            raise self.wrong("a list of at least one time above 0")
        return Timing(tuple(seconds))


def read(name: str) -> Run:
    """Read a saved run.

    Raises
    ------
    InvalidArgument
        There is none of this name (the message lists those that are there), or the file is none; the message names the
        file and the key.
    """
    path = path_of(name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        saved = saved_runs()
        there = f"saved runs here are {', '.join(saved)}" if saved else "none is saved here"
        raise InvalidArgument(
            f"run {name} was not found as {path}; {there} ('convbackprop bench --save NAME')"
        ) from None
    except OSError as error:
        raise InvalidArgument(f"run {name} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path} is no saved run: it is not JSON ({error})") from None
    whole = _Part(path, "", value)
    whole.of(dict, "an object")
    if whole.text("kind") != _KIND:
        raise whole.child("kind").wrong(repr(_KIND))
    if whole.child("format").value != _VERSION:
        raise whole.child("format").wrong(f"{_VERSION}, which this version of convbackprop writes")
    return Run(
        name=path.stem,
        date=whole.text("date"),
        environment=_environment(whole.child("environment")),
        settings=whole.child("settings").of(dict, "an object"),
        noise=_noise(whole.child("noise")),
        notes=whole.texts("notes"),
        rows=[_row(part) for part in whole.child("rows").items("a list of rows")],
        goals=whole.objects("goals"),
        layers=whole.objects("layers"),
    )


def _environment(part: _Part) -> dict[str, Any]:
    for key in ("machine", "device", "convbackprop", "python", "numpy"):
        part.text(key)
    part.child("threads").of(int, "a number of threads")
    return dict(part.value)


def _noise(part: _Part) -> dict[str, Any]:
    part.child("noisy").of(bool, "true or false")
    part.maybe("spread", _Part.number)
    part.maybe("load_before", _Part.number)
    return dict(part.value)


def _row(part: _Part) -> Row:
    name, text = part.text("variant"), part.text("problem")
    if name.partition("/")[0] not in PASSES:
        raise part.child("variant").wrong(f"a variant of one of {', '.join(PASSES)}")
    try:
        problem = ConvProblem.parse(text)
    except (ValueError, TypeError) as error:
        raise part.child("problem").wrong(f"a problem ({error})") from None
    seconds = part.child("seconds")
    seconds.of(dict, "an object")
    peers = seconds.child("peers")
    largest = part.maybe("error", _Part.number)
    return Row(
        name=name,
        problem=problem,
        label=part.text("label"),
        refusal=part.maybe("refused", lambda p: p.of(str, "a text")),
        faults=part.texts("faults"),
        error=math.nan if largest is None else largest,
        ours=seconds.child("ours").timing() if "ours" in seconds.value else None,
        copy=seconds.child("copy").timing() if "copy" in seconds.value else None,
        public=seconds.child("public").timing() if "public" in seconds.value else None,
        peers={way: peers.child(way).timing() for way in peers.of(dict, "an object")},
        peak_flops=part.maybe("peak_flops", _Part.number),
    )

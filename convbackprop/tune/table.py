"""Measured choices on disk: a file a model of device in the user's data folder, and those that the package ships.

A file is data, and read as such: what is not understood, or speaks of kernels that have changed since, counts for
nothing. CONVBACKPROP_TUNED names another folder; "off": there are none.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import platformdirs

from convbackprop._version import __version__
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.files import write_whole
from convbackprop.ladder.registry import UNTUNED, of_pass
from convbackprop.ladder.variant import Variant, pinned
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.sources import code_digest

VARIABLE = "CONVBACKPROP_TUNED"

#: In place of a rung of backward: input_grad, then kernel_grad.
SEPARATE = "separate"

_FORMAT = 1

#: How long to wait for another process that writes the same file (seconds).
_PATIENCE = 60.0

#: Octaves between two problems, over all their sizes, up to which what is best for one is taken for the other.
NEAR = 3


# -- classes of problems ---------------------------------------------------------------------------------------------
class Class(NamedTuple):
    """What problems have in common that one choice is good for: all of `kind`, and sizes that are near."""

    kind: tuple[object, ...]
    sizes: tuple[int, int, int]

    def distance(self, other: Class) -> float:
        """Return the octaves between the sizes of two classes; infinite between kinds."""
        if self.kind != other.kind:
            return math.inf
        return sum(abs(mine - theirs) for mine, theirs in zip(self.sizes, other.sizes, strict=True))


def _octave(number: int) -> int:
    return number.bit_length() - 1


def class_of(pass_name: str, p: ConvProblem) -> Class:
    """Return the class of a problem: its kind, and the octaves of its images times groups, of its rows and columns."""
    group = _octave(p.C // p.groups), _octave(p.K // p.groups)
    kind = (
        pass_name, p.dtype, p.is_tf32, p.layout, p.saved, p.transposed, p.dx, p.dw, (p.R, p.S), p.stride, p.dilation,
        group,
    )  # fmt: skip
    return Class(kind, (_octave(p.N * p.groups), _octave(p.H), _octave(p.W)))


# -- entries ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Entry:
    """What was found to be fastest for a pass of a problem, and so of its class.

    Attributes
    ----------
    variant : str
        A rung, `UNTUNED` where nothing beats the rule, or `SEPARATE`.
    tunables : mapping of str to int
        Those of the rung whose values are not by its own rule.
    us, rule_us : float
        Microseconds that this and the rule's choice took, in turn in one run.
    version, code : str
        Of the package, and a digest of the rung's .cu file and headers.
    date : str
        Of the measurement, as 2026-11-28T12:00:00+0000.
    """

    pass_name: str
    problem: ConvProblem
    variant: str
    tunables: Mapping[str, int] = field(default_factory=dict)
    us: float = 0.0
    rule_us: float = 0.0
    version: str = __version__
    code: str = ""
    date: str = ""

    @property
    def alike(self) -> Class:
        """The class that it speaks of."""
        return class_of(self.pass_name, self.problem)

    @property
    def times_rule(self) -> float:
        """How many times as fast as the rule's choice it is."""
        return self.rule_us / self.us if self.us else 1.0

    @property
    def rung(self) -> Variant | None:
        """The variant with these tunables; None: the rule's choice, or the two passes."""
        if self.variant in (UNTUNED, SEPARATE):
            return None
        rung = next(each for each in of_pass(self.pass_name) if each.name == self.variant)
        return pinned(rung, tuple(sorted(self.tunables.items())))

    @property
    def choice(self) -> str:
        """What was chosen, such as "vectorised, COLS 32"."""
        name = {UNTUNED: "the rule's", SEPARATE: "input_grad, then kernel_grad"}.get(self.variant, self.variant)
        return ", ".join([name, *(f"{name} {value}" for name, value in sorted(self.tunables.items()))])

    def as_json(self) -> dict[str, Any]:
        """Return the entry as it stands in a file."""
        values = asdict(self) | {"problem": str(self.problem), "tunables": dict(sorted(self.tunables.items()))}
        return {"pass": values.pop("pass_name"), **values}

    @classmethod
    def of_json(cls, values: Any) -> Entry:
        """Read an entry; raises InvalidArgument where it is none."""
        if not isinstance(values, dict) or not isinstance(values.get("tunables"), dict):
            raise InvalidArgument(f"an entry is {str(values)[:60]}; it should have pass, problem, variant and tunables")
        texts = {name: values.get(name) for name in ("pass", "problem", "variant", "version", "code", "date")}
        numbers = {name: values.get(name) for name in ("us", "rule_us")}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise InvalidArgument(f"{name} of an entry is {value!r}; it should be text")
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidArgument(f"{name} of an entry is {value!r}; it should be microseconds")
        tunables = values["tunables"]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in tunables.values()):
            raise InvalidArgument(f"tunables of an entry are {tunables}; they should be integers")
        if texts["pass"] not in PASSES:
            raise InvalidArgument(f"pass of an entry is {texts['pass']!r}; it should be one of {', '.join(PASSES)}")
        problem = ConvProblem.parse(str(texts.pop("problem")))
        return cls(pass_name=str(texts.pop("pass")), problem=problem, tunables=tunables, **texts, **numbers)  # type: ignore[arg-type]

    @property
    def stale(self) -> str | None:
        """Why it counts for nothing any more, or None."""
        if self.version != __version__:
            return f"it is of version {self.version}"
        if self.variant == UNTUNED or (self.variant == SEPARATE and self.pass_name == "backward"):
            return None
        rung = next((each for each in of_pass(self.pass_name) if each.name == self.variant), None)
        if rung is None:
            return f"there is no {self.pass_name}/{self.variant}"
        for name, value in self.tunables.items():
            if name not in rung.tunables or value not in rung.tunables[name].legal:
                return f"{rung} has no {name} {value}"
        return None if self.code == digest_of(rung) else f"{rung} has changed since"


@functools.cache
def digest_of(variant: Variant) -> str:
    """Return a digest of a variant's code."""
    return code_digest(variant.path)


# -- files -----------------------------------------------------------------------------------------------------------
def folder() -> Path | None:
    """Return the folder of the user's files; None: tuning is off."""
    named = os.environ.get(VARIABLE)
    if named == "off":
        return None
    return Path(named or platformdirs.user_data_path("convbackprop") / "tuned").expanduser().absolute()


def file_of(title: str) -> Path:
    """Return the user's file of a model of device, whether or not it is there.

    Raises
    ------
    InvalidArgument
        Tuning is off.
    """
    place = folder()
    if place is None:
        raise InvalidArgument(f"{VARIABLE} is 'off'; unset it, or name a folder, to keep what is measured")
    return place / _name(title)


def _name(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", title).strip("-") + ".json"


def shipped(title: str) -> Path:
    """Return the package's file of a model of device, whether or not it is there."""
    return Path(__file__).parent / "measured" / _name(title)


def read(path: Path) -> tuple[str, list[Entry]]:
    """Return the title of the device that a file speaks of, and its entries, stale ones too.

    Raises
    ------
    InvalidArgument
        It cannot be read, or is not such a file; the message says what is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no JSON: {error}"
        raise InvalidArgument(f"{path} cannot be read: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
        raise InvalidArgument(f"{path} is no table of tuned choices, which 'convbackprop tune --export' writes")
    if content.get("format") != _FORMAT:
        raise InvalidArgument(f"{path} has format {content.get('format')!r}; this version reads {_FORMAT}")
    if not isinstance(content.get("device"), str):
        raise InvalidArgument(f"{path} does not say of which device it is")
    try:
        return content["device"], [Entry.of_json(each) for each in content["entries"]]
    except InvalidArgument as error:
        raise InvalidArgument(f"{path} is damaged: {error}") from None


def text_of(title: str, entries: Iterable[Entry]) -> str:
    """Return a file's content, an entry a line."""
    ordered = sorted(entries, key=lambda entry: (list(PASSES).index(entry.pass_name), str(entry.problem)))
    lines = ",\n".join("  " + json.dumps(entry.as_json()) for entry in ordered)
    head = f'{{\n "format": {_FORMAT},\n "device": {json.dumps(title)},\n "entries": [\n'
    return f"{head}{lines}\n ]\n}}\n"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process writes a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock"), timeout=_PATIENCE):
            yield
    except (OSError, NotImplementedError) as error:
        reason = "another process holds it" if isinstance(error, filelock.Timeout) else str(error)
        raise EnvironmentProblem(f"{path} cannot be written now: {reason}") from None


def update(title: str, new: Iterable[Entry], forgotten: frozenset[str] = frozenset()) -> Path:
    """Put entries into the user's file of a device, in place of those of their classes, and return its path.

    Any number of processes may do so at once. A damaged file is kept beside the new one.

    Parameters
    ----------
    title : str
        Of the device.
    new : iterable of Entry
        What to put in.
    forgotten : frozenset of str
        Passes whose other entries go.

    Raises
    ------
    InvalidArgument
        Tuning is off, or the file cannot be written.
    EnvironmentProblem
        Another process holds it for too long.
    """
    path = file_of(title)
    with _alone(path):
        old: list[Entry] = []
        if path.exists():
            try:
                _, old = read(path)
            except InvalidArgument as error:
                kept = path.with_suffix(".damaged")
                os.replace(path, kept)
                warnings.warn(f"{error}; it is kept as {kept.name}", stacklevel=2)
        kept_entries = {entry.alike: entry for entry in old if entry.pass_name not in forgotten}
        write_whole(path, text_of(title, (kept_entries | {entry.alike: entry for entry in new}).values()))
    forget()
    return path


# -- looking up ------------------------------------------------------------------------------------------------------
@functools.cache
def _known(title: str, place: Path | None) -> Mapping[tuple[object, ...], Mapping[Class, Entry]]:
    """Return what counts of a device's files, by kind of problem; the user's before the package's."""
    found: dict[Class, Entry] = {}
    for path in (shipped(title), *([place / _name(title)] if place else [])):
        if not path.exists():
            continue
        try:
            _, entries = read(path)
        except InvalidArgument as error:
            warnings.warn(f"{error}; it is ignored ('convbackprop tune' writes it anew)", stacklevel=2)
            continue
        reasons = [entry.stale for entry in entries]
        stale = [reason for reason in reasons if reason]
        if stale and path != shipped(title):
            others = " (and others)" if len(set(stale)) > 1 else ""
            warnings.warn(
                f"{len(stale)} of {len(entries)} tuned choices in {path} are ignored: {stale[0]}{others}; "
                "'convbackprop tune' measures anew",
                stacklevel=2,
            )
        found |= {entry.alike: entry for entry, reason in zip(entries, reasons, strict=True) if not reason}
    kinds: dict[tuple[object, ...], dict[Class, Entry]] = {}
    for alike, entry in found.items():
        kinds.setdefault(alike.kind, {})[alike] = entry
    return kinds


def lookup(title: str, pass_name: str, problem: ConvProblem) -> list[tuple[float, Entry]]:
    """Return what was measured on problems like this one, the nearest first, each with its distance in octaves."""
    place = folder()
    if place is None:
        return []
    wanted = class_of(pass_name, problem)
    alike = _known(title, place).get(wanted.kind, {})
    near = [(wanted.distance(other), entry) for other, entry in alike.items() if wanted.distance(other) <= NEAR]
    return sorted(near, key=lambda pair: (pair[0], str(pair[1].problem)))


def forget() -> None:
    """Forget what was read: files are read again when they are next needed."""
    _known.cache_clear()

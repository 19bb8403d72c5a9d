"""Points for a hand-in: which criteria count how much is said by a TOML file, such as rubric.toml beside this one."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from convbackprop.arguments import shown
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.registry import VARIANTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: What a grade says, as `Grade.as_json` does.
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Criterion:
    """Something that points are given for.

    Attributes
    ----------
    key : str
        As in the file.
    title : str
        What a table calls it.
    points : float
        Given for it at most.
    share : callable
        Returns, for a hand-in that is right, which share of them it earns, from 0 to 1.
    """

    key: str
    title: str
    points: float
    share: Callable[[Facts], float]

    def earned(self, facts: Facts) -> float:
        """Return the points that a hand-in earns; what is wrong earns for compiling alone."""
        return self.points * self.share(facts) if facts["right"] or self.key == "compiles" else 0.0


class Rubric(NamedTuple):
    """The criteria of a class, in the order of their file."""

    criteria: tuple[Criterion, ...]

    @property
    def points(self) -> float:
        """All that can be earned."""
        return sum(criterion.points for criterion in self.criteria)


def _share_of_tasks(facts: Facts) -> float:
    done = [bool(task["done"]) for task in facts["tasks"]]
    return sum(done) / len(done) if done else 0.0


def _at_most(key: str) -> Callable[[float], Callable[[Facts], float]]:
    def with_limit(most: float) -> Callable[[Facts], float]:
        def share(facts: Facts) -> float:
            # Without shared memory there is nothing that conflicts; without addresses nothing is known.
            if facts["coalescing"] is None:
                return 0.0
            return float(facts[key] is None or facts[key] <= most + 1e-9)

        return share

    return with_limit


#: What is either so or not.
_PLAIN: dict[str, Callable[[Facts], float]] = {
    "compiles": lambda facts: float(facts["compiled"]),
    "right": lambda facts: float(facts["right"]),
    "clean": lambda facts: float(facts["clean"]),
    "tasks": _share_of_tasks,
}

#: What is a figure, and how large it may be unless the file says so.
_FIGURES = {"coalesced": (_at_most("coalescing"), 1.25), "no_conflicts": (_at_most("bank_conflicts"), 1.0)}

KEYS = (*_PLAIN, *_FIGURES, "faster_than")


def example() -> str:
    """Return the rubric that is taken where none is given, as TOML."""
    return (files("convbackprop") / "lab" / "rubric.toml").read_text(encoding="utf-8")


def read_rubric(path: Path | None = None) -> Rubric:
    """Return the rubric of a file, or the package's own.

    Raises
    ------
    InvalidArgument
        The file cannot be read, or says something that is not understood; the message names the line and the key.
    """
    name = str(path or "rubric.toml")
    try:
        text = path.read_text(encoding="utf-8") if path else example()
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{name} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{name} is no TOML: {error}") from None
    read = _Reader(name, text)
    criteria = tuple(criterion for key, value in table.items() for criterion in read.criteria(key, value))
    if not any(criterion.points for criterion in criteria):
        raise InvalidArgument(f"{name} gives no points; it should have a line such as 'right = 4', with one of "
                              + ", ".join(KEYS))  # fmt: skip
    return Rubric(tuple(criterion for criterion in criteria if criterion.points))


class _Reader(NamedTuple):
    name: str
    text: str

    def criteria(self, key: str, value: object) -> list[Criterion]:
        if key not in KEYS:
            raise self.error(key, f"has the criterion {shown(key)}; it should be one of {', '.join(KEYS)}")
        if key == "faster_than":
            return self.faster_than(value)
        if key in _PLAIN:
            return [Criterion(key, key, self.points(key, value), _PLAIN[key])]
        with_limit, most = _FIGURES[key]
        table = value if isinstance(value, dict) else {"points": value}
        if unknown := [each for each in table if each not in ("points", "at_most")]:
            raise self.error(unknown[0], f"has the key {shown(unknown[0])} for {key}; it should be points or at_most")
        if "points" not in table:
            raise self.error(key, f"has no points for {key}; it should be such as '{key} = {{ points = 1 }}'")
        most = self.number("at_most", table.get("at_most", most), f"{key}: at_most", least=1)
        return [Criterion(key, key.replace("_", " "), self.points(key, table["points"]), with_limit(most))]

    def faster_than(self, value: object) -> list[Criterion]:
        names = tuple(dict.fromkeys(variant.name for variant in VARIANTS))
        if not isinstance(value, dict):
            raise self.error("faster_than", f"has faster_than = {shown(value)}; it should be points for each variant, "
                             "such as 'faster_than = { tiled = 2 }'")  # fmt: skip
        found = []
        for name, points in value.items():
            if name not in names:
                raise self.error(name, f"has faster_than {shown(name)}; it should be one of {', '.join(names)}")
            share = _beats(name)
            found.append(Criterion("faster_than", f"beats {name}", self.points(name, points), share))
        return found

    def points(self, key: str, value: object) -> float:
        return self.number(key, value, f"{key}: points", least=0)

    def number(self, key: str, value: object, what: str, least: int) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"has {what} = {shown(value)}; it should be a number")
        if not math.isfinite(value) or value < least:
            raise self.error(key, f"has {what} = {shown(value)}; it should be at least {least}")
        return float(value)

    def error(self, key: str, sentence: str) -> InvalidArgument:
        """Return the error, with the line on which the key stands, if that can be told."""
        lines = self.text.splitlines()
        stands = re.compile(rf"""(^|[\s{{,.\[])["']?{re.escape(key)}["']?\s*[=.\]]""")
        numbers = [i for i, line in enumerate(lines, 1) if stands.search(line.partition("#")[0])]
        return InvalidArgument(f"{self.name}{f':{numbers[0]}' if numbers else ''} {sentence}")


def _beats(name: str) -> Callable[[Facts], float]:
    return lambda facts: float(facts["rank"] is not None and name in facts["rank"]["faster_than"])

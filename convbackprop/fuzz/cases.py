"""One thing that was tried, and the command that tries it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from convbackprop.check import check
from convbackprop.devices import Device
from convbackprop.fuzz import arguments
from convbackprop.fuzz.laws import LAWS, Subject
from convbackprop.fuzz.problems import spelled
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ConvProblem


def _target(variant: Variant) -> list[str]:
    return [str(variant.file), "--pass", variant.pass_name] if variant.file else [str(variant)]


def _how(problem: ConvProblem, seed: int, tunables: str | None, device: Device) -> list[str]:
    chosen = ["--tunables", tunables] if tunables else []
    return ["--problem", spelled(problem), "--seed", str(seed), *chosen, "--device", device.name]


@dataclass(frozen=True)
class Compared:
    """A variant held against the float64 reference, its arrays `offset` elements off an aligned address."""

    variant: Variant
    problem: ConvProblem
    device: Device
    data: str
    seed: int
    tunables: str | None = None
    offset: int = 0

    part = "reference"

    def faults(self) -> list[str]:
        """Return a sentence for each thing that is wrong."""
        return check(
            self.variant, self.problem, self.device, self.data, self.seed, self.tunables, offset=self.offset
        ).faults

    def command(self) -> str:
        """Return the command that tries this case again."""
        more = ["--data", self.data, "--offset", str(self.offset)]
        return shlex.join(["convbackprop", "check", *_target(self.variant),
                           *_how(self.problem, self.seed, self.tunables, self.device), *more])  # fmt: skip


@dataclass(frozen=True)
class Lawful:
    """A variant held against a law that needs no reference."""

    law: str
    subject: Subject

    @property
    def part(self) -> str:
        """The row of the closing table."""
        return self.law

    def faults(self) -> list[str]:
        """Return a sentence for each thing that is wrong."""
        return LAWS[self.law](self.subject)

    def command(self) -> str:
        """Return the command that tries this case again."""
        s = self.subject
        return shlex.join(["convbackprop", "fuzz", *_target(s.variant), "--law", self.law,
                           *_how(s.problem, s.seed, s.tunables, s.device)])  # fmt: skip


@dataclass(frozen=True)
class Called:
    """A call with arguments that may be anything."""

    call: str

    part = "arguments"

    def faults(self) -> list[str]:
        """Return a sentence for each thing that is wrong."""
        return [sentence] if (sentence := arguments.fault(self.call)) else []

    def command(self) -> str:
        """Return the command that tries this case again: it ends in a traceback, or in a sentence of ours."""
        return shlex.join(["python", "-c", f"import numpy as np, convbackprop as cb; {self.call}"])


Case = Compared | Lawful | Called

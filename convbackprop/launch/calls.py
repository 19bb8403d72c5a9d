"""How a public function's call is carried out, and how the next one like it is without being checked again.

The long way: `run` has the arguments checked, makes what is missing (results, contiguous copies), plans, and launches.
Where all arrays could be used where they lie, the launches are remembered under everything that decided about them:
the function, the types, shapes, dtypes and devices of the arrays, their addresses modulo the widest load, and the other
arguments. The short way: a call that agrees in all this looks the launches up. What is left is what may differ between
two such calls: memory for the results, whether `out` may be written to, and the addresses. Whatever the short way
cannot vouch for takes the long one, the only one that refuses anything.
"""

from __future__ import annotations

import functools
import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from convbackprop.devices import Device
from convbackprop.errors import CompileError, LaunchFailed
from convbackprop.ladder.variant import ALIGNED, WIDEST, Variant
from convbackprop.launch import arrays
from convbackprop.launch.plan import Plan, alignment_of, plan
from convbackprop.problem import PASSES, ConvProblem, bytes_of

#: The operand that an argument is for the kernels; of output, mask and pre_activation at most one is given.
OPERANDS = {
    "input": "x", "weight": "w", "bias": "b", "grad_output": "dy", "output": "saved", "mask": "saved",
    "pre_activation": "saved",
}  # fmt: skip

#: Scratch memory for the cpu device of up to so many bytes is kept for the next call.
_SPARE_BYTES = 2**20


class Result(NamedTuple):
    """An array that a call makes: what messages call it, and the shape in which the user sees it."""

    title: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Function:
    """What `run` knows of a public function.

    Attributes
    ----------
    check : callable
        (given by argument name, outs by operand name, device, options, flags) -> Checked; raises where an argument
        cannot be used.
    reads : tuple of str
        The arguments that are arrays.
    writes : tuple of str
        The operands that are its results.
    """

    check: Callable[..., Checked]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass
class Checked:
    """A call whose arguments have been checked: only memory may still be missing.

    Attributes
    ----------
    library, device, like
        Whose arrays they are, where the kernels run, and an array beside which the results belong.
    results : mapping of str to Result
        What is computed, by operand name.
    passes : sequence of (Variant, ConvProblem)
        In the order in which they run.
    operands : mapping of str to str
        The operand that an argument is for the kernels.
    """

    library: arrays.Arrays
    device: Device
    like: Any
    results: Mapping[str, Result] = field(default_factory=dict)
    passes: Sequence[tuple[Variant, ConvProblem]] = ()
    operands: Mapping[str, str] = field(default_factory=lambda: OPERANDS)

    def run(self, given: Mapping[str, Any], outs: Mapping[str, Any]) -> tuple[list[Any], Launches | None]:
        """Compute the results.

        `given` are the arrays by argument; `outs`, by operand, the arrays to write to (None: a new one). Returns the
        results in the order of `outs`, None where there is none, and the launches if they can be repeated.
        """
        library = self.library
        operands = {o.name: o.dtype(p) for v, p in self.passes for o in PASSES[v.pass_name].present(p)}
        made = {
            name: arrays.allocate(library, result.shape, operands[name], self.like, result.title)
            if outs[name] is None
            else outs[name]
            for name, result in self.results.items()
        }
        targets = {  # where the kernels write
            name: out
            if library.is_plain(out)
            else arrays.allocate(library, tuple(out.shape), operands[name], self.like, "the contiguous form of out,")
            for name, out in made.items()
        }
        sources = {
            self.operands[argument]: arrays.contiguous(library, array, argument)
            for argument, array in given.items()
            if array is not None and self.operands[argument] in operands
        }
        at = {name: library.pointer(array) for name, array in {**sources, **targets}.items()}
        staged = library.device_name(self.like) == "cpu" and self.device.kind == "cuda"
        plans = [self._plan(variant, problem, at, staged) for variant, problem in self.passes]
        launches = None
        if staged:
            self._run_staged(plans, at, {**sources, **targets}, targets)
        else:
            names = [None if array is None else self.operands[argument] for argument, array in given.items()]
            names += outs
            launches = Launches(self, plans, names)
            launches.start([at.get(name, 0) if name else 0 for name in names], self.like)
        for name, target in targets.items():
            if target is not made[name]:
                library.copy(made[name], target)
        return [made.get(name) for name in outs], launches

    def _plan(self, variant: Variant, problem: ConvProblem, at: Mapping[str, int], staged: bool) -> Plan:
        own = {operand.name: at.get(operand.name, 0) for operand in PASSES[variant.pass_name].operands}
        alignment = ALIGNED if staged else alignment_of(own, problem.mask)
        try:
            return plan(variant, problem, self.device, None, alignment)
        except (CompileError, LaunchFailed) as error:
            if variant.rule is None:
                raise
            # Measured on a problem that was near, not on this one.
            first = str(error).splitlines()[0]
            warnings.warn(f"a tuned choice of {variant} cannot be used on {problem}: {first}", stacklevel=2)
            return plan(variant.rule, problem, self.device, None, alignment)

    def _run_staged(
        self, plans: Sequence[Plan], at: Mapping[str, int], everything: Mapping[str, Any], targets: Mapping[str, Any]
    ) -> None:
        """Copy arrays of the host to the GPU, run, and copy the results back."""
        device: Any = self.device
        with device.holding() as there:
            for name, array in everything.items():
                size = array.nbytes
                there[name] = device.allocate(size) if name in targets else device.upload(at[name], size)
            if scratch_bytes := max((ready.scratch_bytes for ready in plans), default=0):
                there["scratch"] = device.allocate(scratch_bytes)
            for ready in plans:
                ready.run({name: int(allocation) for name, allocation in there.items()})
            for name, array in targets.items():
                device.download(there[name], at[name], array.nbytes)


class Launches:
    """The launches of a call, on arrays that are known by their position: those that were given, then the results."""

    def __init__(self, call: Checked, plans: Sequence[Plan], names: Sequence[str | None]) -> None:
        self.plans = plans
        self._library = call.library
        self._device: Any = call.device
        self._on_cpu = call.device.kind == "cpu"
        position = {name: i for i, name in enumerate(names) if name}
        null, scratch = len(names), len(names) + 1
        self._steps = []
        for ready in plans:
            where = {**position, "scratch": scratch, **dict.fromkeys(ready.absent, null)}
            self._steps += [(_picker([where[name] for name in used]), kernel.launch) for used, kernel in ready.steps]
        self._scratch_bytes = max((ready.scratch_bytes for ready in plans), default=0)

    def start(self, addresses: Sequence[int], like: Any) -> None:
        """Launch on arrays at these addresses, which lie where `like` does."""
        scratch, spare = 0, None
        if self._scratch_bytes:
            if self._on_cpu and self._scratch_bytes <= _SPARE_BYTES:
                # Taken out while it is used: another thread, or a signal's handler, finds another one or none.
                spare = _spare.pop() if _spare else np.empty(_SPARE_BYTES, np.uint8)
                scratch = arrays.NUMPY.pointer(spare)
            else:
                memory = arrays.allocate(self._library, (self._scratch_bytes,), "uint8", like, "scratch memory")
                scratch = self._library.pointer(memory)
        addresses = [*addresses, 0, scratch]
        if self._on_cpu:
            for pick, launch in self._steps:
                launch(pick(addresses))
        else:
            with self._device.active(), self._library.on_stream(self._device) as stream:
                for pick, launch in self._steps:
                    launch(pick(addresses), stream)
        if spare is not None:
            _spare.append(spare)


class Repeat:
    """A call that has been carried out once on arrays as they were, for others that agree with it in `run`'s key."""

    def __init__(
        self, call: Checked, launches: Launches, given: Sequence[Any], outs: Mapping[str, Any], made: Sequence[Any]
    ) -> None:
        library = call.library
        self._library = library
        self._start, self._pointer = launches.start, library.pointer
        self._missing: list[tuple[int, Callable[[Any], Any]]] = []  # position among the results, what makes it
        self._extents = [  # of the arrays that a call is given: position, bytes
            (i, bytes_of(array.shape, library.dtype(array)))
            for i, array in enumerate((*given, *outs.values()))
            if array is not None
        ]
        self._first_result = len(given)
        for i, (name, array) in enumerate(zip(outs, made, strict=True)):
            if outs[name] is None and array is not None:
                title, shape = call.results[name]
                dtype = library.dtype(array)
                if bytes_of(shape, dtype) <= arrays.SMALL:
                    self._missing.append((i, library.maker(shape, dtype, call.like)))
                else:
                    make = functools.partial(arrays.allocate, library, shape, dtype, what=title)
                    self._missing.append((i, make))
        self._writes = any(out is not None for out in outs.values())

    def __call__(self, present: Sequence[Any], addresses: list[int]) -> list[Any] | None:
        """Return the results of the call on other arrays, or None where `Checked.run` has to look at it."""
        first, like = self._first_result, present[0]
        made = list(present[first:])
        if self._writes and not self._may_write(made, addresses):
            return None
        for i, make in self._missing:
            try:
                made[i] = array = make(like)
            except Exception:  # the long way finds the words for it
                return None
            addresses[first + i] = address = self._pointer(array)
            if address % WIDEST:
                return None
        self._start(addresses, like)
        return made

    def _may_write(self, outs: Sequence[Any], addresses: Sequence[int]) -> bool:
        """Return whether the arrays to write to are writable and lie apart from all others; all are contiguous."""
        for i, size in self._extents:
            if i < self._first_result:
                continue
            if not self._library.is_writable(outs[i - self._first_result]):
                return False
            begin, end = addresses[i], addresses[i] + size
            for other, other_size in self._extents:
                if addresses[other] < end and begin < addresses[other] + other_size and other != i:
                    return False
        return True


def _picker(positions: Sequence[int]) -> Callable[[Sequence[int]], Sequence[int]]:
    """Return what takes the numbers at these positions out of a list."""
    if len(positions) > 1:
        return operator.itemgetter(*positions)  # alone, it would not give a tuple
    return lambda addresses: [addresses[i] for i in positions]


class _Recent:
    """A dictionary that forgets what has not been used for long; no lock, for a lost entry is only made again."""

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self.forget()

    def forget(self) -> None:
        """Forget everything."""
        self._young: dict[Any, Repeat] = {}
        self._old: dict[Any, Repeat] = {}

    def get(self, key: Any) -> Repeat | None:
        """Return what was put under this key, if it is still there."""
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: Any, value: Repeat) -> None:
        """Keep a value at least until half as many others as fit have been used."""
        if len(self._young) >= self._half:
            self._young, self._old = {}, self._young
        self._young[key] = value


_recent = _Recent(1024)
_spare: list[Any] = []  # scratch memory that no call uses now

# A GPU cannot be used in a forked child; the long way says so.
os.register_at_fork(after_in_child=_recent.forget)


def forget() -> None:
    """Forget all calls: the next of each kind is checked and planned anew."""
    _recent.forget()


def _settled(values: Sequence[Any]) -> bool:
    """Return whether equal values are also the same ones to those who check them: True and 1.0 are equal to 1."""
    for value in values:
        kind = type(value)
        if kind is not int and kind is not str and not (isinstance(value, tuple) and _settled(value)):
            return False
    return True


def _device_of_environment() -> object:
    """Return what CONVBACKPROP_DEVICE says.

    os.environ takes as long to say that a variable is not set as all of `glance`; the dictionary inside does not.
    """
    try:
        return os.environ._data.get(b"CONVBACKPROP_DEVICE")  # type: ignore[attr-defined]
    except AttributeError:
        return os.environ.get("CONVBACKPROP_DEVICE")


def run(
    function: Function, present: tuple[Any, ...], device: Any, options: tuple[Any, ...], flags: tuple[bool, ...] = ()
) -> list[Any]:
    """Carry out a call of a public function.

    Parameters
    ----------
    function : Function
        What is called.
    present : tuple of array or None
        The arrays that it reads, and those to write to, of which None is a new one.
    device, options, flags
        The other arguments, of which `flags` are bools.

    Returns
    -------
    list of array or None
        The results in the order of `function.writes`.
    """
    key = None
    library = arrays.quick_library(present[0])
    if library is not None and _settled(options) and (device is None or type(device) is str):
        seen = library.glance(present)
        if seen is not None:
            facts, addresses = seen
            where = _device_of_environment() if device is None and library.runs_anywhere else device
            key = (function, facts, options, flags, where)
            repeat = _recent.get(key)
            if repeat is not None and (made := repeat(present, addresses)) is not None:
                return made
    given = dict(zip(function.reads, present, strict=False))
    outs = dict(zip(function.writes, present[len(given) :], strict=True))
    call = function.check(given, outs, device, options, flags)
    made, launches = call.run(given, outs)
    if key is not None and launches is not None and all(a is None or call.library.is_plain(a) for a in present):
        _recent.put(key, Repeat(call, launches, tuple(given.values()), outs, made))
    return made

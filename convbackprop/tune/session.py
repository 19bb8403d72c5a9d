"""Tuning from a program: `tuning`, a context inside which calls are tuned before they are carried out."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator

from convbackprop import ops
from convbackprop.arguments import shown
from convbackprop.devices import Device
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.registry import AUTO, UNTUNED, of_pass
from convbackprop.launch import calls
from convbackprop.problem import ConvProblem
from convbackprop.tune import choice, table
from convbackprop.tune.search import Search

_log = logging.getLogger("convbackprop")


@contextlib.contextmanager
def tuning(seconds: float = 10.0) -> Iterator[None]:
    """Tune what is called inside this context, and keep what is found for later calls and later programs.

    A call with variant="auto" of a kind that has not been tuned yet waits until its problem is: what is fastest is
    searched for, on arrays of its own, checked against the float64 reference, and written to the user's table (see
    'convbackprop tune'). Nothing is ever tuned unasked. It holds for all threads of the process.

    Parameters
    ----------
    seconds : float
        For the search of each pass of each problem; what has begun is ended. Compilation counts.

    Raises
    ------
    InvalidArgument
        `seconds` is not above 0; or CONVBACKPROP_TUNED is "off", so that nothing can be kept.

    Notes
    -----
    A tuned choice may form sums in another order, so that results differ in their last bits from those before; from
    then on they are the same bits every run. variant="untuned" ignores all tuning.

    Examples
    --------
    >>> with convbackprop.tuning():  # doctest: +SKIP
    ...     y = convbackprop.conv2d(x, w)
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InvalidArgument(f"seconds is {shown(seconds)}; it should be a number above 0")
    if table.folder() is None:
        raise InvalidArgument(f"{table.VARIABLE} is 'off', so that nothing can be kept; unset it, or name a folder")
    busy = threading.RLock()
    inside = threading.local()  # a search calls kernels of its own

    def tell(pass_name: str, problem: ConvProblem, device: Device) -> None:
        with busy:
            if getattr(inside, "search", False) or _is_tuned(pass_name, problem, device):
                return
            inside.search = True
            try:
                tune(pass_name, problem, device, seconds)
            finally:
                inside.search = False

    choice.listeners.append(tell)
    calls.forget()
    try:
        yield
    finally:
        choice.listeners.remove(tell)


def _is_tuned(pass_name: str, problem: ConvProblem, device: Device) -> bool:
    return any(distance == 0 for distance, _ in table.lookup(device.title, pass_name, problem))


def tune(
    pass_name: str, problem: ConvProblem, device: Device, seconds: float, doing: Callable[[str], None] | None = None
) -> table.Entry | None:
    """Search for what is fastest for a pass of a problem, keep it, and return it; None: no variant computes it.

    The passes that together compute what backward does are tuned before it, where they have not been.
    """
    if all(rung.refusal(problem, device) for rung in of_pass(pass_name)):
        return None
    others = []
    if pass_name == "backward":
        rule = ops.passes_of_backward(UNTUNED, problem, device)
        if problem.dx and problem.dw:  # or else there are no arrays for all that the separate passes want
            parts = ops.parts_of_backward(problem)
            for name, part in parts:
                if not _is_tuned(name, part, device):
                    tune(name, part, device, seconds, doing)
            others = [[(choice.choose(name, AUTO, part, device), part) for name, part in parts]]
    else:
        rule = [(choice.choose(pass_name, UNTUNED, problem, device), problem)]
    near = (entry.rung for _, entry in table.lookup(device.title, pass_name, problem))
    hints = [rung for rung in near if rung and rung.refusal(problem, device) is None]
    entry = Search(pass_name, problem, device, seconds, doing or _log.info).run(rule, others, hints)
    table.update(device.title, [entry])
    calls.forget()
    return entry

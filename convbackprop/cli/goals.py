"""The goals of `bench`: how many times as fast as torch the public functions should be on a CPU, on tensors.

They hold for the class of machine that they were set on, and no run fails for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from convbackprop import ops
from convbackprop.bench import torch_calls
from convbackprop.bench.timing import Timing, alternate, host_clock
from convbackprop.cli.common import say
from convbackprop.devices.cpu import get_num_threads, set_num_threads

Call = Callable[[], object]

#: The layer: one image of one channel, one filter, padding that keeps the size, a bias and a ReLU.
SIZE, FILTER = 1024, 5

#: Of ours and of torch.
THREADS = 2

MACHINE = f"a CPU with AVX-512 and {THREADS} cores"

#: Seconds for each goal, and repetitions at most.
_SECONDS, _MOST = 2.5, 200


@dataclass(frozen=True)
class Goal:
    """A public function, how many times as fast as torch it should be, and what torch is asked for."""

    pass_name: str
    ours: str
    torch: str
    times: float


GOALS = (
    Goal("forward", "conv2d", "relu(conv2d(x, w, b)) without a graph", 30),
    Goal("input_grad", "conv2d_input_grad", "torch.nn.grad.conv2d_input, g ready-made", 60),
    Goal("kernel_grad", "conv2d_kernel_grad, dw and db", "torch.nn.grad.conv2d_weight, g ready-made", 16),
    Goal("backward", "conv2d_backward, fused", "torch.autograd.grad of (x, w, b)", 35),
)


@dataclass(frozen=True)
class Result:
    """A goal, and how long both took."""

    goal: Goal
    ours: Timing
    torch: Timing

    @property
    def ratio(self) -> float:
        """How many times as fast as torch ours is."""
        return self.torch.median / self.ours.median

    @property
    def met(self) -> bool:
        """Whether that is enough."""
        return self.ratio >= self.goal.times

    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        return {"pass": self.goal.pass_name, "function": self.goal.ours, "peer": self.goal.torch,
                "goal": self.goal.times, "ratio": self.ratio, "met": self.met, "ours_ms": 1e3 * self.ours.median,
                "peer_ms": 1e3 * self.torch.median}  # fmt: skip


def _calls(size: int) -> dict[str, tuple[Call, Call]]:
    """Return for each pass our call and torch's, both on the same tensors."""
    torch = torch_calls.import_torch()
    functional, grad = torch.nn.functional, torch.nn.grad
    torch.manual_seed(0)
    pad = FILTER // 2
    x, w, b = torch.randn(1, 1, size, size), torch.randn(1, 1, FILTER, FILTER) / FILTER, torch.randn(1)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, w, b)]
    graph = functional.relu(functional.conv2d(*leaves, padding=pad))
    y = graph.detach().clone()
    dy = torch.randn_like(y)
    g = dy * (y > 0)

    def forward() -> Any:
        with torch.no_grad():
            return functional.relu(functional.conv2d(x, w, b, padding=pad))

    layer: dict[str, Any] = {"padding": pad, "activation": "relu"}
    return {
        "forward": (lambda: ops.conv2d(x, w, b, **layer), forward),
        "input_grad": (
            lambda: ops.conv2d_input_grad(x.shape, w, dy, output=y, **layer),
            lambda: grad.conv2d_input(x.shape, w, g, padding=pad),
        ),
        "kernel_grad": (
            lambda: ops.conv2d_kernel_grad(x, w.shape, dy, output=y, with_bias=True, **layer),
            lambda: grad.conv2d_weight(x, w.shape, g, padding=pad),
        ),
        "backward": (
            lambda: ops.conv2d_backward(dy, x, w, output=y, variant="fused", **layer),
            lambda: torch.autograd.grad(graph, leaves, dy, retain_graph=True),
        ),
    }


def run_goals(passes: Sequence[str], seconds: float | None = None) -> Iterator[Result]:
    """Time the goals of some passes, each in turn with torch, and give the results one after the other."""
    before, torch = get_num_threads(), torch_calls.import_torch()
    torch_before = torch.get_num_threads()
    set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    try:
        calls = _calls(SIZE)
        for goal in GOALS:
            if goal.pass_name in passes:
                ours, theirs = calls[goal.pass_name]
                in_turn = {"ours": ours, "torch": theirs}
                timings = alternate(in_turn, host_clock, min(_SECONDS, seconds or _SECONDS), most=_MOST)
                yield Result(goal, timings["ours"], timings["torch"])
    finally:
        set_num_threads(before)
        torch.set_num_threads(torch_before)


def print_goals(results: Sequence[Result], out: Any) -> None:
    """Print the table and what it is about."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("goal: public function", overflow="fold")
    table.add_column("torch", overflow="fold")
    for name in ("ms", "torch ms", "times", "goal", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        verdict = Text("met", "green") if result.met else Text("not met", "yellow")
        ours, theirs = (f"{1e3 * timing.median:#.3g}".rstrip(".") for timing in (result.ours, result.torch))
        table.add_row(result.goal.ours, result.goal.torch, ours, theirs, f"{result.ratio:.1f}x",
                      f"{result.goal.times:g}x", verdict)  # fmt: skip
    out.print()
    out.print(table)
    say(out, f"goals: {SIZE} x {SIZE}, filter {FILTER} x {FILTER}, one channel, bias and ReLU, float32 tensors in and "
        f"new tensors out, {THREADS} threads, medians of calls in turn. They were set on {MACHINE}.")  # fmt: skip

"""The public functions on tensors: what a call costs the host, and calls in CUDA graphs."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.report import exact
from benchmarks.report.jobs import Job
from benchmarks.report.measure import Call, Outcome, Place, Tensor, as_bytes, poison, results_of, tried
from benchmarks.report.rows import Row, spread
from convbackprop import ops
from convbackprop.devices import compiler
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import constants_of, pack_shape
from convbackprop.prepared import prepare
from convbackprop.problem import ConvProblem

BARE = "PyCUDA's bare prepared launch"


def public_call(pass_name: str, p: ConvProblem, t: Mapping[str, Tensor], out: bool) -> functools.partial[Any]:
    """Return a call of the public function of a pass, whose results go to the tensors, or to new ones."""
    common: dict[str, Any] = {name: getattr(p, name) for name in ("stride", "padding", "dilation", "groups")}
    common |= {"activation": p.activation}
    if pass_name == "forward":
        return functools.partial(ops.conv2d, t["x"], t["w"], t["b"], out=t["y"] if out else None, **common)
    common |= {"output": t["saved"]}
    if pass_name == "input_grad":
        own = {"out": t["dx"]} if out else {}
        return functools.partial(ops.conv2d_input_grad, p.x_shape, t["w"], t["dy"], **own, **common)
    if pass_name == "kernel_grad":
        own = {"out": (t["dw"], t["db"])} if out else {}
        return functools.partial(ops.conv2d_kernel_grad, t["x"], p.w_shape, t["dy"], with_bias=True, **own, **common)
    own = {"out": (t["dx"], t["dw"], t["db"])} if out else {}
    return functools.partial(ops.conv2d_backward, t["dy"], t["x"], t["w"], **own, **common)


def torch_eager(pass_name: str, p: ConvProblem, t: Mapping[str, Tensor], torch: Any) -> Call:
    """Return what a user of torch writes; of a gradient, what autograd calls, dy * phi'(s) included."""
    (top, bottom), (left, right) = p.padding
    assert (top, left) == (bottom, right)
    options = (p.stride, [top, left], p.dilation)

    def forward() -> Any:
        with torch.no_grad():
            return torch.relu_(torch.nn.functional.conv2d(t["x"], t["w"], t["b"], *options, p.groups))

    if pass_name == "forward":
        return forward
    wanted = {"input_grad": [True, False, False], "kernel_grad": [False, True, True], "backward": [True] * 3}[pass_name]
    # Of the array whose gradient alone is wanted only the shape is used.
    x, w = (t.get(name, t["dy"].new_empty(shape)) for name, shape in (("x", p.x_shape), ("w", p.w_shape)))

    def gradients() -> Any:
        g = torch.ops.aten.threshold_backward(t["dy"], t["saved"], 0)
        return torch.ops.aten.convolution_backward(g, x, w, [p.K], *options, False, [0, 0], p.groups, wanted)

    return gradients


def checked(row: Row, pass_name: str, p: ConvProblem, place: Place, t: Mapping[str, Tensor], call: Call) -> None:
    """Hold what a call of ours writes, or returns, against the exact sums; torch's is made once."""
    torch = place.torch
    poison(t, pass_name, p)
    result = call()
    place.synchronize()
    if row.who.startswith("torch"):
        return
    names = results_of(pass_name, p)
    returned = result if isinstance(result, tuple) else (result,)
    own = dict(zip(names, returned, strict=True)) if isinstance(returned[0], torch.Tensor) else t
    expected = exact.exact(torch, pass_name, p, t)
    row.full_share = max(exact.share_of_bound(torch, name, p, own[name], *values) for name, values in expected.items())
    if not row.full_share <= 1:
        raise ArithmeticError(f"wrong: the largest error is {row.full_share:.3g} times its bound")


def time_on_host(rows: Mapping[str, tuple[Row, Call]], place: Place, batch: int, to_the_end: bool = False) -> None:
    """Time so many calls in a row by the host's clock, until they are queued, or until the GPU has done them."""
    good = {who: call for who, (row, call) in rows.items() if row.failed is None}
    seconds: dict[str, list[float]] = {who: [] for who in good}
    end = time.perf_counter() + place.scale.seconds * len(good)
    for i in range(place.scale.batches):
        if i >= 5 and time.perf_counter() > end:
            break
        for who, call in good.items():
            place.synchronize()
            start = time.perf_counter()
            for _ in range(batch):
                call()
            if to_the_end:
                place.synchronize()
            seconds[who].append((time.perf_counter() - start) / batch)
    for who in good:
        rows[who][0].host = spread(seconds[who])
    place.synchronize()


# -- what a call costs the host --------------------------------------------------------------------------------------
def measure_host(job: Job, place: Place) -> Outcome:
    """Time calls by the host's clock: the public function, also prepared, PyCUDA's bare launch, torch's eager."""
    assert job.problem is not None
    torch, p, name = place.torch, job.problem, job.pass_name
    tensors = place.tensors(name, p, {})
    function = {"forward": "conv2d", "backward": "conv2d_backward"}[name]
    calls: dict[str, Call] = {BARE: bare_launch(job.variants[0], p, place, tensors)} if name == "forward" else {}
    calls |= {f"{function}, {what}": public_call(name, p, tensors, out) for what, out in
              (("out given", True), ("new result", False))}  # fmt: skip
    given = public_call(name, p, tensors, True)
    calls[f"{function}, prepared"] = prepare(given.func, *given.args, **given.keywords)
    calls["torch eager" if name == "forward" else f"torch eager, {name}"] = torch_eager(name, p, tensors, torch)
    rows = {}
    for who, call in calls.items():
        row = Row(job.name, who, ours=who.startswith("conv2d"), problem=str(p))
        rows[who] = (row, call)
        tried(row, functools.partial(checked, row, name, p, place, tensors, call))
    time_on_host(rows, place, place.scale.batch)
    return Outcome([row for row, _ in rows.values()])


def bare_launch(variant: Variant, p: ConvProblem, place: Place, tensors: Mapping[str, Tensor]) -> Call:
    """Return what a call costs at least: the same kernel, loaded and prepared with PyCUDA alone."""
    constants = variant.constants(place.device.target, p)
    (launch,) = (launch for launch in variant.launches if launch.when(p, constants))
    made_from = compiler.Source.of(variant.path, constants_of(variant, p, place.device.target))
    path, _ = compiler.cubin(made_from, place.device.architecture)
    function = place.device.driver.module_from_buffer(path.read_bytes()).get_function(launch.entry)
    shape = pack_shape(p)
    integers = launch.integers(p, constants)
    function.prepare(["P"] * len(launch.operands) + [f"{len(shape)}s"] + ["i"] * len(integers))
    arguments = [tensors[name].data_ptr() if name in tensors else 0 for name in launch.operands]
    arguments += [shape, *integers]
    grid, block = ((*extents, 1, 1)[:3] for extents in (launch.grid(p, constants), launch.block(p, constants)))
    shared, prepared = launch.shared_bytes(p, constants), function.prepared_async_call
    return lambda: prepared(grid, block, None, *arguments, shared_size=shared)


# -- CUDA graphs -----------------------------------------------------------------------------------------------------
def captured(place: Place, call: Call) -> Call:
    """Return the replay of a call in a CUDA graph; a dry run, which has none, calls it again."""
    if place.scale.dry:
        call()
        return call
    torch = place.torch
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # loads what the call needs, on the side, as torch asks for
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure_graphs(job: Job, place: Place) -> Outcome:
    """Time a public function and torch's, called and replayed from a CUDA graph, many in a row until all have ended.

    A replay has to write the bits that the call writes.
    """
    assert job.problem is not None
    torch, p, name = place.torch, place.scale.problem(job.problem), job.pass_name
    tensors = place.tensors(name, p, {})
    rows: dict[str, tuple[Row, Call]] = {}
    for who, call in (
        ("ours", public_call(name, p, tensors, out=True)),
        ("torch", torch_eager(name, p, tensors, torch)),
    ):
        ours = who == "ours"
        row, replay = (Row(job.name, f"{who}, {how}", ours=ours, problem=str(p)) for how in ("called", "replayed"))
        rows[row.who] = (row, call)
        rows[replay.who] = (replay, call)
        if not tried(row, functools.partial(checked, row, name, p, place, tensors, call)):
            replay.failed = row.failed
            continue

        def capture(row: Row = replay, call: Call = call, ours: bool = ours) -> None:
            again = captured(place, call)
            rows[row.who] = (row, again)
            if ours:
                same_bits(row, name, p, place, tensors, call, again)

        tried(replay, capture)
    time_on_host(rows, place, max(2, place.scale.batch // (1 if p.H < 100 else 10)), to_the_end=True)
    return Outcome([row for row, _ in rows.values()])


def same_bits(
    row: Row, name: str, p: ConvProblem, place: Place, tensors: Mapping[str, Tensor], call: Call, replay: Call
) -> None:
    """Hold what a replay writes against what the call writes."""
    written = []
    for each in (call, replay):
        poison(tensors, name, p)
        each()
        place.synchronize()
        written.append([as_bytes(place.torch, tensors[result]).clone() for result in results_of(name, p)])
    row.deterministic = all(place.torch.equal(a, b) for a, b in zip(*written, strict=True))
    if not row.deterministic:
        raise ArithmeticError("wrong: the replay writes other bits than the call")

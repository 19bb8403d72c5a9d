"""Carry out a job on the GPU: check, then time, every way to do it; what fails is a row that says why."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report import exact
from benchmarks.report.jobs import FFMA, SPIN, Job, as_for, shrunk
from benchmarks.report.rows import Row, spread
from convbackprop.bench import roof, torch_calls
from convbackprop.bench.timing import Timing, alternate
from convbackprop.check import check
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import alignment_of, pack_shape, plan
from convbackprop.problem import PASSES, ConvProblem

Call = Callable[[], Any]
Tensor = Any


@dataclass(frozen=True)
class Scale:
    """How large and how long: of a measurement, or of a dry run on the stand-in."""

    dry: bool
    seconds: float  # for each job and mode
    most: int  # repetitions
    copy_bytes: int  # of the copy that finds the bandwidth
    ffma_rounds: int  # about a microsecond each on an H200
    spin_steps: int  # about two nanoseconds each: longer than the host needs to queue a call of torch
    batches: int  # of calls by the host's clock
    batch: int

    def problem(self, problem: ConvProblem) -> ConvProblem:
        """Return the problem to time."""
        return shrunk(problem) if self.dry else problem


MEASURED = Scale(False, 0.4, 50, 1 << 30, 2000, 100_000, 60, 100)
DRY = Scale(True, 0.0, 2, 1 << 16, 2, 16, 2, 2)


@dataclass
class Outcome:
    """What a job gave: its rows, and `facts` by name (the ceilings)."""

    rows: list[Row] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Place:
    """A GPU, torch on it, and a clock; used while the device's context is active."""

    def __init__(self, device: Any, scale: Scale) -> None:
        self.device, self.scale = device, scale
        self.torch = torch = torch_calls.import_torch()
        self.where = "cpu" if scale.dry else device.name
        torch.backends.cudnn.benchmark = True
        torch_calls.allow_tf32(False)
        driver = device.driver
        attributes, gpu = driver.device_attribute, driver.Device(device.ordinal)
        self.multiprocessors = gpu.get_attribute(attributes.MULTIPROCESSOR_COUNT)
        self.l2_bytes = gpu.get_attribute(attributes.L2_CACHE_SIZE)
        self._start, self._stop = driver.Event(), driver.Event()
        self._flush_bytes = 4 * self.l2_bytes
        self._flush = device.allocate(self._flush_bytes)
        self._spin_value = torch.full((1,), 0.5, device=self.where)
        shape = pack_shape(ConvProblem.parse("1,1,1,1,1,1,1"))
        self._spin = device.load(SPIN, "spin", (1, 1, 1), (1, 1, 1), 0, 1, shape, (scale.spin_steps,))

    def synchronize(self) -> None:
        """Wait until the GPU is idle; raises what went wrong on it."""
        self.device.driver.Context.synchronize()

    def clock(self, call: Call, cold: bool) -> float:
        """Return how many seconds a call keeps the GPU busy, with the L2 cache flushed (`cold`) or as it is."""
        if cold:
            self.device.driver.memset_d8_async(int(self._flush), 0x3C, self._flush_bytes)
        self._spin.launch((self._spin_value.data_ptr(),))
        self._start.record()
        call()
        self._stop.record()
        self._stop.synchronize()
        return float(self._stop.time_since(self._start)) * 1e-3

    def time(self, calls: Mapping[str, Call], cold: bool, least: int = 5, share: float = 1) -> dict[str, Timing]:
        """Time calls in turn, for a share of the seconds of a job."""
        scale = self.scale
        clock = functools.partial(self.clock, cold=cold)
        return alternate(calls, clock, share * scale.seconds, least=min(least, scale.most), most=scale.most)

    # -- tensors and calls on them -----------------------------------------------------------------------------
    def tensors(self, pass_name: str, problem: ConvProblem, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a tensor for each operand: `given`, else random numbers; results are NaN."""
        torch, made = self.torch, dict(given)
        generator = torch.Generator(self.where).manual_seed(len(pass_name) + problem.R)
        for operand in PASSES[pass_name].present(problem):
            shape, dtype = operand.shape(problem), getattr(torch, operand.dtype(problem))
            if operand.name in made:
                continue
            if operand.written:
                made[operand.name] = torch.empty(shape, dtype=dtype, device=self.where)
            elif operand.dtype(problem) == "uint8":
                made[operand.name] = torch.randint(256, shape, dtype=dtype, device=self.where, generator=generator)
            else:
                values = torch.randn(shape, device=self.where, generator=generator)
                made[operand.name] = (values.clamp_(min=0) if operand.name == "saved" else values).to(dtype)
        poison(made, pass_name, problem)
        return made

    def call(self, variant: Variant, problem: ConvProblem, tensors: dict[str, Tensor]) -> Call:
        """Return a variant's launches on these tensors, and nothing else."""
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        ready = plan(variant, problem, self.device, None, alignment_of(pointers, problem.mask))
        scratch = self.torch.full((max(1, ready.scratch_bytes),), 0xFF, dtype=self.torch.uint8, device=self.where)
        tensors[f"scratch of {variant}"] = scratch  # lives as long as the others
        pointers["scratch"] = scratch.data_ptr()
        return lambda: ready.run(pointers)


def poison(tensors: Mapping[str, Tensor], pass_name: str, problem: ConvProblem) -> None:
    """Fill the results with NaN, so that an element that is not written is found."""
    for operand in PASSES[pass_name].present(problem):
        if operand.written:
            tensors[operand.name].fill_(0xFF if operand.dtype(problem) == "uint8" else math.nan)


def results_of(pass_name: str, problem: ConvProblem) -> list[str]:
    """Return the names of what a pass writes."""
    return [operand.name for operand in PASSES[pass_name].present(problem) if operand.written]


# -- checks ----------------------------------------------------------------------------------------------------------
def check_small(row: Row, variant: Variant, problem: ConvProblem, place: Place) -> None:
    """Hold a variant against the float64 reference on the small problem of the same kind."""
    outcome = check(as_for(variant, problem, place.device.target), shrunk(problem), place.device)
    row.small_share = max(outcome.share, row.small_share or 0.0)
    if not outcome.ok:
        raise ArithmeticError(f"wrong on {shrunk(problem)}: {outcome.faults[0]}")


def check_full(
    row: Row, variant: Variant, problem: ConvProblem, place: Place, call: Call, tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[Tensor, Tensor]],
) -> None:  # fmt: skip
    """Hold every element at full size against the exact sums, and a second run against the first."""
    torch, pass_name = place.torch, variant.pass_name
    names = results_of(pass_name, problem)
    first = {}
    for _ in range(2):
        poison(tensors, pass_name, problem)
        call()
        place.synchronize()
        now = {name: tensors[name].clone() for name in names}
        # as bytes, in which a NaN equals itself
        same = not first or all(torch.equal(as_bytes(torch, first[n]), as_bytes(torch, now[n])) for n in names)
        first = first or now
    row.deterministic = same and row.deterministic is not False
    wider = variant.transforms and exact.transformed(torch, pass_name, problem, tensors, variant.transforms)
    share = max(
        exact.share_of_bound(torch, name, problem, first[name], *values, wider) for name, values in expected.items()
    )
    row.full_share = max(share, row.full_share or 0.0)
    if not share <= 1:
        raise ArithmeticError(f"wrong at full size: the largest error is {share:.3g} times its bound")
    if "mask" in names and not torch.equal(first["mask"], exact.packed_mask(torch, first["y"])):
        raise ArithmeticError("wrong at full size: mask is not the bits of y > 0")


def as_bytes(torch: Any, tensor: Tensor) -> Tensor:
    """Return a tensor's bits."""
    return tensor.contiguous().view(torch.uint8)


# -- jobs ------------------------------------------------------------------------------------------------------------
def tried(row: Row, prepare: Callable[[], None]) -> bool:
    """Do what comes before a row's timing; if it raises, the row says so."""
    try:
        prepare()
    except Exception as error:
        row.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return False
    return True


def time_rows(rows: Mapping[str, tuple[Row, Call]], place: Place, brief: bool = False) -> None:
    """Time all rows' calls in turn, cold, and warm what is not brief or TF32. If that fails, the rows say so."""
    try:
        cold = place.time({name: call for name, (_, call) in rows.items()}, cold=True, share=0.25 if brief else 1)
        again = {name: call for name, (_, call) in rows.items() if "TF32" not in name and not brief}
        warm = place.time(again, cold=False, least=3) if again else {}
    except Exception as error:
        for row, _ in rows.values():
            row.failed = f"timing ended with {type(error).__name__}: {error}"
        return
    for name, (row, _) in rows.items():
        row.cold = spread(cold[name].seconds)
        row.warm = spread(warm[name].seconds) if name in warm else None


def copy_call(place: Place, size: int, keep: list[Any]) -> Call:
    """Return a copy that reads and writes together `size` bytes."""
    half = max(1, size // 2)
    target, source = (place.device.allocate(half) for _ in range(2))
    keep += [target, source]
    for allocation in (target, source):
        place.device.driver.memset_d8(int(allocation), 0x5A, half)
    return lambda: place.device.copy(int(target), int(source), half)


def torch_rows(
    job: Job, rows: list[Row], make_calls: Callable[[], Mapping[str, Call]], place: Place
) -> dict[str, tuple[Row, Call]]:
    """Return torch's rows, those of TF32 too where the problem is float32, each tried once."""
    calls: dict[str, Call] = {}
    made = Row(job.name, "torch")
    if not tried(made, lambda: calls.update(make_calls())):
        rows.append(made)
        return {}

    def with_tf32(call: Call) -> Call:
        def run() -> None:
            torch_calls.allow_tf32(True)
            call()
            torch_calls.allow_tf32(False)

        return run

    assert job.problem is not None
    ways = dict(calls)
    if job.problem.dtype == "float32" and not job.brief:
        ways |= {f"{name} TF32": with_tf32(call) for name, call in calls.items()}
    found = {}
    for name, call in ways.items():
        row = Row(job.name, name)
        rows.append(row)

        def once(call: Call = call) -> None:
            call()
            place.synchronize()

        if tried(row, once):
            found[name] = (row, call)
        torch_calls.allow_tf32(False)
    return found


def measure_pass(job: Job, place: Place) -> Outcome:
    """Time the variants of a pass beside torch and a copy."""
    assert job.problem is not None
    torch, problem, name = place.torch, place.scale.problem(job.problem), job.pass_name
    rows, timed, keep = [], {}, []  # type: list[Row], dict[str, tuple[Row, Call]], list[Any]
    tensors = place.tensors(name, problem, {})
    expected = exact.exact(torch, name, problem, tensors)
    for variant in job.variants:
        row = Row(job.name, str(variant), ours=True)
        rows.append(row)

        def prepare(variant: Variant = variant, row: Row = row) -> None:
            check_small(row, variant, problem, place)
            call = place.call(variant, problem, tensors)
            check_full(row, variant, problem, place, call, tensors, expected)
            timed[str(variant)] = (row, call)

        tried(row, prepare)
    expected.clear()  # a few images of float64
    given = {operand: tensors[operand] for operand in ("x", "w", "b") if operand in tensors}
    if "dy" in tensors:
        given["g"] = exact.pre_activation_grad(torch, problem, tensors)
    timed |= torch_rows(job, rows, lambda: torch_calls.calls_on(name, problem, given, channels_last=True), place)
    rows.append(Row(job.name, "copy"))
    least_bytes = PASSES[name].least_bytes(problem)
    timed["copy"] = (rows[-1], copy_call(place, least_bytes, keep))
    for row in rows:
        row.problem, row.least_bytes, row.flops = str(problem), least_bytes, PASSES[name].flops(problem)
    try:
        time_rows(timed, place, job.brief)
    finally:
        for allocation in keep:
            allocation.free()
    return Outcome(rows)


def measure_layer(job: Job, place: Place) -> Outcome:
    """Time a layer's forward pass, which saves the mask, and its backward pass, which reads it, as one."""
    assert job.problem is not None
    torch, problem = place.torch, place.scale.problem(job.problem)
    passes = dict(zip(("forward", "backward"), job.variants, strict=True))
    tensors = place.tensors("forward", problem, {})
    tensors |= place.tensors("backward", problem, {"x": tensors["x"], "w": tensors["w"], "saved": tensors["mask"]})
    row = Row(job.name, " + ".join(map(str, job.variants)), ours=True)
    rows, timed = [row], {}  # type: list[Row], dict[str, tuple[Row, Call]]

    def prepare() -> None:
        calls = []
        for pass_name, variant in passes.items():
            check_small(row, variant, problem, place)
            calls.append(place.call(variant, problem, tensors))
            expected = exact.exact(torch, pass_name, problem, tensors)
            check_full(row, variant, problem, place, calls[-1], tensors, expected)

        def both() -> None:
            for call in calls:
                call()

        timed[row.who] = (row, both)

    tried(row, prepare)
    timed |= torch_rows(job, rows, lambda: torch_layer(torch, problem, tensors), place)
    for each in rows:
        each.problem = str(problem)
        each.least_bytes = sum(PASSES[name].least_bytes(problem) for name in passes)
        each.flops = sum(PASSES[name].flops(problem) for name in passes)
    time_rows(timed, place)
    return Outcome(rows)


def torch_layer(torch: Any, p: ConvProblem, tensors: Mapping[str, Tensor]) -> dict[str, Call]:
    """Return torch's ways to run the layer forward and backward: what autograd would, without its bookkeeping."""
    (top, bottom), (left, right) = p.padding
    assert (top, left) == (bottom, right)
    padding = [top, left]

    def way(memory_format: Any) -> Call:
        x, w, dy = (tensors[name].contiguous(memory_format=memory_format) for name in ("x", "w", "dy"))
        b = tensors["b"]

        def run() -> None:
            with torch.no_grad():
                y = torch.relu_(torch.nn.functional.conv2d(x, w, b, p.stride, padding, p.dilation, p.groups))
                g = torch.ops.aten.threshold_backward(dy, y, 0)
                torch.ops.aten.convolution_backward(
                    g, x, w, [p.K], p.stride, padding, p.dilation, False, [0, 0], p.groups, [True, True, True]
                )

        return run

    return {"torch": way(torch.contiguous_format), "torch channels_last": way(torch.channels_last)}


def measure_ceilings(job: Job, place: Place) -> Outcome:
    """Measure the bandwidth of a copy, the peak rate of FFMA, and what two events with nothing between them say."""
    torch, scale = place.torch, place.scale
    keep: list[Any] = []
    copy = copy_call(place, 2 * scale.copy_bytes, keep)
    blocks = place.multiprocessors * (2048 // roof.THREADS)
    factors = torch.tensor([0.999, 0.001], device=place.where)
    out = torch.empty(blocks * roof.THREADS, device=place.where)
    shape = pack_shape(ConvProblem.parse("1,1,1,1,1,1,1"))
    kernel = place.device.load(
        FFMA, "fma_peak", (blocks, 1, 1), (roof.THREADS, 1, 1), 0, 2, shape, (scale.ffma_rounds,)
    )
    out.fill_(math.nan)
    for _ in range(scale.batch):  # until the clocks are up
        kernel.launch((factors.data_ptr(), out.data_ptr()))
    place.synchronize()
    if not bool(torch.isfinite(out).all()):
        raise ArithmeticError("fma_peak.cu did not write every sum")
    calls: dict[str, Call] = {
        "copy of 1 GiB": copy,
        "FFMA": lambda: kernel.launch((factors.data_ptr(), out.data_ptr())),
        "nothing": lambda: None,
    }
    timings = place.time(calls, cold=True)
    for allocation in keep:
        allocation.free()
    flops = 2 * roof.CHAINS * roof.STEPS * scale.ffma_rounds * out.numel()
    sizes = {"copy of 1 GiB": (2 * scale.copy_bytes, 0), "FFMA": (0, flops), "nothing": (0, 0)}
    rows = [
        Row(job.name, name, cold=spread(timing.seconds), least_bytes=sizes[name][0], flops=sizes[name][1])
        for name, timing in timings.items()
    ]
    facts = {
        "copy_bytes_per_s": 2 * scale.copy_bytes / timings["copy of 1 GiB"].median,
        "ffma_flops_per_s": flops / timings["FFMA"].median,
        "empty_us": timings["nothing"].median * 1e6,
        "multiprocessors": place.multiprocessors,
        "l2_bytes": place.l2_bytes,
    }
    return Outcome(rows, facts)

"""What holds of every variant without a reference, hence at any size.

Most laws take small integers, whose sums are exact in any order: both sides must agree to the last bit. "batch" and
"workers" take normal numbers: there each element's sum must be formed in the same order.

A law gets a `Subject` and returns sentences on what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbackprop import check, ops
from convbackprop.check import reference
from convbackprop.devices import Device, get_device, usable_devices
from convbackprop.devices.cpu import get_num_threads, set_num_threads
from convbackprop.ladder.registry import of_pass
from convbackprop.ladder.variant import Variant
from convbackprop.problem import PASSES, ConvProblem

Array = Any
Arrays = Mapping[str, Array]  # x, w, b, dy and y, whichever a pass reads
Results = dict[str, Array]


@dataclass(frozen=True)
class Subject:
    """What a law is tried on; all random numbers follow from the seed."""

    variant: Variant
    problem: ConvProblem
    device: Device
    tunables: str | None
    seed: int

    def rng(self) -> np.random.Generator:
        """Return the random numbers of this case."""
        return np.random.default_rng(self.seed)

    def arrays(self, data: str, rng: np.random.Generator) -> Results:
        """Return arrays for every operand of every pass; y is what the forward pass may have saved."""
        p = self.problem
        shapes = {"x": p.x_shape, "w": p.w_shape, "b": (p.K,), "dy": p.y_shape, "y": p.y_shape}
        return {name: check.fill(shape, p.dtype, data, rng) for name, shape in shapes.items()}

    def run(
        self, arrays: Arrays, problem: ConvProblem | None = None, variant: Variant | None = None,
        device: Device | None = None,
    ) -> Results:  # fmt: skip
        """Return the results that the variant computes on this problem and device, unless others are given.

        Another device has the constants that it has for its users.
        """
        tunables = None if device else self.tunables
        variant, problem, device = variant or self.variant, problem or self.problem, device or self.device
        given = {}
        for operand in PASSES[variant.pass_name].present(problem):
            if operand.name == "saved":
                y = arrays["y"]
                given["saved"] = reference.mask_of(y) if problem.mask else y
            elif not operand.written:
                given[operand.name] = arrays[operand.name]
        blocks = check.launch(variant, problem, given, device, tunables)
        if spoilt := [name for name, block in blocks.items() if not block.intact()]:
            raise AssertionError(f"memory next to {' and '.join(spoilt)} was written")
        for name, block in blocks.items():
            if name in ("y", "dx", "dw", "db") and np.isnan(block.array).any():
                raise AssertionError(f"{name} has elements that were not written, or are NaN")
        names = [o.name for o in PASSES[variant.pass_name].present(problem) if o.written and o.name != "mask"]
        return {name: blocks[name].array for name in names}


def _differences(what: str, got: Results, expected: Results) -> list[str]:
    """Return a sentence for each result that has other bits, NaN being one number and so being -0 and 0."""
    found = []
    for name, value in expected.items():
        wrong = np.argwhere(~((got[name] == value) | (np.isnan(got[name]) & np.isnan(value))))
        if len(wrong):
            at = tuple(map(int, wrong[0]))
            place = ",".join(map(str, at))
            found.append(
                f"{what}: {len(wrong):,} of {value.size:,} elements of {name} differ: "
                f"[{place}] is {float(got[name][at]):.9g} instead of {float(value[at]):.9g}"
            )
    return found


# -- the laws --------------------------------------------------------------------------------------------------------
def linear(subject: Subject) -> list[str]:
    """F(a + a') = F(a) + F(a'), in the image or, for gradients, in that of the output."""
    rng = subject.rng()
    one, other = subject.arrays("integers", rng), subject.arrays("integers", rng)
    factor = "x" if subject.variant.pass_name == "forward" else "dy"
    results = [subject.run({**one, factor: a}) for a in (one[factor], other[factor], one[factor] + other[factor])]
    total = {name: results[0][name] + results[1][name] for name in results[0]}
    return _differences(f"the result of a sum of two {factor}", results[2], total)


def shift(subject: Subject) -> list[str]:
    """The image further down and to the right, by whole strides: so is its output, and the filter's gradient stays."""
    p, rng = subject.problem, subject.rng()
    arrays = subject.arrays("integers", rng)
    down, across = (int(n) for n in rng.integers(0, 9, 2))
    moved = p.with_(H=p.H + down * p.stride_h, W=p.W + across * p.stride_w)
    of_x, of_y = (down * p.stride_h, across * p.stride_w), (down, across)

    def embedded(array: Array, by: tuple[int, int], fill: float = 0) -> Array:
        return np.pad(array, ((0, 0), (0, 0), (by[0], 0), (by[1], 0)), constant_values=fill)

    there = {**arrays, "x": embedded(arrays["x"], of_x), "dy": embedded(arrays["dy"], of_y),
             "y": embedded(arrays["y"], of_y, 1)}  # fmt: skip
    got = subject.run(there, moved)
    for name, (top, left) in (("y", of_y), ("dx", of_x)):
        if name in got:
            got[name] = got[name][:, :, top:, left:]
    return _differences(f"moved by {down} x {across} strides", got, subject.run(arrays))


def flip(subject: Subject) -> list[str]:
    """Everything turned by half a turn, the four sides of padding with it."""
    p, rng = subject.problem, subject.rng()
    arrays = subject.arrays("integers", rng)
    turned = p.with_(padding=(p.padding[0][::-1], p.padding[1][::-1]))

    def half_turn(all_of: Arrays) -> Results:
        return {name: np.ascontiguousarray(a[:, :, ::-1, ::-1]) if a.ndim == 4 else a for name, a in all_of.items()}

    return _differences("turned by half a turn", half_turn(subject.run(half_turn(arrays), turned)), subject.run(arrays))


def adjoint(subject: Subject) -> list[str]:
    """<conv(x), dy> = <x, input_grad(dy)> = <w, kernel_grad(x, dy)>: one is the variant's, the others naive's."""
    arrays = subject.arrays("integers", subject.rng())
    own = subject.run(arrays)
    for pass_name, name in (("forward", "y"), ("input_grad", "dx"), ("kernel_grad", "dw")):
        if name not in own:
            own |= subject.run(arrays, subject.problem.with_(bias=False), of_pass(pass_name)[0])
    inner = {
        f"<{a}, {b}>": int(np.vdot(arrays[a].astype(np.int64), own[b].astype(np.int64)))
        for a, b in (("dy", "y"), ("x", "dx"), ("w", "dw"))
    }
    if len(set(inner.values())) == 1:
        return []
    return ["these should be one number: " + ", ".join(f"{name} = {value}" for name, value in inner.items())]


def agree(subject: Subject) -> list[str]:
    """Other variants compute the same."""
    arrays = subject.arrays("integers", subject.rng())
    own = subject.run(arrays)
    found = []
    passes = ("input_grad", "kernel_grad") if subject.variant.pass_name == "backward" else (subject.variant.pass_name,)
    for pass_name in passes:
        others = [v for v in of_pass(pass_name) if v.name != subject.variant.name and not v.specialised]
        other = others[subject.seed % len(others)]
        if other.refusal(subject.problem, subject.device) is None:
            found += _differences(f"beside {other}", own, subject.run(arrays, variant=other))
    return found


def devices(subject: Subject) -> list[str]:
    """Another device computes the same."""
    arrays, other = subject.arrays("integers", subject.rng()), other_device(subject.device)
    assert other
    return _differences(f"beside device {other.name}", subject.run(arrays), subject.run(arrays, device=other))


def other_device(device: Device) -> Device | None:
    """Return the CPU in place of a GPU, and a GPU, if there is one, in place of the CPU."""
    if device.kind != "cpu":
        return get_device("cpu")
    return get_device("cuda") if "cuda" in usable_devices() else None


def batch(subject: Subject) -> list[str]:
    """What an image gives does not depend on its place in the batch, nor on its neighbours."""
    p, rng = subject.problem, subject.rng()
    arrays = subject.arrays("normal", rng)
    whole = {name: result for name, result in subject.run(arrays).items() if name in ("y", "dx")}
    chosen = rng.permutation(p.N)[: int(rng.integers(1, p.N + 1))]
    given = {name: a if name in ("w", "b") else np.ascontiguousarray(a[chosen]) for name, a in arrays.items()}
    some = subject.run(given, p.with_(N=len(chosen)))
    own = {name: result[chosen] for name, result in whole.items()}
    return _differences(f"as images {', '.join(map(str, chosen))} of {p.N}", some, own)


def workers(subject: Subject) -> list[str]:
    """The number of workers does not show in the result."""
    arrays = subject.arrays("normal", subject.rng())
    before = get_num_threads()
    try:
        set_num_threads(1)
        alone = subject.run(arrays)
        count = 2 + subject.seed % 6
        set_num_threads(count)
        return _differences(f"with {count} workers", subject.run(arrays), alone)
    finally:
        set_num_threads(before)


#: How an array may lie in memory, as functions of a contiguous one that return the same numbers.
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda a: a,
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a,
    "Fortran's": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "off by one": lambda a: np.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape) if a.size else a,
    "read-only": lambda a: _read_only(a.copy()),
    "cut out": lambda a: np.pad(a, [(1, 2)] * a.ndim)[tuple(slice(1, 1 + n) for n in a.shape)],
}  # fmt: skip


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def layout(subject: Subject) -> list[str]:
    """The public functions take arrays however they lie in memory, and as tensors."""
    p, rng = subject.problem, subject.rng()
    arrays = subject.arrays("normal", rng)
    chosen = {name: str(rng.choice(list(LAYOUTS))) for name in arrays}
    lying = {name: LAYOUTS[chosen[name]](array) for name, array in arrays.items()}
    for name, array in arrays.items():
        assert np.array_equal(array, lying[name], equal_nan=True)
    plain = _public(subject, arrays)
    what = ", ".join(f"{name} {how}" for name, how in chosen.items())
    found = _differences(what, _public(subject, lying), plain)
    if p.dtype != "bfloat16" and rng.random() < 0.3 and (torch := _torch()):
        tensors = {name: torch.from_numpy(LAYOUTS[how](arrays[name]).copy() if how in ("read-only", "backwards")
                                          else lying[name]) for name, how in chosen.items()}  # fmt: skip
        got = {name: np.asarray(tensor) for name, tensor in _public(subject, tensors).items()}
        found += _differences(f"as tensors, {what}", got, plain)
    return found


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


def _public(subject: Subject, arrays: Arrays) -> Results:
    """Return what the public function of a pass returns for these arrays."""
    p = subject.problem
    how: dict[str, Any] = {"stride": p.stride, "padding": p.padding, "dilation": p.dilation, "groups": p.groups}
    how |= {"activation": p.activation, "precision": p.precision}
    how |= {"variant": subject.variant.name, "device": subject.device.name}
    pass_name = subject.variant.pass_name
    if pass_name == "forward":
        bias = arrays["b"] if p.bias else None
        return {"y": ops.conv2d(arrays["x"], arrays["w"], bias, **how)}
    saved: dict[str, Any] = {p.saved: arrays["y"]} if p.saved else {}
    if pass_name == "input_grad":
        return {"dx": ops.conv2d_input_grad(p.x_shape, arrays["w"], arrays["dy"], **saved, **how)}
    if pass_name == "kernel_grad":
        results = ops.conv2d_kernel_grad(arrays["x"], p.w_shape, arrays["dy"], with_bias=True, **saved, **how)
        return dict(zip(("dw", "db"), results, strict=True))
    results = ops.conv2d_backward(arrays["dy"], arrays["x"], arrays["w"], **saved, **how)
    return dict(zip(("dx", "dw", "db"), results, strict=True))


LAWS: dict[str, Callable[[Subject], list[str]]] = {
    law.__name__: law for law in (linear, shift, flip, adjoint, agree, devices, batch, workers, layout)
}


#: Activations whose phi' of an integer is one, so that all sums of a gradient are exact.
_WHOLE_GRADS = ("identity", "relu", "relu6", "logistic", "tanh")


def applies(law: str, variant: Variant, problem: ConvProblem, device: Device) -> bool:
    """Return whether a law says something about a variant on a problem."""
    is_exact = problem.dtype in ("float32", "float64")
    is_identity = problem.activation == "identity"
    if math.prod(problem.y_shape) == 0:
        return False
    is_rounded = variant.pass_name != "forward" and problem.activation not in _WHOLE_GRADS
    if is_rounded and law in ("linear", "shift", "flip", "agree", "devices"):
        return False
    if law == "linear":
        return is_exact and (variant.pass_name != "forward" or (is_identity and not problem.bias))
    if law == "adjoint":
        return is_exact and is_identity and not (variant.pass_name == "forward" and problem.bias)
    if law == "flip":
        sizes = ((problem.H, 0), (problem.W, 1))
        turned = problem.with_(padding=(problem.padding[0][::-1], problem.padding[1][::-1]))
        return variant.refusal(turned) is None and all(
            (size + sum(problem.padding[i]) - problem.filter_extent[i]) % problem.stride[i] == 0 for size, i in sizes
        )
    if law == "devices":
        other = other_device(device)
        return other is not None and other.kind in variant.runs_on
    if law == "batch":
        return variant.pass_name != "kernel_grad" and problem.N > 1
    if law == "workers":
        return device.kind == "cpu"
    if law == "layout":
        return variant.file is None and not problem.mask
    return True

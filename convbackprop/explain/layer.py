"""What a layer computes: the padding, the chain rule, and why the input gradient turns the filter."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbackprop import activations
from convbackprop.errors import InvalidArgument
from convbackprop.explain.picture import NOBODY, Cells, Frame, Picture, blank
from convbackprop.explain.record import LOAD, STORE, Recording, record
from convbackprop.explain.threads import result_of
from convbackprop.ladder.registry import select
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ConvProblem

#: How wide a plane may be of which each element's taps or value is written down.
_MOST = 24


def _planar(problem: ConvProblem, what: str) -> None:
    if problem.N * problem.C * problem.K != 1 or max(problem.H, problem.W, problem.P, problem.Q) > _MOST:
        raise InvalidArgument(
            f"problem is {problem}; {what} is drawn of one channel, one filter and at most {_MOST} x {_MOST} pixels"
        )


def _input_at(problem: ConvProblem) -> str:
    """Return where output (p,q) reads x by tap (r,s)."""
    terms = []
    for axis, (out, tap) in enumerate((("p", "r"), ("q", "s"))):
        stride, dilation = problem.stride[axis], problem.dilation[axis]
        terms.append(f"{f'{stride} ' * (stride > 1)}{out} - pad + {f'{dilation} ' * (dilation > 1)}{tap}")
    return ", ".join(terms)


def naive(pass_name: str) -> Variant:
    """Return the rung that is the definition, written down."""
    (variant,) = select(f"{pass_name}/naive")
    return variant


def _products(recording: Recording, image: str) -> dict[int, list[tuple[int, int]]]:
    """Return for each element of the result which elements of the image and of the filter its thread loads in turn."""
    result = result_of(recording)
    found = {}
    images, taps, stores = recording.of(image, LOAD), recording.of("w", LOAD), recording.of(result, STORE)
    for store in stores:  # one a thread
        a, b = (
            each[(each["block"] == store["block"]) & (each["thread"] == store["thread"])] for each in (images, taps)
        )
        pairs = zip(a["address"] // recording.item_bytes(image), b["address"] // recording.item_bytes("w"), strict=True)
        found[int(store["address"]) // recording.item_bytes(result)] = [(int(i), int(t)) for i, t in pairs]
    return found


def padding(problem: ConvProblem) -> Picture:
    """Draw how many taps of each output lie inside the image, and where those of the first output are."""
    _planar(problem, "padding")
    products = _products(record(naive("forward"), problem), "x")
    p = problem
    counts, words = blank(p.P, p.Q)
    kinds = sorted({len(pairs) for pairs in products.values()})
    for output, pairs in products.items():
        counts[divmod(output, p.Q)] = kinds.index(len(pairs))
        words[divmod(output, p.Q)] = str(len(pairs))
    legend = {i: f"{kind} of {p.R * p.S} taps" for i, kind in enumerate(kinds)}
    outputs = Cells("y: how many products each output is made of", counts, words, legend, "p", "q")
    (top, bottom), (left, right) = p.padding
    classes, places = blank(p.H + top + bottom, p.W + left + right)
    classes[:], places[:] = 0, "0"
    classes[top : top + p.H, left : left + p.W], places[top : top + p.H, left : left + p.W] = NOBODY, ""
    for pixel, tap in products[0]:
        row, col = pixel // p.W + top, pixel % p.W + left
        classes[row, col], places[row, col] = 1, f"{tap // p.S},{tap % p.S}"
    image = Cells("x between its padding: the taps r,s that y[0,0] loads", classes, places,
                  {0: "padding: no pixel, counts as zero", 1: "a tap's pixel"}, "h", "w", (-top, -left),
                  (Frame(0, 0, *p.filter_extent),), "the window of y[0,0]")  # fmt: skip
    fewest, most = min(map(len, products.values())), max(map(len, products.values()))
    sentences = (
        f"y is {p.P} x {p.Q}: P = (H + {top} + {bottom} - {p.filter_extent[0]}) / {p.stride[0]} + 1. An output has "
        f"{fewest} to {most} of its {p.R * p.S} products: what is in the padding is no pixel, and never loaded.",
    )
    return Picture("padding", f"Padding: {p.H} x {p.W} pixels, {p.R} x {p.S} taps", ((image, outputs),), sentences)


def turned_filter(problem: ConvProblem) -> Picture:
    """Draw which tap each element of the window meets, in the forward pass and in the input gradient."""
    _planar(problem, "turned-filter")
    p = problem
    panels = []
    for pass_name, image, result, shape, of in (
        ("forward", "x", "y", (p.H, p.W), (p.P, p.Q)),
        ("input_grad", "dy", "dx", (p.P, p.Q), (p.H, p.W)),
    ):
        products = _products(record(naive(pass_name), problem), image)
        element = of[0] // 2 * of[1] + of[1] // 2
        classes, words = blank(*shape)
        for pixel, tap in products[element]:
            classes[divmod(pixel, shape[1])], words[divmod(pixel, shape[1])] = tap, f"{tap // p.S},{tap % p.S}"
        row, col = divmod(element, of[1])
        axes = ("h", "w") if image == "x" else ("p", "q")
        panels.append(Cells(f"{image}: the tap r,s that {result}[{row},{col}] takes it by", classes, words, {}, *axes))
    at = _input_at(p)
    if p.stride == p.dilation == (1, 1):
        how = "So x[h,w] is in y[p,q] for every tap with p = h + pad - r: the larger r, the further up the output."
        sum_ = "dx[h,w] = sum of dy[h + pad - r, w + pad - s] w[r,s]"
    else:
        how = f"So x[h,w] is in y[p,q] for the taps with {at.partition(',')[0]} = h, if there is such a p."
        sum_ = "dx[h,w] = sum of dy[p,q] w[r,s] over these"
    sentences = (
        f"Forward, y[p,q] takes x[{at}] by w[r,s]. {how}",
        f"Backward, dx[h,w] collects from just these: {sum_}. Taps come in the opposite order of rows and of columns: "
        "the filter is turned by 180 degrees.",
    )
    return Picture("turned-filter", "Why the input gradient turns the filter", (tuple(panels),), sentences)


def chain_rule(problem: ConvProblem) -> Picture:
    """Draw a layer in numbers, forward and back, as the naive kernels compute it."""
    _planar(problem, "chain-rule")
    arrays = values(problem)
    p = problem

    axes = {"x": "hw", "dx": "hw", "w": "rs", "dw": "rs"}

    def cells(name: str, title: str, kind: int) -> Cells:
        plane = arrays[name].reshape(arrays[name].shape[-2:])
        classes = np.full(plane.shape, kind)
        classes[plane == 0] = NOBODY
        words = np.array([[f"{value:g}" if abs(value) >= 0.01 or value == 0 else "0.0" for value in np.round(line, 2)]
                          for line in plane], dtype=object)  # fmt: skip
        return Cells(title, classes, words, {}, *axes.get(name, "pq"))

    phi, at = p.activation, _input_at(p)
    forward = (cells("x", "x", 0), cells("w", "w", 1), cells("s", f"s = x * w + {arrays['b'].item():g}", 2),
               cells("y", f"y = phi(s), {phi}", 3))  # fmt: skip
    back = (cells("dy", "dy = dL/dy, given", 3), cells("g", "g = dy phi'(s)", 2), cells("dx", "dx = dL/dx", 0),
            cells("dw", "dw = dL/dw", 1))  # fmt: skip
    sentences = (
        f"Forward: s[p,q] = b + sum of x[{at}] w[r,s], y = phi(s).",
        f"Back: g = dL/ds = dy phi'(s). By the chain rule dx[h,w] = sum of g[p,q] w[r,s] over the outputs that read "
        f"x[h,w] by tap r,s; dw[r,s] = sum of g[p,q] x[{at}].",
        f"The bias is in every s with the factor 1: db = the sum of g = {arrays['db'].item():g}. Grey: zeros.",
    )
    return Picture("chain-rule", "A layer in numbers, forward and back", (forward, back), sentences)


def values(problem: ConvProblem) -> dict[str, Any]:
    """Return small numbers for a layer, and what the naive kernels make of them."""
    from convbackprop import ops

    p, rng = problem, np.random.default_rng(4)
    x = rng.integers(-3, 4, p.x_shape).astype(np.float32)
    w = rng.integers(-1, 3, p.w_shape).astype(np.float32)
    b = np.array([-1.0 if p.bias else 0.0], np.float32)
    dy = rng.integers(-2, 3, p.y_shape).astype(np.float32)
    how: dict[str, Any] = {"stride": p.stride, "padding": p.padding, "dilation": p.dilation}
    more: dict[str, Any] = {"variant": "naive", "device": "cpu"}
    s = ops.conv2d(x, w, b, **how, **more)
    y = ops.conv2d(x, w, b, **how, **more, activation=p.activation)
    act = activations.activation(p.activation)
    saved = {"output": y} if act.saved == "output" else {"pre_activation": s} if act.saved else {}
    g = act.grad(np, dy, y if act.saved == "output" else s)
    dx = ops.conv2d_input_grad(p.x_shape, w, dy, **how, **more, **saved, activation=p.activation)
    dw, db = ops.conv2d_kernel_grad(x, p.w_shape, dy, **how, **more, **saved, activation=p.activation, with_bias=True)
    return {"x": x, "w": w, "b": b, "s": s, "y": y, "dy": dy, "g": g, "dx": dx, "dw": dw, "db": db}

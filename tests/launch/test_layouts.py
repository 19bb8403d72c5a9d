"""Images whose channels lie side by side, as the public functions take them: no copy where the variant takes them."""

from __future__ import annotations

import numpy as np
import pytest

import convbackprop
from convbackprop import conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad, conv_transpose2d, layouts
from convbackprop.launch import arrays, calls
from tests.support.turns import every_other_pair

RNG = np.random.default_rng(0)
X = RNG.integers(-3, 4, (2, 16, 5, 9)).astype(np.float16)
W = RNG.integers(-3, 4, (24, 16, 3, 3)).astype(np.float16)
B = RNG.integers(-3, 4, 24).astype(np.float16)
DY = RNG.integers(-3, 4, (2, 24, 5, 9)).astype(np.float16)

#: "hopper" takes them, as "tensor_core" does, "vectorised_gemm" does not.
TAKES, TAKES_NOT = "hopper", "vectorised_gemm"


@pytest.fixture(autouse=True)
def _fresh(quick_commands):
    """Each test begins with no call that is remembered, on kernels that are compiled quickly."""


def last(array):
    """Return the same array with its channels side by side in memory."""
    if array.ndim < 3:
        return array
    axes = list(range(array.ndim))
    axes.append(axes.pop(-3))
    return layouts.as_named(np.ascontiguousarray(array.transpose(axes)), "nhwc")


def lies_last(array):
    return layouts.layout_of(array.shape, array.strides, array.itemsize) == "nhwc"


def functions(variant, of=lambda array: array):
    """Return calls of the public functions on images that lie somehow: name, call, how many results are images."""
    how = {"padding": 1, "variant": variant}
    x, dy, y = of(X), of(DY), of(np.maximum(DY, 0))
    return {
        "conv2d": (lambda: (conv2d(x, W, B, **how, activation="relu"),), 1),
        "residual": (lambda: (conv2d(x, W, B, **how, scale=B, residual=dy),), 1),
        "input_grad": (lambda: (conv2d_input_grad(X.shape, W, dy, **how, output=y, activation="relu"),), 1),
        "kernel_grad": (lambda: conv2d_kernel_grad(x, W.shape, dy, **how, with_bias=True), 0),
        "backward": (lambda: conv2d_backward(dy, x, W, **how), 1),
        "transposed": (lambda: (conv_transpose2d(dy, W, **how),), 1),
    }


NAMES = tuple(functions(TAKES))


@pytest.fixture
def copied(monkeypatch):
    """The arguments of which copies were made."""
    made = []
    laid_out = arrays.laid_out

    def noted(library, array, argument, layout="nchw"):
        found = laid_out(library, array, argument, layout)
        if library.pointer(found) != library.pointer(array):
            made.append(argument)
        return found

    monkeypatch.setattr(arrays, "laid_out", noted)
    return made


@pytest.mark.parametrize(("name", "variant"), every_other_pair(NAMES, (TAKES, TAKES_NOT)))
def test_results_lie_as_the_images_do(copied, name, variant):
    """Three calls each: one that is checked, one that is like it, and one more."""
    plain, count = functions(variant)[name]
    expected = plain()
    call, _ = functions(variant, last)[name]
    for _ in range(3):
        copied.clear()
        for result, right in zip(call(), expected, strict=True):
            assert np.array_equal(result, right)
            assert lies_last(result) == (result.ndim == 4 and count > 0 and result.shape != W.shape)
            count -= 1 if count > 1 else 0
        assert (copied == []) == (variant == TAKES)


def test_a_call_like_an_earlier_one_is_not_checked_again(monkeypatch):
    made = []
    run = calls.Checked.run
    monkeypatch.setattr(calls.Checked, "run", lambda self, *a: made.append(self) or run(self, *a))
    x, w = last(X), last(W)
    for variant, checked in ((TAKES, 2), (TAKES_NOT, 2)):
        made.clear()
        found = [conv2d(x, w, padding=1, variant=variant) for _ in range(4)]
        assert len(made) == checked, "the call itself, and one on copies"
        assert all(lies_last(y) and np.array_equal(y, found[0]) for y in found)
    # Other strides, or another shape, are not the same call.
    made.clear()
    assert not lies_last(conv2d(X, W, padding=1, variant=TAKES))
    assert lies_last(conv2d(x[:1], W, padding=1, variant=TAKES))
    assert len(made) == 2


def test_the_filter_alone_is_copied(copied):
    for _ in range(3):
        copied.clear()
        conv2d(last(X), last(W), padding=1, variant=TAKES)
        assert copied == ["weight"]


def test_images_that_lie_otherwise_are_brought_to_the_layout_of_the_first(copied):
    for dy, what in ((DY, ["grad_output"]), (last(DY)[..., ::-1], ["grad_output"]), (last(DY), [])):
        copied.clear()
        dx, dw, db = conv2d_backward(dy, last(X), W, padding=1, variant=TAKES)
        assert copied == what and lies_last(dx)
        for got, right in zip((dx, dw, db), conv2d_backward(dy, X, W, padding=1, variant=TAKES), strict=True):
            assert np.array_equal(got, right)


def test_an_image_without_a_batch(copied):
    y = conv2d(last(X[0]), W, padding=1, variant=TAKES)
    assert copied == [] and lies_last(y) and np.array_equal(y, conv2d(X[0], W, padding=1, variant=TAKES))


def test_one_channel_lies_in_both_layouts():
    """Strides say nothing then: results are contiguous."""
    y = conv2d(last(X[:, :1]), W[:, :1], padding=1)
    assert y.flags.c_contiguous


def test_a_place_for_the_result(copied):
    expected = conv2d(X, W, padding=1, variant=TAKES)
    for out in (last(np.zeros_like(expected)), np.zeros_like(expected)):
        assert conv2d(last(X), W, padding=1, variant=TAKES, out=out) is out
        assert np.array_equal(out, expected) and copied == []


def test_a_mask_is_of_rows(copied):
    y, mask = conv2d(last(X), W, padding=1, activation="relu", save_mask=True, variant=TAKES)
    right, bits = conv2d(X, W, padding=1, activation="relu", save_mask=True, variant=TAKES)
    assert np.array_equal(y, right) and np.array_equal(mask, bits) and lies_last(y) and copied == ["input"]


def test_a_view_that_is_not_aligned(copied):
    """Its map cannot be made; nor can it be read by words: a copy."""
    memory = np.zeros(X.nbytes + 1, np.uint8)[1:].view(np.float16)
    x = layouts.as_named(memory.reshape(layouts.in_memory(X.shape, "nhwc")), "nhwc")
    x[...] = X
    assert np.array_equal(conv2d(x, W, padding=1, variant=TAKES), conv2d(X, W, padding=1, variant=TAKES))
    assert copied == ["input"]


def test_prepared():
    x = last(X)
    call = convbackprop.prepare(conv2d, x, W, padding=1, variant=TAKES)
    assert lies_last(call()) and np.array_equal(call(), conv2d(X, W, padding=1, variant=TAKES))
    assert np.array_equal(call(last(X + 1)), conv2d(X + 1, W, padding=1, variant=TAKES))
    with pytest.raises(convbackprop.InvalidArgument, match="input cannot be used where it lies"):
        call(X)
    with pytest.raises(convbackprop.InvalidArgument, match=r"input is a ndarray .* that cannot be used where it lies"):
        convbackprop.prepare(conv2d, x, W, padding=1, variant=TAKES_NOT)


def test_a_result_in_another_order_would_show(monkeypatch):
    """Of what these tests look at: memory of the kernel's layout that is named otherwise."""
    right = calls.Checked.layout
    monkeypatch.setattr(calls.Checked, "layout", lambda self, name: "nchw" if name == "y" else right(self, name))
    y = conv2d(last(X), W, padding=1, variant=TAKES)
    assert not np.array_equal(y, conv2d(X, W, padding=1, variant=TAKES))

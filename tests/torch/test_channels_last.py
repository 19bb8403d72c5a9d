"""Tensors in torch.channels_last: nothing is copied but filters where a rung takes them; where none does all is."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

import convbackprop.torch as ours
from convbackprop.launch import arrays
from convbackprop.torch import direct, formats, functions, operators

LAST = torch.channels_last
FILTERS = {(16, 8, 3, 3), (8, 16, 3, 3), (8, 16, 1, 1)}

#: "hopper" takes images whose channels lie side by side, "naive" does not.
TAKES, TAKES_NOT = "hopper", "naive"


@pytest.fixture
def copied(monkeypatch):
    """The shapes of what was copied, before kernels or after them."""
    made = []
    laid_out, formatted = arrays.laid_out, formats.formatted

    def note(before, after):
        if not isinstance(before, FakeTensor) and before.data_ptr() != after.data_ptr():
            made.append(tuple(before.shape))
        return after

    monkeypatch.setattr(arrays, "laid_out", lambda library, array, *how: note(array, laid_out(library, array, *how)))
    for module in (direct, functions, operators):
        monkeypatch.setattr(module, "formatted", lambda result, *given: note(result, formatted(result, *given)))
    return made


def integers(*shape, memory_format=torch.contiguous_format):
    return torch.randint(-2, 3, shape).to(torch.float16).contiguous(memory_format=memory_format).requires_grad_()


def step(variant, memory_format, compiled=False):
    """Return y and all gradients of two layers with a residual block's ReLU, on small integers: sums are exact."""
    torch.manual_seed(0)
    x = integers(2, 8, 5, 6, memory_format=memory_format)
    first, second = (integers(*shape, memory_format=memory_format) for shape in ((16, 8, 3, 3), (8, 16, 1, 1)))
    bias = integers(16)

    def net(x, first, bias, second):
        hidden = ours.conv2d(x, first, bias, padding=1, activation="relu", variant=variant)
        return ours.conv2d(hidden, second, variant=variant) + x

    torch._dynamo.reset()
    y = (torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net)(x, first, bias, second)
    dy = torch.randint(-1, 2, y.shape).to(torch.float16).contiguous(memory_format=memory_format)
    y.backward(dy)
    return y.detach(), x.grad, first.grad, bias.grad, second.grad


@pytest.mark.parametrize("way", ["direct", pytest.param("operators", marks=pytest.mark.slow), "compiled"])
@pytest.mark.parametrize("variant", [TAKES, TAKES_NOT])
def test_a_training_step(copied, variant, way):
    expected = step(variant, torch.contiguous_format)
    assert copied == []
    for _ in range(2):
        copied.clear()
        with FlopCounterMode(display=False) if way == "operators" else contextlib.nullcontext():
            found = step(variant, LAST, way == "compiled")
        assert all(map(torch.equal, found, expected))
        assert all(t.is_contiguous(memory_format=LAST) for t in found if t.ndim == 4)
        assert copied and (set(copied) <= FILTERS) == (variant == TAKES)


def test_a_copy_would_show(copied, monkeypatch):
    """Of the test above: one of y alone."""
    conv2d = direct.ops.conv2d
    monkeypatch.setattr(direct.ops, "conv2d", lambda *given, **how: conv2d(*given, **how).contiguous())
    step(TAKES, LAST)
    assert not set(copied) <= FILTERS


def test_gradients_that_lie_otherwise(copied):
    """An expanded one, as of a sum, is copied once; the gradients lie as x does."""
    x, w = integers(2, 8, 5, 6, memory_format=LAST), integers(16, 8, 3, 3)
    y = ours.conv2d(x, w, padding=1, variant=TAKES)
    dx, _ = torch.autograd.grad(y.sum(), (x, w))
    assert copied == [tuple(y.shape), (16, 8, 3, 3)]  # dy; and dw, in the format of x
    assert dx.is_contiguous(memory_format=LAST)
    want = torch.autograd.grad(torch.nn.functional.conv2d(x.float(), w.float(), padding=1).sum(), (x, w))
    assert torch.equal(dx, want[0])


def test_what_is_returned_may_be_written_to():
    """As torch.nn.ReLU(inplace=True) does."""
    x, w = integers(2, 8, 5, 6, memory_format=LAST), integers(16, 8, 3, 3)
    y = ours.conv2d(x, w, padding=1, variant=TAKES)
    assert not y._is_view()
    y.relu_().sum().backward()
    assert x.grad.is_contiguous(memory_format=LAST)


def test_transposed(copied):
    x, w = integers(2, 16, 5, 6, memory_format=LAST), integers(16, 8, 3, 3)
    y = ours.conv_transpose2d(x, w, variant=TAKES)
    want = torch.nn.functional.conv_transpose2d(x.float(), w.float())
    assert torch.equal(y.float(), want) and y.is_contiguous(memory_format=LAST) and copied == []

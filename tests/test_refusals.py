"""Every bad argument gets one sentence that names it, says what it is and what it should be; nothing is launched."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from convbackprop import (
    ConvBackpropError,
    InvalidArgument,
    InvalidType,
    ProblemTooLarge,
    UnsupportedProblem,
    activations,
    conv2d,
    conv2d_backward,
    conv2d_input_grad,
    conv2d_kernel_grad,
    devices,
)
from convbackprop.ladder import registry
from convbackprop.ladder.variant import Variant
from convbackprop.launch import calls
from convbackprop.launch.plan import Plan
from convbackprop.problem import ConvProblem

X = np.ones((2, 4, 6, 5), np.float32)
W = np.ones((6, 2, 3, 3), np.float32)
B = np.ones(6, np.float32)
Y = np.ones((2, 6, 4, 3), np.float32)
MASK = np.ones((2, 6, 4, 1), np.uint8)
SPACE = np.ones(1000, np.float32)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def conv(input=X, weight=W, bias=B, **options):
    options.setdefault("groups", 2)
    return conv2d(input, weight, bias, **options)


def input_grad(input_size=X.shape, weight=W, grad_output=Y, **options):
    return conv2d_input_grad(input_size, weight, grad_output, groups=2, **options)


def kernel_grad(input=X, weight_size=W.shape, grad_output=Y, **options):
    return conv2d_kernel_grad(input, weight_size, grad_output, groups=2, **options)


def backward(grad_output=Y, input=X, weight=W, **options):
    return conv2d_backward(grad_output, input, weight, groups=2, **options)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


KINDS = "it should be a numpy.ndarray, torch.Tensor, cupy.ndarray or pycuda GPUArray"
RANKS = "it should be (N, C, H, W), (C, H, W) or one image (H, W)"
FILTERS = "it should be (K, C/groups, R, S) or one filter (R, S)"
DTYPES = "it should be one of float32, float64, float16, bfloat16"
INTEGER = "it should be an integer"
PAIR = "it should be an integer or a pair (height, width)"
SIDES = (
    "it should be an integer, a pair (height, width), a pair of pairs ((top, bottom), (left, right)), 'same' or 'valid'"
)
SMALLER = "pad more or use a smaller filter"
OWN = "it should be an array of its own"
LAYER = "it should be (2, 6, 4, 3), the shape of the layer's output for these arguments"
ONLY_RELU = "only a ReLU saves a bit mask"
NEEDS = "it should be three bools, for dx, dw and db"
ACTIVATIONS = ", ".join(activations.ACTIVATIONS)
VARIANTS = ", ".join(v.name for v in registry.of_pass("forward"))
BOTH = [v.name for v in registry.of_pass("input_grad") if v.name in {w.name for w in registry.of_pass("kernel_grad")}]
GRADIENT_VARIANTS = ", ".join(dict.fromkeys([*(v.name for v in registry.of_pass("backward")), *BOTH]))

# (what is done, the exception, the whole sentence)
TABLE = [
    # no array
    (lambda: conv([[1.0]]), InvalidType, f"input is a list; {KINDS}"),
    (lambda: conv(None), InvalidType, f"input is a NoneType; {KINDS}"),
    (lambda: conv(np.float32(1)), InvalidType, f"input is a float32; {KINDS}"),
    (lambda: conv("image.png"), InvalidType, f"input is a str; {KINDS}"),
    (lambda: conv(weight=[[1.0]]), InvalidType, f"weight is a list; {KINDS}"),
    (lambda: conv(weight=None), InvalidType, f"weight is a NoneType; {KINDS}"),
    (lambda: conv(bias=0.5), InvalidType, f"bias is a float; {KINDS}"),
    (lambda: conv(out=[1]), InvalidType, f"out is a list; {KINDS}"),
    (lambda: input_grad(grad_output=None), InvalidType, f"grad_output is a NoneType; {KINDS}"),
    (lambda: kernel_grad(input=object()), InvalidType, f"input is a object; {KINDS}"),
    (lambda: backward(weight=memoryview(W)), InvalidType, f"weight is a memoryview; {KINDS}"),
    (
        lambda: conv(np.ma.masked_array(X)),
        InvalidArgument,
        "input is a masked array, whose mask would be lost; pass input.filled(0) or similar",
    ),
    # rank
    (lambda: conv(zeros(1, 1, 4, 6, 5)), InvalidArgument, f"input has shape (1, 1, 4, 6, 5), 5-D; {RANKS}"),
    (lambda: conv(zeros(5)), InvalidArgument, f"input has shape (5,), 1-D; {RANKS}"),
    (lambda: conv(weight=zeros(6, 3, 3)), InvalidArgument, f"weight has shape (6, 3, 3), 3-D; {FILTERS}"),
    (lambda: kernel_grad(weight_size=(6, 3, 3)), InvalidArgument, f"weight_size has shape (6, 3, 3), 3-D; {FILTERS}"),
    (
        lambda: input_grad((1, 2, 4, 6, 5)),
        InvalidArgument,
        f"input_size has shape (1, 2, 4, 6, 5), 5-D; {RANKS}",
    ),
    (
        lambda: conv2d(zeros(4, 4), zeros(2, 1, 3, 3)),
        InvalidArgument,
        "input is 2-D, one image of one channel, but weight has 2 output channels; pass input as (1, H, W) to get "
        "(K, P, Q)",
    ),
    # shape
    (
        lambda: conv(bias=zeros(5)),
        InvalidArgument,
        "bias has shape (5,); it should be (6,), one value an output channel",
    ),
    (
        lambda: conv(bias=zeros(6, 1)),
        InvalidArgument,
        "bias has shape (6, 1); it should be (6,), one value an output channel",
    ),
    (lambda: conv(zeros(2, 4, 0, 5)), InvalidArgument, "input's height is 0; it should be at least 1"),
    (
        lambda: conv2d(zeros(1, 0, 3, 3), zeros(1, 0, 1, 1)),
        InvalidArgument,
        "input's number of channels is 0; it should be at least 1",
    ),
    (lambda: conv(weight=zeros(6, 2, 3, 0)), InvalidArgument, "weight's width is 0; it should be at least 1"),
    (
        lambda: conv2d(zeros(1, 1, 3, 3), zeros(0, 1, 1, 1)),
        InvalidArgument,
        "weight's number of filters is 0; it should be at least 1",
    ),
    (
        lambda: conv(weight=zeros(6, 3, 3, 3)),
        InvalidArgument,
        "weight has shape (6, 3, 3, 3), 3 input channels a filter; it should have 2: input has 4 channels in 2 groups",
    ),
    (
        lambda: conv(groups=1),
        InvalidArgument,
        "weight has shape (6, 2, 3, 3), 2 input channels a filter; it should have 4: input has 4 channels in 1 group",
    ),
    (
        lambda: input_grad(grad_output=zeros(2, 6, 4, 4)),
        InvalidArgument,
        f"grad_output has shape (2, 6, 4, 4); {LAYER}",
    ),
    (lambda: input_grad(grad_output=zeros(6, 4, 3)), InvalidArgument, f"grad_output has shape (6, 4, 3); {LAYER}"),
    (lambda: kernel_grad(grad_output=Y[:1]), InvalidArgument, f"grad_output has shape (1, 6, 4, 3); {LAYER}"),
    (lambda: backward(Y[:, :5]), InvalidArgument, f"grad_output has shape (2, 5, 4, 3); {LAYER}"),
    (lambda: input_grad(5), InvalidType, "input_size is 5 (int); it should be a sequence of integers"),
    (lambda: input_grad("2465"), InvalidType, "input_size is '2465' (str); it should be a sequence of integers"),
    (lambda: input_grad((2, 4, 6.0, 5)), InvalidType, f"input_size[2] is 6.0 (float); {INTEGER}"),
    (lambda: input_grad((2, 4, -6, 5)), InvalidArgument, "input_size[2] is -6; it should be at least 0"),
    (lambda: input_grad((2**31, 4, 6, 5)), InvalidArgument, "input_size[0] is 2147483648; it should be below 2**31"),
    (lambda: kernel_grad(weight_size=(6, 2, 3, True)), InvalidType, f"weight_size[3] is True (bool); {INTEGER}"),
    # dtype
    (lambda: conv(X.astype(np.int64)), InvalidType, f"input has dtype int64; {DTYPES}"),
    (lambda: conv(X.astype(bool)), InvalidType, f"input has dtype bool; {DTYPES}"),
    (lambda: conv(X.astype(complex)), InvalidType, f"input has dtype complex128; {DTYPES}"),
    (lambda: conv(X.astype(object)), InvalidType, f"input has dtype object; {DTYPES}"),
    (
        lambda: conv(weight=W.astype(np.float64)),
        InvalidType,
        "weight has dtype float64, but it should be float32: input is float32",
    ),
    (
        lambda: conv(bias=B.astype(np.float16)),
        InvalidType,
        "bias has dtype float16, but it should be float32: input is float32",
    ),
    (
        lambda: input_grad(activation="tanh", output=Y.astype(np.float64)),
        InvalidType,
        "output has dtype float64, but it should be float32: weight is float32",
    ),
    (
        lambda: input_grad(activation="relu", mask=MASK.astype(bool)),
        InvalidType,
        "mask has dtype bool, but it should be uint8: weight is float32",
    ),
    # groups
    (lambda: conv(groups=0), InvalidArgument, "groups is 0; it should be at least 1"),
    (lambda: conv(groups=-2), InvalidArgument, "groups is -2; it should be at least 1"),
    (lambda: conv(groups=3), InvalidArgument, "input has 4 channels, which groups = 3 does not divide"),
    (lambda: conv(groups=4), InvalidArgument, "weight has 6 output channels, which groups = 4 does not divide"),
    (lambda: conv(groups=True), InvalidType, f"groups is True (bool); {INTEGER}"),
    (lambda: conv(groups=2.0), InvalidType, f"groups is 2.0 (float); {INTEGER}"),
    (
        lambda: conv(groups=B),
        InvalidType,
        f"groups is array([1., 1., 1., 1., 1., 1.], dtype=float32) (ndarray); {INTEGER}",
    ),
    # a filter larger than the padded image
    (
        lambda: conv(weight=zeros(6, 2, 7, 3)),
        InvalidArgument,
        f"the filter is 7 high (dilation included), but the padded image only 6; {SMALLER}",
    ),
    (
        lambda: conv(dilation=(1, 3)),
        InvalidArgument,
        f"the filter is 7 wide (dilation included), but the padded image only 5; {SMALLER}",
    ),
    (
        lambda: conv(weight=zeros(6, 2, 9, 3), padding=((1, 1), (0, 0))),
        InvalidArgument,
        f"the filter is 9 high (dilation included), but the padded image only 8; {SMALLER}",
    ),
    # stride and dilation
    (lambda: conv(stride=0), InvalidArgument, "stride is 0; it should be at least 1"),
    (lambda: conv(stride=(1, -1)), InvalidArgument, "stride is -1; it should be at least 1"),
    (lambda: conv(stride=1.0), InvalidType, f"stride is 1.0 (float); {INTEGER}"),
    (lambda: conv(stride=True), InvalidType, f"stride is True (bool); {INTEGER}"),
    (lambda: conv(stride="2"), InvalidType, f"stride is '2' (str); {INTEGER}"),
    (lambda: conv(stride=None), InvalidType, f"stride is None (NoneType); {INTEGER}"),
    (lambda: conv(stride=(1, 2, 3)), InvalidArgument, f"stride is (1, 2, 3); {PAIR}, not a sequence of 3"),
    (lambda: conv(stride=()), InvalidArgument, f"stride is (); {PAIR}, not a sequence of 0"),
    (lambda: conv(stride=np.array([1, 2])), InvalidType, f"stride is array([1, 2]) (ndarray); {INTEGER}"),
    (lambda: conv(stride=2**31), InvalidArgument, "stride is 2147483648; it should be below 2**31"),
    (lambda: conv(dilation=0), InvalidArgument, "dilation is 0; it should be at least 1"),
    (lambda: conv(dilation=(1, 1.5)), InvalidType, f"dilation is 1.5 (float); {INTEGER}"),
    (lambda: input_grad(stride=0), InvalidArgument, "stride is 0; it should be at least 1"),
    (lambda: kernel_grad(stride=0), InvalidArgument, "stride is 0; it should be at least 1"),
    (lambda: backward(stride=0), InvalidArgument, "stride is 0; it should be at least 1"),
    # padding
    (lambda: conv(padding=-1), InvalidArgument, "padding is -1; it should be at least 0"),
    (lambda: conv(padding=((0, 0), (0, -1))), InvalidArgument, "padding is -1; it should be at least 0"),
    (lambda: conv(padding=1.5), InvalidType, f"padding is 1.5 (float); {INTEGER}"),
    (lambda: conv(padding=(True, 1)), InvalidType, f"padding is True (bool); {INTEGER}"),
    (lambda: conv(padding=None), InvalidType, f"padding is None (NoneType); {INTEGER}"),
    (lambda: conv(padding="full"), InvalidArgument, "padding is 'full'; it should be one of same, valid"),
    (lambda: conv(padding=(1, 2, 3, 4)), InvalidArgument, f"padding is (1, 2, 3, 4); {PAIR}, not a sequence of 4"),
    (lambda: conv(padding=((1, 2), 3)), InvalidArgument, f"padding is ((1, 2), 3); {SIDES}"),
    (lambda: conv(padding=((1, 2, 3), (1, 2))), InvalidArgument, f"padding is ((1, 2, 3), (1, 2)); {SIDES}"),
    (
        lambda: conv(padding="same", stride=(1, 2)),
        InvalidArgument,
        "padding is 'same' and stride is (1, 2); 'same' needs stride 1",
    ),
    (
        lambda: conv(padding=2**31 - 1),
        InvalidArgument,
        "the padded image is 4294967300 high; it should be below 2**31",
    ),
    # names
    (
        lambda: conv(activation="mish"),
        InvalidArgument,
        f"activation is 'mish'; it should be one of {ACTIVATIONS}",
    ),
    (
        lambda: conv(activation="leaky_relu:-0.1"),
        InvalidArgument,
        "activation is 'leaky_relu:-0.1'; its slope should be a number, 0 or more: y would not tell which side of 0 it "
        "came from",
    ),
    (
        lambda: conv(activation="leaky_relu:steep"),
        InvalidArgument,
        "activation is 'leaky_relu:steep'; its slope should be a number, 0 or more: y would not tell which side of 0 "
        "it came from",
    ),
    (
        lambda: kernel_grad(activation="gelu", output=Y),
        InvalidArgument,
        "pre_activation is missing: activation 'gelu' needs conv2d(..., activation='identity'): it has some values "
        "twice, so that the output does not tell its derivative",
    ),
    (
        lambda: input_grad(activation="tanh", pre_activation=Y),
        InvalidArgument,
        "output is missing: activation 'tanh' needs the saved output of the forward pass (or, with 'relu', its mask)",
    ),
    (
        lambda: input_grad(activation="silu", pre_activation=Y[:1]),
        InvalidArgument,
        "pre_activation has shape (1, 6, 4, 3); it should be (2, 6, 4, 3), the shape of grad_output",
    ),
    (
        lambda: conv(activation="silu", save_mask=True),
        InvalidArgument,
        "mask needs activation 'relu', not 'silu': only a ReLU saves a bit mask",
    ),
    (
        lambda: conv(activation=None),
        InvalidArgument,
        f"activation is None; it should be one of {ACTIVATIONS}",
    ),
    (
        lambda: conv(activation=np.array([1, 2])),
        InvalidArgument,
        f"activation is array([1, 2]); it should be one of {ACTIVATIONS}",
    ),
    (
        lambda: conv(variant="fast"),
        InvalidArgument,
        f"variant is 'fast'; it should be one of auto, untuned, {VARIANTS}",
    ),
    (lambda: conv(variant=None), InvalidArgument, f"variant is None; it should be one of auto, untuned, {VARIANTS}"),
    (
        lambda: backward(variant="fast"),
        InvalidArgument,
        f"variant is 'fast'; it should be one of auto, untuned, {GRADIENT_VARIANTS}",
    ),
    (
        lambda: backward(variant="fast", needs=(False, False, False)),
        InvalidArgument,
        f"variant is 'fast'; it should be one of auto, untuned, {GRADIENT_VARIANTS}",
    ),
    (
        lambda: conv(variant=["naive"]),
        InvalidArgument,
        f"variant is ['naive']; it should be one of auto, untuned, {VARIANTS}",
    ),
    (lambda: conv(device="tpu"), InvalidArgument, "device is 'tpu'; it should be 'cpu', 'cuda' or 'cuda:N'"),
    (lambda: conv(device=""), InvalidArgument, "device is ''; it should be 'cpu', 'cuda' or 'cuda:N'"),
    (lambda: conv(device=0), InvalidArgument, "device is 0; it should be 'cpu', 'cuda' or 'cuda:N'"),
    (lambda: conv(device="cuda:-1"), InvalidArgument, "device is 'cuda:-1'; it should be 'cpu', 'cuda' or 'cuda:N'"),
    # flags
    (lambda: conv(save_mask=1, activation="relu"), InvalidType, "save_mask is 1; it should be True or False"),
    (lambda: kernel_grad(with_bias=None), InvalidType, "with_bias is None; it should be True or False"),
    (lambda: backward(needs=True), InvalidArgument, f"needs is True; {NEEDS}"),
    (lambda: backward(needs=(True, True)), InvalidArgument, f"needs is (True, True); {NEEDS}"),
    (lambda: backward(needs=(1, 0, 1)), InvalidArgument, f"needs is (1, 0, 1); {NEEDS}"),
    # what phi' is formed from
    (
        lambda: conv(save_mask=True),
        InvalidArgument,
        f"mask needs activation 'relu', not 'identity': {ONLY_RELU}",
    ),
    (
        lambda: input_grad(activation="tanh", mask=MASK),
        InvalidArgument,
        f"mask needs activation 'relu', not 'tanh': {ONLY_RELU}",
    ),
    (lambda: backward(mask=MASK), InvalidArgument, f"mask needs activation 'relu', not 'identity': {ONLY_RELU}"),
    *(
        (
            lambda call=call, activation=activation: call(activation=activation),
            InvalidArgument,
            f"output is missing: activation {activation!r} needs the saved output of the forward pass "
            "(or, with 'relu', its mask)",
        )
        for call in (input_grad, kernel_grad, backward)
        for activation in ("relu", "logistic", "tanh")
    ),
    (
        lambda: backward(activation="relu", output=Y, mask=MASK),
        InvalidArgument,
        "output and mask are both given; phi' should be formed from one of them",
    ),
    (
        lambda: kernel_grad(activation="tanh", output=Y[:1]),
        InvalidArgument,
        "output has shape (1, 6, 4, 3); it should be (2, 6, 4, 3), the shape of grad_output",
    ),
    (
        lambda: kernel_grad(activation="relu", mask=zeros(2, 6, 4, 3, dtype=np.uint8)),
        InvalidArgument,
        "mask has shape (2, 6, 4, 3); it should be (2, 6, 4, 1), a bit for each element of grad_output",
    ),
    # out
    (lambda: conv(out=zeros(2, 6, 4, 4)), InvalidArgument, "out has shape (2, 6, 4, 4); it should be (2, 6, 4, 3)"),
    (lambda: conv(out=zeros(2, 6, 4, 3, dtype=float)), InvalidType, "out has dtype float64; it should be float32"),
    (lambda: conv(out=read_only(Y)), InvalidArgument, "out is read-only; it should be writable"),
    (
        lambda: conv(out=np.lib.stride_tricks.as_strided(SPACE, Y.shape, (0, 0, 12, 4))),
        InvalidArgument,
        f"out is broadcast, so its elements share memory; {OWN}",
    ),
    (
        lambda: conv2d(SPACE[:36].reshape(1, 1, 6, 6), W[:1, :1], padding=1, out=SPACE[35:71].reshape(1, 1, 6, 6)),
        InvalidArgument,
        f"out shares memory with input; {OWN}",
    ),
    (
        lambda: conv2d(Y, np.ones((6, 6, 1, 1), np.float32), out=Y),
        InvalidArgument,
        f"out shares memory with input; {OWN}",
    ),
    (
        lambda: kernel_grad(out=SPACE[:108].reshape(W.shape), grad_output=SPACE[100:244].reshape(Y.shape)),
        InvalidArgument,
        f"out shares memory with grad_output; {OWN}",
    ),
    (
        lambda: kernel_grad(with_bias=True, out=(SPACE[:108].reshape(W.shape), SPACE[102:108])),
        InvalidArgument,
        "out holds arrays that share memory; each should be an array of its own",
    ),
    (lambda: kernel_grad(with_bias=True, out=W), InvalidType, "out is a ndarray; it should be a pair (dw, db)"),
    (lambda: kernel_grad(with_bias=True, out=(W, B, B)), InvalidType, "out is a tuple; it should be a pair (dw, db)"),
    (
        lambda: backward(out=(X.copy(), W.copy())),
        InvalidType,
        "out is a tuple; it should be three arrays or Nones, for dx, dw and db",
    ),
    (lambda: backward(out=(X, None, None)), InvalidArgument, f"out shares memory with input; {OWN}"),
    (lambda: backward(out=(None, W, None)), InvalidArgument, f"out shares memory with weight; {OWN}"),
    (
        lambda: backward(out=(SPACE[:240].reshape(X.shape), SPACE[200:308].reshape(W.shape), None)),
        InvalidArgument,
        "out holds arrays that share memory; each should be an array of its own",
    ),
    (lambda: backward(out=(None, None, zeros(5))), InvalidArgument, "out has shape (5,); it should be (6,)"),
]


@pytest.fixture(autouse=True)
def _nothing_may_run(monkeypatch):
    def run(*args):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(Plan, "run", run)
    monkeypatch.setattr(calls.Launches, "start", run)
    calls.forget()


@pytest.mark.parametrize(("call", "kind", "sentence"), TABLE, ids=[entry[2][:50] for entry in TABLE])
def test_refusal(call, kind, sentence):
    before = [array.tobytes() for array in (X, W, B, Y, MASK, SPACE)]
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == sentence
    assert type(caught.value) is kind
    assert isinstance(caught.value, ConvBackpropError)
    assert isinstance(caught.value, TypeError if kind is InvalidType else ValueError)
    assert "\n" not in sentence
    assert not sentence.endswith(".")
    assert caught.value.__cause__ is None
    assert [array.tobytes() for array in (X, W, B, Y, MASK, SPACE)] == before


def test_refused_out_is_left_alone():
    out = np.full(Y.shape, np.nan, np.float32)
    before = out.tobytes()
    for options in ({"stride": 0}, {"activation": "mish"}, {"variant": "fast"}, {"bias": zeros(5)}, {"groups": 3}):
        with pytest.raises(InvalidArgument):
            conv(out=out, **options)
    assert out.tobytes() == before


@pytest.mark.parametrize(
    "call",
    [
        lambda: conv(groups=np.zeros((30, 30))),
        lambda: conv(device="x" * 10**5),
        lambda: conv(save_mask=np.zeros((30, 30))),
        lambda: conv(stride=10**5000),  # more digits than Python prints
        lambda: conv(padding=-(10**5000)),
        lambda: input_grad(input_size=np.zeros((2, 2, 5, 5))),
        lambda: kernel_grad(weight_size=np.zeros((2, 2, 5, 5))),
        lambda: backward(needs=["x" * 1000]),
    ],
    ids=["groups", "device", "save_mask", "stride", "padding", "input_size", "weight_size", "needs"],
)
def test_long_values_are_shortened(call):
    with pytest.raises((InvalidType, InvalidArgument)) as caught:
        call()
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


# -- memory ----------------------------------------------------------------------------------------------------------
def test_too_large_for_memory():
    side = 2**18
    with pytest.raises(ProblemTooLarge) as caught:
        conv2d_input_grad((1, 1, side, side), zeros(1, 1, 1, 1), zeros(1, 1, 1, 1), stride=side, device="cpu")
    assert isinstance(caught.value, MemoryError)
    assert str(caught.value).startswith(
        "input gradient of shape (1, 1, 262144, 262144) needs 274,877,906,944 bytes, but only "
    )
    assert str(caught.value).endswith(" are free; use a smaller batch or image")


def test_copy_too_large_for_memory():
    side = 2**21
    huge = np.broadcast_to(np.float32(1), (1, 1, side, side))
    with pytest.raises(ProblemTooLarge) as caught:
        conv2d(huge, zeros(1, 1, 1, 1), stride=side, device="cpu")
    assert str(caught.value).startswith(
        "the contiguous copy of input, of shape (1, 1, 2097152, 2097152), needs 17,592,186,044,416 bytes, but only "
    )


def test_memory_that_cannot_be_allocated(monkeypatch):
    monkeypatch.setattr(np, "empty", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ProblemTooLarge) as caught:
        conv()
    assert (
        str(caught.value)
        == "output of shape (2, 6, 4, 3) needs 576 bytes, which could not be allocated; use a smaller batch or image"
    )


# -- variants and devices --------------------------------------------------------------------------------------------
def test_unsupported_problem(monkeypatch):
    """A variant that refuses says why, and is never replaced silently; "auto" takes the rung below."""
    picky = Variant(
        "forward", "picky", (), requires=(lambda p: "it has more than one group" if p.groups > 1 else None,)
    )
    monkeypatch.setattr(registry, "VARIANTS", (*registry.VARIANTS, picky))
    with pytest.raises(UnsupportedProblem) as caught:
        conv(variant="picky")
    assert str(caught.value) == "forward/picky does not compute this problem: it has more than one group"
    assert isinstance(caught.value, ValueError)
    problem = ConvProblem(2, 4, 6, 5, 6, 3, 3, groups=2)
    assert registry.choose("forward", "auto", problem, "cpu").name != "picky"
    assert registry.choose("forward", "auto", problem.with_(groups=1), "cpu") is picky


@pytest.mark.skipif(
    devices.why_not_cuda() is None, reason="this machine has a usable GPU: its absence cannot be tested"
)
def test_cuda_that_is_not_there():
    """In a process of its own, in which no test has loaded a stand-in for the driver."""
    program = (
        "import numpy as np, convbackprop as cb; from convbackprop import devices\n"
        "try: cb.conv2d(np.ones((3, 3)), np.ones((1, 1)), device='cuda')\n"
        "except cb.ConvBackpropError as error: assert str(error) == devices.why_not_cuda(); print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr


# -- torch -----------------------------------------------------------------------------------------------------------
def test_tensors():
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: refusals of tensors")
    x, w, b, y = (torch.from_numpy(array.copy()) for array in (X, W, B, Y))
    grad = (
        "a tensor that requires grad, and its gradient would be lost here; use convbackprop.torch.conv2d, or pass "
        "tensor.detach()"
    )
    meta = torch.empty(X.shape, device="meta")
    fake_class = type("Wrapper", (torch.Tensor,), {"__torch_dispatch__": classmethod(lambda *a, **k: None)})
    table = [
        (lambda: conv(x, W, b), InvalidType, "weight is a numpy.ndarray, but input is a torch.Tensor; pass one kind"),
        (lambda: conv(X, W, b), InvalidType, "bias is a torch.Tensor, but input is a numpy.ndarray; pass one kind"),
        (
            lambda: conv(x, w, b, out=Y.copy()),
            InvalidType,
            "out is a numpy.ndarray; it should be a torch.Tensor as the inputs are",
        ),
        (lambda: conv(x.clone().requires_grad_(), w, b), InvalidArgument, f"input is {grad}"),
        (lambda: conv(x, torch.nn.Parameter(w), b), InvalidArgument, f"weight is {grad}"),
        (lambda: conv(x, w, torch.nn.Parameter(b)), InvalidArgument, f"bias is {grad}"),
        (lambda: conv(x, w, b, out=y.clone().requires_grad_()), InvalidArgument, f"out is {grad}"),
        (
            lambda: backward(y.clone().requires_grad_(), x, w),
            InvalidArgument,
            f"grad_output is {grad}",
        ),
        (
            lambda: conv(x.to_sparse(), w, b),
            InvalidArgument,
            "input is a tensor of layout torch.sparse_coo; it should be strided (tensor.to_dense())",
        ),
        (
            lambda: conv(torch.nested.nested_tensor([x[0], x[0]]), w, b),
            InvalidArgument,
            "input is a nested tensor; pass the tensors that it is made of one by one (tensor.unbind())",
        ),
        (
            lambda: conv(meta, w, b),
            InvalidArgument,
            "input is a tensor on device meta; it should be on the CPU or on a CUDA device",
        ),
        (
            lambda: conv(x.as_subclass(fake_class), w, b),
            InvalidArgument,
            "input is a Wrapper, which stands for a tensor but has no memory of its own",
        ),
        (lambda: conv(x.int(), w, b), InvalidType, f"input has dtype int32; {DTYPES}"),
        (
            lambda: conv(x, w.half(), b),
            InvalidType,
            "weight has dtype float16, but it should be float32: input is float32",
        ),
        (
            lambda: conv(x, w, b, stride=torch.tensor([1, 2])),
            InvalidType,
            f"stride is tensor([1, 2]) (Tensor); {INTEGER}",
        ),
        (
            lambda: conv(x, w, b, device="tpu"),
            InvalidArgument,
            "device is 'tpu'; it should be 'cpu', 'cuda' or 'cuda:N'",
        ),
        (lambda: conv(x, w, b, device=0), InvalidArgument, "device is 0; it should be 'cpu', 'cuda' or 'cuda:N'"),
        (
            lambda: conv(x, w, b, out=torch.empty(1).expand(Y.shape)),
            InvalidArgument,
            f"out is broadcast, so its elements share memory; {OWN}",
        ),
        (
            lambda: conv2d(y, torch.ones(6, 6, 1, 1), out=y.flip(0).set_(y)),
            InvalidArgument,
            f"out shares memory with input; {OWN}",
        ),
    ]
    for call, kind, sentence in table:
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value) == sentence

"""What a call costs besides its kernels, and that a call which is not checked again is none that should have been."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

import convbackprop
from convbackprop import conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad
from convbackprop.devices import get_device
from convbackprop.devices.cpu import CpuKernel, set_num_threads
from convbackprop.devices.cuda import CudaKernel
from convbackprop.errors import InvalidArgument
from convbackprop.launch import calls
from tests.driver import cupy as cupy_on_stand_in

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 1, 28, 28), np.float32)
W = RNG.standard_normal((1, 1, 3, 3), np.float32)
B = RNG.standard_normal(1, np.float32)
OPTIONS = {"padding": 1, "activation": "relu"}

#: Functions that a call which is not checked again calls at most, in Python and in C; the whole check calls hundreds.
FUNCTIONS = 100


def numpy_arrays():
    return X, W, B


def torch_tensors():
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: what a call on tensors costs")
    return tuple(torch.from_numpy(array.copy()) for array in (X, W, B))


@pytest.fixture(autouse=True)
def _fresh(quick_commands):
    """Each test begins with no call that is remembered, on kernels that are compiled quickly."""


@pytest.fixture
def checks(monkeypatch):
    """The calls that went the long way."""
    made = []
    run = calls.Checked.run
    monkeypatch.setattr(calls.Checked, "run", lambda self, *a: made.append(self) or run(self, *a))
    return made


@pytest.fixture
def launches(monkeypatch):
    """The addresses that kernels were launched on."""
    made = []
    launch = CpuKernel.launch
    monkeypatch.setattr(CpuKernel, "launch", lambda self, at, *a: made.append(tuple(at)) or launch(self, at, *a))
    return made


def functions(call):
    """Return how many functions are called: what a call costs, on any machine."""
    counts = Counter()
    sys.setprofile(lambda frame, event, function: counts.update([event]))
    try:
        call()
    finally:
        sys.setprofile(None)
    return counts["call"] + counts["c_call"]


@pytest.mark.parametrize("make", (numpy_arrays, torch_tensors))
def test_own_cost_of_a_call(make, monkeypatch, workers):
    set_num_threads(1)
    x, w, b = make()
    y = conv2d(x, w, b, **OPTIONS)
    out = conv2d(x, w, b, **OPTIONS)
    for call in (
        lambda: conv2d(x, w, b, **OPTIONS),
        lambda: conv2d(x, w, b, **OPTIONS, out=out),
        lambda: conv2d_input_grad(x.shape, w, y, output=y, **OPTIONS),
        lambda: conv2d_kernel_grad(x, w.shape, y, output=y, with_bias=True, **OPTIONS),
        lambda: conv2d_backward(y, x, w, output=y, **OPTIONS),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(CpuKernel, "launch", lambda *a: None)
            calls.forget()
            assert functions(call) > 4 * FUNCTIONS
            assert functions(call) < FUNCTIONS
        calls.forget()


@pytest.mark.parametrize("current", (True, False), ids=("its context is current", "no context"))
def test_own_cost_on_a_gpu(stand_in, monkeypatch, current):
    """The launch alone is left out: the real PyCUDA pushes and pops the context, where it is not current already."""
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in, own_stream=False)
    x, w, b = map(cupy.asarray, (X, W, B))
    out = conv2d(x, w, b, **OPTIONS)
    monkeypatch.setattr(CudaKernel, "launch", lambda *a: None)
    conv2d(x, w, b, **OPTIONS, out=out)
    with get_device("cuda").active() if current else nullcontext():
        stand_in.heal()
        assert functions(lambda: conv2d(x, w, b, **OPTIONS, out=out)) < FUNCTIONS
        switches = {} if current else {"cuCtxPushCurrent": 1, "cuCtxPopCurrent": 1}
        assert stand_in.calls() == {"cuCtxGetCurrent": 1, **switches}


# -- the second call of a kind is not checked again, and right ---------------------------------------------------------
@pytest.mark.parametrize("make", (numpy_arrays, torch_tensors))
def test_what_is_not_contiguous_is_copied_and_not_checked_again(make, checks):
    x, w, b = make()
    view = (x.repeat(2, 3) if make is numpy_arrays else x.repeat_interleave(2, 3))[..., ::2]
    conv2d(x, w, b, **OPTIONS)  # the first of a process may only make its library known
    y = conv2d(x, w, b, **OPTIONS)
    checked = len(checks)
    found = conv2d(view, w, b, **OPTIONS)
    assert len(checks) == checked and (found == y).all()
    with pytest.raises(InvalidArgument, match="out shares memory with input"):
        conv2d(view, w, b, **OPTIONS, out=view)


@pytest.mark.parametrize("make", (numpy_arrays, torch_tensors))
@pytest.mark.parametrize("with_out", (False, True))
def test_other_arrays_of_the_same_kind(make, with_out, checks):
    def every(x, w, b, dy, like=None):
        outs = [array * 0 for array in like] if like else [None] * 8
        y = conv2d(x, w, b, **OPTIONS, out=outs[0])
        mask = conv2d(x, w, b, **OPTIONS, save_mask=True)[1]
        dw_db = conv2d_kernel_grad(
            x, w.shape, dy, mask=mask, with_bias=True, **OPTIONS, out=outs[2:4] if like else None
        )
        return [
            y,
            conv2d_input_grad(x.shape, w, dy, output=y, **OPTIONS, out=outs[1]),
            *dw_db,
            *conv2d_backward(dy, x, w, output=y, **OPTIONS, out=outs[4:7]),
            conv2d_kernel_grad(x, w.shape, dy, output=y, **OPTIONS, out=outs[7]),
        ]

    x, w, b = make()
    dy = x + 1
    like = every(x, w, b, dy) if with_out else None
    every(x, w, b, dy, like)
    checked = len(checks)
    x2, w2, b2, dy2 = -x + 1, w * 2, b + 1, dy * dy
    short = every(x2, w2, b2, dy2, like)
    assert len(checks) == checked
    calls.forget()
    for one, other in zip(short, every(x2, w2, b2, dy2, like), strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert len(checks) == checked + 6


def test_one_array_in_two_places_is_not_taken_for_one_argument(checks):
    dy = conv2d(X, W, **OPTIONS)
    conv2d_backward(dy, X, W, output=dy, **OPTIONS)
    checked = len(checks)
    other = dy[:, :, ::-1].copy()
    short = conv2d_backward(dy, X, W, output=other, **OPTIONS)
    assert len(checks) == checked
    calls.forget()
    for one, right in zip(short, conv2d_backward(dy, X, W, output=other, **OPTIONS), strict=True):
        assert np.array_equal(one, right)


@pytest.mark.parametrize(
    "change",
    [
        {"stride": True},
        {"stride": 1.0},
        {"stride": np.float64(1)},
        {"padding": (1, True)},
        {"padding": ((1, 1), (1, 1.0))},
        {"dilation": np.True_},
        {"groups": 1.0},
        {"save_mask": 1},
        {"device": 0},
        {"variant": "fast"},
    ],
    ids=str,
)
def test_what_is_equal_but_not_the_same(change, launches):
    conv2d(X, W, B, stride=1, padding=(1, 1), dilation=1, activation="relu", device="cpu", save_mask=True)
    conv2d(X, W, B, stride=1, padding=((1, 1), (1, 1)), activation="relu", device="cpu", save_mask=True)
    conv2d(X, W, B, **OPTIONS, device="cpu", save_mask=True)
    launches.clear()
    options = {**OPTIONS, "device": "cpu", "save_mask": True, **change}
    with pytest.raises((convbackprop.InvalidType, convbackprop.InvalidArgument)):
        conv2d(X, W, B, **options)
    assert launches == []


def test_arguments_that_have_no_hash():
    expected = conv2d(X, W, padding=(1, 2))
    for padding in ([1, 2], (np.int64(1), 2), np.array([1, 2]).tolist()):
        for _ in range(2):
            assert np.array_equal(conv2d(X, W, padding=padding), expected)


def test_needs_may_be_a_list(checks):
    for needs in ((True, False, True), [True, False, True]) * 2:
        assert [array is None for array in conv2d_backward(X, X, W, padding=1, needs=needs)] == [False, True, False]
    assert len(checks) == 1


# -- what may differ between calls that are otherwise equal ------------------------------------------------------------
def test_alignment(checks):
    expected = conv2d(X, W, B, **OPTIONS)
    buffer = np.zeros(X.size + 4, np.float32)
    start = -(buffer.ctypes.data // 4) % 4
    for offset in (1, 2, 3, 0, 1):
        x = buffer[(start + offset) % 4 :][: X.size].reshape(X.shape)
        x[...] = X
        assert x.ctypes.data % 16 == 4 * offset
        assert np.array_equal(conv2d(x, W, B, **OPTIONS), expected)
        out = buffer[(start + offset) % 4 :][: X.size].reshape(X.shape)
        assert conv2d(X, W, B, **OPTIONS, out=out) is out
        assert np.array_equal(out, expected)
    assert len(checks) == 8


def test_layout(checks):
    expected = conv2d(X, W, B, **OPTIONS)
    for x in (
        np.asfortranarray(X[0, 0])[None, None],
        X.astype(">f4"),
        np.broadcast_to(X, X.shape),
        np.repeat(X, 2, 3)[..., ::2],
    ):
        for _ in range(2):
            assert np.array_equal(conv2d(x, W, B, **OPTIONS), expected)
    out = np.zeros((1, 1, 28, 56), np.float32)[..., ::2]
    for _ in range(2):
        assert conv2d(X, W, B, **OPTIONS, out=out) is out
        assert np.array_equal(out, expected)


def test_out_that_may_not_be_written(launches):
    out = np.empty_like(X)
    conv2d(X, W, B, **OPTIONS, out=out)
    out.flags.writeable = False
    launches.clear()
    with pytest.raises(convbackprop.InvalidArgument, match="out is read-only; it should be writable"):
        conv2d(X, W, B, **OPTIONS, out=out)
    assert launches == []


def test_read_only_inputs_are_not_checked_again(checks):
    x, w = X.copy(), W.copy()
    x.flags.writeable = w.flags.writeable = False
    for _ in range(2):
        conv2d(x, w, padding=1)
    assert len(checks) == 1


@pytest.mark.parametrize("make", (numpy_arrays, torch_tensors))
def test_out_that_overlaps(make, launches):
    x, w, b = make()
    space = x.reshape(-1).repeat(4) if make is torch_tensors else np.tile(x.ravel(), 4)
    places = [space[i : i + 784].reshape(1, 1, 28, 28) for i in range(0, 3 * 784, 4)]
    conv2d(places[0], w, b, **OPTIONS, out=places[2 * 196])
    conv2d_backward(x, places[0], w, **OPTIONS, output=x, out=(places[2 * 196], None, None))
    launches.clear()
    for i in (0, 1, 195):
        with pytest.raises(convbackprop.InvalidArgument, match="out shares memory with input"):
            conv2d(places[i], w, b, **OPTIONS, out=places[0])
        with pytest.raises(convbackprop.InvalidArgument, match="out shares memory with input"):
            conv2d_backward(x, places[0], w, **OPTIONS, output=x, out=(places[i], None, None))
    assert launches == []
    conv2d(places[196], w, b, **OPTIONS, out=places[0])  # side by side
    assert len(launches) == 1


def test_outs_that_overlap_each_other(launches):
    space = np.zeros(100, np.float32)
    conv2d_backward(X, X, W, padding=1, out=(None, space[:9].reshape(W.shape), space[12:13]))
    launches.clear()
    with pytest.raises(convbackprop.InvalidArgument, match="out holds arrays that share memory"):
        conv2d_backward(X, X, W, padding=1, out=(None, space[4:13].reshape(W.shape), space[12:13]))
    assert launches == []


def test_grad_mode(launches):
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: grad mode of repeated calls")
    x, w, b = torch_tensors()
    w = torch.nn.Parameter(w)
    with torch.no_grad():
        expected = [conv2d(x, w, b, **OPTIONS) for _ in range(2)][1]
    launches.clear()
    with pytest.raises(convbackprop.InvalidArgument, match="weight is a tensor that requires grad"):
        conv2d(x, w, b, **OPTIONS)
    x.requires_grad_()
    with pytest.raises(convbackprop.InvalidArgument, match="input is a tensor that requires grad"):
        conv2d(x, w.detach(), b, **OPTIONS)
    assert launches == []
    with torch.inference_mode():
        assert torch.equal(conv2d(x, w, b, **OPTIONS), expected)
    y = conv2d(x.detach(), w.detach(), b, **OPTIONS)
    assert torch.equal(y, expected)
    assert not y.is_inference()


def test_kinds_of_tensors(launches):
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: tensors that stand for others")
    x, w, b = torch_tensors()
    expected = conv2d(x, w, b, **OPTIONS)
    minus = conv2d(-x, w, b, **OPTIONS)
    assert torch.equal(conv2d(torch._neg_view(x), w, b, **OPTIONS), minus)
    zero = torch._efficientzerotensor(x.shape)
    assert torch.equal(conv2d(zero, w, b, **OPTIONS), conv2d(torch.zeros_like(x), w, b, **OPTIONS))
    plain = type("Plain", (torch.Tensor,), {})
    assert torch.equal(conv2d(x.as_subclass(plain), w, b, **OPTIONS), expected)
    fake = type("Wrapper", (torch.Tensor,), {"__torch_dispatch__": classmethod(lambda *a, **k: None)})
    launches.clear()
    for stranger in (x.as_subclass(fake), x.to_sparse(), x.to(device="meta"), X, x.double()):
        with pytest.raises((convbackprop.InvalidArgument, convbackprop.InvalidType)):
            conv2d(stranger, w, b, **OPTIONS)
    assert launches == []
    assert torch.equal(conv2d(x, w, b, **OPTIONS, out=torch._neg_view(torch.empty_like(x))), expected)


def test_strangers_in_the_place_of_a_tensor(launches):
    """Each is refused, though the call before was like it in all else; the last has no strides to compare."""
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: tensors that are like no other")
    x, w, b = torch_tensors()
    pair = torch.stack([x[0, 0], x[0, 0]])[None]
    out, weight = torch.empty_like(x), w.repeat(1, 2, 1, 1)
    b = b.clone()  # in torch's memory, which is aligned
    for _ in range(2):  # the first call of a process is not remembered
        conv2d(pair, weight, b, **OPTIONS, out=out)
    needs_grad = b.clone().requires_grad_()
    nested = torch.nested.nested_tensor([b, b])
    launches.clear()
    for stranger in (b.numpy(), [1.0], b.double(), b[None], b.to_sparse(), b.to("meta"), needs_grad, nested):
        with pytest.raises((convbackprop.InvalidArgument, convbackprop.InvalidType)):
            conv2d(pair, weight, stranger, **OPTIONS, out=out)
        with pytest.raises((convbackprop.InvalidArgument, convbackprop.InvalidType)):
            conv2d(pair, weight, b, **OPTIONS, out=stranger)
    assert launches == []


@pytest.mark.parametrize("guards", (True, False))
def test_repeated_calls_on_tensors(checks, monkeypatch, guards):
    """With the guards of torch.compile, and where torch has none (an older or a newer one)."""
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: calls on tensors")
    if not guards:
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    x, w, b = torch_tensors()
    expected = conv2d(x, w, b, **OPTIONS)
    space = torch.zeros(x.numel() + 4)
    for offset in (0, 1, 0, 1):
        moved = space[offset:][: x.numel()].view(x.shape).copy_(x)
        assert torch.equal(conv2d(moved, w, b, **OPTIONS), expected)
        assert torch.equal(conv2d(x, w, b, **OPTIONS), expected)
    assert len(checks) == 2
    with torch.inference_mode():
        assert torch.equal(conv2d(x, w, b, **OPTIONS), expected)
    assert torch.equal(conv2d(x, w, b.double().float(), **OPTIONS), expected)
    assert len(checks) == 2


def test_kinds_of_ndarrays(launches):
    conv2d(X, W, B, **OPTIONS)
    conv2d(X[0, 0], W[0, 0])
    assert conv2d(X[0, 0].view(np.matrix), W[0, 0]).shape == (26, 26)
    launches.clear()
    with pytest.raises(convbackprop.InvalidArgument, match="input is a masked array"):
        conv2d(np.ma.masked_array(X), W, B, **OPTIONS)
    assert launches == []


def test_device_of_the_environment(monkeypatch):
    conv2d(X, W, B, **OPTIONS)
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "tpu")
    with pytest.raises(convbackprop.InvalidArgument, match="device is 'tpu'"):
        conv2d(X, W, B, **OPTIONS)
    conv2d(X, W, B, **OPTIONS, device="cpu")
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "cpu")
    conv2d(X, W, B, **OPTIONS)
    monkeypatch.setattr(os, "environ", {"CONVBACKPROP_DEVICE": "tpu"})
    with pytest.raises(convbackprop.InvalidArgument, match="device is 'tpu'"):
        conv2d(X, W, B, **OPTIONS)


def test_number_of_threads(workers):
    x = RNG.standard_normal((4, 1, 28, 28), np.float32)
    expected = conv2d(x, W, B, **OPTIONS)
    call = next(iter(calls._recent._young.values()))
    structs = [launch.__self__._launch for _, launch in call.start.__self__._steps]
    for count in (1, 3, 2):
        set_num_threads(count)
        assert np.array_equal(conv2d(x, W, B, **OPTIONS), expected)
        assert [struct.workers for struct in structs] == [count] * len(structs)


def test_memory_that_is_not_there(monkeypatch):
    expected = conv2d(X, W, B, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(convbackprop.ProblemTooLarge, match=r"output of shape .* needs 3,136 bytes"):
            conv2d(X, W, B, **OPTIONS)
    assert np.array_equal(conv2d(X, W, B, **OPTIONS), expected)


def test_large_results_are_asked_for_each_time(monkeypatch):
    from convbackprop.launch import arrays

    monkeypatch.setattr(arrays, "SMALL", 1000)
    conv2d(X, W, B, **OPTIONS)
    monkeypatch.setattr(arrays, "free_host_bytes", lambda: 3000)
    with pytest.raises(convbackprop.ProblemTooLarge, match="needs 3,136 bytes, but only 3,000 are free"):
        conv2d(X, W, B, **OPTIONS)


def test_fork():
    expected = conv2d_backward(X, X, W, padding=1)
    child = os.fork()
    if child == 0:
        same = calls._recent.get is not None and not calls._recent._young
        for _ in range(2):
            for one, right in zip(conv2d_backward(X, X, W, padding=1), expected, strict=True):
                same = same and np.array_equal(one, right)
        os._exit(7 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_fork_after_the_use_of_a_gpu(stand_in, monkeypatch):
    """The child refuses a call that would not be checked again, and to open the device."""
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in)
    x, w = cupy.asarray(X), cupy.asarray(W)
    conv2d(x, w)
    child = os.fork()
    if child == 0:
        try:
            for call in (lambda: conv2d(x, w), lambda: get_device("cuda")):
                with pytest.raises(convbackprop.DeviceUnusable, match="spawn"):
                    call()
        except BaseException:  # what failed is not to run the other tests here
            os._exit(1)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_threads():
    """Calls with scratch memory, on data of their own, at once."""
    data = [(RNG.standard_normal(X.shape, np.float32), RNG.standard_normal(X.shape, np.float32)) for _ in range(8)]
    expected = [conv2d_kernel_grad(x, W.shape, dy, padding=1, with_bias=True) for x, dy in data]
    wrong = []

    def work(i):
        x, dy = data[i]
        for _ in range(200):
            for one, right in zip(
                conv2d_kernel_grad(x, W.shape, dy, padding=1, with_bias=True), expected[i], strict=True
            ):
                if not np.array_equal(one, right):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(calls._spare) <= 8


def test_what_is_kept_is_bounded():
    recent = calls._Recent(8)
    for i in range(100):
        recent.put(i, i)
        assert recent.get(i) == i
        assert recent.get(0) == 0 or i == 0  # used again and again, it stays
        assert len(recent._young) + len(recent._old) <= 8
    assert recent.get(98) == 98
    assert recent.get(50) is None
    recent.forget()
    assert recent.get(99) is None


def test_no_array_is_kept_alive():
    import gc
    import weakref

    class Watched(np.ndarray):
        pass

    x = X.copy()
    owner = x.view(Watched)
    x = np.asarray(owner)
    alive = weakref.ref(owner)
    conv2d(x, W, B, **OPTIONS)
    conv2d(x, W, B, **OPTIONS)
    del x, owner
    gc.collect()
    assert alive() is None

"""Prepared calls: the same bits as the function's, and every array that they were not prepared for is refused."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref

import numpy as np
import pytest

import convbackprop
from convbackprop import conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad, conv_transpose2d, prepare
from convbackprop.devices.cpu import CpuKernel
from convbackprop.devices.cuda import CudaKernel
from tests import driver
from tests.driver import ORDERS, cupy as cupy_on_stand_in
from tests.launch.test_call_cost import functions

SHAPES = {"x": (2, 3, 9, 8), "w": (4, 3, 3, 3), "b": (4,), "dy": (2, 4, 9, 8), "c": (3,)}
OPTIONS = {"padding": 1, "activation": "relu"}
GRAD = {"padding": 1, "activation": "tanh"}

#: Of each call: the function, the arguments that arrays() has under these names, the others.
CALLS = {
    "conv2d": (conv2d, ("x", "w", "b"), OPTIONS),
    "conv2d without bias": (conv2d, ("x", "w"), {**OPTIONS, "variant": "naive"}),
    "conv2d with a mask": (conv2d, ("x", "w", "b"), {**OPTIONS, "save_mask": True}),
    "input_grad": (conv2d_input_grad, (SHAPES["x"], "w", "dy"), {**GRAD, "output": "y"}),
    "kernel_grad": (conv2d_kernel_grad, ("x", SHAPES["w"], "dy"), {"padding": 1}),
    "kernel_grad and bias": (conv2d_kernel_grad, ("x", SHAPES["w"], "dy"), {**GRAD, "output": "y", "with_bias": True}),
    "backward": (conv2d_backward, ("dy", "x", "w"), {**GRAD, "output": "y"}),
    "backward of dx and db": (conv2d_backward, ("dy", "x", "w"), {"padding": 1, "needs": (True, False, True)}),
    "conv_transpose2d": (conv_transpose2d, ("dy", "w", "c"), {"padding": 1, "activation": "silu"}),
}


@pytest.fixture(autouse=True)
def _quick(quick_commands):
    """Kernels that are compiled quickly."""


def arrays(seed, library="numpy"):
    rng = np.random.default_rng(seed)
    made = {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    made["y"] = np.tanh(rng.standard_normal(SHAPES["dy"], np.float32))
    if library == "torch":
        torch = pytest.importorskip("torch", reason="needs torch, which is not installed: prepared calls on tensors")
        return {name: torch.from_numpy(array) for name, array in made.items()}
    return made


def filled(call, given):
    """Return function, arguments and options of a call on these arrays, and the arrays that it reads."""
    function, arguments, options = CALLS[call]
    named = [given[each] if isinstance(each, str) else each for each in arguments]
    others = {name: given[each] if name == "output" else each for name, each in options.items()}
    read = [given[each] for each in arguments if isinstance(each, str)]
    return function, named, others, read + [given["y"]] * ("output" in options)


def flat(results):
    return [each for each in (results if isinstance(results, tuple) else (results,)) if each is not None]


def assert_same(one, other):
    assert isinstance(one, tuple) == isinstance(other, tuple)
    if isinstance(one, tuple):
        assert [each is None for each in one] == [each is None for each in other]
    for a, b in zip(flat(one), flat(other), strict=True):
        assert type(a) is type(b) and a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def launches(monkeypatch):
    """What is launched, on the cpu device and on the stand-in."""
    made = []
    for kind in (CpuKernel, CudaKernel):
        launch = kind.launch
        monkeypatch.setattr(kind, "launch", lambda self, *a, launch=launch: made.append(self) or launch(self, *a))
    return made


@pytest.mark.parametrize("library", ("numpy", "torch"))
@pytest.mark.parametrize("call", CALLS)
def test_same_bits(call, library, launches):
    given, other = arrays(0, library), arrays(1, library)
    function, arguments, options, read = filled(call, given)
    prepared = prepare(function, *arguments, **options)
    assert launches == []
    assert len(prepared.arrays) == len(read)
    for _ in range(2):
        assert_same(prepared(), function(*arguments, **options))
    first, second = flat(prepared()), flat(prepared())
    assert all(a is not b for a, b in zip(first, second, strict=True))
    for name, array in given.items():  # contents that change
        array[...] = other[name]
    assert_same(prepared(), function(*arguments, **options))
    further = arrays(2, library)
    function, arguments, options, read = filled(call, further)
    expected = function(*arguments, **options)
    assert_same(prepared(*read), expected)
    assert_same(prepared(), filled_result(call, given))  # those that it was prepared with stay
    mixed = {**given, **{name: further[name] for name in further if further[name] is read[0]}}
    assert_same(prepared(read[0]), filled_result(call, mixed))


def filled_result(call, given):
    function, arguments, options, _ = filled(call, given)
    return function(*arguments, **options)


@pytest.mark.parametrize("library", ("numpy", "torch"))
@pytest.mark.parametrize("call", CALLS)
def test_out(call, library):
    given = arrays(0, library)
    function, arguments, options, read = filled(call, given)
    expected = function(*arguments, **options)

    def space():
        if call == "conv2d with a mask":
            return expected[0] * 0
        return (
            tuple(each if each is None else each * 0 for each in expected)
            if isinstance(expected, tuple)
            else (expected * 0)
        )

    out = space()
    prepared = prepare(function, *arguments, **options, out=out)
    assert not any(each.any() for each in flat(out)), "nothing is computed yet"
    for arguments_again in ((), read):
        for each in flat(out):
            each[...] = 7
        got = prepared(*arguments_again)
        assert_same(got, expected)
        assert all(a is b for a, b in zip(flat(got), flat(out), strict=False))
    for ready in (prepared, prepare(function, *arguments, **options)):
        other = space()
        for again in ((), read):
            for each in flat(other):
                each[...] = 7
            got = ready(*again, out=other)
            assert_same(got, expected)
            assert all(a is b for a, b in zip(flat(got), flat(other), strict=False))
    assert_same(got, prepared())


def test_no_gradient_wanted():
    given = arrays(0)
    call = prepare(conv2d_backward, given["dy"], given["x"], given["w"], padding=1, needs=(False,) * 3)
    assert call() == call(given["dy"]) == call(out=(given["x"], None, None)) == (None, None, None)


# -- what is refused ---------------------------------------------------------------------------------------------------
WRONG = {
    "shape": (lambda x: x[:1], r"input has shape \(1, 3, 9, 8\); the call was prepared for \(2, 3, 9, 8\)"),
    "axes": (lambda x: x[0], r"input has shape \(3, 9, 8\)"),
    "dtype": (lambda x: x.astype(np.float64), "input has dtype float64; the call was prepared for float32"),
    "byte order": (lambda x: x.astype(">f4"), "input cannot be used where it lies"),
    "layout": (lambda x: np.asfortranarray(x), "input cannot be used where it lies"),
    "library": (lambda x: x.tolist(), "input is a list; it should be a numpy.ndarray"),
    "none": (lambda x: None, "input is a NoneType"),
    "subclass": (lambda x: np.ma.masked_array(x), "input is a masked array"),
    "alignment": (
        lambda x: np.concatenate([x.ravel(), x.ravel()[:4]])[1:][: x.size].reshape(x.shape),
        "input lies 4 bytes beyond a multiple of 16; the call was prepared for an array 0 bytes beyond",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_that_are_not_alike(wrong, launches):
    given = arrays(0)
    call = prepare(conv2d, given["x"], given["w"], given["b"], **OPTIONS)
    change, message = WRONG[wrong]
    with pytest.raises((convbackprop.InvalidArgument, convbackprop.InvalidType), match=message):
        call(change(given["x"]))
    with pytest.raises((convbackprop.InvalidArgument, convbackprop.InvalidType), match=message):
        call(change(given["x"]), out=np.empty(SHAPES["dy"], np.float32))
    assert launches == []
    call()


WRONG_TENSORS = {
    "shape": (lambda x: x[:1], r"input has shape \(1, 3, 9, 8\); the call was prepared for \(2, 3, 9, 8\)"),
    "dtype": (lambda x: x.double(), "input has dtype float64; the call was prepared for float32"),
    "layout": (lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), "input cannot be used where it lies"),
    "negated": (lambda x: sys.modules["torch"]._neg_view(x), "input cannot be used where it lies"),
    "alignment": (lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape), "input lies 4 bytes beyond a multiple of 16"),
    "grad": (lambda x: x.clone().requires_grad_(), "input is a tensor that requires grad"),
    "device": (lambda x: x.to("meta"), "input is a tensor on device meta"),
    "sparse": (lambda x: x.to_sparse(), "input is a tensor of layout torch.sparse_coo"),
    "nested": (lambda x: sys.modules["torch"].nested.nested_tensor([x[0], x[0]]), "input is a nested tensor"),
    "library": (lambda x: x.numpy(), "input is a ndarray; the call was prepared for a torch.Tensor"),
}


@pytest.mark.parametrize("guards", (True, False))
@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_tensors_that_are_not_alike(wrong, guards, monkeypatch, launches):
    given = arrays(0, "torch")
    torch = sys.modules["torch"]
    if not guards:  # a torch that has none
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    x = given["x"].clone()
    call = prepare(conv2d, x, given["w"], given["b"], **OPTIONS, out=torch.empty(SHAPES["dy"]))
    expected = call().clone()
    change, message = WRONG_TENSORS[wrong]
    launches.clear()
    with pytest.raises((convbackprop.InvalidArgument, convbackprop.InvalidType), match=message):
        call(change(x))
    assert launches == []
    assert torch.equal(call(x.clone()), expected)


def test_more_arrays_than_there_are():
    given = arrays(0)
    call = prepare(conv2d, given["x"], given["w"], **OPTIONS)
    with pytest.raises(convbackprop.InvalidArgument, match="3 arrays are given; conv2d was prepared with 2: input, we"):
        call(given["x"], given["w"], given["b"])


def test_out_that_cannot_be_written(launches):
    given = arrays(0)
    x, w, b, out = given["x"], given["w"], given["b"], np.empty(SHAPES["dy"], np.float32)
    call = prepare(conv2d, x, w, b, **OPTIONS, out=out)
    fresh = np.zeros_like(out)
    fresh.flags.writeable = False
    space = np.zeros(x.size + out.size - 4, np.float32)
    over, below = space[: x.size].reshape(x.shape), space[x.size - 4 :].reshape(out.shape)
    for arguments, target, message in [
        ((), fresh, "out is read-only"),
        ((over,), below, "out shares memory with input"),
        ((), out[:1], r"out has shape \(1, 4, 9, 8\); the call was prepared for \(2, 4, 9, 8\)"),
        ((), fresh.astype(np.float64), "out has dtype float64; the call was prepared for float32"),
        ((), (out,), "out is a tuple; it should be a numpy.ndarray"),
    ]:
        with pytest.raises((convbackprop.InvalidArgument, convbackprop.InvalidType), match=message):
            call(*arguments, out=target)
    out.flags.writeable = False
    with pytest.raises(convbackprop.InvalidArgument, match="out is read-only"):
        call()
    assert launches == []
    backward = prepare(conv2d_backward, given["dy"], x, w, padding=1)
    for target, message in [(x * 0, "out is a ndarray; it should be 3 arrays"), ((x * 0,), "out is a tuple; it sh")]:
        with pytest.raises(convbackprop.InvalidType, match=message):
            backward(out=target)
    assert launches == []


def test_some_results_in_new_arrays():
    given = arrays(0)
    x, w, dy = given["x"], given["w"], given["dy"]
    expected = conv2d_backward(dy, x, w, padding=1)
    dx, db = x * 0, np.zeros(4, np.float32)
    call = prepare(conv2d_backward, dy, x, w, padding=1, out=(dx, None, db))
    for got in (call(), call(dy), call(out=(dx, None, None)), call(dy, x, w, out=(dx, w * 0, db))):
        assert_same(got, expected)
        assert got[0] is dx


def test_read_only_inputs():
    given = arrays(0)
    call = prepare(conv2d, given["x"], given["w"], given["b"], **OPTIONS)
    expected = call()
    given["x"].flags.writeable = False
    assert_same(call(), expected)


def test_memory_that_is_gone(launches):
    """A prepared array that has moved is used where it is; one whose memory was freed is refused."""
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: tensors whose memory changes")
    given, other = arrays(0, "torch"), arrays(1, "torch")
    x, w, b = given["x"], given["w"], given["b"]
    call = prepare(conv2d, x, w, b, **OPTIONS)
    x.data = other["x"]
    assert torch.equal(call(), conv2d(other["x"], w, b, **OPTIONS))
    launches.clear()
    x.data = other["x"][:1]
    with pytest.raises(convbackprop.InvalidArgument, match=r"input has shape \(1, 3, 9, 8\)"):
        call()
    x.data = torch.empty(SHAPES["x"])
    x.untyped_storage().resize_(0)
    with pytest.raises(convbackprop.InvalidArgument, match="input cannot be used where it lies"):
        call()
    w.requires_grad_()
    with pytest.raises(convbackprop.InvalidArgument, match="weight is a tensor that requires grad"):
        call(other["x"])
    assert launches == []
    with torch.no_grad():
        call(other["x"])


def test_arrays_that_were_moved_onto_each_other(launches):
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: tensors whose memory changes")
    given = arrays(0, "torch")
    x, out = given["x"], torch.empty(SHAPES["dy"])
    call = prepare(conv2d, x, given["w"], given["b"], **OPTIONS, out=out)
    space = torch.zeros(x.numel() + out.numel())
    x.data = space[: x.numel()].view(x.shape)
    out.data = space[x.numel() - 4 : out.numel() + x.numel() - 4].view(out.shape)
    with pytest.raises(convbackprop.InvalidArgument, match="out shares memory with input"):
        call()
    assert launches == []


def test_arrays_of_numpy_that_were_resized(launches):
    given = arrays(0)
    x = np.array(given["x"])
    call = prepare(conv2d, x, given["w"], given["b"], **OPTIONS)
    x.resize((2, 3, 90, 80), refcheck=False)
    with pytest.raises(convbackprop.InvalidArgument, match=r"input has shape \(2, 3, 90, 80\)"):
        call()
    assert launches == []


PREPARED_WRONG = {
    "function": (lambda x, w: (np.convolve, x, w), "function is .*; it should be one of convbackprop's conv2d, "),
    "layout": (lambda x, w: (conv2d, np.asfortranarray(x), w), "input is a ndarray of shape .* cannot be used where"),
    "argument": (lambda x, w: (conv2d, x, w[:, :2]), "weight has shape .* it should have 3"),
}


@pytest.mark.parametrize("wrong", PREPARED_WRONG)
def test_what_cannot_be_prepared(wrong, launches):
    given = arrays(0)
    make, message = PREPARED_WRONG[wrong]
    with pytest.raises(convbackprop.InvalidArgument, match=message):
        prepare(*make(given["x"], given["w"]))
    assert launches == []


def test_empty_batches(launches):
    """Nothing is computed; a tensor without elements cannot be told from one that has lost its memory."""
    given = arrays(0)
    assert prepare(conv2d, given["x"][:0], given["w"], **OPTIONS)().shape == (0, 4, 9, 8)
    given = arrays(0, "torch")
    with pytest.raises(convbackprop.InvalidArgument, match=r"input is a Tensor of shape \(0, 3, 9, 8\) that cannot be"):
        prepare(conv2d, given["x"][:0], given["w"], **OPTIONS)
    assert launches == []


def test_unknown_arguments():
    given = arrays(0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'pading'"):
        prepare(conv2d, given["x"], given["w"], pading=1)


# -- what is done once -------------------------------------------------------------------------------------------------
def test_the_variant_is_chosen_once(monkeypatch):
    given = arrays(0)
    call = prepare(conv2d, given["x"], given["w"], given["b"], **OPTIONS)
    monkeypatch.setattr("convbackprop.ops.choose", lambda *a: pytest.fail("chosen anew"))
    call()
    call(given["x"] * 2)
    assert [each.partition("/")[0] for each in call.variants] == ["forward"]
    assert f"{call!r}" == f"<PreparedCall of conv2d(input, weight, bias) by {call.variants[0]} on cpu>"


@pytest.mark.parametrize("library", ("numpy", "torch"))
@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_looked_at_more_closely(call, library, monkeypatch):
    """Each way to call takes the short way (but where one array is given twice, which is not in these)."""
    given = arrays(0, library)
    function, arguments, options, read = filled(call, given)
    expected = function(*arguments, **options)
    out = expected[0] if call == "conv2d with a mask" else expected
    monkeypatch.setattr(convbackprop.PreparedCall, "_closer_look", lambda *a: pytest.fail("the long way"))
    for prepared in (prepare(function, *arguments, **options), prepare(function, *arguments, **options, out=out)):
        for again in ((), read[:1], read):
            assert_same(prepared(*again), expected)
            assert_same(prepared(*again, out=out), expected)


@pytest.mark.parametrize("library", ("numpy", "torch"))
def test_own_cost(library, monkeypatch):
    given = arrays(0, library)
    x, w, b = given["x"], given["w"], given["b"]
    out = conv2d(x, w, b, **OPTIONS)
    call = prepare(conv2d, x, w, b, **OPTIONS, out=out)
    monkeypatch.setattr(CpuKernel, "launch", lambda *a: None)
    for _ in range(2):
        conv2d(x, w, b, **OPTIONS, out=out)
    assert functions(call) < functions(lambda: conv2d(x, w, b, **OPTIONS, out=out)) < 100


def test_the_arrays_are_kept_alive():
    given = arrays(0)
    x = given.pop("x")
    expected = conv2d(x, given["w"], **OPTIONS)
    call = prepare(conv2d, x, given["w"], **OPTIONS)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is not None
    assert_same(call(), expected)
    del call
    gc.collect()
    assert alive() is None


def test_threads():
    """One prepared call in several threads, on data of their own."""
    given = arrays(0)
    call = prepare(conv2d_kernel_grad, given["x"], SHAPES["w"], given["dy"], padding=1, with_bias=True)
    data = [arrays(seed) for seed in range(6)]
    expected = [conv2d_kernel_grad(d["x"], SHAPES["w"], d["dy"], padding=1, with_bias=True) for d in data]
    wrong = []

    def work(i):
        for _ in range(100):
            try:
                assert_same(call(data[i]["x"], data[i]["dy"]), expected[i])
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- on the stand-in for a GPU -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("own_stream", (False, True), ids=("legacy stream", "own stream"))
def test_the_callers_stream(stand_in, monkeypatch, order, own_stream):
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in, own_stream)
    stand_in.order(order)
    host = [arrays(seed) for seed in range(2)]
    expected = [conv2d_backward(d["dy"], d["x"], d["w"], padding=1, device="cpu") for d in host]
    there = [{name: cupy.asarray(array) for name, array in d.items()} for d in host]
    out = tuple(cupy.empty(SHAPES[name], np.float32) for name in ("x", "w", "b"))
    first, second = there
    for target in (None, out):
        call = prepare(conv2d_backward, first["dy"], first["x"], first["w"], padding=1, out=target)
        for _ in range(2):
            for given, place, right in (
                ((), None, expected[0]),
                ((second["dy"], second["x"], second["w"]), None, expected[1]),
                ((), out, expected[0]),
            ):
                for a, b in zip(call(*given, out=place), right, strict=True):
                    assert type(a) is cupy.ndarray
                    assert np.allclose(a.get(), b, rtol=1e-4, atol=1e-4)


def test_what_a_prepared_call_asks_of_the_driver(stand_in, monkeypatch):
    """Which context is current, and the launch; where none is, it is pushed and popped around it."""
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in, own_stream=False)
    given = arrays(0)
    x, w = cupy.asarray(given["x"]), cupy.asarray(given["w"])
    call = prepare(conv2d, x, w, padding=1, out=cupy.empty(SHAPES["dy"], np.float32))
    with driver.device().active():
        stand_in.heal()
        call()
        assert stand_in.calls() == {"cuCtxGetCurrent": 1, "cuLaunchKernel": 1}
        stand_in.fail("cuLaunchKernel", 1, driver.INVALID_VALUE)
        with pytest.raises(convbackprop.LaunchFailed, match="cuLaunchKernel failed: invalid argument; nothing is lost"):
            call()
    stand_in.heal()
    call()
    assert stand_in.calls() == dict.fromkeys(
        ("cuCtxGetCurrent", "cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent"), 1
    )


def test_arrays_of_pycuda(stand_in):
    """The driver is asked whose memory it is at each call: also of an array whose memory was freed."""
    given = arrays(0)
    expected = conv2d(given["x"], given["w"], padding=1, variant="naive", device="cpu")
    with driver.device().active():
        from pycuda import gpuarray

        x, w = gpuarray.to_gpu(given["x"]), gpuarray.to_gpu(given["w"])
        call = prepare(conv2d, x, w, padding=1, variant="naive")
        for results in (call(), call(gpuarray.to_gpu(given["x"]))):
            assert np.allclose(results.get(), expected, atol=1e-5)
        x.gpudata.free()
        with pytest.raises(convbackprop.InvalidArgument, match="lies in no memory of a GPU; it may have been freed"):
            call()
        del results, w, call


def test_fork(stand_in, monkeypatch):
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in)
    given = arrays(0)
    call = prepare(conv2d, cupy.asarray(given["x"]), cupy.asarray(given["w"]), out=cupy.empty((2, 4, 7, 6), np.float32))
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(convbackprop.DeviceUnusable, match="spawn"):
                call()
        except BaseException:  # what failed is not to run the other tests here
            os._exit(1)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_arrays_of_the_host_are_copied_by_each_call(stand_in):
    given = arrays(0)
    with pytest.raises(
        convbackprop.InvalidArgument, match="copied to cuda:0 and back at each call, which leaves nothi"
    ):
        prepare(conv2d, given["x"], given["w"], device="cuda")

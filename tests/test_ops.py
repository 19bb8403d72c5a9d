"""The public functions on numpy arrays: every form of every argument, against the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convbackprop
from convbackprop import check, conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad, conv_transpose2d
from convbackprop.activations import ACTIVATIONS, COMMON, activation_name, saved_by
from convbackprop.check import reference
from convbackprop.devices import get_device
from convbackprop.errors import InvalidArgument
from convbackprop.ladder import registry
from convbackprop.launch import calls
from convbackprop.problem import DTYPES, ConvProblem

#: What is looked at are arguments and results; test_variants.py shows the machine code of all kernels to be right.
pytestmark = pytest.mark.usefixtures("quick_commands")

PROBLEM = ConvProblem.parse("2,4,9,8,6,3,2,groups=2,stride=2x1,padding=1:0x2:1,dilation=1x2", bias=True)


class Layer:
    """A problem with its data, and the public functions' arguments for it."""

    def __init__(self, problem=PROBLEM, seed=0):
        self.problem = problem
        plain = problem.with_(activation="identity", mask=False)
        data = check.inputs("forward", plain, seed=seed) | check.inputs("kernel_grad", plain, seed=seed)
        self.x, self.w, self.b, self.dy = data["x"], data["w"], data.get("b"), data["dy"]
        self.geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)

    def forward(self, device=None, **options):
        options.setdefault("activation", self.problem.activation)
        return conv2d(self.x, self.w, self.b, *self.geometry, device=device and device.name, **options)

    def saved(self, y, device=None):
        """What phi' is formed from, by the gradients' argument."""
        name = saved_by(self.problem.activation) or "output"
        return {name: self.forward(device, activation="identity") if name == "pre_activation" else y}

    def backward(self, device=None, **options):
        options.setdefault("activation", self.problem.activation)
        return conv2d_backward(self.dy, self.x, self.w, *self.geometry, device=device and device.name, **options)

    def expect(self, pass_name, saved=None, **got):
        """Hold results against the reference; `saved` is the output that the gradients were given."""
        given = {"x": self.x, "w": self.w, "b": self.b, "dy": self.dy, "saved": saved}
        problem = self.problem.with_(mask=False)
        answer = reference.answer(pass_name, problem, given)
        for name, array in got.items():
            value, magnitude = answer[name]
            bound = reference.error_bound(name, problem, value, magnitude)
            assert array.shape == value.shape, name
            assert array.dtype == self.x.dtype, name
            assert reference.error_share(array, value, bound, problem.dtype).max(initial=0) <= 1, name


@pytest.mark.parametrize(
    ("dtype", "activation"),
    [
        # What is compiled for all pairs is shown in test_variants.py.
        pytest.param(dtype, activation, marks=() if dtype == "float32" or activation == "relu" else pytest.mark.slow)
        for dtype, activation in itertools.product(DTYPES, COMMON)
    ],
)
def test_all_functions(device, dtype, activation):
    layer = Layer(PROBLEM.with_(dtype=dtype, activation=activation))
    y = layer.forward(device)
    layer.expect("forward", y=y)
    dx, dw, db = layer.backward(device, output=y)
    layer.expect("input_grad", y, dx=dx)
    layer.expect("kernel_grad", y, dw=dw, db=db)
    options = {"output": y, "activation": activation, "device": device.name}
    alone = conv2d_input_grad(layer.x.shape, layer.w, layer.dy, *layer.geometry, **options)
    assert np.array_equal(alone, dx)
    alone = conv2d_kernel_grad(layer.x, layer.w.shape, layer.dy, *layer.geometry, **options)
    assert np.array_equal(alone, dw)
    pair = conv2d_kernel_grad(layer.x, layer.w.shape, layer.dy, *layer.geometry, with_bias=True, **options)
    assert isinstance(pair, tuple)
    assert np.array_equal(pair[0], dw)
    assert np.array_equal(pair[1], db)


def test_results_are_plain_arrays():
    layer = Layer()
    for array in (layer.forward(), *layer.backward()):
        assert type(array) is np.ndarray
        assert array.flags.c_contiguous
        assert array.flags.owndata
        assert array.flags.writeable


# -- padding, stride and the rest ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        (0, ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        ([[1, 2], (3, 0)], ((1, 2), (3, 0))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 2), (2, 2))),  # 4 x 3 filter, dilation 1 x 2: the odd row comes last
        (np.int64(2), ((2, 2), (2, 2))),
    ],
)
def test_forms_of_padding(padding, sides):
    x = np.random.default_rng(0).standard_normal((1, 2, 9, 8))
    w = np.random.default_rng(1).standard_normal((3, 2, 4, 3))
    y = conv2d(x, w, None, 1, padding, (1, 2))
    padded = np.pad(x, ((0, 0), (0, 0), *sides))
    assert np.array_equal(y, conv2d(padded, w, None, 1, 0, (1, 2)))
    if padding == "same":
        assert y.shape == (1, 3, 9, 8)
    dx = conv2d_input_grad(x.shape, w, y, 1, padding, (1, 2))
    (top, _), (left, _) = sides
    inside = conv2d_input_grad(padded.shape, w, y, 1, 0, (1, 2))[:, :, top : 9 + top, left : 8 + left]
    assert np.array_equal(dx, inside)


@pytest.mark.parametrize(
    "stride", [2, (2, 2), [2, 2], np.int32(2), np.uint8(2), (np.int64(2), 2), np.array(2)], ids=repr
)
def test_forms_of_integers(stride):
    x, w = np.ones((1, 2, 7, 7), np.float32), np.ones((2, 1, 3, 3), np.float32)
    y = conv2d(x, w, None, stride, np.int16(1), (np.int8(1), 1), np.int64(2))
    assert y.shape == (1, 2, 4, 4)


def test_defaults_are_torchs():
    x, w = np.ones((1, 1, 5, 6), np.float32), np.ones((1, 1, 2, 3), np.float32)
    assert np.array_equal(conv2d(x, w), np.full((1, 1, 4, 4), 6, np.float32))


def test_names_of_activations():
    assert [activation_name(name) for name in ("linear", "leaky_relu:0.010", "leaky_relu:2", "gelu")] == [
        "identity", "leaky_relu", "leaky_relu:2.0", "gelu",
    ]  # fmt: skip


def test_sigmoid_is_logistic():
    layer = Layer()
    assert np.array_equal(layer.forward(activation="sigmoid"), layer.forward(activation="logistic"))


def test_naming_the_variant():
    layer = Layer()
    assert np.array_equal(layer.forward(variant="naive"), layer.forward())


# -- fewer axes ------------------------------------------------------------------------------------------------------
def test_precision():
    """It is a permission: a variant that multiplies float32 numbers as they are gives the same bits."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal((1, 1, *size), np.float32) for size in ((20, 33), (5, 5), (20, 33)))
    options = {"padding": 2, "device": "cpu"}
    calls = {
        "banded": lambda **more: conv2d(x, w, variant="banded", **options, **more),
        "banded dx": lambda **more: conv2d_input_grad(x.shape, w, dy, variant="banded", **options, **more),
        "naive": lambda **more: conv2d(x, w, variant="naive", **options, **more),
        "dw": lambda **more: conv2d_kernel_grad(x, w.shape, dy, **options, **more),
        "all": lambda **more: conv2d_backward(dy, x, w, **options, **more)[1],
        "transposed": lambda **more: conv_transpose2d(dy, w, variant="banded", **options, **more),
    }
    for name, call in calls.items():
        same = np.array_equal(call(), call(precision="tf32"))
        assert same == (name in ("naive", "dw", "all")), name
        with pytest.raises(InvalidArgument, match="precision is 'half'; it should be one of ieee, tf32"):
            call(precision="half")


def test_three_axes():
    layer = Layer(PROBLEM.with_(N=1, activation="relu"))
    y, mask = layer.forward(save_mask=True)
    dx, dw, db = layer.backward(output=y)
    batch = dict(zip("xwby", (layer.x, layer.w, layer.b, y), strict=True))
    layer.x, layer.dy = layer.x[0], layer.dy[0]
    y3, mask3 = layer.forward(save_mask=True)
    assert y3.shape == batch["y"].shape[1:]
    assert np.array_equal(y3, y[0])
    assert np.array_equal(mask3, mask[0])
    for options in ({"output": y3}, {"mask": mask3}):
        dx3, dw3, db3 = layer.backward(**options)
        assert dx3.shape == layer.x.shape
        assert np.array_equal(dx3, dx[0])
        assert np.array_equal(dw3, dw)
        assert np.array_equal(db3, db)


def test_two_axes():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((9, 8)), rng.standard_normal((3, 3)), rng.standard_normal(1)
    y = conv2d(x, w, b, padding=1, activation="tanh")
    assert y.shape == (9, 8)
    assert np.array_equal(y, conv2d(x[None, None], w[None, None], b, padding=1, activation="tanh")[0, 0])
    options = {"padding": 1, "output": y, "activation": "tanh", "variant": "naive"}
    dx, dw, db = conv2d_backward(y, x, w, **options)
    assert (dx.shape, dw.shape, db.shape) == ((9, 8), (3, 3), (1,))
    assert np.array_equal(conv2d_input_grad((9, 8), w, y, **options), dx)
    assert np.array_equal(conv2d_kernel_grad(x, (3, 3), y, **options), dw)
    assert conv2d(x, w[None, None]).shape == (7, 6)  # a 4-D filter on a 2-D image
    assert conv2d(x[None], w).shape == (1, 7, 6)
    assert conv2d(x[None, None], w).shape == (1, 1, 7, 6)


# -- layouts ---------------------------------------------------------------------------------------------------------
def unaligned(array):
    buffer = np.empty(array.nbytes + 1, np.uint8)[1:]
    made = buffer.view(array.dtype).reshape(array.shape)
    made[...] = array
    assert not made.flags.aligned
    return made


def read_only(array):
    made = array.copy()
    made.flags.writeable = False
    return made


def sliced(array):
    wide = np.full([2 * n for n in array.shape], np.nan, array.dtype)
    wide[tuple(slice(0, None, 2) for _ in array.shape)] = array
    return wide[tuple(slice(0, None, 2) for _ in array.shape)]


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "sliced": sliced,
    "negative strides": lambda a: (
        np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1] if a.ndim > 1 else a[::-1].copy()[::-1]
    ),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "read-only": read_only,
    "a view of a larger array": lambda a: np.concatenate([a, a])[len(a) :],
    "a subclass": lambda a: a.view(type("Subclass", (np.ndarray,), {})),
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim == 4 else a,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_inputs(device, layout):
    layer = Layer(PROBLEM.with_(activation="relu"))
    y, mask = layer.forward(device, save_mask=True)
    gradients = layer.backward(device, output=y)
    kept = [array.copy() for array in (layer.x, layer.w, layer.b, layer.dy)]
    layer.x, layer.w, layer.b, layer.dy = (layout(array) for array in (layer.x, layer.w, layer.b, layer.dy))
    again = layer.forward(device)
    assert again.dtype == y.dtype
    assert again.dtype.isnative
    assert np.array_equal(again, y)
    saved = y if layout is unaligned and y.dtype == np.uint8 else layout(y)
    for options in ({"output": saved}, {"mask": np.asfortranarray(mask)}, {"mask": sliced_bytes(mask)}):
        for one, other in zip(layer.backward(device, **options), gradients, strict=True):
            assert np.array_equal(one, other)
    for array, before in zip((layer.x, layer.w, layer.b, layer.dy), kept, strict=True):
        assert np.array_equal(array, before)


def sliced_bytes(mask):
    wide = np.full((*mask.shape[:-1], 2 * mask.shape[-1]), 0xA5, np.uint8)
    wide[..., ::2] = mask
    return wide[..., ::2]


def test_broadcast_input():
    w = np.ones((1, 3, 2, 2), np.float32)
    x = np.broadcast_to(np.float32(2), (2, 3, 4, 5))
    assert np.array_equal(conv2d(x, w), np.full((2, 1, 3, 4), 24, np.float32))


# -- out -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_out_is_written_and_returned(device, layout):
    if layout == "read-only":
        return  # refused: see test_refusals.py
    lay = LAYOUTS.get(layout, lambda a: a)
    layer = Layer(PROBLEM.with_(activation="tanh"))
    y = layer.forward(device)
    out = lay(np.full(y.shape, np.nan, y.dtype))
    assert layer.forward(device, out=out) is out
    assert np.array_equal(out, y)
    expected = layer.backward(device, output=y)
    outs = tuple(lay(np.full(array.shape, np.nan, array.dtype)) for array in expected)
    for one, out, right in zip(layer.backward(device, output=y, out=outs), outs, expected, strict=True):
        assert one is out
        assert np.array_equal(out, right)
    options = {"output": y, "activation": "tanh", "device": device.name}
    out = lay(np.full(layer.x.shape, np.nan, y.dtype))
    assert conv2d_input_grad(layer.x.shape, layer.w, layer.dy, *layer.geometry, out=out, **options) is out
    assert np.array_equal(out, expected[0])
    outs = [lay(np.full(array.shape, np.nan, array.dtype)) for array in expected[1:]]
    made = conv2d_kernel_grad(layer.x, layer.w.shape, layer.dy, *layer.geometry, out=outs, with_bias=True, **options)
    assert made[0] is outs[0]
    assert made[1] is outs[1]
    assert np.array_equal(outs[0], expected[1])
    assert np.array_equal(outs[1], expected[2])


def test_strided_out_leaves_its_gaps_alone():
    layer = Layer()
    y = layer.forward()
    wide = np.full((*y.shape, 2), 7, y.dtype)
    layer.forward(out=wide[..., 0])
    assert np.array_equal(wide[..., 0], y)
    assert (wide[..., 1] == 7).all()


def test_interleaved_input_and_out():
    """Channels of one buffer, some read and some written: their extents overlap, their elements do not."""
    rng = np.random.default_rng(0)
    buffer = rng.standard_normal((2, 6, 5, 5))
    w = rng.standard_normal((3, 3, 3, 3))
    expected = conv2d(buffer[:, 3:].copy(), w, padding=1)
    kept = buffer[:, 3:].copy()
    assert conv2d(buffer[:, 3:], w, padding=1, out=buffer[:, :3]).base is buffer
    assert np.array_equal(buffer[:, :3], expected)
    assert np.array_equal(buffer[:, 3:], kept)


def test_out_for_some_gradients_only():
    layer = Layer()
    expected = layer.backward()
    dw_out = np.empty_like(layer.w)
    made = layer.backward(out=(None, dw_out, None))
    assert made[1] is dw_out
    for one, right in zip(made, expected, strict=True):
        assert np.array_equal(one, right)


# -- which gradients -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
def test_every_subset_of_needs(device, needs):
    layer = Layer(PROBLEM.with_(activation="logistic"))
    y = layer.forward(device)
    everything = layer.backward(device, output=y, variant="naive")
    some = layer.backward(device, output=y, variant="naive", needs=needs)
    for need, one, right in zip(needs, some, everything, strict=True):
        assert (one is not None) == need
        if need:
            assert np.array_equal(one, right)


def watch(monkeypatch):
    """Return a list of the variants that are launched from now on."""
    launched = []
    start = calls.Launches.start
    monkeypatch.setattr(
        calls.Launches,
        "start",
        lambda self, *a: launched.extend(str(plan.variant) for plan in self.plans) or start(self, *a),
    )
    calls.forget()
    return launched


def test_no_work_for_what_is_not_needed(monkeypatch):
    launched = watch(monkeypatch)
    layer = Layer()
    layer.backward(needs=(False, False, False))
    assert launched == []
    layer.backward(needs=[True, False, False])
    assert [name.split("/")[0] for name in launched] == ["input_grad"]
    layer.backward(needs=(False, False, True))
    assert [name.split("/")[0] for name in launched] == ["input_grad", "kernel_grad"]
    with pytest.raises(convbackprop.InvalidArgument, match="grad_output has shape"):
        conv2d_backward(layer.dy[:1], layer.x, layer.w, *layer.geometry, needs=(False, False, False))


# -- the fused backward pass -----------------------------------------------------------------------------------------
DEPTHWISE = ConvProblem.parse("2,3,9,8,3,3,3,groups=3,padding=1", bias=True)


#: What is needed of dx, dw and db, the activation and the dtype; of "auto" what needs one result alone is a slow test.
FUSED = (
    *((needs, "relu", "float32") for needs in itertools.product([False, True], repeat=3)),
    *(((True, True, True), activation, "float64") for activation in (*COMMON, "silu") if activation != "relu"),
    ((True, True, True), "relu", "bfloat16"),
)


@pytest.mark.parametrize(
    ("variant", "needs", "activation", "dtype"),
    [
        pytest.param(variant, *kind, id="-".join(map(str, (variant, *kind))),
                     marks=pytest.mark.slow if variant == "auto" and sum(kind[0]) == 1 else ())
        for variant, kind in itertools.product(("auto", "fused"), FUSED)
    ],
)  # fmt: skip
def test_fused(variant, needs, activation, dtype, monkeypatch):
    layer = Layer(DEPTHWISE.with_(dtype=dtype, activation=activation))
    y = layer.forward()
    kept = layer.saved(y)
    launched = watch(monkeypatch)
    outs = tuple(np.full_like(like, np.nan) for like in (layer.x, layer.w, layer.b))
    masks = [{"mask": np.packbits(y > 0, axis=-1, bitorder="little")}] if activation == "relu" else []
    for saved in (kept, *masks):
        for out in (None, outs, (None, outs[1], None)):
            got = layer.backward(variant=variant, needs=needs, out=out, **saved)
            assert [array is not None for array in got] == list(needs)
            for name, pass_name, array, given in zip(
                ("dx", "dw", "db"), ("input_grad", "kernel_grad", "kernel_grad"), got, out or (None,) * 3, strict=True
            ):
                if array is not None:
                    layer.expect(pass_name, *kept.values(), **{name: array})
                    assert given is None or array is given
    rung = "backward/fused" if variant == "fused" or get_device().kind == "cuda" else "backward/vectorised"
    one_pass = any(needs) if variant == "fused" else needs[0] and (needs[1] or needs[2])
    assert (rung in launched) == one_pass
    assert not one_pass or set(launched) == {rung}


def test_vectorised_is_one_pass_where_it_can_be(cpu, monkeypatch):
    launched = watch(monkeypatch)
    layer = Layer(DEPTHWISE)
    for needs in itertools.product([False, True], repeat=3):
        launched.clear()
        layer.backward(cpu, variant="vectorised", needs=needs)
        one_pass = needs[0] and (needs[1] or needs[2])
        parts = ["input_grad/vectorised"] * needs[0] + ["kernel_grad/vectorised"] * (needs[1] or needs[2])
        assert launched == (["backward/vectorised"] if one_pass else parts)


def test_fused_where_it_cannot_be():
    layer = Layer()
    with pytest.raises(convbackprop.UnsupportedProblem, match="backward/fused does not compute this problem: stride"):
        layer.backward(variant="fused")
    for needs in itertools.product([False, True], repeat=3):
        for name, pass_name, array in zip(
            ("dx", "dw", "db"), ("input_grad", "kernel_grad", "kernel_grad"), layer.backward(needs=needs), strict=True
        ):
            if array is not None:
                layer.expect(pass_name, **{name: array})


def test_auto_without_a_variant_of_backward(monkeypatch):
    monkeypatch.setattr(registry, "VARIANTS", tuple(v for v in registry.VARIANTS if v.pass_name != "backward"))
    launched = watch(monkeypatch)
    layer = Layer(DEPTHWISE)
    for one, right in zip(layer.backward(variant="naive"), layer.backward(), strict=True):
        assert np.allclose(one, right, rtol=1e-4, atol=1e-4)
    assert launched[:2] == ["input_grad/naive", "kernel_grad/naive"]
    assert [name.split("/")[0] for name in launched[2:]] == ["input_grad", "kernel_grad"]
    with pytest.raises(
        convbackprop.InvalidArgument, match=r"variant is 'fused'; it should be one of auto, untuned, naive"
    ):
        layer.backward(variant="fused")
    calls.forget()


def test_mask_in_place_of_output(device):
    for text in ("2,4,9,8,6,3,2", "1,1,5,1,1,1,1", "1,2,5,8,2,1,1", "3,1,4,17,2,3,3"):
        layer = Layer(ConvProblem.parse(text, bias=True, activation="relu"))
        y, mask = layer.forward(device, save_mask=True)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, np.packbits(y > 0, axis=-1, bitorder="little"))
        assert np.array_equal(y, layer.forward(device))
        for one, other in zip(layer.backward(device, mask=mask), layer.backward(device, output=y), strict=True):
            assert np.array_equal(one, other)


# -- nothing to do ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batch(device, dtype):
    layer = Layer(PROBLEM.with_(N=0, dtype=dtype, activation="relu"))
    y, mask = layer.forward(device, save_mask=True)
    assert y.shape == layer.problem.y_shape
    assert mask.shape == layer.problem.mask_shape
    for options in ({"output": y}, {"mask": mask, "variant": "naive"}):
        dx, dw, db = layer.backward(device, **options)
        assert dx.shape == layer.x.shape
        assert dw.shape == layer.w.shape
        assert (dw == 0).all()
        assert db.shape == (6,)
        assert (db == 0).all()
    out = np.full_like(layer.w, np.nan)
    layer.backward(device, output=y, out=(None, out, None))
    assert (out == 0).all()


# -- bfloat16, choice of device --------------------------------------------------------------------------------------
def test_bfloat16_is_ml_dtypes():
    import ml_dtypes

    x = np.full((1, 1, 3, 3), 1.5, ml_dtypes.bfloat16)
    y = conv2d(x, np.ones((2, 2), ml_dtypes.bfloat16))
    assert y.dtype == ml_dtypes.bfloat16
    assert (y == 6).all()


def test_device_from_the_environment(monkeypatch):
    layer = Layer()
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "cpu")
    layer.expect("forward", y=layer.forward())
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "tpu")
    with pytest.raises(convbackprop.InvalidArgument, match="'tpu'"):
        layer.forward()
    convbackprop.conv2d(layer.x, layer.w, layer.b, *layer.geometry, device="cpu")  # the argument comes first


# -- gradients that know nothing of the reference --------------------------------------------------------------------
#: Where an activation has no derivative, or its derivative none.
KINKS = {"relu": (0,), "leaky_relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}


@pytest.mark.parametrize(
    "activation",
    [pytest.param(a, marks=() if a in (*COMMON, "gelu") else pytest.mark.slow) for a in ACTIVATIONS],
)
def test_central_differences(device, activation):
    """d(sum dy*y) / d(one element), by conv2d alone, in float64.

    The differences are (h^2 / 6) f''' off, and 2 u |f| / h: with h = 2^-17 both are below 1e-9 for these sizes.
    """
    layer = Layer(PROBLEM.with_(N=1, dtype="float64", activation=activation), seed=4)
    s = layer.forward(activation="identity")
    for kink in KINKS.get(activation, ()):  # an element whose kink lies inside the step has no derivative
        assert abs(s - kink).min() > 1e-3
    gradients = layer.backward(device, **layer.saved(layer.forward(device), device))
    rng = np.random.default_rng(2)
    h = 2.0**-17
    for array, gradient in zip((layer.x, layer.w, layer.b), gradients, strict=True):
        for flat in rng.permutation(array.size)[:40]:
            value = array.flat[flat]
            ends = []
            for step in (h, -h):
                array.flat[flat] = value + step
                ends.append(np.sum(layer.dy.astype(np.longdouble) * layer.forward(device)))
            array.flat[flat] = value
            assert abs((ends[0] - ends[1]) / (2 * h) - gradient.flat[flat]) < 2e-9

"""The public functions on torch tensors, against torch.autograd in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip(
    "torch", reason="needs torch, which is not installed: tensors in and out, against torch.autograd"
)

from torch.nn import functional  # noqa: E402

from convbackprop import conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad  # noqa: E402
from convbackprop.activations import COMMON  # noqa: E402
from convbackprop.check import reference  # noqa: E402
from convbackprop.problem import ConvProblem  # noqa: E402
from tests.support.activations import PHI  # noqa: E402
from tests.support.problems import WITH_IMAGES  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_commands")

U = 2.0**-53

PLACES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),  # test_gpu.py says so where there is none
]


def make(shape, seed, dtype=torch.float64, place="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(place)


def close(got, want, terms):
    """Whether two float64 computations agree, each being `terms` roundings of numbers of size 1 off at most."""
    return bool(((got - want).abs() <= terms * U * (1 + want.abs().max())).all())


#: What the public functions do is the same for every rung; "auto" is compiled anew for most problems.
SOME_RUNG = pytest.mark.parametrize("variant", ["naive", pytest.param("auto", marks=pytest.mark.slow)])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("activation", COMMON)
@SOME_RUNG
def test_against_autograd(place, activation, variant):
    for seed, entry in enumerate(WITH_IMAGES):
        p = entry.problem().with_(bias=True)
        x, w, b, dy = (
            make(shape, 10 * seed + i, place=place).requires_grad_(i < 3)
            for i, shape in enumerate((p.x_shape, p.w_shape, (p.K,), p.y_shape))
        )
        (top, bottom), (left, right) = p.padding
        padded = functional.pad(x, (left, right, top, bottom))
        expected = PHI[activation](functional.conv2d(padded, w, b, p.stride, 0, p.dilation, p.groups))
        expected.backward(dy)
        geometry = (p.stride, p.padding, p.dilation, p.groups)
        with torch.no_grad():
            y = conv2d(x, w, b, *geometry, activation=activation, variant=variant)
            dx, dw, db = conv2d_backward(dy, x, w, *geometry, output=y, activation=activation, variant=variant)
        forward_terms = 40 * (p.w_shape[1] * p.R * p.S + 2) ** 0.5 * 8
        assert close(y, expected.detach(), forward_terms), f"y of {p}"
        n = max(p.K // p.groups * p.R * p.S, p.N * p.P * p.Q)
        for name, got, want in (("dx", dx, x.grad), ("dw", dw, w.grad), ("db", db, b.grad)):
            assert close(got, want, forward_terms + 40 * n**0.5 * 8), f"{name} of {p}"


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", [0, 2, (1, 2), "valid", "same"], ids=str)
@pytest.mark.parametrize("size", [(3, 3), (2, 4), (4, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("dilation", [1, (2, 3)], ids=str)
def test_padding_is_torchs(padding, size, dilation):
    x, w, b = make((2, 2, 11, 12), 0), make((3, 2, *size), 1), make((3,), 2)
    expected = functional.conv2d(x, w, b, 1, padding, dilation)
    y = conv2d(x, w, b, 1, padding, dilation, variant="naive")
    assert y.shape == expected.shape
    assert close(y, expected, 500)


@pytest.mark.parametrize("place", PLACES)
def test_positions_of_torch_nn_grad(place):
    x, w, dy = (
        make((2, 4, 9, 8), 0, place=place),
        make((6, 2, 3, 3), 1, place=place),
        make((2, 6, 5, 4), 2, place=place),
    )
    geometry = (2, 1, 1, 2)
    dx = conv2d_input_grad(x.shape, w, dy, *geometry)
    assert close(dx, torch.nn.grad.conv2d_input(x.shape, w, dy, *geometry), 500)
    dw = conv2d_kernel_grad(x, w.shape, dy, *geometry)
    assert close(dw, torch.nn.grad.conv2d_weight(x, w.shape, dy, *geometry), 500)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_type_and_device_of_results(place, dtype):
    x, w, b = make((2, 3, 6, 5), 0, dtype, place), make((4, 3, 3, 3), 1, dtype, place), make((4,), 2, dtype, place)
    y, mask = conv2d(x, w, b, activation="relu", save_mask=True)
    results = (y, *conv2d_backward(y, x, w, mask=mask, activation="relu"))
    for result in results:
        assert isinstance(result, torch.Tensor)
        assert result.dtype == dtype
        assert result.device == x.device
        assert not result.requires_grad
        assert result.is_contiguous()
    assert mask.dtype == torch.uint8
    assert mask.device == x.device
    p = ConvProblem(2, 3, 6, 5, 4, 3, 3, dtype=str(dtype)[6:], bias=True, activation="relu")
    exact = PHI["relu"](functional.conv2d(x.double(), w.double(), b.double()))
    size = functional.conv2d(x.double().abs(), w.double().abs(), b.double().abs())
    bound = reference.error_bound("y", p, exact.cpu().numpy(), size.cpu().numpy())
    assert ((y.double() - exact).abs().cpu().numpy() <= bound).all()


LAYOUTS = {
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t,
    "sliced": lambda t: torch.stack([t, t.new_full((), float("nan")).expand_as(t)], -1)[..., 0],
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t,
    "expanded": lambda t: t[:1].expand_as(t),
    "a parameter": torch.nn.Parameter,
    "a view": lambda t: torch.cat([t, t])[len(t) :],
    "negated lazily": lambda t: torch._neg_view(-t),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype, device=t.device),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(place, layout):
    x, w, b = (make(s, i, place=place) for i, s in enumerate(((2, 3, 6, 5), (4, 3, 3, 2), (4,))))
    with torch.no_grad():
        x2, w2, b2 = layout(x), layout(w), layout(b)
        x, w, b = (t.detach().clone(memory_format=torch.contiguous_format).resolve_neg() for t in (x2, w2, b2))
        y = conv2d(x, w, b, padding=1, activation="tanh")
        assert torch.equal(conv2d(x2, w2, b2, padding=1, activation="tanh"), y)
        expected = conv2d_backward(y, x, w, padding=1, output=y, activation="tanh")
        y2 = y if layout is LAYOUTS["expanded"] else layout(y)
        for one, right in zip(
            conv2d_backward(y2, x2, w2, padding=1, output=y2, activation="tanh"), expected, strict=True
        ):
            assert torch.equal(one, right)


@pytest.mark.parametrize("place", PLACES)
def test_out(place):
    x, w = make((2, 3, 6, 5), 0, place=place), make((4, 3, 3, 3), 1, place=place)
    y = conv2d(x, w)
    for out in (
        torch.full_like(y, float("nan")),
        torch.full_like(y, float("nan")).contiguous(memory_format=torch.channels_last),
        torch.empty(*y.shape, 2, dtype=y.dtype, device=y.device)[..., 1],
        torch._neg_view(torch.full_like(y, float("nan"))),
    ):
        assert conv2d(x, w, out=out) is out
        assert torch.equal(out, y)
    outs = tuple(torch.full_like(t, float("nan")).transpose(0, 1).contiguous().transpose(0, 1) for t in (x, w))
    dx, dw, _ = conv2d_backward(y, x, w, needs=(True, True, False), out=(*outs, None), variant="naive")
    assert dx is outs[0]
    assert dw is outs[1]
    assert torch.equal(dx, conv2d_input_grad(x.shape, w, y, variant="naive"))


def test_interleaved_input_and_out():
    buffer = make((2, 6, 5, 5), 0)
    w = make((3, 3, 3, 3), 1)
    expected = conv2d(buffer[:, 3:].clone(), w, padding=1)
    conv2d(buffer[:, 3:], w, padding=1, out=buffer[:, :3])
    assert torch.equal(buffer[:, :3], expected)


def test_parameters_without_grad_mode():
    layer = torch.nn.Conv2d(3, 4, 3)
    x = make((2, 3, 6, 5), 0, torch.float32)
    with torch.no_grad():
        y = conv2d(x.requires_grad_(), layer.weight, layer.bias)
        assert not y.requires_grad
    with torch.inference_mode():
        assert torch.equal(conv2d(x, layer.weight, layer.bias), y)
    assert torch.equal(conv2d(x.detach(), layer.weight.detach(), layer.bias.detach()), y)


def test_device_of_the_host():
    x, w = make((1, 1, 4, 4), 0), make((1, 1, 2, 2), 1)
    assert torch.equal(conv2d(x, w, device="cpu"), conv2d(x, w))


def test_fewer_axes_and_empty_batch():
    x, w = make((3, 6, 5), 0), make((4, 3, 2, 2), 1)
    assert torch.equal(conv2d(x, w), conv2d(x[None], w)[0])
    assert conv2d(x[0], w[0, 0]).shape == (5, 4)
    dx, dw, db = conv2d_backward(make((0, 4, 5, 4), 0), make((0, 3, 6, 5), 0), w)
    assert dx.shape == (0, 3, 6, 5)
    assert torch.equal(dw, torch.zeros_like(w))
    assert torch.equal(db, torch.zeros(4, dtype=torch.float64))


@SOME_RUNG
def test_nan_spreads_as_in_torch(variant):
    """A NaN or an infinity in the image reaches the same outputs, and a closed ReLU blocks a NaN gradient."""
    for seed, entry in enumerate(WITH_IMAGES):
        p = entry.problem().with_(bias=False)
        x, w, dy = make(p.x_shape, seed), make(p.w_shape, seed + 1), make(p.y_shape, seed + 2)
        for value in (float("nan"), float("inf")):
            special = x.clone()
            special.view(-1)[0] = special.view(-1)[-1] = value
            (top, bottom), (left, right) = p.padding
            padded = functional.pad(special, (left, right, top, bottom))
            expected = functional.conv2d(padded, w, None, p.stride, 0, p.dilation, p.groups)
            for activation in ("identity", "relu"):
                y = conv2d(special, w, None, p.stride, p.padding, p.dilation, p.groups, activation=activation,
                           variant=variant)  # fmt: skip
                want = PHI[activation](expected)
                assert torch.equal(y.isnan(), want.isnan()), f"{activation} of {p}"
                assert torch.equal(y == float("inf"), want == float("inf"))
            y = conv2d(x, w, None, p.stride, p.padding, p.dilation, p.groups, activation="relu", variant=variant)
            dx = conv2d_input_grad(
                p.x_shape, w, torch.where(y > 0, dy, value), p.stride, p.padding, p.dilation, p.groups,
                output=y, activation="relu", variant=variant,
            )  # fmt: skip
            assert dx.isfinite().all()

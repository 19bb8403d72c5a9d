"""convbackprop.torch's scale and residual against torch's own steps, and batch norms that are fused in."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: convbackprop.torch")

from torch.nn import functional  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import convbackprop.torch as ours  # noqa: E402
from convbackprop.check import reference  # noqa: E402
from convbackprop.errors import InvalidArgument, InvalidType, UnsupportedProblem  # noqa: E402
from convbackprop.problem import DTYPES, ConvProblem  # noqa: E402
from convbackprop.torch import decompositions, operators  # noqa: E402
from tests.support.activations import PHI  # noqa: E402

NAMES = ("x", "w", "b", "scale", "residual")

#: Shapes of x, w and y, and the options.
LAYERS = {
    "groups, stride": ((2, 4, 7, 6), (6, 2, 3, 3), (2, 6, 4, 3), {"padding": 1, "stride": 2, "groups": 2}),
    "unbatched": ((2, 5, 4), (3, 2, 3, 3), (3, 5, 4), {"padding": 1}),
    "one channel": ((5, 6), (3, 3), (3, 4), {}),
}
SHAPES, SIZES = ((2, 6, 7, 9), (10, 3, 3, 3), (2, 10, 7, 9)), "2,6,7,9,10,3,3,groups=2,padding=1"


def tensors(x_shape, w_shape, y_shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = (w_shape[0] if len(w_shape) == 4 else 1,)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (x_shape, w_shape, k, k, y_shape)]
    return [t.to(dtype).requires_grad_() for t in made]


def pair_of(layer="groups, stride", activation="tanh", without=(), variant="naive"):
    """Return our function and torch's steps, of what NAMES names."""
    *shapes, options = LAYERS[layer]
    kept = [name not in without for name in NAMES]

    def mine(*given):
        x, w, b, scale, residual = (t if keep else None for t, keep in zip(given, kept, strict=True))
        return ours.conv2d(x, w, b, **options, scale=scale, residual=residual, activation=activation, variant=variant)

    def theirs(*given):
        x, w, b, scale, residual = (t if keep else 0 for t, keep in zip(given, kept, strict=True))
        whole = w if w.ndim == 4 else w[None, None]
        y = functional.conv2d(x if x.ndim > 2 else x[None], whole, None, **options)
        y = y * scale.reshape(-1, 1, 1) if kept[3] else y
        y = y + b.reshape(-1, 1, 1) if kept[2] else y
        return PHI[activation]((y if x.ndim > 2 else y[0]) + residual)

    return mine, theirs, shapes


def close(a, b):
    return torch.allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "activation", "without"),
    [("groups, stride", phi, ()) for phi in ("identity", "relu", "tanh", "silu")]
    + [("unbatched", "relu", ()), ("one channel", "tanh", ())]
    + [("groups, stride", "relu", one) for one in (("b",), ("scale",), ("residual",), ("b", "residual"))],
)
def test_values_and_gradients(layer, activation, without):
    mine, theirs, shapes = pair_of(layer, activation, without)
    given = tensors(*shapes)
    wanted = [t for t, name in zip(given, NAMES, strict=True) if name not in without]
    y, want = mine(*given), theirs(*given)
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    assert close(y, want)
    for mine_, theirs_ in zip(torch.autograd.grad(y, wanted, dy), torch.autograd.grad(want, wanted, dy), strict=True):
        assert mine_.shape == theirs_.shape and close(mine_, theirs_)
    for one in wanted:  # alone: no work for the others
        assert close(*(torch.autograd.grad(f(*given), one, dy)[0] for f in (mine, theirs)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_within_derived_bounds(dtype):
    """Of 16-bit numbers scale * w is one too, as dw is before its scale: a round-off more than the kernels' own."""
    problem = ConvProblem.parse(SIZES, dtype=dtype, activation="relu", scale=True, residual=True, bias=True)
    given = tensors(*SHAPES, dtype=getattr(torch, dtype))
    x, w, b, scale, residual = given
    y = ours.conv2d(x, w, b, padding=1, groups=2, scale=scale, residual=residual, activation="relu", variant="naive")
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    found = dict(zip(("dx", "dw", "db", "dscale", "dresidual"), torch.autograd.grad(y, given, dy), strict=True))
    found["y"] = y.detach()

    def array(tensor):
        return tensor.detach().to(torch.float64).numpy().astype(reference.numpy_dtype(dtype))

    a = {"x": array(x), "w": array(w), "b": array(b), "scale": array(scale), "residual": array(residual)}
    a |= {"dy": array(dy), "saved": array(y)}
    u = reference.round_off(dtype)
    answers = reference.answer("forward", problem, a) | reference.answer("backward", problem, a)
    bounds = {name: reference.error_bound(name, problem, *answer) for name, answer in answers.items()}
    bounds["dx"] += u * answers["dx"][1]
    bounds["dw"] += 2 * u * abs(answers["dw"][0])
    plain = problem.with_(scale=False)
    value, magnitude = reference.answer("kernel_grad", plain, a)["dw"]
    error, wide = reference.error_bound("dw", plain, value, magnitude), a["w"].astype(value.dtype)
    terms = abs(wide) * (abs(value) + error)
    answers["dscale"] = (wide * value).sum(axis=(1, 2, 3)), None
    bounds["dscale"] = (abs(wide) * error + 28 * u * terms).sum(axis=(1, 2, 3))  # 27 products
    answers["dresidual"] = reference.pre_activation_grad(problem, a["dy"], a["saved"])[0], None
    bounds["dresidual"] = 0
    for name, (value, _) in answers.items():
        assert np.all(abs(array(found[name]).astype(value.dtype) - value) <= bounds[name]), name


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_derivatives_of_derivatives(activation):
    def mine(x, w, b, scale, residual):
        return ours.conv2d(x, w, b, scale=scale, residual=residual, activation=activation, variant="naive")

    given = tensors((1, 2, 3, 3), (2, 2, 2, 2), (1, 2, 2, 2))
    assert torch.autograd.gradcheck(mine, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(mine, given)


def test_transforms():
    mine, theirs, shapes = pair_of()
    many = [torch.stack([t.detach(), 2 * t.detach()]) for t in tensors(*shapes)]
    for dims in ((0, 0, 0, 0, 0), (0, None, None, None, 0), (None, None, None, 0, None), (None, None, None, None, 0)):
        given = [t if dim == 0 else t[0] for t, dim in zip(many, dims, strict=True)]
        assert close(*(torch.vmap(f, in_dims=dims)(*given) for f in (mine, theirs)))
    each = [
        torch.vmap(torch.func.grad(lambda *t, f=f: f(*t).square().sum(), argnums=(0, 1, 2, 3, 4)))(*many)
        for f in (mine, theirs)
    ]
    assert all(map(close, *each))
    one = tuple(t[0] for t in many)
    assert all(map(close, *(torch.func.jvp(f, one, one) for f in (mine, theirs))))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    mine, theirs, shapes = pair_of()
    compiled = torch.compile(lambda *t: mine(*t) * 2, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    given = tensors(*shapes)
    y, want = compiled(*given), theirs(*given) * 2
    assert close(y, want)
    assert all(map(close, torch.autograd.grad(y.sum(), given), torch.autograd.grad(want.sum(), given)))


def test_export_and_decomposition():
    mine, theirs, shapes = pair_of()

    class Model(torch.nn.Module):
        def forward(self, *given):
            return mine(*given)

    given = tuple(t.detach() for t in tensors(*shapes))
    program = torch.export.export(Model(), given)
    assert any(node.target is operators.scaled_forward for node in program.graph.nodes)
    for one in (program, program.run_decompositions(decompositions.TABLE)):
        assert close(one.module()(*given), theirs(*given))
    assert operators.scaled_forward not in [
        n.target for n in program.run_decompositions(decompositions.TABLE).graph.nodes
    ]
    traced = torch.jit.trace(mine, given, check_trace=False)
    assert close(traced(*given), theirs(*given))


def test_autocast_formats_and_flops():
    mine, theirs, shapes = pair_of()
    given = [t.detach().float() for t in tensors(*shapes)]
    with torch.autocast("cpu", torch.bfloat16):
        assert mine(*given).dtype == torch.bfloat16
    last = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in given]
    y = mine(*last)
    assert y.is_contiguous(memory_format=torch.channels_last) and torch.equal(y, mine(*given))
    counts = []
    for function in (mine, theirs):
        with FlopCounterMode(display=False) as counter:
            function(*given)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_refusals():
    *_, shapes = pair_of()
    x, w, b, scale, residual = (t.detach() for t in tensors(*shapes))
    options = LAYERS["groups, stride"][-1]
    for device in ("cpu", "meta"):
        a = [t.to(device) for t in (x, w, b)]
        with pytest.raises(InvalidArgument, match=r"scale has shape \(5,\); it should be \(6,\), one value an output"):
            ours.conv2d(*a, **options, scale=scale[:5].to(device))
        with pytest.raises(InvalidArgument, match=r"residual has shape .*; it should be \(2, 6, 4, 3\)"):
            ours.conv2d(*a, **options, residual=residual[..., :2].to(device))
        with pytest.raises(InvalidType, match=r"residual has dtype .*float32, but it should be .*float64"):
            ours.conv2d(*a, **options, residual=residual.float().to(device))
    with pytest.raises(InvalidType, match=r"scale is a float; it should be a torch.Tensor"):
        ours.conv2d(x, w, b, **options, scale=2.0)
    with pytest.raises(UnsupportedProblem, match="forward/tiled does not compute this problem: it takes no residual"):
        ours.conv2d(x, w, b, **options, residual=residual, variant="tiled")


# -- modules ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("conv", [torch.nn.Conv2d, ours.nn.Conv2d])
def test_fuse_frozen_batch_norm(conv):
    torch.manual_seed(0)
    first = conv(3, 5, 3, padding=1, stride=2, dtype=torch.float64)
    first.variant = "naive"
    norm = torch.nn.BatchNorm2d(5, dtype=torch.float64)
    x, residual = torch.randn(4, 3, 8, 9, dtype=torch.float64), torch.randn(4, 5, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1), norm.bias.normal_()
    norm(first(x)), norm.eval()
    fused = ours.nn.fuse_frozen_batch_norm(first, norm, activation="relu")
    assert fused.weight is first.weight and [name for name, p in fused.named_parameters() if p.requires_grad] == [
        "weight"
    ]
    for more in ((), (residual,)):
        y, want = fused(x, *more), torch.relu(norm(first(x)) + sum(more))
        assert close(y, want)
        assert close(*(torch.autograd.grad(t.square().sum(), first.weight)[0] for t in (y, want)))
    assert fused.state_dict().keys() == {"weight", "bias", "scale"}
    again = ours.nn.fuse_frozen_batch_norm(first, norm, activation="relu")
    again.load_state_dict({name: tensor + 1 for name, tensor in fused.state_dict().items()})
    assert torch.equal(again.scale, fused.scale + 1)


def test_a_layer_without_scale_has_the_state_dict_of_torchs():
    layer = ours.nn.Conv2d(2, 3, 3)
    assert layer.state_dict().keys() == torch.nn.Conv2d(2, 3, 3).state_dict().keys()
    layer.load_state_dict(torch.nn.Conv2d(2, 3, 3).state_dict())
    layer.scale = torch.nn.Parameter(torch.ones(3))
    layer(torch.randn(1, 2, 5, 5)).sum().backward()
    assert layer.scale.grad.shape == (3,)


def test_what_cannot_be_fused():
    conv, norm = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3).eval()
    for made, words in (
        ((conv, torch.nn.BatchNorm2d(3)), r"norm is in training mode.*norm\.eval\(\)"),
        ((conv, torch.nn.BatchNorm2d(4).eval()), "norm has 4 channels; it should have 3"),
        ((conv, torch.nn.BatchNorm2d(3, track_running_stats=False).eval()), "without running statistics"),
        ((ours.nn.Conv2d(2, 3, 3, activation="relu"), norm), "conv has activation 'relu', which stands between"),
        ((ours.nn.fuse_frozen_batch_norm(conv, norm), norm), "conv has a scale, which stands between"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            ours.nn.fuse_frozen_batch_norm(*made)
    with pytest.raises(InvalidType, match=r"conv is a Linear; it should be a torch.nn.Conv2d or one of ours"):
        ours.nn.fuse_frozen_batch_norm(torch.nn.Linear(2, 2), norm)

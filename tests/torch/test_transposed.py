"""Transposed convolution by the pass input_grad against PyTorch's: values, derivatives of any order, the module."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: convbackprop.torch")

from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_eval  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import convbackprop  # noqa: E402
from convbackprop.check import reference  # noqa: E402
from convbackprop.torch import conv_transpose2d, nn  # noqa: E402
from tests.support.activations import PHI  # noqa: E402
from tests.torch.test_torch_peers import cases_of, info_of  # noqa: E402

#: The input's and the filters' shapes, and the options.
LAYERS = {
    "plain": ((2, 4, 5, 6), (4, 3, 3, 2), {}),
    "doubled": ((2, 4, 5, 6), (4, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "all at once": (
        (4, 5, 6), (4, 2, 3, 3),
        {"groups": 2, "stride": (2, 3), "padding": (1, 2), "output_padding": (0, 2), "dilation": (2, 1)},
    ),
    "depthwise": ((1, 6, 5, 5), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "dilated, one more": ((2, 3, 4, 5), (3, 2, 3, 3), {"dilation": 3, "output_padding": 2}),
}  # fmt: skip
each_layer = pytest.mark.parametrize("layer", LAYERS)


def given(layer, dtype=torch.float64, grad=True):
    x_shape, w_shape, options = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    channels = w_shape[1] * options.get("groups", 1)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (x_shape, w_shape, (channels,))]
    return [t.to(dtype).requires_grad_(grad) for t in made], options


def pair_of(layer, activation="identity", variant="naive"):
    options = LAYERS[layer][2]
    return (
        lambda x, w, b: conv_transpose2d(x, w, b, **options, activation=activation, variant=variant),
        lambda x, w, b: PHI[activation](functional.conv_transpose2d(x, w, b, **options)),
    )


@each_layer
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "gelu"])
def test_like_torchs(layer, activation):
    inputs, _ = given(layer)
    mine, theirs = pair_of(layer, activation)
    y, want = mine(*inputs), theirs(*inputs)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(mine(*inputs), y) or activation == "gelu"  # fused there, PyTorch's own where it is kept
        torch.testing.assert_close(mine(*inputs), want, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(want)
    got, expected = (torch.autograd.grad(result, inputs, dy) for result in (y, want))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@each_layer
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_derivatives_of_any_order(layer, activation):
    inputs, _ = given(layer)
    mine, _ = pair_of(layer, activation)
    assert torch.autograd.gradcheck(mine, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(mine, inputs, check_fwd_over_rev=True, fast_mode=True)


@each_layer
def test_vmap(layer):
    (x, w, b), _ = given(layer, grad=False)
    mine, theirs = pair_of(layer, "tanh")
    many = torch.vmap(mine, in_dims=(0, None, 0))(torch.stack([x, -2 * x]), w, torch.stack([b, b + 1]))
    torch.testing.assert_close(many, torch.stack([theirs(x, w, b), theirs(-2 * x, w, b + 1)]))


@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [("aot_eager", False), *(pytest.param("inductor", dynamic, marks=pytest.mark.slow) for dynamic in (False, True))],
)
def test_compile(backend, dynamic, tmp_path, monkeypatch):
    """Also where CI is set, by which torch.compile takes some of what it refuses for mistakes of PyTorch's own."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    (x, w, b), options = given("doubled")
    compiled = torch.compile(
        lambda x: conv_transpose2d(x, w, b, **options, activation="relu", variant="naive"), fullgraph=True,
        backend=backend, dynamic=dynamic,
    )  # fmt: skip
    for image in (x, torch.cat([x, x], dim=-1)):
        want = functional.conv_transpose2d(image, w, b, **options).relu()
        torch.testing.assert_close(compiled(image), want)
        torch.testing.assert_close(
            torch.autograd.grad(compiled(image).square().sum(), w), torch.autograd.grad(want.square().sum(), w)
        )


def test_the_module():
    layer = nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2, activation="relu", dtype=torch.float64)
    theirs = torch.nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2, dtype=torch.float64)
    theirs.load_state_dict(layer.state_dict())
    assert repr(layer) == repr(theirs)[:-1] + ", activation='relu')"
    assert not isinstance(layer, torch.nn.ConvTranspose2d)  # tools would take it for one and for nothing else
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    for size in (None, (9, 10), (10, 11)):
        torch.testing.assert_close(layer(x, size), theirs(x, size).relu())
        torch.testing.assert_close(copy.deepcopy(layer)(x, size), layer(x, size))
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))
    with pytest.raises(ValueError, match="requested an output size of"):
        layer(x, (12, 10))
    with pytest.raises(convbackprop.InvalidArgument, match="padding_mode is 'circular'; it should be one of zeros"):
        nn.ConvTranspose2d(1, 1, 3, padding_mode="circular")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_numpy_arrays(dtype):
    (x, w, b), options = given("all at once", grad=False)
    arrays = [t.numpy().astype(dtype) for t in (x, w, b)]
    want = PHI["relu"](functional.conv_transpose2d(*(torch.from_numpy(a).double() for a in arrays), **options)).numpy()
    out = np.full(want.shape, np.nan, dtype)
    y = convbackprop.conv_transpose2d(*arrays, **options, activation="relu", variant="naive", out=out)
    problem = convbackprop.ConvProblem(
        1, *want.shape, *w.shape[:1], *w.shape[2:], options["stride"], ((1, 1), (2, 2)), options["dilation"], 2, dtype,
        "relu", bias=True, transposed=True,
    )  # fmt: skip
    _, magnitude = reference.answer("input_grad", problem, dict(zip(("dy", "w", "b"), arrays, strict=True)))["dx"]
    bound = reference.error_bound("dx", problem, want, magnitude[0])
    if dtype == "float64":  # torch's has round-offs of its own
        bound = 2 * bound
    assert y is out and reference.error_share(y, want, bound, dtype).max() <= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"output_padding": 1}, "output_padding is 1; it should be less than the stride, 1: pad the input with zeros"),
        ({"padding": 9}, "padding is 9, which cuts off all of the output's height, 7 without it"),
        ({"groups": 3}, "weight has 4 output channels, which groups = 3 does not divide"),
        ({"bias": np.ones(2)}, "bias has shape (2,); it should be (3,), one value an output channel"),
        ({"weight": np.ones((5, 3, 3, 3))}, "weight has shape (5, 3, 3, 3), 5 filters; it should have 4: input has 4"),
        ({"padding": "same"}, "padding is 'same'"),
        ({"variant": "coalesced"}, "input_grad/coalesced does not compute this problem: a channel sees 4 filters"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refusals(options, sentence):
    arguments = {"input": np.ones((2, 4, 5, 6)), "weight": np.ones((4, 3, 3, 3)), **options}
    with pytest.raises((convbackprop.ConvBackpropError, TypeError)) as caught:
        convbackprop.conv_transpose2d(**arguments)
    assert str(caught.value).startswith(sentence)


# -- PyTorch's tools -------------------------------------------------------------------------------------------------
def modules(activation="identity", **options):
    """Our module and torch's, with the same parameters."""
    options = {"stride": 2, "padding": 1, "output_padding": 1, "dtype": torch.float64, **options}
    mine = nn.ConvTranspose2d(4, 6, (3, 2), activation=activation, variant="naive", **options)
    theirs = torch.nn.ConvTranspose2d(4, 6, (3, 2), **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_are_counted_as_torch_s(groups):
    counts = []
    for layer in modules(groups=groups):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("way", ["direct", "second order", "operators"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("last", ["x", "w", "dy", ""])
def test_memory_formats(last, activation, way):
    """The output and the gradients lie in memory as torch's."""
    formats = {name: torch.channels_last if name == last else torch.contiguous_format for name in ("x", "w", "dy")}
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64).to(memory_format=formats["x"]).requires_grad_()
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64).to(memory_format=formats["w"]).requires_grad_()
    results = []
    for function in (
        lambda x, w: conv_transpose2d(x, w, None, 2, activation=activation, variant="naive"),
        lambda x, w: PHI[activation](functional.conv_transpose2d(x, w, None, 2)),
    ):
        with FlopCounterMode(display=False) if way == "operators" else contextlib.nullcontext():
            y = function(x, w)
            dy = y.detach().sin().contiguous(memory_format=formats["dy"])
            results.append((y, *torch.autograd.grad(y, (x, w), dy, create_graph=way == "second order")))
    torch.testing.assert_close(*results)
    mine, theirs = ([t.stride() for t in made] for made in results)
    assert mine == theirs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "activation", [*(pytest.param(a, marks=pytest.mark.slow) for a in ("identity", "relu")), "gelu"]
)
def test_onnx_export(activation):
    """One group: ONNX's own evaluator takes no others in a ConvTranspose; test_decompositions tries them."""
    pytest.importorskip("onnxscript", reason="needs onnxscript, which is not installed: torch.onnx.export")
    evaluation = pytest.importorskip("onnx.reference", reason="needs onnx, which is not installed: its evaluator")
    layer, _ = modules(activation, dtype=torch.float32)
    x = torch.randn(3, 4, 5, 6)
    images = ({0: torch.export.Dim("images", min=1, max=64)},)
    program = torch.onnx.export(layer.eval(), (x[:2],), dynamo=True, verbose=False, dynamic_shapes=images)
    assert "ConvTranspose" in {node.op_type for node in program.model_proto.graph.node}
    (y,) = evaluation.ReferenceEvaluator(program.model_proto).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(x))


def test_batch_norm_is_folded_into_the_identity_only():
    norm, x = torch.nn.BatchNorm2d(6).double().eval(), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    norm.running_mean.uniform_(-1, 1)
    plain, fused = (modules(activation)[0].eval() for activation in ("identity", "relu"))
    torch.testing.assert_close(fuse_conv_bn_eval(plain, norm, transpose=True)(x), norm(plain(x)))
    with pytest.raises(convbackprop.InvalidArgument, match="conv has activation 'relu' between its weight and the"):
        fuse_conv_bn_eval(fused, norm, transpose=True)


@pytest.mark.parametrize(
    "parametrize",
    [parametrizations.weight_norm, lambda layer: parametrizations.spectral_norm(layer, dim=1)],
    ids=["weight_norm", "spectral_norm"],
)
def test_parametrizations(parametrize):
    """spectral_norm knows torch's own class: of any other it takes axis 0 for the filters, unless it is told."""
    mine, theirs = modules("relu")
    for layer in (mine, theirs):
        torch.manual_seed(0)
        parametrize(layer)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(mine(x), theirs(x).relu())
    mine.load_state_dict(theirs.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_what_is_refused_as_by_conv2d():
    x, (layer, _) = torch.randn(2, 4, 5, 6, dtype=torch.float64), modules()
    for call, sentence in (
        (lambda: torch.jit.script(layer), "torch.jit.script compiles no layer of convbackprop.torch"),
        (lambda: torch.jit.script(conv_transpose2d), "torch.jit.script compiles no layer of convbackprop.torch"),
        (lambda: torch.jit.trace(layer, x), "torch.jit.trace records no transposed convolution"),
        (lambda: layer(x.to_sparse()), r"input is a tensor of layout torch.sparse_coo; pass input.to_dense\(\)"),
        (lambda: layer(torch.nested.nested_tensor([x[0], x[1]])), "input is a nested tensor; pass the tensors"),
        (lambda: layer(x.to(torch.complex128)), "input has dtype torch.complex128; no kernel is complex"),
    ):
        with pytest.raises(convbackprop.InvalidType, match=sentence):
            call()


# -- other people's tests --------------------------------------------------------------------------------------------
def test_torchs_own_samples():
    """The samples of torch.nn.functional.conv_transpose2d's OpInfo."""
    samples = list(info_of("conv_transpose2d").sample_inputs("cpu", torch.float64, requires_grad=True))
    assert len(samples) >= 5
    for sample in samples:
        y = conv_transpose2d(sample.input, *sample.args, **sample.kwargs, variant="naive")
        want = functional.conv_transpose2d(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(y, want)
        inputs = [t for t in (sample.input, *sample.args) if isinstance(t, torch.Tensor) and t.requires_grad]
        dy = torch.randn_like(y)
        got, expected = (torch.autograd.grad(result, inputs, dy) for result in (y, want))
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_onnx_cases():
    pytest.importorskip("onnx", reason="needs onnx, which is not installed: its cases of ConvTranspose")
    from onnx import helper

    tried = 0
    for case in cases_of("ConvTranspose"):
        (node,) = case.model.graph.node
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for inputs, (want,) in case.data_sets:
            x, *rest = (torch.from_numpy(np.array(a)) for a in inputs)
            if x.ndim != 4:
                continue
            strides, taps = attributes.get("strides", [1, 1]), rest[0].shape[-2:]
            dilations, more = attributes.get("dilations", [1, 1]), attributes.get("output_padding", [0, 0])
            whole = [
                (size - 1) * stride + dilation * (tap - 1) + extra + 1
                for size, stride, dilation, tap, extra in zip(x.shape[-2:], strides, dilations, taps, more, strict=True)
            ]
            cut = [have - wanted for have, wanted in zip(whole, want.shape[-2:], strict=True)]
            if "pads" in attributes:
                top, left, bottom, right = attributes["pads"]
            else:  # auto_pad, or output_shape: the operator's definition gives the odd one to the end, or the start
                lower = attributes.get("auto_pad") == b"SAME_LOWER"
                (top, bottom), (left, right) = (
                    (total - total // 2, total // 2) if lower else (total // 2, total - total // 2) for total in cut
                )
            if min(top, bottom, left, right) < 0:
                continue  # output_shape makes it larger than the convolution does: zeros around it
            y = conv_transpose2d(
                x, *rest, stride=tuple(strides), padding=((top, bottom), (left, right)), output_padding=tuple(more),
                dilation=tuple(dilations), groups=attributes.get("group", 1), variant="naive",
            )  # fmt: skip
            torch.testing.assert_close(y, torch.from_numpy(want))
            tried += 1
    assert tried >= 6

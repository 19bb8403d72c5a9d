"""What PyTorch's tools make of our layers: each does it right, or leaves them, or is refused in one sentence."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: convbackprop.torch and tools")

from torch.fx.experimental import optimization  # noqa: E402
from torch.nn.utils import fusion, parametrizations  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from convbackprop.errors import InvalidArgument, InvalidType  # noqa: E402
from convbackprop.torch import conv2d, decompositions, nn, operators  # noqa: E402
from tests.support.activations import PHI  # noqa: E402

EVERY_LAYER = pytest.mark.parametrize("activation", ["identity", "relu", "silu"])


def close(got, want):
    return got.shape == want.shape and bool(((got - want).abs() <= 1e-12 * (1 + want.abs().max())).all())


def with_batch_norm(activation):
    norm = torch.nn.BatchNorm2d(4).double()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return torch.nn.Sequential(nn.Conv2d(3, 4, 3, activation=activation, dtype=torch.float64), norm).eval()


def image(*shape, dtype=torch.float64):
    return torch.randn(*(shape or (2, 3, 7, 6)), dtype=dtype)


# -- what looks for convolutions -------------------------------------------------------------------------------------
@EVERY_LAYER
def test_a_layer_is_no_plain_convolution(activation):
    layer, x = nn.Conv2d(3, 4, 3, activation=activation, dtype=torch.float64), image()
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(layer, torch.nn.Conv2d)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(again) is nn.Conv2d
        assert repr(again) == repr(layer)
        assert torch.equal(again(x), layer(x))
        assert list(again.state_dict()) == ["weight", "bias"]


@EVERY_LAYER
def test_batch_norm_is_not_folded_past_an_activation(activation):
    model = with_batch_norm(activation)
    x, (layer, norm) = image(), model
    if activation == "identity":
        assert close(fusion.fuse_conv_bn_eval(layer, norm)(x), model(x))
    else:
        with pytest.raises(InvalidArgument, match=f"conv has activation '{activation}' between its weight and the"):
            fusion.fuse_conv_bn_eval(layer, norm)
    assert close(optimization.fuse(model)(x), model(x))
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(model, ["0", "1"])


def test_parameters_can_be_exchanged():
    """By whom it may: what is refused is a fusion, and nothing else."""
    layer, other = (nn.Conv2d(3, 4, 3, activation="relu", dtype=torch.float64).eval() for _ in range(2))
    layer.weight = layer.weight
    layer.register_parameter("gain", torch.nn.Parameter(torch.ones(1)))
    layer.load_state_dict({**other.state_dict(), "gain": torch.ones(1)}, assign=True)
    x = image()
    assert torch.equal(layer(x), other(x))


@EVERY_LAYER
@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations(parametrize, activation):
    mine = nn.Conv2d(3, 4, 3, activation=activation, dtype=torch.float64)
    theirs = torch.nn.Conv2d(3, 4, 3, dtype=torch.float64)
    theirs.load_state_dict(mine.state_dict())
    for layer in (mine, theirs):
        torch.manual_seed(0)
        parametrize(layer)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    x = image()
    y, want = mine(x), PHI[activation](theirs(x))
    assert close(y, want)
    mine_, theirs_ = (
        torch.autograd.grad(out.sin().sum(), tuple(layer.parameters())) for out, layer in ((y, mine), (want, theirs))
    )
    assert all(map(close, mine_, theirs_))


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
@EVERY_LAYER
def test_quantisation_leaves_ours_as_it_is(activation):
    from torch.ao import quantization
    from torch.ao.quantization import quantize_fx

    layer = nn.Conv2d(3, 4, 3, activation=activation).eval()
    model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), layer).eval(), image(dtype=torch.float32)
    prepared = quantize_fx.prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (x,))
    prepared(x)  # its observers see what is to be quantised
    quantised = quantize_fx.convert_fx(prepared)
    calls = []

    class Watched(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            result = super().call_function(target, args, kwargs)
            if target is conv2d:
                calls.append((args[0], result))
            return result

    Watched(quantised).run(x)
    ((given, y),) = calls
    assert given.dtype == torch.float32 and torch.equal(y, layer(given))
    with pytest.raises(InvalidType, match="input has dtype quint8; it should be"):
        layer(torch.quantize_per_tensor(x, 0.1, 0, torch.quint8))


# -- what looks at operators -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("wanted", ["forward", "xwb", "wb", "x"])
@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (4, 7, 6)])
@pytest.mark.parametrize("options", [{}, {"stride": (2, 1), "padding": 1, "dilation": 2, "groups": 2}])
def test_flops_are_counted_as_torch_s(options, shape, wanted):
    counts = []
    for kind, more in ((nn.Conv2d, {"activation": "relu"}), (torch.nn.Conv2d, {})):
        layer = kind(4, 6, 3, **options, **more).requires_grad_("w" in wanted)
        x = torch.randn(shape, requires_grad="x" in wanted)
        with FlopCounterMode(display=False) as counter:
            y = layer(x)
            if wanted != "forward":
                y.square().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# -- ONNX ------------------------------------------------------------------------------------------------------------
OPTIONS = [
    {},
    {"stride": (2, 1), "padding": (1, 2), "groups": 2, "bias": False},
    {"padding": "same", "dilation": (2, 1)},
    {"padding": 2, "padding_mode": "reflect"},
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "activation, options",
    [
        *(pytest.param(phi, OPTIONS[2], marks=() if phi == "gelu" else pytest.mark.slow) for phi in PHI),
        *(pytest.param("relu", each, marks=() if i % 2 else pytest.mark.slow) for i, each in enumerate(OPTIONS)),
    ],
)
def test_onnx(activation, options):
    pytest.importorskip("onnxscript", reason="needs onnxscript, which is not installed: torch.onnx.export")
    evaluation = pytest.importorskip("onnx.reference", reason="needs onnx, which is not installed: its evaluator")
    model = torch.nn.Sequential(nn.Conv2d(4, 6, (3, 2), **options, activation=activation), nn.Conv2d(6, 2, 1)).eval()
    x = image(3, 4, 8, 7, dtype=torch.float32)
    images = ({0: torch.export.Dim("images", min=1, max=64)},)
    program = torch.onnx.export(model, (x[:2],), dynamo=True, verbose=False, dynamic_shapes=images)
    (y,) = evaluation.ReferenceEvaluator(program.model_proto).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_of_an_exported_program():
    """Its operators are ours, until they are replaced."""
    pytest.importorskip("onnxscript", reason="needs onnxscript, which is not installed: torch.onnx.export")
    evaluation = pytest.importorskip("onnx.reference", reason="needs onnx, which is not installed: its evaluator")
    model = torch.nn.Sequential(nn.Conv2d(4, 6, 3, activation="relu"), nn.ConvTranspose2d(6, 2, 3, stride=2)).eval()
    x = image(3, 4, 8, 7, dtype=torch.float32)
    program = torch.export.export(model, (x,))
    with pytest.raises(torch.onnx.OnnxExporterError):
        torch.onnx.export(program, dynamo=True, verbose=False)
    program = torch.onnx.export(program.run_decompositions(decompositions.TABLE), dynamo=True, verbose=False)
    (y,) = evaluation.ReferenceEvaluator(program.model_proto).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x))


@pytest.mark.parametrize("shape", [(2, 4, 8, 7), (4, 8, 7), (8, 7)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 2, 2), (0, 2, 1, 0)])
@pytest.mark.parametrize("stride, dilation, groups", [((1, 1), (1, 1), 1), ((3, 2), (1, 2), 2)])
def test_decompositions(shape, padding, stride, dilation, groups):
    """In torch's own operators the operators are what they are in ours."""
    groups = 1 if len(shape) == 2 else groups
    filters = (3, 2) if len(shape) == 2 else (6, 4 // groups, 3, 2)
    x, w, b = image(*shape), image(*filters), image(6 if len(shape) > 2 else 1)
    geometry = (stride, padding, dilation, groups)
    y = operators.forward(x, w, b, *geometry, "tanh", "naive", "ieee")
    assert close(decompositions.TABLE[operators.forward](x, w, b, *geometry, "tanh", "naive", "ieee"), y)
    g = torch.randn_like(y)
    want = operators.input_grad(shape, w, g, *geometry, "naive", "ieee")
    assert close(decompositions.TABLE[operators.input_grad](shape, w, g, *geometry, "naive", "ieee"), want)


# -- TorchScript -----------------------------------------------------------------------------------------------------
def a_function_that_calls_ours(x, w):
    return conv2d(x, w)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("made", ["module", "nested module", "function", "caller"])
def test_scripting_is_refused(made):
    layer = nn.Conv2d(3, 4, 3)
    scripted = {
        "module": layer, "nested module": torch.nn.Sequential(layer), "function": conv2d,
        "caller": a_function_that_calls_ours,
    }[made]  # fmt: skip
    with pytest.raises(InvalidType, match=r"^torch\.jit\.script compiles no layer .*; use torch\.compile or"):
        torch.jit.script(scripted)


@EVERY_LAYER
def test_a_traced_layer_is_the_operator(activation):
    layer = nn.Conv2d(3, 4, 3, padding="same", activation=activation, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*deprecated")
        traced = torch.jit.trace(layer, image())
    assert "convbackprop::forward" in str(traced.graph)
    x = image(5, 3, 4, 9)
    y, want = traced(x), layer(x)
    assert close(y, want)
    gradients = [torch.autograd.grad(out.sin().sum(), tuple(layer.parameters())) for out in (y, want)]
    assert all(map(close, *gradients))


# -- tensors that are no arrays --------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::UserWarning")  # both kinds are called a beta, or a prototype
@pytest.mark.parametrize(
    "made, does",
    {
        "nested": (lambda x: torch.nested.nested_tensor([x[0], x[1, :, 1:]]), "nested tensor; pass the tensors .* one"),
        "jagged": (
            lambda x: torch.nested.nested_tensor([x[0, 0], x[0, 0, 1:]], layout=torch.jagged),
            "nested tensor; pass the tensors that it is made of one by one",
        ),
        "coo": (torch.Tensor.to_sparse, r"tensor of layout torch.sparse_coo; pass {}.to_dense\(\)"),
        "csr": (lambda x: x[0, 0].to_sparse_csr(), r"tensor of layout torch.sparse_csr; pass {}.to_dense\(\)"),
    }.values(),
    ids=["nested", "jagged", "coo", "csr"],
)
def test_tensors_that_are_no_arrays(made, does):
    x, layer = image(2, 3, 7, 7), nn.Conv2d(3, 4, 3, dtype=torch.float64)
    for call, name in (
        (lambda t: conv2d(t, layer.weight), "input"),
        (lambda t: conv2d(x, t), "weight"),
        (layer, "input"),
    ):
        with pytest.raises(InvalidType, match=f"{name} is a {does.format(name)}"):
            call(made(x))

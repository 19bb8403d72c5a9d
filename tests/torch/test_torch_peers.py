"""Other people's tests of a convolution, run on ours: torch's own samples, and ONNX's cases of the node Conv."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: other people's tests")

from torch.nn import functional  # noqa: E402

from convbackprop import ConvBackpropError, ConvProblem  # noqa: E402
from convbackprop.arguments import sides  # noqa: E402
from convbackprop.check import reference  # noqa: E402
from convbackprop.launch.given import problem_of  # noqa: E402
from convbackprop.torch import conv2d, conv_transpose2d  # noqa: E402

# -- torch ------------------------------------------------------------------------------------------------------------
OURS = {"conv2d": conv2d, "conv_transpose2d": conv_transpose2d}


@functools.cache
def info_of(name):
    """Return torch's OpInfo of a function of torch.nn.functional."""
    with pytest.MonkeyPatch.context() as patch:
        # What is imported forbids its process to set torch's flags, as `bench` does, and other tests.
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        infos = pytest.importorskip(
            "torch.testing._internal.common_methods_invocations", reason="needs torch's own tests (and expecttest)",
            exc_type=ImportError,
        )  # fmt: skip
    (info,) = (info for info in infos.op_db if info.name == f"nn.functional.{name}")
    return info


def problems_of(name, given, options, size):
    """Return (operand, problem), which its bound follows from, of the output and of the gradients of what is given."""
    x, w, *b = given
    stride, padding, dilation, groups = (
        options.get(key, usual) for key, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    )
    how, dtype = {"activation": "identity", "bias": bool(b)}, str(x.dtype).removeprefix("torch.")
    if name == "conv2d":
        problem = problem_of(tuple(x.shape), "input", tuple(w.shape), "weight", stride, padding, dilation, groups,
                             dtype=dtype, **how)  # fmt: skip
        return [(operand, problem) for operand in ("y", "dx", "dw", "db")]
    made = problem_of(tuple(size), "output", tuple(w.shape), "weight", stride, sides(padding), dilation, groups,
                      dtype=dtype, **how, transposed=True)  # fmt: skip
    gradient = made.with_(transposed=False, bias=False)  # of the input: a convolution of the output's
    pixels = ConvProblem(made.N, made.C, made.H, made.W, made.C, 1, 1, dtype=dtype)
    return [("dx", made), ("y", gradient), ("dw", gradient), ("db", pixels)]


def shares(name, function, sample):
    """Return the errors of a function's output and gradients, as shares of the bound, from torch's in float64."""
    given = [t.detach() for t in (sample.input, *sample.args) if t is not None]
    dy = torch.randn_like(getattr(functional, name)(*given, **sample.kwargs))

    def results(function, of_dy, given):
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        y = function(*leaves, **sample.kwargs)
        return [y, *torch.autograd.grad(y, leaves, of_dy)]

    theirs = getattr(functional, name)
    want = results(theirs, dy.double(), [tensor.double() for tensor in given])
    sizes = results(theirs, dy.double().abs(), [tensor.double().abs() for tensor in given])
    bounds = problems_of(name, given, sample.kwargs, dy.shape)
    found = []
    for got, value, size, (operand, problem) in zip(results(function, dy, given), want, sizes, bounds, strict=False):
        value, size = value.detach().numpy(), size.detach().numpy()
        bound = reference.error_bound(operand, problem, value, size)
        found.append(reference.error_share(got.detach().double().numpy(), value, bound, problem.dtype).max())
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_torchs_own_samples_in_half(quick_commands, name, dtype):
    """Values and gradients are within the derived bound of float64's of the rounded inputs.

    Each sample is there as a batch and as one image: of float16 the batches are taken, of bfloat16 the images.
    """
    samples = list(info_of(name).sample_inputs("cpu", dtype, requires_grad=True))[dtype == torch.bfloat16 :: 2]
    assert len(samples) >= 6
    ours = functools.partial(OURS[name], variant="naive")
    found = [shares(name, ours, sample) for sample in samples]
    assert {len(each) for each in found} == {3, 4}  # without a bias, and with one
    assert max(max(each) for each in found) <= 1


@pytest.mark.parametrize("wrong", ["a filter's last bit", "the bias after rounding"])
def test_a_wrong_half_shows(quick_commands, wrong):
    def function(x, w, *b, **options):
        if wrong == "a filter's last bit":
            return conv2d(x, w * (1 + torch.finfo(w.dtype).eps), *b, **options, variant="naive")
        return conv2d(x, w, **options, variant="naive") + b[0].reshape(-1, 1, 1)

    torch.manual_seed(0)
    first = next(iter(info_of("conv2d").sample_inputs("cpu", torch.float16, requires_grad=True)))
    assert max(shares("conv2d", function, first)) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_torchs_own_errors(dtype):
    """What torch refuses is refused: strides and paddings below 0, groups that do not divide, dtypes that differ."""
    errors = list(info_of("conv2d").error_inputs("cpu"))
    assert len(errors) >= 10
    for each in errors:
        sample = each.sample_input
        given = [t.to(dtype) if t.dtype == torch.float64 else t for t in (sample.input, *sample.args)]
        with pytest.raises(each.error_type, match=each.error_regex):
            functional.conv2d(*given, **sample.kwargs)
        with pytest.raises(ConvBackpropError):
            conv2d(*given, **sample.kwargs, variant="naive")


def test_torchs_own_samples():
    """The samples of torch.nn.functional.conv2d's OpInfo: values and gradients."""
    samples = list(info_of("conv2d").sample_inputs("cpu", torch.float64, requires_grad=True))
    assert len(samples) >= 20
    for sample in samples:
        given = [t for t in (sample.input, *sample.args) if isinstance(t, torch.Tensor)]
        y = conv2d(sample.input, *sample.args, **sample.kwargs, variant="naive")
        want = torch.nn.functional.conv2d(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(y, want)
        dy = torch.randn_like(y)
        inputs = [t for t in given if t.requires_grad]
        got, expected = (torch.autograd.grad(result, inputs, dy) for result in (y, want))
        torch.testing.assert_close(got, expected)


# -- ONNX -------------------------------------------------------------------------------------------------------------
@functools.cache
def all_cases():
    """ONNX's cases, which it makes once a process, or none without ONNX."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it makes its data for all nodes, with overflows
            from onnx.backend.test.case.node import collect_testcases

            return tuple(collect_testcases(None))
    except ImportError:
        return ()


def cases_of(node):
    return [case for case in all_cases() if [each.op_type for each in case.model.graph.node] == [node]]


def padding_of(attributes, height_and_width):
    """ONNX's pads, or its auto_pad, as ((top, bottom), (left, right))."""
    if "pads" in attributes:
        top, left, bottom, right = attributes["pads"]
        return ((top, bottom), (left, right))
    if attributes.get("auto_pad") == b"SAME_LOWER":  # as many outputs as inputs divided by the stride, rounded up
        sides = []
        for size, filter_size, stride in zip(
            height_and_width, attributes["kernel_shape"], attributes["strides"], strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + filter_size - size, 0)
            sides.append((total - total // 2, total // 2))
        return tuple(sides)
    return 0


@pytest.mark.slow
def test_onnx_cases():
    pytest.importorskip("onnx", reason="needs onnx, which is not installed: its cases of Conv")
    from onnx import helper

    cases = cases_of("Conv")
    assert len(cases) >= 6
    assert {"test_conv_with_strides_and_asymmetric_padding", "test_conv_with_autopad_same"} <= {c.name for c in cases}
    for case in cases:
        (node,) = case.model.graph.node
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for inputs, (want,) in case.data_sets:
            x, *rest = (torch.from_numpy(np.array(a)) for a in inputs)
            padding = padding_of(attributes, x.shape[-2:])
            y = conv2d(
                x, *rest, stride=tuple(attributes.get("strides", (1, 1))), padding=padding,
                dilation=tuple(attributes.get("dilations", (1, 1))), groups=attributes.get("group", 1),
                variant="naive",
            )  # fmt: skip
            np.testing.assert_allclose(y.numpy(), want, rtol=1e-6, err_msg=case.name)

"""Other people's tests of a convolution, run on ours: torch's own samples, and ONNX's cases of the node Conv."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: other people's tests")

from convbackprop.torch import conv2d  # noqa: E402


def test_torchs_own_samples():
    """The samples of torch.nn.functional.conv2d's OpInfo: values, gradients, and dtypes that it can take."""
    infos = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations", reason="needs torch's own tests (and expecttest)",
        exc_type=ImportError,
    )  # fmt: skip
    samples = list(infos.sample_inputs_conv2d(None, "cpu", torch.float64, requires_grad=True))
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

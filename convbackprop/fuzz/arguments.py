"""Malformed calls of the public functions, as Python source: each must end in a sentence of ours, or in a result."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import convbackprop
from convbackprop.errors import ConvBackpropError, DeviceNotFound, DeviceUnusable
from convbackprop.fuzz.problems import Strategy, hypothesis

#: What a wrong sentence may at most be long: one that prints an array is no help.
_LONGEST = 600


def _zeros(*shape: int, dtype: str = "float32") -> str:
    return f"np.zeros({shape!r}, {dtype!r})"


_DTYPES = ("float64", "float16", "int32", "uint8", "bool", "complex64", "object", "longdouble", "U1", "M8[s]", ">f4",
           "f4,f4")  # fmt: skip

_ARRAYS = (
    _zeros(), _zeros(3), _zeros(5, 5), _zeros(1, 5, 5), _zeros(2, 2, 5, 5), _zeros(1, 1, 1, 5, 5),
    _zeros(0, 2, 5, 5), _zeros(2, 0, 5, 5), _zeros(2, 2, 0, 5), _zeros(3, 2, 3, 3), _zeros(3, 2, 0, 0),
    _zeros(3, 1, 3, 3), _zeros(4, 2, 3, 3), *(_zeros(2, 2, 5, 5, dtype=dtype) for dtype in _DTYPES),
    "np.full((2, 2, 5, 5), np.nan, 'float32')", "np.ma.zeros((2, 2, 5, 5), 'float32')", "np.matrix('1. 2.; 3. 4.')",
    "np.zeros((2, 2, 5, 5), 'float32')[:, :, ::-1]", "np.broadcast_to(np.float32(1), (2, 2, 5, 5))", "np.float32(1)",
    "np.zeros(401, 'uint8')[1:].view('float32').reshape(2, 2, 5, 5)",
    "[[1.0, 2.0], [3.0, 4.0]]", "None", "'x'", "b'x'", "3", "1.5", "object()", "np.zeros", "memoryview(b'abcd')", "{}",
)  # fmt: skip

_NUMBERS = (
    "1", "2", "0", "-1", "1.5", "1.0", "True", "None", "'1'", "b'1'", "'same'", "'valid'", "'SAME'", "(1, 2)", "(2,)",
    "()", "(1, 2, 3)", "[1, 1]", "(1, -1)", "(1, None)", "(1, '1')", "((1, 2), (0, 3))", "((1, 2), 3)",
    "((1,), (1,))", "((0, 0), (0, -1))", "(((1, 1), (1, 1)),)", "2**31", "2**31 - 1", "2**63", "2**64 + 1", "-2**31",
    "10**30", "10**5000", "-10**5000", "((0, 2**31), (0, 0))", "(2**31 - 1, 2**31 - 1)", "float('nan')", "float('inf')",
    "1j", "np.int64(1)",
    "np.uint8(1)", "np.float32(1)", "np.array(1)", "np.array([1, 1])", "np.array([[1, 1], [1, 1]])", "np.array([])",
    "range(2)", "{1, 2}", "{}", "iter((1, 1))", "object()", "int",
)  # fmt: skip

_SIZES = (
    "(2, 2, 5, 5)", "(3, 2, 3, 3)", "(3, 1, 3, 3)", "[2, 2, 5, 5]", "(2, 2, 5)", "(5, 5)", "(5,)", "()",
    "(1, 2, 2, 5, 5)", "(2, 2, 5, -5)", "(2, 2, 5, 5.0)", "(2, 2, 5, None)", "(2, 2, 5, '5')", "(2, 2, 0, 5)",
    "(0, 2, 5, 5)", "(2, 2, 2**31, 5)", "(2**31, 2**31, 2**31, 2**31)", "(2, 2, 5, 2**70)", "'2255'", "5", "None",
    "np.array([2, 2, 5, 5])", "(2, 2, True, 5)", "{2, 5}", "range(4)", "np.zeros((2, 2, 5, 5))",
)  # fmt: skip

_WORDS = (
    "'auto'", "'naive'", "'identity'", "'relu'", "'sigmoid'", "'ReLU'", "''", "' '", "'auto '", "'tensor_core'",
    "'forward/naive'", "'\\0'", "'x' * 10**5", "'cpu'", "'cuda:99'", "'cuda:' + '9' * 5000", "'gpu'", "'cpu:1'", "None",
    "3", "b'auto'", "('auto',)", "['auto']", "{}", "object()", "np.str_('naive')", "True", "float('nan')",
)  # fmt: skip

_FLAGS = (
    "True", "False", "1", "0", "2", "None", "'yes'", "(True,)", "np.True_", "np.array(True)", "np.array([1, 2])",
    "[]",
)  # fmt: skip

_THREE = ("(True, True, True)", "(True, False, True)", "(False, False, False)", "(True, True)", "True", "None", "'yes'",
          "(1, 0, 1)", "(None, None, None)", "np.array([True, True, True])", "[]", "({}, {}, {})")  # fmt: skip

_OUTS = (*_ARRAYS, "(None, None, None)", f"({_zeros(2, 2, 5, 5)},)", "(None, 3, None)", "[None, None]")

_GEOMETRY = {
    "stride": ("1", _NUMBERS),
    "padding": ("0", _NUMBERS),
    "dilation": ("1", _NUMBERS),
    "groups": ("1", _NUMBERS),
}
_HOW = {"activation": ("'identity'", _WORDS), "variant": ("'auto'", _WORDS), "device": ("'cpu'", _WORDS)}
_X, _W, _Y = _zeros(2, 2, 5, 5), _zeros(3, 2, 3, 3), _zeros(2, 3, 3, 3)
_SAVED = {"output": ("None", (*_ARRAYS, _Y)), "mask": ("None", (*_ARRAYS, _zeros(2, 3, 3, 1, dtype="uint8"))),
          "scale": ("None", (*_ARRAYS, _zeros(3)))}  # fmt: skip

#: The arguments of each function: what is right, and what may take its place.
_FUNCTIONS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "conv2d": {
        "input": (_X, _ARRAYS), "weight": (_W, _ARRAYS), "bias": ("None", (*_ARRAYS, _zeros(3))), **_GEOMETRY, **_HOW,
        "scale": ("None", (*_ARRAYS, _zeros(3))), "residual": ("None", (*_ARRAYS, _Y)),
        "out": ("None", (*_ARRAYS, _Y)), "save_mask": ("False", _FLAGS),
    },
    "conv2d_input_grad": {
        "input_size": ("(2, 2, 5, 5)", _SIZES), "weight": (_W, _ARRAYS), "grad_output": (_Y, _ARRAYS),
        **_GEOMETRY, **_HOW, **_SAVED, "out": ("None", _ARRAYS),
    },
    "conv2d_kernel_grad": {
        "input": (_X, _ARRAYS), "weight_size": ("(3, 2, 3, 3)", _SIZES), "grad_output": (_Y, _ARRAYS),
        **_GEOMETRY, **_HOW, **_SAVED, "with_bias": ("False", _FLAGS), "out": ("None", _OUTS),
    },
    "conv2d_backward": {
        "grad_output": (_Y, _ARRAYS), "input": (_X, _ARRAYS), "weight": (_W, _ARRAYS), **_GEOMETRY, **_HOW, **_SAVED,
        "needs": ("(True, True, True)", _THREE), "out": ("None", _OUTS),
    },
}  # fmt: skip


def calls() -> Strategy:
    """Return a strategy for calls as Python source, with up to three arguments that may be anything."""
    st = hypothesis().strategies

    @st.composite
    def strategy(draw: Any) -> str:
        function = draw(st.sampled_from(tuple(_FUNCTIONS)))
        arguments = _FUNCTIONS[function]
        texts = {
            name: right for name, (right, _) in arguments.items() if right != "None" or name in ("input", "weight")
        }
        for name in draw(st.lists(st.sampled_from(tuple(arguments)), min_size=1, max_size=3, unique=True)):
            texts[name] = draw(st.sampled_from(arguments[name][1]))
        return f"cb.{function}({', '.join(f'{name}={text}' for name, text in texts.items())})"

    return strategy()


def fault(call: str) -> str | None:
    """Return what is wrong with how a call ends, or None.

    Right is a result, or a ValueError, TypeError or MemoryError of the package, or that a device is not there.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about some of these arguments
            result = eval(call, {"np": np, "cb": convbackprop})
    except ConvBackpropError as error:
        if not isinstance(error, (ValueError, TypeError, MemoryError, DeviceNotFound, DeviceUnusable)):
            return f"it ends in {type(error).__name__}: {error}"
        sentence = str(error)
        if "\n" in sentence:
            return f"its sentence has several lines: {sentence}"
        return None if 0 < len(sentence) <= _LONGEST else f"its sentence has {len(sentence):,} characters"
    except Exception as error:  # whatever it is, the package should have seen it coming
        return f"it ends in {type(error).__name__}: {error}"
    results = result if isinstance(result, tuple) else (result,)
    wrong = [type(each).__name__ for each in results if not (each is None or isinstance(each, np.ndarray))]
    return f"it returns a {wrong[0]}" if wrong else None

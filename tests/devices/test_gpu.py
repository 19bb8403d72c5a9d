"""Says whether the tests used a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import convbackprop
from convbackprop import devices


@pytest.mark.gpu
def test_gpu_is_used():
    if reason := devices.why_not_cuda():
        pytest.skip(f"every test that can use a GPU ran on the cpu device only: {reason}")
    assert devices.usable_devices()[0] == "cuda"
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    on_gpu = convbackprop.conv2d(image, np.ones((2, 2), np.float32), device="cuda")
    assert np.array_equal(on_gpu, convbackprop.conv2d(image, np.ones((2, 2), np.float32), device="cpu"))

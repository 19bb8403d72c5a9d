"""Kernels that are compiled quickly, and groups of processes for the tests of what is distributed."""

from __future__ import annotations

import pytest

from tests.support.ranks import Ranks


@pytest.fixture(autouse=True)
def quickly(quick_commands):
    """What torch asks of the package does not follow from the machine code of its kernels."""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    ranks = Ranks(2, tmp_path_factory.mktemp("two"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    ranks = Ranks(4, tmp_path_factory.mktemp("four"))
    yield ranks
    ranks.close()

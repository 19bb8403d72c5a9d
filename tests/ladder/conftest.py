"""What tests of several rungs need: limits of the scratch memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from convbackprop.ladder import scratch


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that sets CONVBACKPROP_WORKSPACE_LIMIT for plans made anew."""

    def limit(text: str) -> None:
        monkeypatch.setenv("CONVBACKPROP_WORKSPACE_LIMIT", text)
        scratch.limit.cache_clear()

    yield limit
    scratch.limit.cache_clear()

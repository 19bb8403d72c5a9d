"""For tests that start other processes."""

from __future__ import annotations

import signal

#: Seconds after which something hangs: so many that no slow or busy machine gets there, and no test waits for them.
PATIENCE = 1800


def with_ctrl_c() -> None:
    """Let a child be interrupted, as its `preexec_fn`: it inherits that SIGINT is ignored, as under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

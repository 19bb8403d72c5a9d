"""Processes of a torch.distributed group that live as long as a test module, for torch starts slowly.

`Ranks(2, folder).run(function, ...)` calls a module's function on each of them and returns what each returned. Nothing
waits forever: the group has a time-out, and so has `run`. After a failure the processes are ended, and new ones started
for the next call.
"""

from __future__ import annotations

import datetime
import os
import queue
import traceback
from pathlib import Path
from typing import Any

from tests.support.children import PATIENCE


def _serve(rank, ranks, store, calls, answers):
    import torch
    import torch.distributed as dist

    from convbackprop import set_num_threads

    torch.set_num_threads(1)
    set_num_threads(1)
    patience = datetime.timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=patience)
    while (call := calls.get()) is not None:
        function, arguments = call
        try:
            answers.put((rank, function(*arguments), None))
        except BaseException:
            answers.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """Some processes, each a rank of the default group on gloo."""

    def __init__(self, ranks: int, folder: Path) -> None:
        self.ranks, self.folder, self.started = ranks, folder, 0
        self.processes: list[Any] = []

    def _start(self) -> None:
        import torch.multiprocessing

        context = torch.multiprocessing.get_context("spawn")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.started += 1
        store = self.folder / f"store{self.started}"
        self.calls = [context.Queue() for _ in range(self.ranks)]
        self.answers = context.Queue()
        self.processes = [
            context.Process(target=_serve, args=(rank, self.ranks, store, calls, self.answers), daemon=True)
            for rank, calls in enumerate(self.calls)
        ]
        for process in self.processes:
            process.start()

    def run(self, function, *arguments):
        """Return what each rank's call returns; an exception on one of them is an AssertionError with its traceback."""
        if not self.processes:
            self._start()
        for calls in self.calls:
            calls.put((function, arguments))
        results, failure = {}, None
        while not failure and len(results) < self.ranks:
            try:
                rank, result, failure = self.answers.get(timeout=PATIENCE)
            except queue.Empty:
                failure = f"no answer from ranks {set(range(self.ranks)) - set(results)}"
            else:
                results[rank], failure = result, failure and f"rank {rank}:\n{failure}"
        if failure:
            self.close(patience=0)
            raise AssertionError(f"{function.__name__}{arguments}: {failure}")
        return [results[rank] for rank in range(self.ranks)]

    def close(self, patience=10):
        if patience:
            for calls in self.calls if self.processes else ():
                calls.put(None)
        for process in self.processes:
            process.join(patience)
            if process.is_alive():
                process.kill()
        self.processes = []

"""A storm on the kernel cache: processes that are killed while they compile, and files that are damaged meanwhile.

    python -m tests.support.storm FOLDER KILLS SEED

FOLDER becomes the cache; it is empty at first. It blows until KILLS processes are killed. So many PROCESSES at a time
compute the same few small problems and compare the results with numbers known beforehand. They are forked from this
one, which has imported everything and used nothing, so that most of their time goes into the cache. The last line is
JSON: what was done, and how the processes ended that nobody had killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from convbackprop import conv2d
from tests.support.children import PATIENCE

PROCESSES = 16
ACTIVATIONS = ("identity", "relu", "tanh")
X = np.arange(-32, 32, dtype=np.float32).reshape(8, 8) / 8
W = np.array([[1, -1], [0, 2]], np.float32)
SUM = X[:-1, :-1] - X[:-1, 1:] + 2 * X[1:, 1:]  # exact in float32
EXPECTED = {"identity": SUM, "relu": np.maximum(SUM, 0), "tanh": np.tanh(SUM)}


def attempt() -> int:
    """Compute everything once; return the exit status: 0, 1 for an exception, 3 for a wrong result."""
    for activation in random.sample(ACTIVATIONS, len(ACTIVATIONS)):
        y = conv2d(X, W, activation=activation, variant="naive", device="cpu")
        if not np.allclose(y, EXPECTED[activation], rtol=1e-6, atol=1e-6):
            print(f"wrong: {activation}", file=sys.stderr)
            return 3
    return 0


def start(number: int) -> int:
    """Fork a process that attempts it; return its id, which is that of its group, compilers included."""
    if child := os.fork():
        return child
    status = 1
    try:
        os.setsid()
        signal.alarm(PATIENCE)
        random.seed(number)
        status = attempt()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def damage(folder: Path, rng: random.Random) -> str | None:
    """Damage a file of the cache, in place; return how."""
    files = [file for file in folder.iterdir() if file.suffix in (".so", ".gch", ".txt", ".json")]
    if not files:
        return None
    file, kind = rng.choice(files), rng.choice(("truncated", "bit flipped", "bit flipped", "exchanged", "removed"))
    try:
        if kind == "removed":
            file.unlink()
        elif kind == "exchanged":
            other = rng.choice([other for other in files if other.suffix == file.suffix and other != file])
            aside = folder / "aside"
            os.replace(file, aside)
            os.replace(other, file)
            os.replace(aside, other)
        else:
            with open(file, "r+b") as opened:
                size = opened.seek(0, os.SEEK_END)
                if kind == "truncated":
                    opened.truncate(rng.randrange(size))
                else:
                    place = rng.randrange(size)
                    opened.seek(place)
                    (byte,) = opened.read(1)
                    opened.seek(place)
                    opened.write(bytes([byte ^ 1 << rng.randrange(8)]))
    except (OSError, ValueError, IndexError):  # it is gone, or empty, or the only one
        return None
    return kind


def storm(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Let it blow until so many were killed, then let everyone finish in peace; return the counts."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter(started=0, killed=0, finished=0, failed=0, wrong=0, hung=0)
    running: dict[int, None] = {}
    killed = set()

    def begin() -> None:
        running[start(rng.getrandbits(32))] = None
        counts["started"] += 1

    def reap(flags: int) -> None:
        while running:
            child, status = os.waitpid(-1, flags)
            if not child:
                return
            del running[child]
            code = os.waitstatus_to_exitcode(status)
            if child in killed and code == -signal.SIGKILL:
                counts["killed"] += 1
            else:
                counts[{0: "finished", 3: "wrong", -signal.SIGALRM: "hung"}.get(code, "failed")] += 1

    for _ in range(PROCESSES):
        begin()
    while len(killed) < kills:
        time.sleep(rng.uniform(0, 0.15))
        if rng.random() < 0.3 and running:
            victim = rng.choice(list(running))
            killed.add(victim)
            if rng.random() < 0.5:
                os.kill(victim, signal.SIGKILL)  # its compiler goes on without it
            else:
                try:
                    os.killpg(victim, signal.SIGKILL)
                except ProcessLookupError:  # it has no group of its own yet
                    os.kill(victim, signal.SIGKILL)
        if rng.random() < 0.5 and (kind := damage(folder, rng)):
            counts["damaged"] += 1
            counts[kind] += 1
        reap(os.WNOHANG)
        while len(running) < PROCESSES:
            begin()
    reap(0)
    for _ in range(PROCESSES):  # and once more on what they left
        begin()
    reap(0)
    return dict(counts)


if __name__ == "__main__":
    os.environ["CONVBACKPROP_CACHE_DIR"] = sys.argv[1]
    print(json.dumps(storm(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

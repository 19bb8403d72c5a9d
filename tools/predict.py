"""Predict, without a GPU, what a recorded run measured: by the kernels and the `profile` of the commit that it is of.

    python tools/predict.py [RUN.json ...]

For each of the package's rows in each run (default: all in benchmarks/results) docs/data/RUN.json gets the time that
`convbackprop profile` says it takes at least, and the digest of each variant's code at that commit. The commit is
checked out beside the working tree for as long as that lasts, so what changed since does not matter. A row takes 5 to
100 seconds and up to 16 GB; what is there already is kept, and a row that fails is left out. It needs git, nvcc and, to
look at instructions, cuobjdump.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / "docs" / "data"


def code_digest(root: Path, variant: str) -> str | None:
    """Return a digest of a variant's .cu file and of all that it includes, but for comments and layout, or None."""
    folder = root / "cuda_src"
    text = _with_includes(folder / f"{variant}.cu", folder, set())
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else None


def _with_includes(path: Path, folder: Path, seen: set[Path]) -> str:
    """Return the code of a file, each include replaced by what is included, once."""
    if path in seen or not path.is_file():
        return ""
    seen.add(path)
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = []
    for line in text.splitlines():
        if included := re.match(r'\s*#\s*include\s*"([^"]+)"', line):
            beside, below = path.parent / included[1], folder / included[1]
            words.append(_with_includes(beside if beside.is_file() else below, folder, seen))
        else:
            words.append(" ".join(line.split()))
    return "\n".join(filter(None, words))


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out in a folder that lasts as long as the context."""
    with tempfile.TemporaryDirectory() as workshop:
        root = Path(workshop) / "commit"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", root, commit], cwd=ROOT, check=True)
        (root / "convbackprop" / "cuda_src").symlink_to(root / "cuda_src")  # or an editable install's would be found
        try:
            yield root
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", root], cwd=ROOT, check=True)


def predict(root: Path, variant: str, problem: str, gpu: str) -> dict[str, Any] | None:
    """Return what `profile` of a checkout says of a variant on a problem, or None, for want of memory above all."""
    command = [sys.executable, "-m", "convbackprop", "profile", variant, "--problem", problem, "--gpu", gpu]
    done = subprocess.run(
        [*command, "--device", "cpu", "--json"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
    )
    if done.returncode:
        return None
    (report,) = json.loads(done.stdout)["reports"]
    remarks = [remark for remark in report["remarks"] if "left out" in remark]
    return {"us": round(report["predicted_us"], 2), "limit": report["limited_by"], "remarks": remarks}


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths or sorted(map(str, RESULTS.glob("*.json")))):
        run, kept = json.loads(path.read_text()), DATA / path.name
        environment = run["steps"][0]["data"]
        found = json.loads(kept.read_text()) if kept.exists() else {"commit": environment["commit"], "predicted": {}}
        wanted = {
            f"{variant} {row['problem']}": (variant, row["problem"])
            for row in run["rows"]
            if row["ours"] and row["problem"] and "/" in row["who"]
            for variant in row["who"].split(" + ")
        }
        with checkout(found["commit"]) as root:
            found["code"] = {name: code_digest(root, name) for name in sorted({name for name, _ in wanted.values()})}
            kept.write_text(json.dumps(found, indent=1) + "\n")
            for i, (key, (variant, problem)) in enumerate(wanted.items()):
                if key in found["predicted"]:
                    continue
                print(f"{i + 1} of {len(wanted)}: {key}", flush=True)
                if predicted := predict(root, variant, problem, environment["device"]):
                    found["predicted"][key] = predicted
                    kept.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What long tests count, such as problems tried and launches made, for whoever wants to show it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from convbackprop.files import write_whole


def record(name: str, **counts: int) -> None:
    """Write NAME.json into the folder CONVBACKPROP_FIGURES; nothing where that is not set."""
    if folder := os.environ.get("CONVBACKPROP_FIGURES"):
        write_whole(Path(folder) / f"{name}.json", json.dumps(counts, indent=1) + "\n")

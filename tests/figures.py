"""The counts of long tests, kept for whoever quotes them: files in the folder that CONVBACKPROP_FIGURES names."""

from __future__ import annotations

import json
import os
from pathlib import Path

from convbackprop.files import write_whole


def record(name: str, **counts: int) -> None:
    """Write FOLDER/NAME.json; nothing where CONVBACKPROP_FIGURES is not set."""
    if folder := os.environ.get("CONVBACKPROP_FIGURES"):
        write_whole(Path(folder) / f"{name}.json", json.dumps(counts, indent=1) + "\n")

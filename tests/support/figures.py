"""The counts of long tests, kept for whoever quotes them: files in the folder that CONVBACKPROP_FIGURES names."""

from __future__ import annotations

import json
import os
from pathlib import Path

from convbackprop.files import write_whole


def record(name: str, **counts: int) -> None:
    """Write FOLDER/NAME.json; nothing where CONVBACKPROP_FIGURES is not set.

    What several tests count together has a part in its name: "fuzz.1" and "fuzz.2" are added up.
    """
    if folder := os.environ.get("CONVBACKPROP_FIGURES"):
        write_whole(Path(folder) / f"{name}.json", json.dumps(counts, indent=1) + "\n")

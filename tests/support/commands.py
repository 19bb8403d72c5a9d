"""What a command says of itself."""

from __future__ import annotations

import re


def epilog(command):
    return __import__(f"convbackprop.cli.{command}", fromlist=["EPILOG"]).EPILOG


def documented(command, value):
    """Assert that every key is named in the command's help."""
    words = set(re.findall(r"\w+", epilog(command)))
    assert set(value) <= words, set(value) - words
    for rows in value.values():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            assert set(rows[0]) <= words, set(rows[0]) - words

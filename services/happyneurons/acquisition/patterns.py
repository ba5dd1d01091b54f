"""File names that tell which tile a file is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from happyneurons.errors import UserError


def walk(folder: Path) -> Iterator[str]:
    """Relative names of the files below a folder; hidden ones and the truth of a simulation left out."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(d for d in folders if not d.startswith(".") and not (root == str(folder) and d == "truth"))
        for name in sorted(files):
            if not name.startswith("."):
                yield str((Path(root) / name).relative_to(folder))


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression with groups z, row, col, or a format such as `{z}_{row}_{col}.png`."""
    names = ("z", "row", "col")
    try:
        if "(?P<" in pattern:
            compiled = re.compile(pattern)
        else:
            parts = re.split(r"\{(\w+)\}", pattern)
            text = "".join(rf"(?P<{p}>\d+)" if i % 2 else re.escape(p) for i, p in enumerate(parts))
            compiled = re.compile(text)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: {error}") from None
    unknown = set(compiled.groupindex) - set(names)
    if unknown or not compiled.groupindex:
        raise UserError(f"pattern {pattern!r}: name the parts z, row and col, as in '{{z}}_{{row}}_{{col}}.png'")
    return compiled


def place_of(pattern: re.Pattern[str], name: str) -> tuple[int, int, int] | None:
    """(z, row, col) that a name tells, 0 for what it leaves out; None if it does not fit."""
    match = pattern.fullmatch(name)
    if match is None:
        return None
    part = {key: int(value) for key, value in match.groupdict().items() if value is not None}
    return part.get("z", 0), part.get("row", 0), part.get("col", 0)

"""Stored voxels that are not whole: how that is said, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence


class DamagedChunkError(ValueError):
    """A chunk that is not whole."""


def damaged(where: str, start_zyx: Sequence[int], stop_zyx: Sequence[int], error: BaseException) -> str:
    """What is told of a box that cannot be read."""
    box = f"x {start_zyx[2]}–{stop_zyx[2]}, y {start_zyx[1]}–{stop_zyx[1]}, z {start_zyx[0]}–{stop_zyx[0]}"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{where}: broken data in the box {box}: {text[:300]}"

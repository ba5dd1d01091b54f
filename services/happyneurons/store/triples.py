"""Three whole numbers: sizes and places of voxels along z, y and x (or x, y and z, where a name says so)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Triple = tuple[int, int, int]


def triple(values: Iterable[Any]) -> Triple:
    """Three numbers of any kind, numpy's included, as ints."""
    a, b, c = (int(v) for v in values)
    return (a, b, c)

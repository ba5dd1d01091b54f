"""How a volume is cut into tasks: whole units of the target, as many as fit into the memory given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import numpy as np

from happyneurons.formats.base import triple
from happyneurons.store.volumes import Triple

Box = tuple[Triple, Triple]
"""[start, stop), zyx."""


def task_shape(unit_zyx: Triple, shape_zyx: Triple, item_bytes: int, limit_bytes: int, sections: bool) -> Triple:
    """How many voxels a task takes along each axis: the unit, multiplied while it stays below the limit.

    sections: x is filled up first, then y, then z, as stacks of pictures are read; else the shortest axis grows.
    """
    shape = np.array(unit_zyx)
    # Not beyond the volume, but by whole units.
    longest = -(-np.array(shape_zyx) // shape) * shape

    def fits(candidate: np.ndarray) -> bool:
        return int(np.prod(np.minimum(candidate, shape_zyx), dtype=np.int64)) * item_bytes <= limit_bytes

    growing = True
    while growing:
        growing = False
        axes = (2, 1, 0) if sections else sorted((0, 1, 2), key=lambda a: (shape[a], -a))
        for axis in axes:
            candidate = shape.copy()
            candidate[axis] = min(2 * shape[axis], longest[axis])
            if candidate[axis] > shape[axis] and fits(candidate):
                shape, growing = candidate, True
                break
    return triple(shape)


def boxes(start_zyx: Triple, stop_zyx: Triple, grid_zyx: Triple, shape_zyx: Triple) -> Iterator[Box]:
    """Boxes that cover a volume; inner faces lie on the grid of `shape_zyx` that begins at `grid_zyx`."""
    axes = [_cuts(*axis) for axis in zip(start_zyx, stop_zyx, grid_zyx, shape_zyx, strict=True)]
    for z, y, x in product(*axes):
        yield (z[0], y[0], x[0]), (z[1], y[1], x[1])


def _cuts(start: int, stop: int, grid: int, step: int) -> list[tuple[int, int]]:
    first = grid + ((start - grid) // step + 1) * step
    at = [start, *range(first, stop, step), stop]
    return list(pairwise(at))


def parts(start_zyx: Sequence[int], stop_zyx: Sequence[int], edge: int) -> Iterator[Box]:
    """A box in cubes of at most `edge` voxels, from its corner on."""
    yield from boxes(triple(start_zyx), triple(stop_zyx), triple(start_zyx), (edge, edge, edge))

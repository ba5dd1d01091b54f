"""How a volume is cut: into tasks of whole units of the target, as many as fit into memory, and into files' chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np

from happyneurons.store.triples import Triple, triple

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


def padded(
    part: np.ndarray, shape_zyx: Sequence[int], dtype: np.dtype[Any], at_zyx: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """A whole contiguous chunk as files hold it: `part` at a place of it, zeros around. A copy only if it must be."""
    if part.shape == tuple(shape_zyx):
        return np.ascontiguousarray(part, dtype)
    chunk = np.zeros(shape_zyx, dtype)
    chunk[tuple(slice(a, a + n) for a, n in zip(at_zyx, part.shape, strict=True))] = part
    return chunk


def cubes(
    block_zyx: np.ndarray, start_zyx: Sequence[int], edge: int, dtype: np.dtype[Any]
) -> Iterator[tuple[Triple, np.ndarray]]:
    """(index, whole cube) of the cubes of a grid from the origin that a block reaches into; without those of zeros."""
    stop_zyx = triple(np.add(start_zyx, block_zyx.shape))
    for low, high in boxes(triple(start_zyx), stop_zyx, (0, 0, 0), (edge,) * 3):
        part = block_zyx[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start_zyx, strict=True))]
        if part.any():
            index = triple(np.floor_divide(low, edge))
            yield index, padded(part, (edge,) * 3, dtype, np.mod(low, edge).tolist())

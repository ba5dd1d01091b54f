"""Groups of cells of a lattice, level by level, up to one group that holds all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from happyneurons.store.triples import Triple

LEAF_EDGE = 4


@dataclass(frozen=True)
class GroupTree:
    """Level 0 are groups of `leaf_edge`³ cells, every further level groups of 2³ of the level below.

    shape_zyx: cells along each axis, all at least 1. Cells are numbered in C order (x fastest).
    Groups at the far faces may be smaller. The tree follows from the shape alone, so every process
    computes the same one and the number of rounds is known before the first task.
    """

    shape_zyx: Triple
    leaf_edge: int = LEAF_EDGE

    @property
    def levels(self) -> int:
        """Number of levels, at least 1; the last one has a single group."""
        level = 0
        while self.edge(level) < max(self.shape_zyx):
            level += 1
        return level + 1

    def edge(self, level: int) -> int:
        """Cells along an edge of a group."""
        return self.leaf_edge << level

    def groups(self, level: int) -> Iterator[Triple]:
        """Indices (z, y, x) of the groups of a level, z slowest."""
        z, y, x = (range(-(-n // self.edge(level))) for n in self.shape_zyx)
        yield from product(z, y, x)

    def cells(self, level: int, group_zyx: Triple) -> Iterator[Triple]:
        """Indices of the cells of a group, in the order of their numbers."""
        edge = self.edge(level)
        z, y, x = (range(g * edge, min((g + 1) * edge, n)) for g, n in zip(group_zyx, self.shape_zyx, strict=True))
        yield from product(z, y, x)

    def children(self, level: int, group_zyx: Triple) -> list[Triple]:
        """Indices of the groups of the level below (level >= 1) that make up a group, z slowest."""
        edge = self.edge(level - 1)
        z, y, x = (range(2 * g, min(2 * g + 2, -(-n // edge))) for g, n in zip(group_zyx, self.shape_zyx, strict=True))
        return list(product(z, y, x))

    def number(self, cell_zyx: Triple) -> int:
        """Number of a cell."""
        _, ny, nx = self.shape_zyx
        z, y, x = cell_zyx
        return (z * ny + y) * nx + x

    def inside(self, level: int, group_zyx: Triple, cells: np.ndarray) -> np.ndarray:
        """Which cells, given by their numbers (int64, any shape), lie in a group: bool of that shape."""
        edge = self.edge(level)
        index = np.unravel_index(cells, self.shape_zyx)
        z, y, x = (i // edge == g for i, g in zip(index, group_zyx, strict=True))
        return z & y & x

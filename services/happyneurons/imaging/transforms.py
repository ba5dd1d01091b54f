"""Where a pixel of a tile or section ended up, and back: the transforms kept beside section stacks.

`transforms/{z:06d}.npz` of a montaged stack holds one GridWarp per placed tile, prefix
`tile_{row}_{col}`: tile px → px of the stack's volume. Of an aligned stack it holds one GridWarp,
or CutWarp if the section is torn, prefix `section`: px of the input stack → px of the aligned stack.
All coordinates are those of the volume itself, its offset included.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.errors import NotFoundError
from happyneurons.imaging.cut_warp import CutWarp, section_warp
from happyneurons.imaging.warp import GridWarp
from happyneurons.store.artifacts import Artifact

Floats = NDArray[np.float64]
SECTION = "section"
_TILE = re.compile(r"^tile_(\d+)_(\d+)_nodes$")


def transforms_path(z: int) -> str:
    """Path of a section's transforms below a section_stack's folder."""
    return f"transforms/{z:06d}.npz"


def tile_prefix(row: int, col: int) -> str:
    return f"tile_{row}_{col}"


class _Transforms:
    """Reads the npz of a section once, and keeps the last few."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._store = artifact.store()
        self._cached = lru_cache(maxsize=64)(self._load)

    def _load(self, z: int) -> dict[str, np.ndarray]:
        try:
            return self._store.get_arrays(transforms_path(z))
        except NotFoundError:
            return {}


class MontageTransforms(_Transforms):
    """Transforms of a montaged section_stack. `z` is the section number."""

    def tiles(self, z: int) -> list[tuple[int, int]]:
        """(row, col) of the tiles placed in a section, sorted; empty if it has none."""
        found = (_TILE.match(name) for name in self._cached(z))
        return sorted((int(m[1]), int(m[2])) for m in found if m)

    def warp(self, z: int, tile: tuple[int, int]) -> GridWarp | None:
        """The warp of a tile, or None where it has no place."""
        arrays = self._cached(z)
        prefix = tile_prefix(*tile)
        return GridWarp.from_arrays(arrays, prefix) if f"{prefix}_nodes" in arrays else None

    def map(self, z: int, tile: tuple[int, int], xy: ArrayLike) -> Floats | None:
        """Tile px (n, 2) → stack px (n, 2); None where the tile has no place."""
        warp = self.warp(z, tile)
        return None if warp is None else warp.map(xy)

    def inverse(self, z: int, xy: ArrayLike) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], Floats] | None:
        """Stack px (n, 2) → ((row, col) index arrays (n,), tile px (n, 2)); None if the section has no tile.

        Where tiles overlap it is the one in which the point lies deepest, which is the one that
        the picture shows. Points in no tile get row = col = -1 and NaN.
        """
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        tiles = self.tiles(z)
        if not tiles:
            return None
        rows = np.full(len(points), -1, dtype=np.int64)
        cols = rows.copy()
        result = np.full((len(points), 2), np.nan)
        depth = np.full(len(points), -0.5)
        for row, col in tiles:
            warp = self.warp(z, (row, col))
            assert warp is not None
            size = self._cached(z).get(f"{tile_prefix(row, col)}_size")
            width, height = (np.inf, np.inf) if size is None else (float(size[0]), float(size[1]))
            p = warp.inverse(points)
            inside = np.minimum.reduce([p[:, 0], p[:, 1], width - 1 - p[:, 0], height - 1 - p[:, 1]])
            best = inside > depth  # NaN: no
            rows[best], cols[best], result[best], depth[best] = row, col, p[best], inside[best]
        return (rows, cols), result


class AlignTransforms(_Transforms):
    """Transforms of an aligned section_stack. `z` is the section number."""

    def warp(self, z: int) -> GridWarp | CutWarp | None:
        """The warp of a section, or None if it was dropped."""
        arrays = self._cached(z)
        return section_warp(arrays, SECTION) if f"{SECTION}_nodes" in arrays else None

    def map(self, z: int, xy: ArrayLike) -> Floats | None:
        """Input stack px (n, 2) → aligned px (n, 2), NaN on folds that are cut; None where the section has no place."""
        warp = self.warp(z)
        return None if warp is None else warp.map(xy)

    def inverse(self, z: int, xy: ArrayLike) -> Floats | None:
        """Aligned px (n, 2) → input stack px (n, 2), NaN where the section shows nothing (what a fold hides); None
        where it has no place."""
        warp = self.warp(z)
        return None if warp is None else warp.inverse(xy)

"""Truth in tissue coordinates: which place of the simulated tissue a voxel of the aligned stack shows.

A pixel of an aligned section is followed back to the montage, through whatever stacks lie between
(a normalized one, say), to the tile that shows it, and from there by the acquisition's truth to
canonical px, the source volume's own coordinates. So a wrong
alignment is not blamed on the segmentation: a neurite is scored where its picture came to lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from happyneurons.acquisition.truth import AcquisitionTruth
from happyneurons.imaging.transforms import AlignTransforms, MontageTransforms
from happyneurons.imaging.warp import GridWarp
from happyneurons.metrics.geometry import grid_points

Floats = NDArray[np.float64]
STEP_PX = 8
"""The maps are smooth within a tile: they are followed every few px and interpolated between."""


class Placement:
    """Montage px → aligned px of each section, through one or more stacks, the first one first."""

    def __init__(self, steps: Sequence[AlignTransforms]) -> None:
        self._steps = list(steps)

    def map(self, z: int, xy: np.ndarray) -> Floats | None:
        """None where the section has no place."""
        found: Floats | None = np.asarray(xy, np.float64)
        for step in self._steps:
            found = None if found is None else step.map(z, found)
        return found

    def inverse(self, z: int, xy: np.ndarray) -> Floats | None:
        found: Floats | None = np.asarray(xy, np.float64)
        for step in reversed(self._steps):
            found = None if found is None else step.inverse(z, found)
        return found


class Tissue:
    """One acquisition, its montage and its alignment; `size_xy` is that of a tile in px."""

    def __init__(
        self,
        truth: AcquisitionTruth,
        montage: MontageTransforms,
        placement: Placement,
        size_xy: tuple[int, int],
    ) -> None:
        self.truth, self.montage, self.placement, self.size_xy = truth, montage, placement, size_xy

    def tiles(self, z: int) -> list[tuple[GridWarp, GridWarp]]:
        """(tile px → montage px, tile px → canonical px) of the tiles of a section that have both."""
        pairs = []
        for tile in self.montage.tiles(z):
            placed, true = self.montage.warp(z, tile), self.truth.tile_warp(z, *tile)
            if placed is not None and true is not None:
                pairs.append((placed, true))
        return pairs

    def canonical(self, z: int, x0: int, y0: int, width: int, height: int, step: int = STEP_PX) -> Floats:
        """(height, width, 2) canonical (x, y) of a block of aligned pixels; NaN where it shows no tissue."""
        out = np.full((height, width, 2), np.nan)
        rows, cols = _interpolation(height, step), _interpolation(width, step)
        nodes = np.stack(np.meshgrid(x0 + step * np.arange(cols.shape[1]), y0 + step * np.arange(rows.shape[1])), -1)
        montage_xy = self.placement.inverse(z, nodes.reshape(-1, 2))
        if montage_xy is None:
            return out
        depth = np.full((height, width), -0.5)
        for placed, true in self.tiles(z):
            tile_xy = placed.inverse(montage_xy)
            shape = (*nodes.shape[:2], 2)
            inside = self._depth(_upsample(tile_xy.reshape(shape), rows, cols))
            deeper = inside > depth  # NaN: no
            if deeper.any():
                out[deeper] = _upsample(true.map(tile_xy).reshape(shape), rows, cols)[deeper]
                depth[deeper] = inside[deeper]
        return out

    def aligned(self, z: int, canonical_xy: np.ndarray) -> Floats:
        """(n, 2) aligned px at which a section shows points of the tissue, NaN where it does not."""
        montage_xy = np.full((len(canonical_xy), 2), np.nan)
        depth = np.full(len(canonical_xy), 2.0)
        for placed, true in self.tiles(z):
            tile_xy = true.inverse(canonical_xy)
            inside = self._depth(tile_xy)
            deeper = inside > depth  # NaN: no
            montage_xy[deeper], depth[deeper] = placed.map(tile_xy[deeper]), inside[deeper]
        aligned = self.placement.map(z, montage_xy)
        return np.full_like(montage_xy, np.nan) if aligned is None else aligned

    def sample_points(self, z: int, count: int = 2500) -> Floats | None:
        """About `count` points on a grid over the tissue that a section shows; None without truth."""
        section = self.truth.section_warp(z)
        if section is None:
            return None
        corners = [grid_points((0, 0), np.subtract(self.size_xy, 1), min(self.size_xy) / 4)]
        mapped = [true.map(corners[0]) for _, true in self.tiles(z)]
        if not mapped:
            return None
        low, high = np.concatenate(mapped).min(axis=0), np.concatenate(mapped).max(axis=0)
        return grid_points(np.ceil(low), high, max(4.0, float(np.sqrt(np.prod(high - low) / count))))

    def _depth(self, tile_xy: np.ndarray) -> Floats:
        """How far inside the tile points lie, px; NaN stays NaN."""
        x, y = tile_xy[..., 0], tile_xy[..., 1]
        width, height = self.size_xy
        return np.asarray(np.minimum.reduce([x, y, width - 1 - x, height - 1 - y]))


class TrueSection:
    """Tile px ↔ px of the undistorted section: what a montage is measured against."""

    def __init__(self, tile: GridWarp, section: GridWarp) -> None:
        self._tile, self._section = tile, section

    def map(self, xy: np.ndarray) -> Floats:
        return self._section.inverse(self._tile.map(xy))

    def inverse(self, xy: np.ndarray) -> Floats:
        return self._tile.inverse(self._section.map(xy))


def _interpolation(length: int, step: int) -> Floats:
    """(length, nodes) weights that interpolate linearly between nodes at 0, step, 2 step, …"""
    nodes = max(2, -(-(length - 1) // step) + 1)
    place = np.arange(length) / step
    left = np.minimum(place.astype(int), nodes - 2)
    weights = np.zeros((length, nodes))
    weights[np.arange(length), left] = 1 - (place - left)
    weights[np.arange(length), left + 1] = place - left
    return weights


def _upsample(coarse: Floats, rows: Floats, cols: Floats) -> Floats:
    # A product with a zero weight would spread NaN over whole rows: NaN travels as a mark instead.
    bad = np.isnan(coarse[..., 0] + coarse[..., 1])
    clean = np.where(bad[..., None], 0.0, coarse)
    fine = np.stack([rows @ clean[..., axis] @ cols.T for axis in range(2)], axis=-1)
    if bad.any():
        fine[rows @ bad.astype(float) @ cols.T > 0] = np.nan
    return fine

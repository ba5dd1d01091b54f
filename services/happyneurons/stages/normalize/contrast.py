"""Contrast of a section, block by block: the result does not depend on the blocks.

Contrast limited adaptive histogram equalization after Zuiderveld (Graphics Gems IV, 1994): each
tile of a regular grid has a grey value table from its clipped histogram; a pixel gets the bilinear
mixture of the four tables around it. Here histograms count valid pixels only, so that the background
of a section does not darken its border, and they are gathered first, in one pass over all blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# A tile with less than this share of valid pixels is filled up with the section's own histogram.
WELL_FILLED = 0.25


@dataclass(frozen=True)
class Tables:
    """Grey value tables (ny, nx, 256) float32 of the tiles of `tile_px`, the first one at (0, 0)."""

    luts: NDArray[np.float32]
    tile_px: int

    def apply(self, picture: Picture, y0: int, x0: int) -> Picture:
        """Map a block whose first pixel is (y0, x0) of the section; results are 1…255."""
        ny, nx, _ = self.luts.shape
        (top, wy), (left, wx) = (
            _neighbours(np.arange(start, start + length), self.tile_px, n)
            for start, length, n in ((y0, picture.shape[0], ny), (x0, picture.shape[1], nx))
        )
        wx = wx[np.newaxis]
        result = np.empty(picture.shape, np.uint8)
        # Row by row of tables, so that the working arrays stay small.
        for row in np.unique(top):
            rows = np.flatnonzero(top == row)
            values = picture[rows]
            below = min(int(row) + 1, ny - 1)
            right = np.minimum(left + 1, nx - 1)[np.newaxis]
            upper = self._mix(int(row), left[np.newaxis], right, wx, values)
            lower = self._mix(below, left[np.newaxis], right, wx, values)
            w = wy[rows][:, np.newaxis]
            result[rows] = np.clip(np.rint(upper * (1 - w) + lower * w), 1, 255)
        return result

    def _mix(
        self, row: int, left: NDArray[np.intp], right: NDArray[np.intp], wx: NDArray[np.float32], values: Picture
    ) -> NDArray[np.float32]:
        luts = self.luts[row]
        return luts[left, values] * (1 - wx) + luts[right, values] * wx


def _neighbours(px: NDArray[np.intp], tile_px: int, tiles: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Index of the tile whose middle lies before each pixel, and the weight of the next one."""
    position = np.clip((px + 0.5) / tile_px - 0.5, 0, tiles - 1)
    before = np.floor(position).astype(np.intp)
    return before, (position - before).astype(np.float32)


class Histograms:
    """Histograms of the valid pixels of each tile of a section of (height, width) px."""

    def __init__(self, height: int, width: int, tile_px: int) -> None:
        self.tile_px = tile_px
        # Tiles of nearly the asked size at the end, rather than a narrow rest.
        self.ny, self.nx = max(1, round(height / tile_px)), max(1, round(width / tile_px))
        self.counts = np.zeros((self.ny, self.nx, 256), np.int64)

    def add(self, picture: Picture, valid: Mask, y0: int, x0: int) -> None:
        """Count a block whose first pixel is (y0, x0)."""
        rows = np.minimum(np.arange(y0, y0 + picture.shape[0]) // self.tile_px, self.ny - 1)
        cols = np.minimum(np.arange(x0, x0 + picture.shape[1]) // self.tile_px, self.nx - 1)
        index = ((rows[:, np.newaxis] * self.nx + cols) * 256 + picture)[valid]
        self.counts += np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def section(self) -> NDArray[np.int64]:
        """(256,) histogram of the whole section."""
        total: NDArray[np.int64] = self.counts.sum((0, 1))
        return total

    def tables(self, clip_limit: float, target_mean: float | None, target_std: float | None) -> Tables:
        """Tables that equalize each tile and bring the section to a mean and sd (None: as they come out).

        clip_limit: largest slope of a tile's table; 0: no equalization. The mean and sd are reached but
        for the mixing of neighbouring tables and the cut at 1 and 255.
        """
        counts = self.counts.astype(np.float64)
        if clip_limit > 0:
            lack = np.maximum(0.0, WELL_FILLED * self.tile_px**2 - counts.sum(-1))
            share = self.section / max(1, int(self.section.sum()))
            luts = equalize(counts + lack[..., np.newaxis] * share, clip_limit)
        else:
            counts = counts.sum((0, 1), keepdims=True)
            luts = np.arange(256, dtype=np.float32)[np.newaxis, np.newaxis]
        n = max(1.0, float(counts.sum()))
        mean = float((counts * luts).sum()) / n
        std = float(np.sqrt((counts * (luts - mean) ** 2).sum() / n))
        gain = 1.0 if target_std is None or std < 1e-6 else target_std / std
        to = mean if target_mean is None else target_mean
        return Tables(np.clip((luts - mean) * gain + to, 1, 255).astype(np.float32), self.tile_px)


def moments(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and sd of a (256,) histogram; zeros if it is empty."""
    n = int(histogram.sum())
    if n == 0:
        return 0.0, 0.0
    values = np.arange(256, dtype=np.float64)
    mean = float((histogram * values).sum() / n)
    return mean, float(np.sqrt((histogram * (values - mean) ** 2).sum() / n))


def equalize(histograms: NDArray[np.float64], clip_limit: float) -> NDArray[np.float32]:
    """(…, 256) histograms → tables 1…255 whose slope is at most about `clip_limit`."""
    n = histograms.sum(-1, keepdims=True)
    limit = clip_limit * n / 255
    clipped = np.minimum(histograms, limit)
    clipped = clipped + (n - clipped.sum(-1, keepdims=True)) / 256
    rank = np.cumsum(clipped, -1) - clipped / 2
    return (1 + 254 * rank / np.maximum(n, 1e-9)).astype(np.float32)

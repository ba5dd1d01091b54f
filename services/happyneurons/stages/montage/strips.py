"""The parts of two tiles that show the same tissue, and how they look to the matcher."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.imaging.matching import Image, dog, shrink
from happyneurons.stages.montage.tiles import Tile

Floats = NDArray[np.float64]

# Filtered with sigma, a picture has next to nothing finer than this part of sigma could show (0.4 % of the power).
_SAMPLING = 0.75
# A narrow overlap keeps at least this many px.
_LEAST_PX = 32


@dataclass(frozen=True)
class Strip:
    """Part of a picture: x0 <= x < x1, y0 <= y < y1, px."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> tuple[int, int]:
        return self.x1 - self.x0, self.y1 - self.y0

    @property
    def origin(self) -> Floats:
        return np.array([self.x0, self.y0], dtype=np.float64)

    def of(self, picture: np.ndarray) -> np.ndarray:
        return picture[self.y0 : self.y1, self.x0 : self.x1]

    def grown(self, by: int, tile: Tile) -> Strip:
        return Strip(
            max(0, self.x0 - by), max(0, self.y0 - by), min(tile.width, self.x1 + by), min(tile.height, self.y1 + by)
        )


def overlap(tile: Tile, other: Tile, shift_xy: Floats, slack_px: float = 0.0) -> Strip:
    """Part of `tile` that shows what `other` shows; px of other = px of tile + shift, give or take the slack."""
    x0, y0 = np.maximum(0, np.ceil(-shift_xy - slack_px)).astype(int)
    x1 = min(tile.width, int(np.floor(other.width - shift_xy[0] + slack_px)))
    y1 = min(tile.height, int(np.floor(other.height - shift_xy[1] + slack_px)))
    return Strip(int(x0), int(y0), x1, y1)


@dataclass(frozen=True)
class View:
    """A strip of a tile, filtered for matching, with as few px as that filter needs.

    picture: float32 (y, x), filtered; plain: uint8, not filtered; origin: px of the tile where they begin;
    factor: px of the tile to a px of the view.
    """

    picture: Image
    plain: np.ndarray
    origin: Floats
    factor: int

    @staticmethod
    def of(tile: np.ndarray, strip: Strip, sigma_px: float, factor: int) -> View:
        """tile: uint8 (y, x). sigma_px: of the filter (`dog`), px of the tile."""
        plain = shrink(strip.of(tile), factor)
        return View(dog(plain, sigma_px / factor), plain, strip.origin, factor)

    def seen(self, xy: ArrayLike) -> Floats:
        """(n, 2) px of the tile → px of the view."""
        return np.asarray((np.asarray(xy, dtype=np.float64) - self.origin + 0.5) / self.factor - 0.5)

    def tile(self, xy: ArrayLike) -> Floats:
        """(n, 2) px of the view → px of the tile."""
        return np.asarray((np.asarray(xy, dtype=np.float64) + 0.5) * self.factor - 0.5 + self.origin)

    def holds(self, xy: Floats) -> NDArray[np.bool_]:
        """(n,) whether px (n, 2) of the tile are among those of the view."""
        height, width = self.plain.shape
        seen = self.seen(xy)
        return np.asarray(((seen >= 0) & (seen <= [width - 1, height - 1])).all(axis=1))

    def grey(self, xy: Floats, size_px: float) -> Floats:
        """(n,) mean grey value around px (n, 2) of the tile, in squares of about so many px of the view."""
        size = 2 * int(size_px / 2) + 1
        means = cv2.boxFilter(self.plain, cv2.CV_32F, (size, size), borderType=cv2.BORDER_REFLECT_101)
        x, y = np.rint(self.seen(xy)).astype(int).T
        return np.asarray(means[y, x], dtype=np.float64)

    def inside(self, strip: Strip) -> Strip:
        """The px of the view that lie wholly in a strip of the tile."""
        x0, y0 = np.ceil((strip.origin - self.origin) / self.factor).astype(int)
        x1, y1 = ((np.array([strip.x1, strip.y1]) - self.origin) // self.factor).astype(int)
        return Strip(int(x0), int(y0), min(int(x1), self.picture.shape[1]), min(int(y1), self.picture.shape[0]))


def view_factor(sigma_px: float, inner: Strip) -> int:
    """How much smaller than the tile a view of its overlap may be."""
    return max(1, min(int(sigma_px / _SAMPLING), min(inner.size) // _LEAST_PX))

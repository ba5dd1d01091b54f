"""Darkening towards the rim of the tile, which all tiles of all sections share (vignetting).

Where two tiles show the same tissue, the one that shows it nearer to its middle shows it brighter. One
coefficient describes it, log brightness ∝ r²: the first term of any darkening that is the same on all
sides. It is told by how the ratio of two tiles' brightness changes across their seam, whatever the
exposure of each and whatever the tissue is like. Shading that is linear across the tile is not
corrected: seams cannot tell it from differences of exposure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.stages.montage.match import PairMatches
from happyneurons.stages.montage.shared_terms import Contribution, agreement
from happyneurons.stages.montage.tiles import Tile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shading:
    """Log brightness of tiles of width × height px: radial · r², r = 1 at half the longer side from the middle."""

    width: int
    height: int
    radial: float

    def fits(self, tiles: Iterable[Tile]) -> bool:
        """Whether all tiles are of the size that it was found for."""
        return all((t.width, t.height) == (self.width, self.height) for t in tiles)

    def gain(self, xy: ArrayLike) -> Floats:
        """(n,) what grey values at tile px (n, 2) have to be multiplied by; its mean over the tile is about 1."""
        p = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        return self._along(self.width, p[:, 0]) * self._along(self.height, p[:, 1])

    def corrected(self, pixels: np.ndarray, x0: int, y0: int) -> np.ndarray:
        """Part of a tile, uint8 (y, x), whose first px is (x0, y0) of the tile, evened out."""
        along_x = self._along(self.width, np.arange(x0, x0 + pixels.shape[1]))
        along_y = self._along(self.height, np.arange(y0, y0 + pixels.shape[0]))
        gain = np.outer(along_y.astype(np.float32), along_x.astype(np.float32))
        return np.asarray(cv2.multiply(pixels, gain, dtype=cv2.CV_8U))

    def _along(self, length: int, at: NDArray[Any]) -> Floats:
        # r² = x² + y², so that the gain is a product of one for x and one for y.
        half = (max(self.width, self.height) - 1) / 2
        square = np.square((at - (length - 1) / 2) / half)
        mean = np.square((length - 1) / 2 / half) / 3
        return np.asarray(np.exp(-self.radial * (square - mean)))


def shading_contribution(tiles: Sequence[Tile], pairs: Sequence[PairMatches]) -> Contribution | None:
    """What a section's seams say about the shading; None if it has none, or tiles of several sizes.

    Each seam may differ in brightness as it likes: only its changes across the seam count.
    """
    sizes = {(t.width, t.height) for t in tiles}
    if len(sizes) != 1 or not pairs:
        return None
    width, height = sizes.pop()
    normal, right = np.zeros((1, 1)), np.zeros(1)
    for p in pairs:
        term = _square(width, height, p.greys.xy_a) - _square(width, height, p.greys.xy_b)
        ratio = np.log(np.maximum(p.greys.a, 1.0)) - np.log(np.maximum(p.greys.b, 1.0))
        term, ratio = term - term.mean(), ratio - ratio.mean()
        normal += term @ term
        right += term @ ratio
    return Contribution(width, height, normal, right)


def _square(width: int, height: int, xy: Floats) -> Floats:
    middle, half = np.array([(width - 1) / 2, (height - 1) / 2]), (max(width, height) - 1) / 2
    return np.asarray(np.square((xy - middle) / half).sum(axis=1))


def solve_shading(contributions: Iterable[Mapping[str, Any]]) -> Shading | None:
    """The shading that sections agree on (`Contribution.data` each); None if there is none to be seen."""
    agreed = agreement(contributions)
    if agreed is None or not any(agreed.coefficients):
        return None
    return Shading(agreed.width, agreed.height, agreed.coefficients[0])

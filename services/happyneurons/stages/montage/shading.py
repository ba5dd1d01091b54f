"""Darkening towards the rim of the tile, which all tiles of all sections share (vignetting).

Where two tiles show the same tissue, the one that shows it nearer to its middle shows it brighter. Log
brightness is described by its first terms that are the same on opposite sides, ∝ x² and ∝ y². They are
told by how the ratio of two tiles' brightness changes across their seam, whatever the exposure of each
and whatever the tissue is like: x² by seams between tiles side by side, y² by those between tiles one
below the other. Where there are none of the one or the other, nothing is corrected along that axis.
Nor is shading that is linear across the tile: seams cannot tell it from differences of exposure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.stages.montage.match import PairMatches
from happyneurons.stages.montage.shared_terms import Contribution, OfTiles, agreement
from happyneurons.stages.montage.tiles import Tile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shading(OfTiles):
    """Log brightness of tiles: x · u² + y · v², with u, v from -1 to 1 across the tile."""

    x: float
    y: float

    def figures(self) -> dict[str, float]:
        """Its coefficients by name."""
        return {"shading_x": self.x, "shading_y": self.y}

    def gain(self, xy: ArrayLike) -> Floats:
        """(n,) what grey values at tile px (n, 2) have to be multiplied by; its mean over the tile is about 1."""
        p = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        return _gain(self.x, self.width, p[:, 0]) * _gain(self.y, self.height, p[:, 1])

    def corrected(self, pixels: np.ndarray, x0: int, y0: int) -> np.ndarray:
        """Part of a tile, uint8 (y, x), whose first px is (x0, y0) of the tile, evened out."""
        along_x = _gain(self.x, self.width, np.arange(x0, x0 + pixels.shape[1]))
        along_y = _gain(self.y, self.height, np.arange(y0, y0 + pixels.shape[0]))
        gain = np.outer(along_y.astype(np.float32), along_x.astype(np.float32))
        return np.asarray(cv2.multiply(pixels, gain, dtype=cv2.CV_8U))


def _gain(coefficient: float, length: int, at: NDArray[Any]) -> Floats:
    return np.asarray(np.exp(-coefficient * (_square(length, at) - 1 / 3)))


def _square(length: int, at: NDArray[Any]) -> Floats:
    """u² of px along an axis; its mean is a third."""
    half = (length - 1) / 2
    return np.asarray(np.square((at - half) / half))


def shading_contribution(tiles: Sequence[Tile], pairs: Sequence[PairMatches]) -> Contribution | None:
    """What a section's seams say about the shading; None if it has none, or tiles of several sizes.

    Each seam may differ in brightness as it likes: only its changes across the seam count.
    """
    sizes = {(t.width, t.height) for t in tiles}
    if len(sizes) != 1 or not pairs:
        return None
    size = sizes.pop()
    normal, right = np.zeros((2, 2)), np.zeros(2)
    for p in pairs:
        terms = np.stack(
            [_square(size[i], p.greys.xy_a[:, i]) - _square(size[i], p.greys.xy_b[:, i]) for i in (0, 1)], axis=1
        )
        ratio = np.log(np.maximum(p.greys.a, 1.0)) - np.log(np.maximum(p.greys.b, 1.0))
        # The axis along the seam changes by the tiles' jitter only: too little to learn from.
        across = int(np.argmax(terms.std(axis=0)))
        term, ratio = terms[:, across] - terms[:, across].mean(), ratio - ratio.mean()
        normal[across, across] += term @ term
        right[across] += term @ ratio
    return Contribution(*size, normal, right)


def solve_shading(contributions: Iterable[Mapping[str, Any]]) -> Shading | None:
    """The shading that sections agree on (`Contribution.data` each); None if there is none to be seen."""
    agreed = agreement(contributions)
    if agreed is None or not any(agreed.coefficients):
        return None
    return Shading(agreed.width, agreed.height, *agreed.coefficients)

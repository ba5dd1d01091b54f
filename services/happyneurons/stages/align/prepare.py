"""A section made ready for matching: small enough, with its tissue marked."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from happyneurons.store.volumes import Volume

OUTSIDE, TISSUE, ARTIFACT = 0, 1, 2

# Rows that are read at once; a chunk of a section stack.
_BAND_PX = 1024
# Grey values this many (robust) standard deviations from the median are folds, dirt or holes ...
_ARTIFACT_SIGMAS = 2.2
# ... where they fill a blur of this size, and this far around them, px of the working picture.
_ARTIFACT_BLUR_PX = 1.5
_ARTIFACT_RIM_PX = 1
# Percentiles are taken of every so many of its pixels: a blurred picture has few independent ones.
_PERCENTILE_STEP = 7
# A section with less tissue than this part of its area is blank.
_LEAST_TISSUE = 0.05


@dataclass(frozen=True)
class WorkingPicture:
    """image: (h, w) uint8 at 1 / factor of the section's size; kind: (h, w) uint8, OUTSIDE, TISSUE or ARTIFACT.

    Pixel i covers the section's pixels from i · factor: its centre is at (i + 0.5) · factor − 0.5.
    """

    image: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    contrast: float
    """Standard deviation of the tissue's blurred grey values."""

    @property
    def tissue(self) -> float:
        """Part of the area that is tissue."""
        return float(np.count_nonzero(self.kind == TISSUE)) / self.kind.size

    def blank(self, least_contrast: float) -> bool:
        return self.tissue < _LEAST_TISSUE or self.contrast < least_contrast


def working_picture(image: Volume, mask: Volume | None, z: int, factor: int) -> WorkingPicture:
    """Read section z in bands, averaged over factor × factor pixels. Grey 0 is "no picture" there."""
    _, y0, x0 = image.start_zyx
    _, y1, x1 = image.stop_zyx
    rows, width = _BAND_PX // factor * factor, (x1 - x0) // factor
    pictures, valids = [], []
    for y in range(y0, y1, rows):
        height = (min(y + rows, y1) - y) // factor
        if height == 0:
            continue
        low, high = (z, y, x0), (z + 1, y + height * factor, x0 + width * factor)
        band = image.read(low, high)[0]
        there = band > 0
        if mask is not None:
            there &= mask.read(low, high)[0] > 0
        picture, valid = _averaged(band, there, width, height)
        pictures.append(picture)
        valids.append(valid)
    return _mark(np.concatenate(pictures), np.concatenate(valids))


def _averaged(
    band: NDArray[np.uint8], there: NDArray[np.bool_], width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(height, width) means of those pixels of a band that are there, and where most of them are."""
    if there.all():
        picture = cv2.resize(band, (width, height), interpolation=cv2.INTER_AREA)
        return picture, np.ones(picture.shape, dtype=bool)
    weight = there.astype(np.float32)
    valid = cv2.resize(weight, (width, height), interpolation=cv2.INTER_AREA)
    mean = cv2.resize(band * weight, (width, height), interpolation=cv2.INTER_AREA) / np.maximum(valid, 1e-6)
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8), valid > 0.5


def _mark(image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> WorkingPicture:
    kind = np.where(valid, TISSUE, OUTSIDE).astype(np.uint8)
    if not valid.any():
        return WorkingPicture(image, kind, 0.0)
    weight = valid.astype(np.float32)
    blurred = cv2.GaussianBlur(image * weight, (0, 0), _ARTIFACT_BLUR_PX) / np.maximum(
        cv2.GaussianBlur(weight, (0, 0), _ARTIFACT_BLUR_PX), 1e-6
    )
    low, middle, high = np.percentile(blurred[valid][::_PERCENTILE_STEP], [25, 50, 75])
    sigma = max(1.0, (high - low) / 1.349)
    odd = valid & (np.abs(blurred - middle) > _ARTIFACT_SIGMAS * sigma)
    # Closing would join organelles; opening drops single dark ones, whose loss would cost structure.
    cross = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    odd8 = cv2.dilate(cv2.morphologyEx(odd.astype(np.uint8), cv2.MORPH_OPEN, cross), cross, iterations=_ARTIFACT_RIM_PX)
    kind[valid & (odd8 > 0)] = ARTIFACT
    _, deviation = cv2.meanStdDev(blurred, mask=(kind == TISSUE).view(np.uint8))
    return WorkingPicture(image, kind, float(deviation[0, 0]))


def section_px(xy: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Px of a working picture as px of the section."""
    return (xy + 0.5) * factor - 0.5


def stiffness(kind: NDArray[np.uint8], factor: int, shape: tuple[int, ...], spacing_px: float) -> NDArray[np.float64]:
    """(ny, nx) stiffness of a grid of nodes at (i, j) · spacing: low where artifacts may hide a tear."""
    # A blur of half a spacing is as good, and far cheaper, on a picture that has four px for that.
    shrink = max(1.0, spacing_px / factor / 8)
    height, width = (max(1, round(n / shrink)) for n in kind.shape)
    artifact = (kind == ARTIFACT).astype(np.float32)
    share = cv2.resize(artifact, (width, height), interpolation=cv2.INTER_AREA)
    share = cv2.GaussianBlur(share, (0, 0), max(0.5, spacing_px / factor / 2 / shrink))
    x, y = (
        ((np.arange(nodes) * spacing_px + 0.5) / factor * (small / large) - 0.5).astype(np.float32)
        for nodes, small, large in ((shape[1], width, kind.shape[1]), (shape[0], height, kind.shape[0]))
    )
    at_nodes = cv2.remap(share, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(at_nodes > 0.2, 0.02, 1.0)

"""Pyramids of sections, and a first rigid map between two of them by cross-correlation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

COARSE_SIZE_PX = 160


@dataclass(frozen=True)
class MatchSettings:
    """All lengths in px of the images that are matched."""

    window_px: float = 14.0
    """Standard deviation of the Gaussian window at the finest level."""
    spacing_px: int = 16
    """Distance of the places that are reported."""
    detail_px: float = 1.5
    """Structures between about this size and three times it are compared."""
    maximum_shift_px: float = 40.0
    maximum_rotation_deg: float = 5.0


@dataclass(frozen=True)
class Level:
    """One pyramid level: band-passed image (zero outside tissue) and mask, float32 (h, w)."""

    image: Floats
    mask: Floats
    factor: int


def band_pass(image: np.ndarray, mask: Floats, sigma_px: float) -> Floats:
    """Difference of Gaussians that ignores what the mask (0..1) leaves out; unit standard deviation."""
    weighted = image.astype(np.float32) * mask
    fine = _local_mean(weighted, mask, sigma_px)
    # The wide blur leaves nothing that half the pixels each way would not show; halving and doubling blur by 1 px.
    height, width = mask.shape
    size = -(-width // 2), -(-height // 2)
    half, half_mask = (np.asarray(cv2.resize(x, size, interpolation=cv2.INTER_AREA)) for x in (weighted, mask))
    wide_px = 0.5 * float(np.sqrt(max(1.0, (3 * sigma_px) ** 2 - 1)))
    coarse = cv2.resize(_local_mean(half, half_mask, wide_px), (width, height), interpolation=cv2.INTER_LINEAR)
    difference = (fine - coarse) * mask
    power = cv2.norm(difference, cv2.NORM_L2SQR) / max(1.0, cv2.sumElems(mask)[0])
    return np.asarray(difference / np.float32(max(np.sqrt(power), 1e-6)), dtype=np.float32)


def _local_mean(weighted: Floats, mask: Floats, sigma_px: float) -> Floats:
    """Gaussian mean of what the mask lets in."""
    total, weight = (cv2.GaussianBlur(x, (0, 0), sigma_px) for x in (weighted, mask))
    return np.asarray(total / (weight + np.float32(1e-3)))


def pyramid(image: np.ndarray, mask: np.ndarray, detail_px: float) -> list[Level]:
    """Levels from the finest (the image itself) to one of at most COARSE_SIZE_PX.

    image: (h, w) uint8; mask: (h, w), 0..1, 1 = valid tissue.
    """
    grey = image.astype(np.float32)
    valid = mask.astype(np.float32)
    levels = [Level(band_pass(grey, valid, detail_px), valid, 1)]
    while max(grey.shape) > COARSE_SIZE_PX:
        height, width = (-(-n // 2) for n in grey.shape)
        # Repeating the last row and column of an odd image keeps pixel i of a level at 2i + 0.5 of the one below.
        grey = cv2.copyMakeBorder(
            grey * valid, 0, 2 * height - grey.shape[0], 0, 2 * width - grey.shape[1], cv2.BORDER_REPLICATE
        )
        valid = cv2.copyMakeBorder(
            valid, 0, 2 * height - valid.shape[0], 0, 2 * width - valid.shape[1], cv2.BORDER_REPLICATE
        )
        grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
        valid = cv2.resize(valid, (width, height), interpolation=cv2.INTER_AREA)
        grey = grey / np.maximum(valid, 1e-3)
        levels.append(Level(band_pass(grey, valid, detail_px), valid, 2 * levels[-1].factor))
    return levels


def coarse_affine(a: Level, b: Level, settings: MatchSettings) -> tuple[Doubles, float]:
    """(2, 3) rigid map a → b in px of the finest level, and the mean product of overlapping pixels.

    Cross-correlation for each of a range of rotations, so fine that no pixel is over one px off;
    then two more rounds between the best ones.
    """
    height, width = a.image.shape
    reach = int(np.ceil(settings.maximum_shift_px / a.factor)) + 1
    size = tuple(cv2.getOptimalDFTSize(max(m, n) + reach) for m, n in zip(a.image.shape, b.image.shape, strict=True))
    fa, fm = (_spectrum(x, size) for x in (a.image, a.mask))
    middle = np.array([(b.image.shape[1] - 1) / 2, (b.image.shape[0] - 1) / 2])

    def attempt(angle_deg: float) -> tuple[float, Doubles]:
        c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
        turn = np.array([[c, -s], [s, c]])
        rotation = np.column_stack([turn, middle - turn @ middle])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image, mask = (cv2.warpAffine(x, rotation, (width, height), flags=flags) for x in (b.image, b.mask))
        product = _correlate(fa, _spectrum(image, size), size, reach)
        overlap = _correlate(fm, _spectrum(mask, size), size, reach)
        # Dividing by the overlap favours small ones, where chance rules: those below a quarter get less.
        mean = product / np.maximum(overlap, 0.25 * float(a.mask.sum(dtype=np.float64)) + 1)
        y, x = np.unravel_index(int(np.argmax(mean)), mean.shape)
        shift = np.array([float(x) - reach, float(y) - reach])
        return float(mean[y, x]), np.column_stack([turn, turn @ shift + rotation[:, 2]])

    lever = 0.5 * max(height, width)
    step = float(np.rad2deg(2.0 / lever))
    count = int(np.ceil(settings.maximum_rotation_deg / step))
    tried = {k * step: attempt(k * step) for k in range(-count, count + 1)}
    for _ in range(2):
        best = max(tried, key=lambda angle: tried[angle][0])
        step /= 2
        tried |= {angle: attempt(angle) for angle in (best - step, best + step)}
    best = max(tried, key=lambda angle: tried[angle][0])
    score, matrix = tried[best]
    f = a.factor
    centre = (f - 1) / 2
    shift = f * matrix[:, 2] + centre - matrix[:, :2] @ [centre, centre]
    return np.column_stack([matrix[:, :2], shift]), score


def _spectrum(image: Floats, size: tuple[int, ...]) -> Floats:
    padded = np.zeros(size, np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    return np.asarray(cv2.dft(padded))


def _correlate(a: Floats, b: Floats, size: tuple[int, ...], reach: int) -> Floats:
    """sum over p of a(p) b(p + s) for |s| ≤ reach; element [reach, reach] is s = 0."""
    full = cv2.idft(cv2.mulSpectrums(b, a, 0, conjB=True), flags=cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT)
    index = np.arange(-reach, reach + 1)
    return np.asarray(full[np.ix_(index % size[0], index % size[1])])

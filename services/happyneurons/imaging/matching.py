"""Finding the same place in two pictures: band-pass filter, coarse shift, block matches.

Images are (y, x), points (n, 2) of (x, y) px. A shift or an offset is always `b - a`: what lies at
p in the first picture lies at p + shift in the second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

# Pictures are made so much smaller for a broad Gaussian that its sigma has at least so many px.
_SIGMA_OF_SMALLER_PX = 2.0


def dog(image: np.ndarray, sigma_px: float = 1.5, ratio: float = 3.0, mask: np.ndarray | None = None) -> Image:
    """Difference of Gaussians (sigma, ratio * sigma): float32 (y, x) of mean near 0.

    It keeps membranes and drops noise, shading and the brightness of the tile. Where `mask` (y, x)
    is 0 the result is 0, and masked pixels do not leak into their surroundings (normalized
    convolution).
    """
    picture = np.asarray(image, dtype=np.float32)
    if mask is None:
        return np.asarray(_blur(picture, sigma_px) - _blur(picture, ratio * sigma_px), dtype=np.float32)
    weight = (np.asarray(mask) > 0).astype(np.float32)
    picture = picture * weight
    fine = _blur(picture, sigma_px) / (_blur(weight, sigma_px) + 1e-3)
    broad = _blur(picture, ratio * sigma_px) / (_blur(weight, ratio * sigma_px) + 1e-3)
    return np.asarray((fine - broad) * weight, dtype=np.float32)


def _blur(picture: Image, sigma_px: float) -> Image:
    """Filtered with a Gaussian; with a broad one to a few percent, on a smaller picture, as nothing fine is left."""
    factor = int(sigma_px / _SIGMA_OF_SMALLER_PX)
    height, width = picture.shape
    if factor < 2 or min(height, width) < 4 * factor:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101))
    smaller = cv2.resize(picture, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    # Averaging over a pixel and interpolating between pixels blur too: variances of 1/12 and 1/6 px².
    sigma = float(np.sqrt((sigma_px / factor) ** 2 - 0.25))
    smaller = cv2.GaussianBlur(smaller, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray(cv2.resize(smaller, (width, height), interpolation=cv2.INTER_LINEAR))


def level_contrast(filtered: Image, sigma_px: float, floor: float = 0.5) -> Image:
    """A filtered picture (see `dog`) divided by its local contrast, so that no single edge dominates a correlation.

    sigma_px: size of "local"; floor: contrast below this part of the picture's own is not raised to full.
    """
    contrast = np.sqrt(_blur(np.asarray(filtered * filtered), sigma_px))
    # It is smooth: some of its pixels tell the median as well as all.
    step = max(1, int(sigma_px / 2))
    typical = float(np.median(contrast[::step, ::step]))
    return np.asarray(filtered / (contrast + floor * typical + 1e-3), dtype=np.float32)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """The image at 1 / factor of its size by averaging; pixel (x, y) covers factor² pixels from (x, y) * factor.

    Rows and columns left over at the far edges are dropped. A point p of the image lies at
    (p + 0.5) / factor - 0.5 of the result.
    """
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: height * factor, : width * factor]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA))


# --- coarse shift ----------------------------------------------------------------------------


@dataclass(frozen=True)
class CoarseShift:
    """Where the second picture lies on the first one.

    shift_xy: b - a, px. correlation: of the pixels that overlap, -1..1. significance: height of the
    peak in units of the highest that chance would make among so many shifts: below 1.2 it means
    nothing, true shifts of EM pictures reach 1.5 to 5. runner_up: the same for the highest peak
    elsewhere. overlap_px: pixels that overlap.
    """

    shift_xy: tuple[float, float]
    correlation: float
    significance: float
    runner_up: float
    overlap_px: float


def coarse_shift(
    a: np.ndarray,
    b: np.ndarray,
    *,
    mask_a: np.ndarray | None = None,
    mask_b: np.ndarray | None = None,
    expected_xy: ArrayLike = (0.0, 0.0),
    max_error_px: float | tuple[float, float] | None = None,
    min_overlap_px: float = 256.0,
) -> CoarseShift | None:
    """The shift at which two filtered pictures (see `dog`) fit best, over all shifts allowed.

    Every shift is scored by the normalized correlation of just the pixels that overlap (and are
    valid in both masks), times the root of their number: a narrow overlap must fit better than a
    broad one to win. All shifts are tried at once by FFT, so a stage error as large as the picture
    costs nothing more.

    expected_xy, max_error_px: only shifts this near to the expected one, in x and y; None: all.
    min_overlap_px: fewest pixels that may overlap. Returns None if no shift is allowed.

    Method: D. Padfield, "Masked object registration in the Fourier domain", IEEE TIP 2012.
    """
    ha, wa = a.shape
    hb, wb = b.shape
    shifts_x, shifts_y = np.arange(-(wa - 1), wb), np.arange(-(ha - 1), hb)
    keep_x, keep_y = np.ones(len(shifts_x), bool), np.ones(len(shifts_y), bool)
    if max_error_px is not None:
        ex, ey = np.asarray(expected_xy, dtype=np.float64).reshape(2)
        rx, ry = max_error_px if isinstance(max_error_px, tuple) else (max_error_px, max_error_px)
        keep_x, keep_y = np.abs(shifts_x - ex) <= rx, np.abs(shifts_y - ey) <= ry
    if not keep_x.any() or not keep_y.any():
        return None
    shifts_x, shifts_y = shifts_x[keep_x], shifts_y[keep_y]
    count, sum_a, sum_b, square_a, square_b, product = _overlap_sums(a, b, mask_a, mask_b, shifts_y, shifts_x)
    safe = np.maximum(count, 1.0)
    variance_a = np.maximum(square_a - sum_a**2 / safe, 0)
    variance_b = np.maximum(square_b - sum_b**2 / safe, 0)
    scale = np.sqrt(variance_a * variance_b)
    # Where a picture is flat, rounding errors of the FFT would decide.
    usable = (count >= min_overlap_px) & (scale > 1e-4 * max(float(scale.max()), 1e-12))
    if not usable.any():
        return None
    correlation = np.where(usable, (product - sum_a * sum_b / safe) / np.where(usable, scale, 1.0), 0.0)
    height = correlation * np.sqrt(count)
    # The highest of n normal values is about sqrt(2 ln n) standard deviations.
    chance = np.sqrt(2 * np.log(usable.sum() + 3)) * 1.4826 * float(np.median(np.abs(height[usable]))) + 1e-9
    y, x = np.unravel_index(int(np.argmax(np.where(usable, height, -np.inf))), height.shape)
    away = usable.copy()
    away[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = False
    runner_up = float(height[away].max() / chance) if away.any() else 0.0
    dx, dy = _peak_offset(height, int(x), int(y))
    return CoarseShift(
        shift_xy=(float(shifts_x[x]) + dx, float(shifts_y[y]) + dy),
        correlation=float(correlation[y, x]),
        significance=float(height[y, x] / chance),
        runner_up=runner_up,
        overlap_px=float(count[y, x]),
    )


def _overlap_sums(
    a: np.ndarray,
    b: np.ndarray,
    mask_a: np.ndarray | None,
    mask_b: np.ndarray | None,
    shifts_y: NDArray[np.int64],
    shifts_x: NDArray[np.int64],
) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """For the shifts asked for (ascending): number of valid pixels in both, Σa, Σb, Σa², Σb², Σab over them."""
    if mask_a is None and mask_b is None:
        # Two rectangles: all sums but the product are box sums, which need no FFT.
        in_a = [
            _overlap_range(shifts, na, nb)
            for shifts, na, nb in zip((shifts_y, shifts_x), a.shape, b.shape, strict=True)
        ]
        in_b = [
            _overlap_range(-shifts, nb, na)
            for shifts, na, nb in zip((shifts_y, shifts_x), a.shape, b.shape, strict=True)
        ]
        (sum_a, square_a), (sum_b, square_b) = _box_sums(a, in_a), _box_sums(b, in_b)
        count = np.outer(*(np.maximum(stop - start, 0) for start, stop in in_a)).astype(np.float64)
        # Single precision is enough: only the place and the height of a peak far above chance are read.
        product = _correlate(np.asarray(a, np.float32), np.asarray(b, np.float32), shifts_y, shifts_x)
        return count, sum_a, sum_b, square_a, square_b, product
    a64, b64 = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    ma = np.ones(a.shape) if mask_a is None else (np.asarray(mask_a) > 0).astype(np.float64)
    mb = np.ones(b.shape) if mask_b is None else (np.asarray(mask_b) > 0).astype(np.float64)
    a64, b64 = a64 * ma, b64 * mb
    pairs = ((ma, mb), (a64, mb), (ma, b64), (a64**2, mb), (ma, b64**2), (a64, b64))
    count, sum_a, sum_b, square_a, square_b, product = (_correlate(f, g, shifts_y, shifts_x) for f, g in pairs)
    return np.round(count), sum_a, sum_b, square_a, square_b, product


def _correlate(a: np.ndarray, b: np.ndarray, shifts_y: NDArray[np.int64], shifts_x: NDArray[np.int64]) -> Floats:
    """(len(shifts_y), len(shifts_x)): Σ a(p) b(p + shift) over the px of two pictures, for ascending shifts."""
    # Just so large that no shift that is asked for wraps around.
    ny, nx = (
        fft.next_fast_len(int(max(nb - shifts[0], na + shifts[-1])), real=True)
        for na, nb, shifts in zip(a.shape, b.shape, (shifts_y, shifts_x), strict=True)
    )
    fa, fb = (fft.fft(fft.rfft(f, nx, axis=1), ny, axis=0) for f in (a, b))
    # Rows that nobody asks for need not be transformed back.
    rows = fft.ifft(np.conj(fa) * fb, axis=0)[shifts_y % ny]
    return np.asarray(fft.irfft(rows, nx, axis=1)[:, shifts_x % nx], dtype=np.float64)


def _overlap_range(shifts: NDArray[np.int64], size: int, other: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(start, stop) of the pixels of a picture that another one covers, for each shift along an axis."""
    return np.clip(-shifts, 0, size), np.clip(other - shifts, 0, size)


def _box_sums(f: np.ndarray, ranges: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> tuple[Floats, Floats]:
    """Sums of f and of f² over all boxes of a range along y and a range along x."""
    (y0, y1), (x0, x1) = ranges
    sums, squares = cv2.integral2(np.asarray(f, np.float32), sdepth=cv2.CV_64F, sqdepth=cv2.CV_64F)

    def boxes(table: Floats) -> Floats:
        bands = table[y1] - table[y0]
        return np.asarray(bands[:, x1] - bands[:, x0])

    return boxes(sums), boxes(squares)


# --- block matches ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """Places that correspond. xy_a, xy_b: (n, 2) px; score: (n,) correlation of the blocks, -1..1."""

    xy_a: Floats
    xy_b: Floats
    score: Floats

    def __len__(self) -> int:
        return len(self.score)

    def select(self, which: np.ndarray) -> Matches:
        """Those of a boolean mask or index array."""
        return Matches(self.xy_a[which], self.xy_b[which], self.score[which])

    @staticmethod
    def none() -> Matches:
        return Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))


def match_blocks(
    a: Image,
    b: Image,
    xy_a: ArrayLike,
    guess_b: ArrayLike,
    *,
    half_px: int | tuple[int, int],
    search_px: int | tuple[int, int],
    min_score: float = 0.25,
    mask_a: np.ndarray | None = None,
    mask_b: np.ndarray | None = None,
    min_valid: float = 0.8,
    max_ambiguity: float = 1.0,
) -> Matches:
    """Find blocks of picture a in picture b by normalized cross-correlation, to a fraction of a pixel.

    a, b: filtered pictures (see `dog`), float32 (y, x). xy_a: (n, 2) block centres in a, rounded to
    whole px; guess_b: (n, 2) where they are expected in b. half_px: half size of a block in x and y
    (a block has 2 * half + 1 px); search_px: how far from the guess to look, in x and y. At the edge
    of b the search is cut, not refused. A block is dropped if it leaves a, if less than `min_valid`
    of it is valid, if its score is below `min_score`, if its peak lies on the edge of the search, or if
    anything more than 3 px away scores more than `max_ambiguity` times the peak.
    """
    centres = np.rint(np.asarray(xy_a, dtype=np.float64).reshape(-1, 2)).astype(int)
    guesses = np.rint(np.asarray(guess_b, dtype=np.float64).reshape(-1, 2)).astype(int)
    hx, hy = half_px if isinstance(half_px, tuple) else (half_px, half_px)
    rx, ry = search_px if isinstance(search_px, tuple) else (search_px, search_px)
    (height_a, width_a), (height_b, width_b) = a.shape, b.shape
    found_a, found_b, scores, peaks = [], [], [], []
    for (xa, ya), (xb, yb) in zip(centres.tolist(), guesses.tolist(), strict=True):
        if xa < hx or ya < hy or xa + hx >= width_a or ya + hy >= height_a:
            continue
        x0, y0 = max(0, xb - hx - rx), max(0, yb - hy - ry)
        x1, y1 = min(width_b, xb + hx + rx + 1), min(height_b, yb + hy + ry + 1)
        if x1 - x0 < 2 * hx + 3 or y1 - y0 < 2 * hy + 3:
            continue
        block = (slice(ya - hy, ya + hy + 1), slice(xa - hx, xa + hx + 1))
        if mask_a is not None and np.count_nonzero(mask_a[block]) < min_valid * (2 * hx + 1) * (2 * hy + 1):
            continue
        if mask_b is not None:
            there = mask_b[max(0, yb - hy) : max(0, yb + hy + 1), max(0, xb - hx) : max(0, xb + hx + 1)]
            if np.count_nonzero(there) < min_valid * (2 * hx + 1) * (2 * hy + 1):
                continue
        scene = cv2.matchTemplate(b[y0:y1, x0:x1], a[block], cv2.TM_CCOEFF_NORMED)
        _, score, _, (px, py) = cv2.minMaxLoc(scene)
        if not min_score <= score <= 1.01 or not 0 < px < scene.shape[1] - 1 or not 0 < py < scene.shape[0] - 1:
            continue
        peak = scene[py - 1 : py + 2, px - 1 : px + 2].copy()
        if max_ambiguity < 1:
            scene[max(0, py - 3) : py + 4, max(0, px - 3) : px + 4] = -1
            # OpenCV's maximum takes half of NumPy's time for so small an array.
            if cv2.minMaxLoc(scene)[1] > max_ambiguity * score:
                continue
        found_a.append((xa, ya))
        found_b.append((x0 + hx + px, y0 + hy + py))
        scores.append(score)
        peaks.append(peak)
    if not scores:
        return Matches.none()
    offsets = _peak_offsets(np.stack(peaks))
    return Matches(np.array(found_a, float), np.array(found_b, float) + offsets, np.array(scores, float))


def _peak_offset(surface: np.ndarray, x: int, y: int) -> tuple[float, float]:
    """Where the maximum of a surface lies beside its pixel; (0, 0) at the surface's edge."""
    if not (0 < x < surface.shape[1] - 1 and 0 < y < surface.shape[0] - 1):
        return 0.0, 0.0
    dx, dy = _peak_offsets(surface[np.newaxis, y - 1 : y + 2, x - 1 : x + 2])[0]
    return float(dx), float(dy)


def _peak_offsets(around: np.ndarray) -> Floats:
    """(n, 2) of (dx, dy): tops of the quadratics through (n, 3, 3) pixels around maxima; 0 where it has none."""
    n = around.astype(np.float64)
    gx, gy = (n[:, 1, 2] - n[:, 1, 0]) / 2, (n[:, 2, 1] - n[:, 0, 1]) / 2
    xx, yy = n[:, 1, 2] - 2 * n[:, 1, 1] + n[:, 1, 0], n[:, 2, 1] - 2 * n[:, 1, 1] + n[:, 0, 1]
    xy = (n[:, 2, 2] - n[:, 2, 0] - n[:, 0, 2] + n[:, 0, 0]) / 4
    det = xx * yy - xy * xy
    top = (xx < 0) & (yy < 0) & (det > 1e-3 * xx * yy)
    safe = np.where(top, det, 1.0)
    offsets = np.stack([(xy * gy - yy * gx) / safe, (xy * gx - xx * gy) / safe], axis=1)
    return np.where(top[:, np.newaxis], np.clip(offsets, -1, 1), 0.0)


def block_centres(x0: float, y0: float, x1: float, y1: float, step_px: float) -> Floats:
    """(n, 2) centres on a regular grid inside x0..x1, y0..y1, at most step_px apart and up to both ends.

    A side that is empty (x1 < x0) yields its middle.
    """

    def axis(low: float, high: float) -> Floats:
        if high <= low:
            return np.array([(low + high) / 2])
        return np.linspace(low, high, int(np.ceil((high - low) / step_px)) + 1)

    return np.stack(np.meshgrid(axis(x0, x1), axis(y0, y1)), axis=-1).reshape(-1, 2)

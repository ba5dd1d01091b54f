"""Applying a U-Net to a part of a section that is larger than the network is given at once.

Patches overlap, and where they do their predictions are blended: each counts the less the nearer a pixel
is to its patch's border, where the network saw least.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[np.ndarray], np.ndarray]
"""(size, size) normalized float32 → (channels, size, size) float32."""


def patch_size(length_px: int, patch_px: int, multiple_px: int) -> int:
    """Side of the patches: patch_px, or less if what is asked for is smaller; a multiple of multiple_px."""
    return -(-min(length_px, patch_px) // multiple_px) * multiple_px


def patch_starts(length_px: int, size_px: int, overlap_px: int) -> list[int]:
    """Where patches start so that they cover a length evenly and share at least overlap_px."""
    if length_px <= size_px:
        return [0]
    count = -(-(length_px - overlap_px) // (size_px - overlap_px))
    return [round(i * (length_px - size_px) / (count - 1)) for i in range(count)]


def predict_section(
    image: NDArray[np.float32], predict: Predict, channels: int, *, size_px: int, overlap_px: int, flips: bool = False
) -> NDArray[np.float32]:
    """(channels, y, x) predictions for a normalized picture (y, x), in patches of size_px.

    flips: the mean of four predictions, of the patch and of its mirror images. A picture smaller than a
    patch is continued by its mirror image. The result depends on nothing but the picture and the settings.
    """
    height, width = image.shape
    pad = [(0, max(0, size_px - n)) for n in image.shape]
    image = np.pad(image, pad, mode="symmetric")
    ramp = np.minimum(np.arange(size_px) + 0.5, size_px - 0.5 - np.arange(size_px))
    ramp = np.minimum(1.0, ramp / max(1, overlap_px)).astype(np.float32)
    weight = ramp[:, np.newaxis] * ramp
    total = np.zeros((channels, *image.shape), np.float32)
    weights = np.zeros(image.shape, np.float32)
    for y in patch_starts(image.shape[0], size_px, overlap_px):
        for x in patch_starts(image.shape[1], size_px, overlap_px):
            box = (slice(y, y + size_px), slice(x, x + size_px))
            total[(slice(None), *box)] += weight * _predicted(image[box], predict, flips=flips)
            weights[box] += weight
    return np.asarray(total[:, :height, :width] / weights[:height, :width])


def _predicted(patch: np.ndarray, predict: Predict, *, flips: bool) -> np.ndarray:
    if not flips:
        return predict(patch)
    found = []
    for axes in ((), (0,), (1,), (0, 1)):
        turned = predict(np.ascontiguousarray(np.flip(patch, axes)))
        found.append(np.flip(turned, tuple(a + 1 for a in axes)))
    return np.asarray(np.mean(found, axis=0, dtype=np.float32))

"""Where objects are started: points far from edges in the image.

Method: PolicyPeaks of google/ffn. Sobel edges, an adaptive threshold (edges stronger than their
Gaussian neighbourhood), distance to the nearest edge, local maxima.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EDGE_SIGMA = 49.0 / 6.0
"""Voxels; the neighbourhood that an edge is compared with."""
PEAK_DISTANCE = 3
"""Voxels; the least distance (along an axis) between two peaks and from the image's faces."""


def peak_seeds(
    image: NDArray[np.float32],
    excluded: NDArray[np.bool_] | None = None,
    *,
    voxel_size_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0),
    min_edge_distance: float = 0.0,
    order: str = "position",
) -> NDArray[np.int64]:
    """Seed points (n, 3) zyx, sorted by coordinate, or by falling distance from edges (`order` "depth").

    image: (z, y, x). excluded: voxels where no seeds are wanted, same shape.
    voxel_size_zyx: ratio of the voxel's edges, for distances; min_edge_distance is in its unit.
    """
    edges = ndimage.generic_gradient_magnitude(image.astype(np.float32), ndimage.sobel)
    strong = edges > ndimage.gaussian_filter(edges, EDGE_SIGMA, mode="reflect")
    del edges
    if excluded is not None:
        strong |= excluded
    if strong.all() or not strong.any():
        return np.empty((0, 3), np.int64)
    distance = ndimage.distance_transform_edt(~strong, sampling=voxel_size_zyx).astype(np.float32)
    if excluded is not None:
        distance[excluded] = -1
    # Noise decides between equal distances; its seed is fixed, so that results can be repeated.
    height = distance + np.random.RandomState(42).rand(*distance.shape) * 1e-4
    peaks = (ndimage.maximum_filter(height, size=2 * PEAK_DISTANCE + 1, mode="nearest") == height) & (height > 0)
    peaks &= distance >= min_edge_distance
    for axis in range(3):
        border: list[slice] = [slice(None)] * 3
        for border[axis] in (slice(0, PEAK_DISTANCE), slice(-PEAK_DISTANCE, None)):
            peaks[tuple(border)] = False
    seeds = np.argwhere(peaks)
    if order == "depth":
        seeds = seeds[np.argsort(-height[peaks], kind="stable")]
    return seeds

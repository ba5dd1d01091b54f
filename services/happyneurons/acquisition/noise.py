"""Smooth random fields that can be evaluated piece by piece."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SmoothNoise:
    """A random field of variance about 1 over a box, correlated over about `scale_px`.

    Cubic B-splines with random coefficients on a regular grid, any number of dimensions. Evaluated
    on the product of coordinate vectors, so that a slab of a large volume costs only that slab.
    """

    def __init__(self, extent: tuple[float, ...], scale_px: float, rng: np.random.Generator) -> None:
        self.scale_px = scale_px
        nodes = tuple(int(np.ceil(n / scale_px)) + 4 for n in extent)
        # The mean of the summed squared B-spline weights along an axis is 151/315.
        self._coefficients = rng.normal(0.0, (315 / 151) ** (len(extent) / 2), nodes).astype(np.float32)

    def __call__(self, *coordinates: NDArray[np.float64]) -> NDArray[np.float32]:
        """Field at the product of the coordinate vectors (px), one for each axis, in axis order."""
        field = self._coefficients
        for axis, along in enumerate(coordinates):
            weights = self._weights(along, field.shape[axis])
            field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
        return field

    def _weights(self, along: NDArray[np.float64], nodes: int) -> NDArray[np.float32]:
        position = np.asarray(along, dtype=np.float64) / self.scale_px + 1.0
        distance = np.abs(position[:, np.newaxis] - np.arange(nodes))
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = np.clip(2 - distance, 0, None) ** 3 / 6
        return np.where(distance < 1, near, far).astype(np.float32)

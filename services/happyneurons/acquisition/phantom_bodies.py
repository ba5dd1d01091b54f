"""Cell bodies of the phantom: ellipsoids that push neurites aside, with a pale, grainy nucleus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from happyneurons.acquisition.noise import SmoothNoise

TRIES = 4000
NUCLEUS_PX = 8.0
"""From a body's surface to its nucleus, px."""


def lay_bodies(
    shape_zyx: tuple[int, int, int], anisotropy: float, count: int, radius_px: tuple[float, float], seed: int
) -> NDArray[np.uint32]:
    """(z, y, x) numbers 1…n of up to `count` bodies that do not overlap, 0 elsewhere.

    Every second one is laid beside an earlier one, so that some touch.
    """
    rng = np.random.default_rng([seed, 1, *shape_zyx])
    extent = np.array([shape_zyx[0] * anisotropy, *shape_zyx[1:]], float)
    bodies = np.zeros(shape_zyx, np.uint32)
    laid: list[tuple[np.ndarray, np.ndarray]] = []
    z, y, x = np.ogrid[: shape_zyx[0], : shape_zyx[1], : shape_zyx[2]]
    for _ in range(TRIES):
        if len(laid) == count:
            break
        radii = rng.uniform(*radius_px, 3)
        centre = rng.uniform(0, 1, 3) * extent
        if len(laid) % 2:
            other, theirs = laid[-1]
            way = rng.normal(size=3) * (0.5, 1, 1)
            centre = other + way / np.linalg.norm(way) * (radii.mean() + theirs.mean())
        margin = 0.5 * radii
        if (centre < margin).any() or (centre > extent - margin).any():
            continue
        depth = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z * anisotropy, y, x), centre, radii, strict=True))
        own = np.asarray(depth) < 1
        if (bodies[own] > 0).mean() > 0.02:
            continue
        bodies[own & (bodies == 0)] = len(laid) + 1
        laid.append((centre, radii))
    return bodies


def paint_nuclei(image: NDArray[np.uint8], bodies: NDArray[np.uint32], anisotropy: float, seed: int) -> None:
    """Give bodies their nuclei, in place."""
    from scipy.ndimage import distance_transform_edt

    nz, ny, nx = bodies.shape
    rng = np.random.default_rng([seed, 2, nz, ny, nx])
    extent = (nz * anisotropy, float(ny), float(nx))
    clumps, grain = SmoothNoise(extent, 9.0, rng), SmoothNoise(extent, 2.0, rng)
    y, x = np.arange(ny, dtype=np.float64), np.arange(nx, dtype=np.float64)
    depth = distance_transform_edt(bodies > 0, sampling=(anisotropy, 1, 1))
    for z in range(nz):
        at = (np.array([z * anisotropy]), y, x)
        inside = depth[z] > NUCLEUS_PX
        grey = 190.0 + 14.0 * clumps(*at)[0] + 8.0 * grain(*at)[0]
        envelope = 70.0 * np.exp(-(((depth[z] - NUCLEUS_PX) / 1.2) ** 2)) * (bodies[z] > 0)
        shot = rng.standard_normal((ny, nx))
        painted = np.where(inside, grey + 8.0 * shot, image[z].astype(float)) - envelope
        image[z] = np.clip(np.rint(painted), 0, 255)

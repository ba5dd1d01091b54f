"""How the phantom looks under the microscope: membranes, cytoplasm, organelles, noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from happyneurons.acquisition.noise import SmoothNoise

FloatArray = NDArray[np.float64]

CYTOPLASM = 162.0  # grey values
MEMBRANE_DEPTH = 98.0
CLEARANCE = 3.5  # px between a neurite's wall and a mitochondrion in it
HUGE = 99.0


def render(
    labels: NDArray[np.uint32],
    cells: NDArray[np.uint32],
    distance: NDArray[np.float32],
    tangents_zyx: FloatArray,
    nearest: NDArray[np.int32],
    anisotropy: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """uint8 (z, y, x) picture of the labels.

    cells: the neurite of every voxel, membranes included; distance: px to the wall between cells;
    nearest: index into `tangents_zyx` (direction of the neurite) for every voxel.
    """
    import cv2

    nz, ny, nx = labels.shape
    mitochondria = _mitochondria(cells, distance, tangents_zyx, nearest, anisotropy, rng)
    vesicles = _vesicles(distance, mitochondria, anisotropy, rng)
    extent = (nz * anisotropy, float(ny), float(nx))
    slow, middle, grain, cristae = (SmoothNoise(extent, scale, rng) for scale in (30.0, 7.0, 2.2, 4.5))
    shade = rng.normal(0.0, 7.0, int(cells.max()) + 1).astype(np.float32)
    y, x = np.arange(ny, dtype=np.float64), np.arange(nx, dtype=np.float64)
    image = np.empty(labels.shape, np.uint8)
    for z in range(nz):
        at = (np.array([z * anisotropy]), y, x)
        grey = CYTOPLASM + shade[cells[z]] + 4.0 * middle(*at)[0] + 9.0 * grain(*at)[0]
        depth = mitochondria[z]
        matrix = 112.0 + 20.0 * np.tanh(2.5 * cristae(*at)[0]) + 5.0 * grain(*at)[0]
        outer, gap = np.exp(-(((depth - 0.6) / 0.9) ** 2)), np.exp(-(((depth - 2.3) / 0.7) ** 2))
        grey = np.where(depth > 0, matrix + 30.0 * gap, grey) - 45.0 * outer * (depth > -1.5)
        grey -= vesicles[z]
        # Where a wall lies flat in the section it is faint; the slow noise stands for staining.
        wall = np.where(labels[z] == 0, np.minimum(distance[z], 1.2), distance[z])
        strength = MEMBRANE_DEPTH * (1.0 + 0.12 * slow(*at)[0])
        grey = np.maximum(grey - strength * np.exp(-((wall / 1.75) ** 4)), 28.0)
        grey = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.75)
        shot = rng.standard_normal((ny, nx), dtype=np.float32)
        grey += shot * (3.0 + 0.45 * np.sqrt(np.clip(grey, 0, None)))
        image[z] = np.clip(np.rint(grey), 0, 255)
    return image


def _mitochondria(
    cells: NDArray[np.uint32],
    distance: NDArray[np.float32],
    tangents_zyx: FloatArray,
    nearest: NDArray[np.int32],
    anisotropy: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Depth (px) of every voxel below the outer membrane of a mitochondrion; negative outside."""
    shape = np.array(cells.shape)
    scale = np.array([anisotropy, 1.0, 1.0])
    depth = np.full(cells.shape, -HUGE, np.float32)
    tissue = float(np.prod(shape * scale))
    for _ in range(max(20, int(tissue / 9000))):
        centre = rng.integers(0, shape)
        length, radius, tilt = rng.uniform(10, 24), rng.uniform(5.5, 10.0), rng.normal(0, 0.2, 3)
        z, y, x = (int(v) for v in centre)
        room = float(distance[z, y, x]) - CLEARANCE
        if room < 4.5 or depth[z, y, x] > -4:
            continue
        radius = min(radius, room + 1.5)
        axis = tangents_zyx[nearest[z, y, x]] + tilt
        axis /= np.linalg.norm(axis)
        reach = length + 4
        low = np.maximum(0, np.floor(centre - reach / scale)).astype(int)
        high = np.minimum(shape, np.ceil(centre + reach / scale) + 1).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
        offset = (np.stack(grid, -1) - centre) * scale
        along = offset @ axis
        across = np.sqrt(np.maximum((offset**2).sum(-1) - along**2, 0))
        # A capsule with rounded ends, kept clear of the neurite's own wall.
        beyond = np.maximum(np.abs(along) - (length - radius), 0)
        inside = np.minimum(radius - np.hypot(across, beyond), distance[box] - CLEARANCE)
        inside[cells[box] != cells[z, y, x]] = -HUGE
        depth[box] = np.maximum(depth[box], inside)
    return depth


def _vesicles(
    distance: NDArray[np.float32], mitochondria: NDArray[np.float32], anisotropy: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Darkening by clusters of synaptic vesicles: rings of about 4 px."""
    nz, ny, nx = distance.shape
    dark = np.zeros(distance.shape, np.float32)
    offset = np.stack(np.meshgrid(*([np.arange(-3, 4)] * 3), indexing="ij"), -1).reshape(-1, 3)
    r = np.linalg.norm(offset * np.array([anisotropy, 1, 1]), axis=1)
    ring = 80.0 * np.exp(-(((r - 1.5) / 0.9) ** 2))
    useful = ring > 1
    offset, ring = offset[useful], ring[useful]
    for _ in range(max(4, int(nz * ny * nx * anisotropy / 60000))):
        number, spread = int(rng.integers(8, 40)), rng.uniform(5, 11)
        centre = rng.uniform(0, 1, 3) * distance.shape
        dots = np.rint(centre + rng.normal(0, spread, (number, 3)) / np.array([anisotropy, 1, 1])).astype(int)
        for dot in dots[((dots >= 0) & (dots < distance.shape)).all(1)]:
            z, y, x = dot
            if distance[z, y, x] < 4.5 or mitochondria[z, y, x] > -4 or dark[z, y, x] > 1:
                continue
            at = dot + offset
            ok = ((at >= 0) & (at < distance.shape)).all(1)
            index = tuple(at[ok].T)
            dark[index] = np.maximum(dark[index], ring[ok])
    return dark

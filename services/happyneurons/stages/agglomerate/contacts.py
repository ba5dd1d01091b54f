"""Which segments touch or nearly touch, on how many faces of voxels, and where the most.

Unsegmented voxels between two segments (membranes, and what the network left free) are given to
the nearest segment first, as far as half the largest gap; what then lies side by side touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from happyneurons.store.triples import Triple

CELL = 16
"""Edge of the cells that faces are counted in to find the place where two segments touch most, voxels."""


@dataclass(frozen=True)
class Contacts:
    """Touching pairs, sorted, each once.

    pairs: (n, 2) uint64, the smaller id first. faces: (n,) int64, faces of voxels between the two.
    points: (n, 3) int64 zyx, the face nearest to the middle of the cell with the most faces.
    point_faces: (n,) int64, faces in that cell.
    """

    pairs: np.ndarray
    faces: np.ndarray
    points: np.ndarray
    point_faces: np.ndarray


def halo(max_gap_px: int) -> int:
    """Voxels that must be known around a block for its faces to be right."""
    return max_gap_px + 2


def grow(labels: np.ndarray, max_gap_px: int, voxel_size_zyx: Sequence[float]) -> np.ndarray:
    """Labels (z, y, x) with background that lies within half the gap of a segment given to the nearest one.

    max_gap_px: in voxels of the shortest edge.
    """
    from scipy import ndimage

    if max_gap_px == 0 or labels.all() or not labels.any():
        return labels
    sampling = np.divide(voxel_size_zyx, min(voxel_size_zyx))
    distance, nearest = ndimage.distance_transform_edt(labels == 0, sampling=sampling, return_indices=True)
    near = distance <= (max_gap_px + 1) / 2
    del distance
    return np.where(near, labels[tuple(nearest)], 0)


def find_contacts(labels: np.ndarray, start_zyx: Triple, core: tuple[Triple, Triple]) -> Contacts:
    """Contacts of grown labels (z, y, x) whose first voxel lies at start_zyx.

    core: box [start, stop) of the volume. A face belongs to the core that its first voxel lies in,
    so that every face of a volume is counted once.
    """
    firsts, seconds, places = [], [], []
    inner = [(a - o, b - o) for a, b, o in zip(*core, start_zyx, strict=True)]
    for axis in range(3):
        low = [slice(a, b) for a, b in inner]
        low[axis] = slice(inner[axis][0], min(inner[axis][1], labels.shape[axis] - 1))
        high = list(low)
        high[axis] = slice(low[axis].start + 1, low[axis].stop + 1)
        p, q = labels[tuple(low)], labels[tuple(high)]
        where = (p != q) & (p > 0) & (q > 0)
        firsts.append(np.minimum(p[where], q[where]))
        seconds.append(np.maximum(p[where], q[where]))
        places.append(np.argwhere(where) + np.asarray(core[0]))
    return _tally(np.concatenate(firsts), np.concatenate(seconds), np.concatenate(places))


def _tally(first: np.ndarray, second: np.ndarray, places: np.ndarray) -> Contacts:
    if len(first) == 0:
        none = np.zeros(0, np.int64)
        return Contacts(np.zeros((0, 2), np.uint64), none, np.zeros((0, 3), np.int64), none)
    ids, compact = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = compact[: len(first)].astype(np.int64), compact[len(first) :].astype(np.int64)
    keys, pair = np.unique(a * len(ids) + b, return_inverse=True)
    cells = places // CELL - (places // CELL).min(axis=0)
    extent = cells.max(axis=0) + 1
    cell = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    spots, spot, count = np.unique(pair * int(extent.prod()) + cell, return_inverse=True, return_counts=True)
    # The fullest cell of each pair; of equal ones the first.
    owner = spots // int(extent.prod())
    order = np.lexsort((spots, -count, owner))
    best = order[np.searchsorted(owner[order], np.arange(len(keys)))]
    middle = np.stack([np.bincount(spot, places[:, k]) for k in range(3)], axis=1) / count[:, np.newaxis]
    inside = np.flatnonzero(np.isin(spot, best))
    off = ((places[inside] - middle[spot[inside]]) ** 2).sum(axis=1)
    z, y, x = places[inside].T
    order = inside[np.lexsort((x, y, z, off, pair[inside]))]
    points = places[order[np.searchsorted(pair[order], np.arange(len(keys)))]]
    pairs = np.stack([ids[keys // len(ids)], ids[keys % len(ids)]], axis=1).astype(np.uint64)
    return Contacts(pairs, np.bincount(pair), points.astype(np.int64), count[best].astype(np.int64))

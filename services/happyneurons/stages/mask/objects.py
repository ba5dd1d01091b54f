"""From probabilities to classes, seeds and objects: what a task computes in its window.

A window is a task's block and a margin around it, cut at the volume's faces. Everything here but the flooding
looks no further than a fixed distance, so that a voxel's value is the same in every window that
holds it with that distance around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.mask.params import ClassRule
from happyneurons.store.triples import Triple, triple

TRUNCATE = 3.0
"""Gaussian filters end at so many sigmas."""


@dataclass(frozen=True)
class Window:
    """Voxels [start, stop), zyx, of a volume [low, high)."""

    start_zyx: Triple
    stop_zyx: Triple
    low_zyx: Triple
    high_zyx: Triple

    def grown(self, margin_zyx: Sequence[int]) -> Window:
        start = (max(a - m, b) for a, m, b in zip(self.start_zyx, margin_zyx, self.low_zyx, strict=True))
        stop = (min(a + m, b) for a, m, b in zip(self.stop_zyx, margin_zyx, self.high_zyx, strict=True))
        return Window(triple(start), triple(stop), self.low_zyx, self.high_zyx)

    def inside(self, other: Window) -> tuple[slice, slice, slice]:
        """Slices of this window in an array of the other one, which holds it."""
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.start_zyx, self.stop_zyx, other.start_zyx, strict=True))
        return (z, y, x)


def class_margin(rules: Sequence[ClassRule], size_zyx: Sequence[float]) -> Triple:
    """Voxels around a box that its classes depend on: filters, growth and holes."""
    sigma = max((r.smooth_nm for r in rules), default=0.0)
    grow = max((r.grow_nm for r in rules), default=0.0)
    holes = max((_hole_length(r) for r in rules), default=0)
    return triple(math.ceil(TRUNCATE * sigma / s) + math.ceil(grow / s) + (holes + 1 if holes else 0) for s in size_zyx)


def _hole_length(rule: ClassRule) -> int:
    """Voxels along any axis that a hole may have to be filled."""
    return 2 * math.ceil(rule.fill_holes_voxels ** (1 / 3)) if rule.fill_holes_voxels else 0


def classify(
    probability: NDArray[np.uint8], rules: Sequence[ClassRule], size_zyx: Sequence[float], window: Window
) -> NDArray[np.uint8]:
    """(z, y, x) class numbers, 0 background, of (classes, z, y, x) probabilities in a window.

    A voxel is of the most probable class among those over their threshold. Then classes grow into what is of none,
    where two reach a voxel the nearer one, and holes are filled.
    """
    from scipy.ndimage import gaussian_filter

    best = np.zeros(probability.shape[1:], np.float32)
    classes = np.zeros(probability.shape[1:], np.uint8)
    for number, (own, rule) in enumerate(zip(probability, rules, strict=True), 1):
        if not own.any():
            continue
        share = own.astype(np.float32)
        if rule.smooth_nm:
            sigma = [rule.smooth_nm / s for s in size_zyx]
            share = gaussian_filter(share, sigma, truncate=TRUNCATE, mode="nearest")
        # 255 is sure: half of it, 127.5, lies between two whole numbers.
        over = (share >= 255 * rule.threshold) & (share > best)
        classes[over], best[over] = number, share[over]
    if any(rule.grow_nm for rule in rules):
        classes = _grown(classes, rules, size_zyx)
    for number, rule in enumerate(rules, 1):
        if rule.fill_holes_voxels:
            classes[_holes(classes == number, rule) & (classes == 0)] = number
    return classes


NEAR = 1e-3
"""Distances that differ by less, nm, are equal: their last bits depend on which of equally near voxels was found."""


def _grown(classes: NDArray[np.uint8], rules: Sequence[ClassRule], size_zyx: Sequence[float]) -> NDArray[np.uint8]:
    from scipy.ndimage import distance_transform_edt

    out, nearest = classes.copy(), np.full(classes.shape, np.inf, np.float32)
    for number, rule in enumerate(rules, 1):
        own = classes == number
        if not rule.grow_nm or not own.any():
            continue
        box = _box(own, [math.ceil(rule.grow_nm / s) for s in size_zyx])
        distance = distance_transform_edt(~own[box], sampling=list(size_zyx)).astype(np.float32)
        into = (classes[box] == 0) & (distance <= rule.grow_nm + NEAR) & (distance < nearest[box] - NEAR)
        out[box][into], nearest[box][into] = number, distance[into]
    return out


def _holes(mask: NDArray[np.bool_], rule: ClassRule) -> NDArray[np.bool_]:
    """Holes of a mask: 6-connected parts of what is outside that are small, short, and do not touch the window's
    faces. Short, so that a window with the margin around it holds all of a hole of which it holds a part."""
    import cc3d

    if not mask.any():
        return mask
    parts = cc3d.connected_components(np.ascontiguousarray(~mask).view(np.uint8), connectivity=6, out_dtype=np.uint32)
    found = cc3d.statistics(parts)
    small = found["voxel_counts"] <= rule.fill_holes_voxels
    small[0] = False
    for number in np.flatnonzero(small):
        small[number] = max(side.stop - side.start for side in found["bounding_boxes"][number]) <= _hole_length(rule)
    for axis in range(3):
        for face in (0, -1):
            small[np.unique(parts.take(face, axis))] = False
    return np.asarray(small[parts])


def object_margin(rule: ClassRule, size_zyx: Sequence[float]) -> Triple:
    """Voxels around a block within which every object lies that has a part in it."""
    return triple(math.ceil(rule.max_diameter_nm / s) for s in size_zyx)


def distances(mask: NDArray[np.bool_], size_zyx: Sequence[float]) -> NDArray[np.float32]:
    """Distance (nm) of each voxel of a mask to what is outside; the window's faces are not outside."""
    from scipy.ndimage import distance_transform_edt

    if mask.all():  # nothing outside in sight
        return np.full(mask.shape, np.linalg.norm(np.multiply(mask.shape, size_zyx)), np.float32)
    depth = np.zeros(mask.shape, np.float32)
    if mask.any():
        box = _box(mask)
        depth[box] = distance_transform_edt(mask[box], sampling=list(size_zyx))
    return depth


def _box(mask: NDArray[np.bool_], more: Sequence[int] = (1, 1, 1)) -> tuple[slice, slice, slice]:
    """Where a mask is, and some voxels more, as far as the array goes."""
    found = []
    for axis in range(3):
        at = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        found.append(slice(max(0, int(at[0]) - more[axis]), int(at[-1]) + more[axis] + 1))
    z, y, x = found
    return (z, y, x)


def find_seeds(depth: NDArray[np.float32], rule: ClassRule, size_zyx: Sequence[float]) -> NDArray[np.int64]:
    """(n, 3) voxels, from the window's first, of the thickest places of objects.

    depth: see distances. A place is a seed if none within `seed_distance_nm` along each axis is
    thicker; of equally thick ones it is the first. Distances are smoothed a little before, so that the ridge of a
    long body is not a row of maxima.
    """
    from scipy.ndimage import gaussian_filter, maximum_filter

    finite = np.minimum(depth, np.float32(rule.max_diameter_nm))
    sigma = [rule.seed_distance_nm / 4 / s for s in size_zyx]
    score = gaussian_filter(finite, sigma, truncate=TRUNCATE, mode="nearest")
    reach = [max(1, math.floor(rule.seed_distance_nm / s)) for s in size_zyx]
    highest = maximum_filter(score, size=[2 * r + 1 for r in reach], mode="nearest")
    places = np.argwhere((depth > 0) & (depth >= rule.min_radius_nm) & (score == highest)).astype(np.int64)
    kept: list[np.ndarray] = []
    for place in places:  # in the order of their coordinates
        if not any((np.abs(place - other) <= reach).all() for other in kept):
            kept.append(place)
    return np.array(kept, np.int64).reshape(-1, 3)


def seed_margin(rule: ClassRule, size_zyx: Sequence[float]) -> Triple:
    """Voxels around a box that the seeds in it depend on: distances up to half a diameter, filters, other seeds."""
    reach = rule.max_diameter_nm / 2 + rule.seed_distance_nm * (2 + TRUNCATE / 4)
    return triple(math.ceil(reach / s) + 1 for s in size_zyx)


def flood(
    mask: NDArray[np.bool_],
    seen: tuple[slice, slice, slice],
    seeds_zyx: NDArray[np.int64],
    numbers: NDArray[np.int64],
    size_zyx: Sequence[float],
) -> NDArray[np.uint32]:
    """Watershed (Vincent, Soille 1991) of a mask from seeds, thickest places first: number of each voxel's seed.

    numbers: of the seeds, 1 and above. What no seed reaches stays 0. Only parts of the mask that reach into
    the box `seen` are flooded.
    """
    import cc3d
    from skimage.segmentation import watershed

    out = np.zeros(mask.shape, np.uint32)
    parts = cc3d.connected_components(np.ascontiguousarray(mask).view(np.uint8), connectivity=6, out_dtype=np.uint32)
    wanted = np.zeros(int(parts.max()) + 1, bool)
    wanted[np.unique(parts[seen])] = True
    wanted[0] = False
    mask = wanted[parts]
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(seeds_zyx.T)] = numbers
    markers[~mask] = 0
    if not markers.any():
        return out
    box = _box(mask)
    depth = distances(mask[box], size_zyx)
    out[box] = watershed(-depth, markers[box], mask=mask[box], connectivity=1)
    return out

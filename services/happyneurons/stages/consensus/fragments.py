"""Oversegmentation consensus in one block, and which fragments of two blocks go together.

Method (Januszewski et al., "High-precision automated reconstruction of neurons with flood-filling
networks", Nature Methods 2018): two voxels stay together only if every segmentation has them in one
segment. What two segmentations got wrong in different places is so split in both places, and a
merger survives only if all of them have it. Each combination of ids that occurs is taken apart into
its connected parts, the *fragments*.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from happyneurons.store.triples import Triple

Connectivity = Literal[6, 26]

FACES = tuple(f"{axis}{side}" for axis in "zyx" for side in ("low", "high"))


@dataclass(frozen=True)
class Fragments:
    """The fragments of a block.

    labels: (z, y, x) uint32, 1, 2, …; 0 is background. origin: (n + 1, segmentations) uint64 ids in
    each segmentation, by fragment. voxels: (n + 1,) int64 sizes, by fragment.
    """

    labels: np.ndarray
    origin: np.ndarray
    voxels: np.ndarray

    def faces(self) -> dict[str, np.ndarray]:
        """The outermost layer of the labels on each of the six sides, 2D."""
        layers = {}
        for axis, name in enumerate("zyx"):
            layers[f"{name}low"], layers[f"{name}high"] = self.labels.take(0, axis), self.labels.take(-1, axis)
        return layers


def fragments(ids: list[np.ndarray], labelled_in: Literal["first", "all"], connectivity: Connectivity) -> Fragments:
    """Fragments of a block. ids: (z, y, x) unsigned integer array of each segmentation, 0 is background.

    labelled_in: "first", what the first segmentation labels is divided further, and background of the
    others counts as one more segment of theirs (as google/ffn's `split_segmentation_by_intersection`
    has it); "all", only voxels that all segmentations label are kept.
    """
    import cc3d
    import fastremap

    keep = ids[0] > 0
    combination = np.zeros(ids[0].shape, np.uint32)
    for array in ids:
        if labelled_in == "all":
            keep &= array > 0
        own = fastremap.renumber(array, in_place=False, preserve_zero=True)[0].astype(np.uint64)
        both = combination.astype(np.uint64) * np.uint64(int(own.max(initial=0)) + 1) + own
        combination = fastremap.renumber(both, in_place=True, preserve_zero=True)[0].astype(np.uint32)
    combination[~keep] = 0
    labels = cc3d.connected_components(combination, connectivity=connectivity, out_dtype=np.uint32)
    voxels = np.bincount(labels.ravel()).astype(np.int64)
    origin = np.zeros((len(voxels), len(ids)), np.uint64)
    for column, array in enumerate(ids):
        origin[labels.ravel(), column] = array.ravel()
    origin[0] = voxels[0] = 0
    return Fragments(labels, origin, voxels)


@dataclass(frozen=True)
class Surface:
    """What neighbours need to know of a block: `faces` and `origin` of its fragments."""

    faces: dict[str, np.ndarray]
    origin: np.ndarray

    def layer(self, towards_zyx: Triple) -> np.ndarray:
        """(z, y, x) labels of the voxels that touch the neighbour in a direction (-1, 0 or 1 along each
        axis, not all 0): one voxel thick along the axes of the direction."""
        axis = next(a for a, d in enumerate(towards_zyx) if d)
        face = self.faces["zyx"[axis] + ("high" if towards_zyx[axis] > 0 else "low")]
        layer = np.expand_dims(face, axis)
        for other in range(axis + 1, 3):
            if towards_zyx[other]:
                layer = layer.take([-1 if towards_zyx[other] > 0 else 0], other)
        return layer


def contacts(first: Surface, second: Surface, towards_zyx: Triple, connectivity: Connectivity) -> np.ndarray:
    """Fragments of two neighbouring blocks that go together: (n, 2) uint32 unique sorted pairs.

    towards_zyx: direction from the first block to the second, -1, 0 or 1 along each axis. Voxels touch by
    faces (connectivity 6) or also by edges and corners (26); fragments go together where they touch and
    have the same id in every segmentation.
    """
    a, b = first.layer(towards_zyx), second.layer((-towards_zyx[0], -towards_zyx[1], -towards_zyx[2]))
    steps = [(0,) if d or connectivity == 6 else (-1, 0, 1) for d in towards_zyx]
    found = [np.zeros((0, 2), np.uint32)]
    for step in product(*steps):
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, a.shape, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, a.shape, strict=True))
        p, q = a[here].ravel(), b[there].ravel()
        both = (p > 0) & (q > 0)
        found.append(np.unique(np.stack([p[both], q[both]], axis=1), axis=0))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[(first.origin[pairs[:, 0]] == second.origin[pairs[:, 1]]).all(axis=1)]


def directions(connectivity: Connectivity) -> list[Triple]:
    """Directions to those neighbours of a block that come later (z slowest): each pair is met once."""
    every = [(z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if (z, y, x) > (0, 0, 0)]
    return [d for d in every if connectivity == 26 or sum(map(abs, d)) == 1]

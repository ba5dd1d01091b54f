"""Where truth labels come from: a volume in the segmentation's own frame, or through the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from happyneurons.metrics.segmentation import connected_objects
from happyneurons.stages.evaluate.tissue import Tissue
from happyneurons.store.triples import Triple, triple
from happyneurons.store.volumes import Volume

_SLAB = 16
"""Sections looked up together: chunked labels are then read once, not once a section."""


@dataclass(frozen=True)
class Truth:
    """(z, y, x) uint64 arrays of a box; 0 where there is no truth.

    objects: what is scored. labels: the truth's own labels, the same array if it is not relabelled.
    """

    objects: np.ndarray
    labels: np.ndarray


class TruthLabels(Protocol):
    def read(self, start_zyx: Triple, stop_zyx: Triple) -> Truth:
        """The truth in a box of the segmentation's frame."""


class Objects(Protocol):
    def read(self, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
        """(z, y, x) object numbers of a box that lies inside the region."""


class HeldObjects:
    """The 26-connected parts of a region that fits in memory."""

    def __init__(self, volume: Volume, start_zyx: Triple, stop_zyx: Triple) -> None:
        self._start = start_zyx
        self._held = connected_objects(volume.read(start_zyx, stop_zyx))

    def read(self, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
        return self._held[_inside(start_zyx, stop_zyx, self._start)]


class Region:
    """A box of a label volume: its labels, and its objects if they are something else."""

    def __init__(self, volume: Volume, start_zyx: Triple, stop_zyx: Triple, objects: Objects | None = None) -> None:
        self._volume, self._objects = volume, objects
        self.start_zyx, self.stop_zyx = start_zyx, stop_zyx

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Truth:
        """The truth in any box; 0 outside the region."""
        low, high = np.maximum(start_zyx, self.start_zyx), np.minimum(stop_zyx, self.stop_zyx)
        shape = tuple(np.subtract(stop_zyx, start_zyx))

        def padded(found: np.ndarray) -> np.ndarray:
            out = np.zeros(shape, np.uint64)
            out[_inside(low, high, start_zyx)] = found
            return out

        if not (low < high).all():
            nothing = np.zeros(shape, np.uint64)
            return Truth(nothing, nothing)
        labels = padded(self._volume.read(triple(low), triple(high)))
        if self._objects is None:
            return Truth(labels, labels)
        return Truth(padded(self._objects.read(triple(low), triple(high))), labels)


def clamped(volume: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> tuple[Triple, Triple]:
    """The part of a box that a volume has; empty, not negative, if there is none."""
    start = np.maximum(start_zyx, volume.start_zyx)
    return triple(start), triple(np.maximum(start, np.minimum(stop_zyx, volume.stop_zyx)))


class TissueLabels:
    """Labels of the acquired volume, carried into the aligned frame section by section."""

    def __init__(self, tissue: Tissue, region: Region) -> None:
        self._tissue, self._region = tissue, region

    def read(self, start_zyx: Triple, stop_zyx: Triple) -> Truth:
        shape = tuple(np.subtract(stop_zyx, start_zyx))
        out = Truth(np.zeros(shape, np.uint64), np.zeros(shape, np.uint64))
        for z in range(start_zyx[0], stop_zyx[0], _SLAB):
            part = slice(z - start_zyx[0], min(z + _SLAB, stop_zyx[0]) - start_zyx[0])
            self._read_slab(Truth(out.objects[part], out.labels[part]), (z, *start_zyx[1:]))
        return out

    def _read_slab(self, out: Truth, start_zyx: Triple) -> None:
        z0, y0, x0 = start_zyx
        depth, height, width = out.labels.shape
        places = [self._tissue.canonical(z, x0, y0, width, height) for z in range(z0, z0 + depth)]
        shown = [np.isfinite(xy[..., 0]) for xy in places]
        pixels = [np.rint(xy[s]).astype(np.int64) for xy, s in zip(places, shown, strict=True)]
        found = np.concatenate(pixels)
        if not len(found):
            return
        (low_x, low_y), (high_x, high_y) = found.min(axis=0), found.max(axis=0) + 1
        block = self._region.read((z0, int(low_y), int(low_x)), (z0 + depth, int(high_y), int(high_x)))
        for z in range(depth):
            place = (z, pixels[z][:, 1] - low_y, pixels[z][:, 0] - low_x)
            out.objects[z][shown[z]] = block.objects[place]
            out.labels[z][shown[z]] = block.labels[place]


def canonical_box(tissue: Tissue, start_zyx: Triple, stop_zyx: Triple) -> tuple[Triple, Triple] | None:
    """(start_zyx, stop_zyx) of the canonical voxels that a box of the aligned frame shows; None if none."""
    (z0, y0, x0), (z1, y1, x1) = start_zyx, stop_zyx
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for z in range(z0, z1):
        xy = tissue.canonical(z, x0, y0, x1 - x0, y1 - y0, step=32)
        shown = xy[np.isfinite(xy[..., 0])]
        if len(shown):
            low = np.minimum(low, [z, *shown.min(axis=0)[::-1]])
            high = np.maximum(high, [z, *shown.max(axis=0)[::-1]])
    if not np.isfinite(low).all():
        return None
    # The coarse step misses the outermost pixels by a fraction of a px.
    return triple(np.rint(low) - [0, 2, 2]), triple(np.rint(high) + [1, 3, 3])


def _inside(
    start_zyx: Sequence[int] | np.ndarray, stop_zyx: Sequence[int] | np.ndarray, origin_zyx: Sequence[int]
) -> tuple[slice, ...]:
    """The box as slices of an array that begins at `origin_zyx`."""
    return tuple(slice(int(a) - o, int(b) - o) for a, b, o in zip(start_zyx, stop_zyx, origin_zyx, strict=True))

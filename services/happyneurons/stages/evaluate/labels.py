"""Where truth labels come from: a volume in the segmentation's own frame, or through the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from happyneurons.metrics.segmentation import connected_objects
from happyneurons.stages.evaluate.tissue import Tissue
from happyneurons.store.volumes import Volume

Triple = tuple[int, int, int]
_SLAB = 16
"""Sections looked up together: chunked labels are then read once, not once a section."""


class TruthLabels(Protocol):
    def read(self, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
        """(z, y, x) truth labels of a box of the segmentation's frame; 0 where there is no truth."""


class Region:
    """A box of a label volume, read as it is or held in memory with its 26-connected parts as labels."""

    def __init__(self, volume: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int], *, relabel: bool) -> None:
        self._volume = volume
        self.start_zyx = _triple(np.maximum(start_zyx, volume.start_zyx))
        self.stop_zyx = _triple(np.maximum(self.start_zyx, np.minimum(stop_zyx, volume.stop_zyx)))
        self._held: np.ndarray | None = None
        if relabel and self.voxels:
            self._held = connected_objects(volume.read(self.start_zyx, self.stop_zyx))

    @property
    def voxels(self) -> int:
        return int(np.prod(np.subtract(self.stop_zyx, self.start_zyx)))

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        """(z, y, x) uint64 labels of any box; 0 outside the region."""
        out = np.zeros(tuple(np.subtract(stop_zyx, start_zyx)), np.uint64)
        low, high = np.maximum(start_zyx, self.start_zyx), np.minimum(stop_zyx, self.stop_zyx)
        if (low < high).all():
            if self._held is not None:
                inside = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, self.start_zyx, strict=True))
                found = self._held[inside]
            else:
                found = self._volume.read(_triple(low), _triple(high))
            out[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start_zyx, strict=True))] = found
        return out


class TissueLabels:
    """Labels of the acquired volume, carried into the aligned frame section by section."""

    def __init__(self, tissue: Tissue, region: Region) -> None:
        self._tissue, self._region = tissue, region

    def read(self, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
        out = np.zeros(tuple(np.subtract(stop_zyx, start_zyx)), np.uint64)
        for z in range(start_zyx[0], stop_zyx[0], _SLAB):
            stop = min(z + _SLAB, stop_zyx[0])
            self._read_slab(out[z - start_zyx[0] : stop - start_zyx[0]], (z, *start_zyx[1:]))
        return out

    def _read_slab(self, out: np.ndarray, start_zyx: Triple) -> None:
        z0, y0, x0 = start_zyx
        depth, height, width = out.shape
        places = [self._tissue.canonical(z, x0, y0, width, height) for z in range(z0, z0 + depth)]
        shown = [np.isfinite(xy[..., 0]) for xy in places]
        pixels = [np.rint(xy[s]).astype(np.int64) for xy, s in zip(places, shown, strict=True)]
        found = np.concatenate(pixels)
        if not len(found):
            return
        (low_x, low_y), (high_x, high_y) = found.min(axis=0), found.max(axis=0) + 1
        block = self._region.read((z0, int(low_y), int(low_x)), (z0 + depth, int(high_y), int(high_x)))
        for z in range(depth):
            out[z][shown[z]] = block[z, pixels[z][:, 1] - low_y, pixels[z][:, 0] - low_x]


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
    return _triple(np.rint(low) - [0, 2, 2]), _triple(np.rint(high) + [1, 3, 3])


def _triple(values: Sequence[int] | np.ndarray) -> Triple:
    a, b, c = (int(v) for v in values)
    return (a, b, c)

"""Training volumes: pairs of an image and its labels, read in pieces where they are.

A pair gives one region to train on and, with `validation_fraction`, one to judge by. Regions are
boxes of the volumes' voxels; patches lie wholly within one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.sampling import open_gaps
from happyneurons.store.triples import Triple, triple
from happyneurons.store.volumes import Volume, open_volume

CELL = 64
"""Edge of the pieces that are read and kept, voxels: that of most volumes' chunks."""
CACHE_BYTES = 2**29
"""Of pieces that a process keeps."""
VOXEL_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Region:
    """A box [start, stop) of a pair, zyx. number: its place among all regions."""

    number: int
    image: str
    labels: str
    start_zyx: Triple
    stop_zyx: Triple
    validation: bool

    @property
    def shape_zyx(self) -> Triple:
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)


def same_voxel_size(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(np.allclose(a, b, rtol=VOXEL_SIZE_TOLERANCE))


def known_voxel_size(volume: Volume) -> tuple[float, float, float] | None:
    """Voxel size (xyz, nm), or None of an HDF5 file that does not say one."""
    size = volume.voxel_size_nm_xyz
    return None if volume.uri.startswith("h5://") and size == (1.0, 1.0, 1.0) else size


def common_box(image: Volume, labels: Volume) -> tuple[Triple, Triple]:
    """(start, stop), zyx, of the voxels that both have. Raises UserError if they do not fit together."""
    if not same_voxel_size(image.voxel_size_nm_xyz, labels.voxel_size_nm_xyz):
        raise UserError(
            f"ffn-train: image and labels differ in voxel size, {image.voxel_size_nm_xyz} and "
            f"{labels.voxel_size_nm_xyz} nm: {image.uri}, {labels.uri}"
        )
    if labels.dtype.kind not in "ui":
        raise UserError(f"ffn-train: labels have type {labels.dtype}, whole numbers were expected: {labels.uri}")
    start, stop = np.maximum(image.start_zyx, labels.start_zyx), np.minimum(image.stop_zyx, labels.stop_zyx)
    if (stop <= start).any():
        raise UserError(
            f"ffn-train: image and labels have no voxels in common; the image is {image.start_zyx}..{image.stop_zyx}, "
            f"the labels {labels.start_zyx}..{labels.stop_zyx} (zyx): {image.uri}, {labels.uri}"
        )
    return triple(start), triple(stop)


def split(start: Triple, stop: Triple, fraction: float, axis: int) -> tuple[Triple, Triple]:
    """(stop of the training part, start of the validation part): a slab at the far end of an axis."""
    cut = stop[axis] - round((stop[axis] - start[axis]) * fraction)
    training, validation = list(stop), list(start)
    training[axis] = validation[axis] = cut
    return triple(training), triple(validation)


class Cells:
    """Reads boxes of volumes, piece by piece, and keeps the pieces used last."""

    def __init__(self, mip: int, label_gap_px: int, limit_bytes: int = CACHE_BYTES) -> None:
        self._mip, self._gap, self._limit, self._bytes = mip, label_gap_px, limit_bytes, 0
        self._volumes: dict[str, Volume] = {}
        self._kept: OrderedDict[tuple[str, Triple], np.ndarray] = OrderedDict()

    def volume(self, uri: str) -> Volume:
        if uri not in self._volumes:
            self._volumes[uri] = open_volume(uri, self._mip)
        return self._volumes[uri]

    def read(self, uri: str, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        """(z, y, x) array of a box, which must lie inside the volume."""
        out = np.empty([b - a for a, b in zip(start_zyx, stop_zyx, strict=True)], self.volume(uri).dtype)
        ranges = [range(a // CELL, (b - 1) // CELL + 1) for a, b in zip(start_zyx, stop_zyx, strict=True)]
        for z, y, x in product(*ranges):
            low, block = self._cell(uri, (z, y, x))
            start = np.maximum(low, start_zyx)
            stop = np.minimum(np.add(low, block.shape), stop_zyx)
            into = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, start_zyx, strict=True))
            out[into] = block[tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, low, strict=True))]
        return out

    def labels(self, uri: str, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        """The same of labels, with gaps between objects; the same voxels whatever box they are read in."""
        volume = self.volume(uri)
        low = np.maximum(np.subtract(start_zyx, self._gap), volume.start_zyx)
        high = np.minimum(np.add(stop_zyx, self._gap), volume.stop_zyx)
        opened = open_gaps(self.read(uri, low.tolist(), high.tolist()), self._gap)
        return opened[tuple(slice(a - o, b - o) for a, b, o in zip(start_zyx, stop_zyx, low, strict=True))]

    def _cell(self, uri: str, index: Triple) -> tuple[Triple, np.ndarray]:
        volume = self.volume(uri)
        low = np.maximum(np.multiply(index, CELL), volume.start_zyx)
        if (uri, index) not in self._kept:
            high = np.minimum(np.multiply(np.add(index, 1), CELL), volume.stop_zyx)
            block = volume.read(low.tolist(), high.tolist())
            self._kept[(uri, index)] = block
            self._bytes += block.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes
        self._kept.move_to_end((uri, index))
        return triple(low), self._kept[(uri, index)]

    def patch(
        self, region: Region, centre: Triple, half: Triple, architecture: Architecture
    ) -> tuple[NDArray[np.float32], np.ndarray]:
        """Normalized image and labels of 2 · half + 1 voxels around a centre."""
        start = [c - h for c, h in zip(centre, half, strict=True)]
        stop = [c + h + 1 for c, h in zip(centre, half, strict=True)]
        image = architecture.normalize(self.read(region.image, start, stop))
        return image, self.labels(region.labels, start, stop)

"""Volumes read at the voxels of another one: masks and labels of their own resolution or extent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.store.volumes import Hdf5Volume, PrecomputedVolume, Volume, open_volume

Size = tuple[float, float, float]
Convert = Callable[[np.ndarray], np.ndarray]

UNKNOWN_SIZE: Size = (1.0, 1.0, 1.0)
"""nm; what HDF5 files that do not tell their voxel size are given."""


@dataclass(frozen=True)
class Layer:
    """A volume read at the voxels of an image; both share the origin of physical space.

    voxel_size_nm_xyz: its own; image_size_nm_xyz: that of the image's voxels.
    """

    volume: Volume
    voxel_size_nm_xyz: Size
    image_size_nm_xyz: Size

    @classmethod
    def open(cls, uri: str, image_size_nm_xyz: Size, own_size_nm_xyz: Size | None = None) -> Layer:
        """The coarsest level of the volume that is not coarser than the image, or else its finest one.

        Raises UserError if an HDF5 file does not tell its voxel size although the image's is known.
        """
        volume: Volume = open_volume(uri)
        if isinstance(volume, PrecomputedVolume) and own_size_nm_xyz is None:
            for mip in range(1, volume.mips):
                level = PrecomputedVolume(uri, mip)
                sizes = zip(level.voxel_size_nm_xyz, image_size_nm_xyz, strict=True)
                if all(own <= image * 1.001 for own, image in sizes):
                    volume = level
        size = own_size_nm_xyz or volume.voxel_size_nm_xyz
        if isinstance(volume, Hdf5Volume) and size == UNKNOWN_SIZE != image_size_nm_xyz:
            raise UserError(
                f"{uri} does not tell its voxel size, so it cannot be laid over the image's voxels of "
                f"{nm(image_size_nm_xyz)}; give the dataset an attribute voxel_size_nm_xyz"
            )
        return cls(volume, size, image_size_nm_xyz)

    def _positions(self, axis: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Own positions of the nearest voxels of image voxels [start, stop) along a zyx axis; which are inside."""
        ratio = self.image_size_nm_xyz[2 - axis] / self.voxel_size_nm_xyz[2 - axis]
        position = np.floor((np.arange(start, stop) + 0.5) * ratio).astype(np.int64)
        return position, (position >= self.volume.start_zyx[axis]) & (position < self.volume.stop_zyx[axis])

    def cover(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> float:
        """Share of the image voxels [start, stop) that lie inside the volume."""
        inside = [self._positions(axis, start_zyx[axis], stop_zyx[axis])[1].mean() for axis in range(3)]
        return float(np.prod(inside))

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int], convert: Convert) -> np.ndarray:
        """(z, y, x) converted values at image voxels [start, stop), nearest voxel; outside the value 0 is converted.

        convert: elementwise; it is given the volume's own voxels, which are fewer where it is coarser.
        """
        found = [self._positions(axis, start_zyx[axis], stop_zyx[axis]) for axis in range(3)]
        background = convert(np.zeros(1, self.volume.dtype))
        out = np.full([len(position) for position, _ in found], background[0], background.dtype)
        if not all(inside.any() for _, inside in found):
            return out
        known = [position[inside] for position, inside in found]
        low = [int(position[0]) for position in known]
        block = convert(self.volume.read(low, [int(position[-1]) + 1 for position in known]))
        z, y, x = (position - a for position, a in zip(known, low, strict=True))
        out[np.ix_(*(inside for _, inside in found))] = block[np.ix_(z, y, x)]
        return out


def nm(size_xyz: Sequence[float]) -> str:
    """A voxel size for people."""
    return " x ".join(f"{v:g}" for v in size_xyz) + " nm (xyz)"

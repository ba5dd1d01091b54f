"""Masks of another resolution or extent than the image they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from happyneurons.store.volumes import PrecomputedVolume, Volume, open_volume

Size = tuple[float, float, float]


def open_mask(uri: str, voxel_size_nm_xyz: Size) -> Volume:
    """The mask's mip level of the given voxel size, or else its finest one."""
    volume = open_volume(uri)
    if isinstance(volume, PrecomputedVolume):
        for mip in range(volume.mips):
            level = PrecomputedVolume(uri, mip)
            if np.allclose(level.voxel_size_nm_xyz, voxel_size_nm_xyz):
                return level
    return volume


def read_mask(
    volume: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int], voxel_size_nm_xyz: Size
) -> NDArray[np.bool_]:
    """Where the mask is not 0, for image voxels [start, stop) of the given size; nearest voxel.

    Both volumes share the origin of physical space. Outside the mask's extent nothing is masked.
    """
    indices, inside = [], []
    for axis in range(3):
        ratio = voxel_size_nm_xyz[2 - axis] / volume.voxel_size_nm_xyz[2 - axis]
        index = np.floor((np.arange(start_zyx[axis], stop_zyx[axis]) + 0.5) * ratio).astype(np.int64)
        inside.append((index >= volume.start_zyx[axis]) & (index < volume.stop_zyx[axis]))
        indices.append(index)
    mask = np.zeros([len(i) for i in indices], bool)
    if all(i.any() for i in inside):
        known = [i[k] for i, k in zip(indices, inside, strict=True)]
        low = [int(i[0]) for i in known]
        block = volume.read(low, [int(i[-1]) + 1 for i in known])
        z, y, x = (i - a for i, a in zip(known, low, strict=True))
        mask[np.ix_(*inside)] = block[np.ix_(z, y, x)] != 0
    return mask


def outside(image: np.ndarray, grey: int) -> np.ndarray:
    """Where (z, y, x) no section shows anything: areas of one grey value, 7 x 7 px or more in a section.

    Single black voxels of the tissue do not count. A network that is trained on tissue takes large black
    areas for one object and joins to it whatever touches the border.
    """
    from scipy import ndimage

    flat = image == grey
    if not flat.any():
        return flat
    return np.asarray(ndimage.binary_opening(np.pad(flat, ((0, 0), (3, 3), (3, 3)), mode="edge"), np.ones((1, 7, 7))))[
        :, 3:-3, 3:-3
    ]

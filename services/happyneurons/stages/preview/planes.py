"""Downsampled planes of volumes, read piece by piece, so that a section of any size fits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from happyneurons.store.volumes import Hdf5Volume, PrecomputedVolume, open_volume

Axis = Literal["xy", "xz", "yz"]
AXES: dict[Axis, tuple[int, int, int]] = {"xy": (0, 1, 2), "xz": (1, 0, 2), "yz": (2, 0, 1)}
"""Of each cut, in zyx numbering: the axis that it stands on, its rows and its columns."""
SLAB_VOXELS = 16 << 20  # held at a time
Volume = PrecomputedVolume | Hdf5Volume
Box = tuple[tuple[int, int, int], tuple[int, int, int]]


def at_level(fine: Volume, level: Volume, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Box | None:
    """A box of one volume's voxels in those of another level, or of another volume of the same space.

    None if it does not lie inside.
    """
    ratio = np.divide(level.voxel_size_nm_xyz, fine.voxel_size_nm_xyz)[::-1]
    low = np.floor(np.divide(start_zyx, ratio) + 1e-6).astype(int)
    high = np.maximum(np.ceil(np.divide(stop_zyx, ratio) - 1e-6).astype(int), low + 1)
    if (low < level.start_zyx).any() or (high > level.stop_zyx).any():
        return None
    return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))


def finest_needed(uri: str, max_px: int) -> Volume:
    """The coarsest level that still has max_px along y or x, and sections of their own."""
    best = open_volume(uri)
    if isinstance(best, Hdf5Volume):
        return best
    for mip in range(1, best.mips):
        level = open_volume(uri, mip)
        thinner = level.voxel_size_nm_xyz[2] == best.voxel_size_nm_xyz[2]
        if not thinner or max(level.shape_zyx[1:]) < max_px or not isinstance(level, PrecomputedVolume):
            break
        best = level
    return best


def plane(
    volume: Volume, axis: Axis, index: int, max_px: int, *, labels: bool, box: Box | None = None
) -> NDArray[np.generic]:
    """A cut through a volume, at most max_px along its longer side, with isotropic pixels.

    index: voxel on the cut's axis, in the volume's coordinates; box: the part to show, all if None.
    Images are averaged over what a pixel covers within its section, labels are sampled. z is sampled
    and never averaged over sections: jitter between sections stays visible.
    """
    normal, rows, columns = AXES[axis]
    start, stop = (list(corner) for corner in (box or (volume.start_zyx, volume.stop_zyx)))
    shape = [b - a for a, b in zip(start, stop, strict=True)]
    size_nm = volume.voxel_size_nm_xyz[::-1]
    longest_nm = max(shape[rows] * size_nm[rows], shape[columns] * size_nm[columns])
    pixel_nm = max(longest_nm / max_px, min(size_nm[rows], size_nm[columns]))
    steps = [max(1, int(pixel_nm // size_nm[a])) for a in (rows, columns)]
    start[normal], stop[normal] = index, index + 1
    per_slab = max(1, SLAB_VOXELS // max(1, shape[columns]) // steps[0]) * steps[0]
    if rows == 0:
        per_slab = steps[0]  # one section is kept of those that a pixel covers
    parts = []
    for low in range(start[rows], stop[rows], per_slab):
        a, b = list(start), list(stop)
        a[rows], b[rows] = low, min(low + per_slab, stop[rows])
        if rows == 0:
            b[rows] = low + 1
        block = np.squeeze(volume.read(a, b), axis=normal)
        parts.append(_shrink(block, 1 if rows == 0 else steps[0], steps[1], labels))
    return stretch(
        np.concatenate(parts), [s * size_nm[a] / pixel_nm for s, a in zip(steps, (rows, columns), strict=True)]
    )


def _shrink(block: np.ndarray, rows: int, columns: int, labels: bool) -> np.ndarray:
    """By whole factors; what is left over at the far sides makes a smaller pixel."""
    if rows == columns == 1:
        return block
    if labels:
        return block[rows // 2 :: rows, columns // 2 :: columns] if min(block.shape) > max(rows, columns) else block
    sums = np.add.reduceat(np.add.reduceat(block, range(0, block.shape[0], rows), axis=0, dtype=np.float32),
                           range(0, block.shape[1], columns), axis=1)  # fmt: skip
    row_counts = np.diff([*range(0, block.shape[0], rows), block.shape[0]])
    column_counts = np.diff([*range(0, block.shape[1], columns), block.shape[1]])
    mean = sums / np.outer(row_counts, column_counts)
    return np.rint(mean).astype(block.dtype) if block.dtype.kind in "ui" else mean.astype(block.dtype)


def stretch(picture: np.ndarray, factors_rc: list[float]) -> np.ndarray:
    """Nearest-neighbour enlargement (or reduction) by any factors, for rows and columns."""
    for axis, factor in enumerate(factors_rc):
        length = picture.shape[axis]
        wanted = max(1, round(length * factor))
        if wanted != length:
            picture = np.take(picture, np.minimum((np.arange(wanted) * length) // wanted, length - 1), axis=axis)
    return picture


def as_grey(picture: np.ndarray) -> NDArray[np.uint8]:
    """uint8 as it is; other types from their least to their greatest value."""
    if picture.dtype == np.uint8:
        return picture
    low, high = float(picture.min()), float(picture.max())
    scaled = (picture.astype(np.float32) - low) * (255 / (high - low) if high > low else 0)
    return np.rint(scaled).astype(np.uint8)

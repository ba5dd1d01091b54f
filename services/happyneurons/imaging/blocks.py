"""A volume cut into blocks that touch, and the voxels of each label counted over them.

What is made object by object (meshes, skeletons) needs to know early how large an object is in the
whole volume: its part in one block may be small although the object is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from happyneurons.errors import UserError
from happyneurons.store.triples import Triple, triple

MIN_BLOCK_VX = 16


@dataclass(frozen=True)
class Block:
    """Voxels [start, stop), (z, y, x). `key`: `x0-x1_y0-y1_z0-z1`, which carries the geometry."""

    start_zyx: Triple
    stop_zyx: Triple

    @property
    def key(self) -> str:
        axes = zip(reversed(self.start_zyx), reversed(self.stop_zyx), strict=True)
        return "_".join(f"{a}-{b}" for a, b in axes)

    @property
    def voxels(self) -> int:
        return int(np.prod(np.subtract(self.stop_zyx, self.start_zyx)))


@dataclass(frozen=True)
class BlockGrid:
    """Bounds of a volume and the size of its blocks, in voxels of one level."""

    low_zyx: Triple
    high_zyx: Triple
    size_zyx: Triple

    @staticmethod
    def of(low_zyx: Triple, high_zyx: Triple, block_size_xyz: Sequence[int]) -> BlockGrid:
        """Raises UserError if a block would be thinner than MIN_BLOCK_VX."""
        x, y, z = (int(v) for v in block_size_xyz)
        if min(x, y, z) < MIN_BLOCK_VX:
            raise UserError(
                f"params.block_size_xyz: expected at least {MIN_BLOCK_VX} voxels along each axis, got {(x, y, z)}"
            )
        return BlockGrid(low_zyx, high_zyx, (z, y, x))

    def __iter__(self) -> Iterator[Block]:
        """Blocks, z slowest; the last ones of each axis may be smaller."""
        axes = [range(a, b, s) for a, b, s in zip(self.low_zyx, self.high_zyx, self.size_zyx, strict=True)]
        for start in itertools.product(*axes):
            stop = (min(a + s, b) for a, s, b in zip(start, self.size_zyx, self.high_zyx, strict=True))
            yield Block((start[0], start[1], start[2]), triple(stop))

    def beyond(self, block: Block, voxels: int) -> Triple:
        """End of the block with `voxels` more on its far sides, as far as the volume goes."""
        return triple(min(b + voxels, h) for b, h in zip(block.stop_zyx, self.high_zyx, strict=True))


def count_voxels(labels_zyx: np.ndarray) -> dict[int, int]:
    """Voxels of each label but background."""
    values, numbers = np.unique(labels_zyx, return_counts=True)
    counts = dict(zip((int(v) for v in values), (int(n) for n in numbers), strict=True))
    counts.pop(0, None)
    return counts


def without(labels_zyx: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Labels with those in `dropped` made background; the same array if there are none."""
    if not len(dropped):
        return labels_zyx
    return np.where(np.isin(labels_zyx, dropped), labels_zyx.dtype.type(0), labels_zyx)

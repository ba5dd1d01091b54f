"""What a job measures: the opened level, the box of it, and the blocks, once per process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.imaging.blocks import Block, BlockGrid
from happyneurons.jobs.stage import Context
from happyneurons.store.artifacts import Bounds
from happyneurons.store.triples import Triple
from happyneurons.store.volumes import Volume, open_volume
from happyneurons.unions.tree import GroupTree

if TYPE_CHECKING:
    from happyneurons.stages.statistics.stage import StatisticsParams


@dataclass(frozen=True)
class Subject:
    """volume: the level. grid: the measured box [low, high), voxels of the level, and the size of blocks. origin: where
    blocks are counted from. tree: groups of blocks."""

    volume: Volume
    grid: BlockGrid
    origin_zyx: Triple

    @staticmethod
    def of(context: Context[Any]) -> Subject:
        """Raises UserError if the level, the box or the blocks cannot be."""
        subject: Subject = context.once("subject", lambda: _open(context))
        return subject

    @property
    def tree(self) -> GroupTree:
        z, y, x = (
            -(-(b - a) // s) for a, b, s in zip(self.origin_zyx, self.grid.high_zyx, self.grid.size_zyx, strict=True)
        )  # fmt: skip
        return GroupTree((z, y, x))

    def block(self, index_zyx: Triple) -> Block:
        """A block of the grid, which begins at the volume's corner so that blocks and chunks fit, cut by the box."""
        start = [o + i * s for o, i, s in zip(self.origin_zyx, index_zyx, self.grid.size_zyx, strict=True)]
        stop = [min(a + s, h) for a, s, h in zip(start, self.grid.size_zyx, self.grid.high_zyx, strict=True)]
        start = [max(a, low) for a, low in zip(start, self.grid.low_zyx, strict=True)]
        return Block((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def read_beyond(self, block: Block) -> np.ndarray:
        """The block's labels with one layer of voxels beyond its far sides, as far as the box goes."""
        labels = self.volume.read(block.start_zyx, self.grid.beyond(block, 1))
        return labels.astype(np.uint64) if labels.dtype.kind == "i" else labels

    @property
    def bounds(self) -> Bounds:
        (z0, y0, x0), (z1, y1, x1) = self.grid.low_zyx, self.grid.high_zyx
        return Bounds(minimum_xyz=(x0, y0, z0), maximum_xyz=(x1, y1, z1))


def _open(context: Context[Any]) -> Subject:
    params: StatisticsParams = context.params
    volume = open_volume(context.input("segmentation").data_uri, params.mip)
    if volume.dtype.kind not in "ui":
        raise UserError(f"statistics: {volume.uri} holds {volume.dtype}; labels are integers")
    low, high = volume.start_zyx, volume.stop_zyx
    if params.bounds_xyz is not None:
        (x0, y0, z0), (x1, y1, z1) = params.bounds_xyz
        wanted_low, wanted_high = (z0, y0, x0), (z1, y1, x1)
        inside = all(
            a <= c < d <= b for a, b, c, d in zip(low, high, wanted_low, wanted_high, strict=True)
        )  # fmt: skip
        if not inside:
            raise UserError(
                f"params.bounds_xyz: {params.bounds_xyz[0]}..{params.bounds_xyz[1]} is no box within the segmentation, "
                f"{low[::-1]}..{high[::-1]} at mip {params.mip} (xyz)"
            )
        low, high = wanted_low, wanted_high
    grid = BlockGrid.of(low, high, params.block_size_xyz)
    first = [o + (a - o) // s * s for o, a, s in zip(volume.start_zyx, low, grid.size_zyx, strict=True)]
    return Subject(volume, grid, (first[0], first[1], first[2]))

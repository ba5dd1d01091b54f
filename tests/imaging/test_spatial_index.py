"""Documents of a spatial index are named as CloudVolume names a box, which is how it finds them."""

from __future__ import annotations

import numpy as np
import pytest
from cloudvolume.lib import Bbox, getprecision

from happyneurons.imaging.blocks import Block, BlockGrid
from happyneurons.imaging.spatial_index import SpatialGrid

BLOCKS = [Block((-3, 5, 9), (29, 37, 41)), Block((1000, 77_777, 0), (1032, 77_809, 32))]


@pytest.mark.parametrize("size", [(10, 10, 10), (8, 8, 30.5), (4.0, 4.25, 33), (3.333, 1, 1)])
def test_names(size: tuple[float, float, float]) -> None:
    grid = SpatialGrid(BlockGrid((0, 0, 0), (64, 64, 64), (32, 32, 32)), size)
    voxel = np.array([int(v) if float(v).is_integer() else v for v in size])
    for block in BLOCKS:
        low, high = (np.array(corner[::-1]) * voxel for corner in (block.start_zyx, block.stop_zyx))
        digits = max(getprecision(v) for v in voxel.tolist())
        assert grid.name(block) == f"{Bbox(low, high, dtype=voxel.dtype).to_filename(digits)}.spatial"

"""Which objects lie where in a mesh or skeleton layer: CloudVolume's and igneous' spatial index.

`{x0}-{x1}_{y0}-{y1}_{z0}-{z1}.spatial` for each block (nm), JSON: `{"LABEL": [x0, y0, z0, x1, y1, z1]}`, the
bounds of the label's piece in that block, in whole nm. The layer's `info` says how large blocks are:
`"spatial_index": {"resolution", "chunk_size"}`, and here also `voxel_offset` and `size` of the level, since
a layer outside of a segmentation has no other place for them. Read it with
`happyneurons.store.layers.open_meshes(URI).spatial_index.query(bbox_nm)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.imaging.blocks import Block, BlockGrid
from happyneurons.store.documents import Store


@dataclass(frozen=True)
class SpatialGrid:
    """Blocks of a level, and the size of its voxels."""

    blocks: BlockGrid
    voxel_size_nm_xyz: tuple[float, float, float]

    def info(self) -> dict[str, Any]:
        """The entry `spatial_index` of a layer's `info`."""
        low, high = np.array(self.blocks.low_zyx[::-1]), np.array(self.blocks.high_zyx[::-1])
        voxel = np.array([_number(v) for v in self.voxel_size_nm_xyz])
        return {
            "resolution": voxel.tolist(),
            "chunk_size": (np.array(self.blocks.size_zyx[::-1]) * voxel).tolist(),
            "voxel_offset": low.tolist(),
            "size": (high - low).tolist(),
        }

    def name(self, block: Block) -> str:
        """The name of a block's document."""
        # As CloudVolume writes a box: whole numbers as such, others with as many digits as the voxel size has.
        voxel = np.array([_number(v) for v in self.voxel_size_nm_xyz])
        digits = max(len(str(v).partition(".")[2]) for v in voxel.tolist())
        low, high = ((np.array(p[::-1]) * voxel).tolist() for p in (block.start_zyx, block.stop_zyx))
        axes = (f"{a:.{digits}f}-{b:.{digits}f}" for a, b in zip(low, high, strict=True))
        return f"{'_'.join(axes)}.spatial"

    def write(self, store: Store, block: Block, vertices_nm: Mapping[int, np.ndarray]) -> None:
        """vertices_nm: label → (n, 3), x y z."""
        bounds = {
            str(label): [*np.floor(v.min(0)).astype(int).tolist(), *np.ceil(v.max(0)).astype(int).tolist()]
            for label, v in sorted(vertices_nm.items())
            if len(v)
        }
        store.put_json(self.name(block), bounds)


def _number(value: float) -> float | int:
    """Whole numbers as such: CloudVolume builds names with them."""
    return int(value) if float(value).is_integer() else float(value)

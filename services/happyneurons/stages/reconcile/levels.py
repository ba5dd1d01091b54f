"""The pyramid of a segmentation: each level the most frequent label of 2 x 2 x 2 voxels.

Voxel v of a level covers voxels 2 v and 2 v + 1 of the level below along every halved axis, in the
volume's own coordinates, whatever its offset. Axes that are already twice as coarse as the finest
are not halved, until the others have caught up.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from happyneurons.stages.reconcile.blocks import CHUNK, Block, Triple
from happyneurons.store.documents import Store
from happyneurons.store.volumes import PrecomputedVolume

_BLOCK = 4 * CHUNK


def factors_xyz(resolution_nm: tuple[float, ...]) -> Triple:
    """How many voxels along x, y, z make one of the next level."""
    x, y, z = (2 if r < 2 * min(resolution_nm) else 1 for r in resolution_nm)
    return (x, y, z)


def add_levels(uri: str, levels: int) -> int:
    """Write up to `levels` more scales into a volume's `info`, which has one; returns how many.

    No level is made of a volume that fits into one chunk.
    """
    store = Store(uri)
    info = store.get_json("info")
    info["scales"] = [info["scales"][0]]
    for _ in range(levels):
        below = info["scales"][-1]
        if max(below["size"]) <= CHUNK:
            break
        factors = factors_xyz(tuple(below["resolution"]))
        start = [o // f for o, f in zip(below["voxel_offset"], factors, strict=True)]
        stop = [-(-(o + n) // f) for o, n, f in zip(below["voxel_offset"], below["size"], factors, strict=True)]
        resolution = [r * f for r, f in zip(below["resolution"], factors, strict=True)]
        info["scales"].append(
            {
                **below,
                "key": "_".join(f"{r:g}" for r in resolution),
                "resolution": resolution,
                "voxel_offset": start,
                "size": [b - a for a, b in zip(start, stop, strict=True)],
            }
        )
    store.put_json("info", info)
    return len(info["scales"]) - 1


def level_blocks(uri: str, level: int) -> list[Block]:
    """Blocks of a level, with faces on chunk borders."""
    volume = PrecomputedVolume(uri, level)
    ranges = [
        [(a, min(a + _BLOCK, stop)) for a in range(start, stop, _BLOCK)]
        for start, stop in zip(volume.start_zyx, volume.stop_zyx, strict=True)
    ]
    return [Block((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z, y, x in product(*ranges)]


def write_level(uri: str, level: int, block: Block) -> int:
    """Compute a block of a level from the level below and write it; returns its number of voxels."""
    import tinybrain

    below, volume = PrecomputedVolume(uri, level - 1), PrecomputedVolume(uri, level)
    factors = factors_xyz(below.voxel_size_nm_xyz)[::-1]
    wanted_start, wanted_stop = np.multiply(block.start_zyx, factors), np.multiply(block.stop_zyx, factors)
    start, stop = np.maximum(wanted_start, below.start_zyx), np.minimum(wanted_stop, below.stop_zyx)
    found = below.read(start.tolist(), stop.tolist())
    # A level's outermost voxels may reach beyond the volume: what lies at its face stands for that.
    found = np.pad(found, list(zip(start - wanted_start, wanted_stop - stop, strict=True)), mode="edge")
    (halved,) = tinybrain.downsample_segmentation(np.asfortranarray(found.T), factors[::-1], num_mips=1)
    volume.write(block.start_zyx, halved.T)
    return int(halved.size)

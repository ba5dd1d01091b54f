"""Pyramids of precomputed volumes: each level half the resolution of the one below.

Voxel v of a level covers voxels 2 v and 2 v + 1 of the level below along every halved axis, in the
volume's own coordinates, whatever its offset. Axes that are already twice as coarse as the finest
are not halved until the others have caught up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np

from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple
from happyneurons.store.volumes import PrecomputedVolume

Box = tuple[Triple, Triple]
"""[start, stop), zyx."""
PART_PX = 256
"""Levels are made in cubes of this edge."""


def factors_xyz(resolution_nm: tuple[float, ...]) -> Triple:
    """How many voxels along x, y, z make one of the next level."""
    x, y, z = (2 if r < 2 * min(resolution_nm) else 1 for r in resolution_nm)
    return (x, y, z)


def add_levels(uri: str, levels: int, shard_bytes: int = 0) -> int:
    """Write up to `levels` more scales into the `info` of a volume that has one; returns how many.

    No level is made of a volume that fits into one chunk. shard_bytes: as for `create_volume`. Doing it
    again is harmless.
    """
    store = Store(uri)
    info = store.get_json("info")
    info["scales"] = [info["scales"][0]]
    for _ in range(levels):
        below = info["scales"][-1]
        if all(n <= c for n, c in zip(below["size"], below["chunk_sizes"][0], strict=True)):
            break
        factors = factors_xyz(tuple(below["resolution"]))
        start = [o // f for o, f in zip(below["voxel_offset"], factors, strict=True)]
        stop = [-(-(o + n) // f) for o, n, f in zip(below["voxel_offset"], below["size"], factors, strict=True)]
        resolution = [r * f for r, f in zip(below["resolution"], factors, strict=True)]
        level = {
            **below,
            "key": "_".join(f"{r:g}" for r in resolution),
            "resolution": resolution,
            "voxel_offset": start,
            "size": [b - a for a, b in zip(start, stop, strict=True)],
        }
        if shard_bytes:
            from happyneurons.store.image_shards import image_sharding

            chunk = below["chunk_sizes"][0]
            level["sharding"] = image_sharding(level["size"], chunk, info["data_type"], shard_bytes)
        info["scales"].append(level)
    store.put_json("info", info)
    return len(info["scales"]) - 1


def blocks(volume: PrecomputedVolume, chunks_zyx: Triple) -> Iterator[Box]:
    """Boxes of so many chunks that cover a volume: their faces lie on chunk borders or on its own.

    Of a sharded volume each is a shard: no two tasks write to one file.
    """
    step = volume.shard_zyx or np.multiply(volume.chunk_zyx, chunks_zyx)
    ranges = [
        [(a, min(a + int(n), stop)) for a in range(start, stop, int(n))]
        for start, stop, n in zip(volume.start_zyx, volume.stop_zyx, step, strict=True)
    ]
    for z, y, x in product(*ranges):
        yield (z[0], y[0], x[0]), (z[1], y[1], x[1])


def write_level(uri: str, level: int, box: Box, method: Literal["mean", "mode"]) -> int:
    """Compute a box of a level from the level below and write it; returns its number of voxels.

    method: mean for images, mode (the most frequent label) for segmentations.
    """
    below, volume = PrecomputedVolume(uri, level - 1), PrecomputedVolume(uri, level)
    factors = factors_xyz(below.voxel_size_nm_xyz)[::-1]
    halved = np.zeros(np.subtract(box[1], box[0]), volume.dtype)
    cuts = [range(a, b, PART_PX) for a, b in zip(*box, strict=True)]
    for z, y, x in product(*cuts):  # so that a task's memory is its box and little more
        low = (z, y, x)
        high = triple(np.minimum(np.add(low, PART_PX), box[1]))
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, box[0], strict=True))
        halved[inner] = halve(below.read, below.start_zyx, below.stop_zyx, factors, (low, high), method)
    volume.write(box[0], halved)
    return int(halved.size)


def halve(
    read: Callable[[Sequence[int], Sequence[int]], np.ndarray],
    start_zyx: Triple,
    stop_zyx: Triple,
    factors_zyx: Triple,
    box: Box,
    method: Literal["mean", "mode"],
) -> np.ndarray:
    """(z, y, x) array of a box of a level from the level below, which `read` reads and start and stop bound."""
    wanted_start, wanted_stop = np.multiply(box[0], factors_zyx), np.multiply(box[1], factors_zyx)
    start, stop = np.maximum(wanted_start, start_zyx), np.minimum(wanted_stop, stop_zyx)
    found = read(start.tolist(), stop.tolist())
    # A level's outermost voxels may reach beyond the volume: what lies at its face stands for that.
    found = np.pad(found, list(zip(start - wanted_start, wanted_stop - stop, strict=True)), mode="edge")
    return _most_frequent(found, factors_zyx) if method == "mode" else _mean(found, factors_zyx)


def _most_frequent(labels: np.ndarray, factors_zyx: Triple) -> np.ndarray:
    import tinybrain

    (halved,) = tinybrain.downsample_segmentation(np.asfortranarray(labels.T), factors_zyx[::-1], num_mips=1)
    return np.asarray(halved.T)


def _mean(image: np.ndarray, factors_zyx: Triple) -> np.ndarray:
    """Means, those of whole numbers rounded half up: cutting them off would darken each level by 0.4 grey values."""
    if image.dtype.kind == "f":
        wide: Any = np.float64
    elif image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        wide = np.uint16 if image.dtype.itemsize == 1 else np.uint32
    else:
        wide = np.int64
    total: Any = image.astype(wide)
    for axis, factor in enumerate(factors_zyx):
        if factor == 2:
            total = total.take(range(0, total.shape[axis], 2), axis) + total.take(range(1, total.shape[axis], 2), axis)
    count = int(np.prod(factors_zyx))
    if image.dtype.kind == "f":
        return np.asarray(total / count).astype(image.dtype)
    return np.asarray((total + np.asarray(count // 2, wide)) // np.asarray(count, wide)).astype(image.dtype)

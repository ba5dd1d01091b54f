"""Training coordinates, balanced by how much of the field of view their object fills.

Method: compute_partitions and build_coordinates of google/ffn, so that thin processes and large
bodies are seen equally often. Blocks are done one by one: each counts all its voxels and keeps a
random sample of them, and drawing needs the counts only. So neither a label volume nor its list of
coordinates is ever held as a whole. All positions and shapes are (z, y, x) in voxels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.store.triples import Triple

PARTITIONS = (0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Upper bounds of the fraction of the field of view that the centre's object fills."""
BACKGROUND = 0
"""The partition of voxels without an object; those of PARTITIONS are 1, 2, …"""
COUNT = len(PARTITIONS) + 2
SAMPLE = 2048
"""Coordinates that a block keeps of each partition."""


def window_counts(mask: NDArray[np.bool_], diameter_zyx: Triple) -> NDArray[np.int32]:
    """How many voxels of a mask lie in the window around each voxel; outside of the mask there are none."""
    counts = mask.astype(np.int32)
    for axis, diameter in enumerate(diameter_zyx):
        n, half = mask.shape[axis], diameter // 2
        total = np.concatenate([np.zeros_like(counts.take([0], axis)), counts.cumsum(axis, dtype=np.int32)], axis)
        place = np.arange(n)
        counts = total.take(np.minimum(place + half + 1, n), axis) - total.take(np.maximum(place - half, 0), axis)
    return counts


def open_gaps(labels: np.ndarray, px: int) -> np.ndarray:
    """Labels (z, y, x) with 0 where another object is within `px` steps along the axes; a new array.

    Objects that touch would teach a network to fill the membrane between them, and then to cross it.
    Their borders to background stay as they are. (Google's training volumes have such gaps already.)
    """
    gap = np.zeros(labels.shape, bool)
    for axis in range(3):
        low = tuple(slice(None, -1) if i == axis else slice(None) for i in range(3))
        high = tuple(slice(1, None) if i == axis else slice(None) for i in range(3))
        touching = (labels[low] != labels[high]) & (labels[low] != 0) & (labels[high] != 0)
        gap[low] |= touching
        gap[high] |= touching
    if px > 1:
        from scipy.ndimage import binary_dilation  # this module is imported where stages are only listed

        gap = binary_dilation(gap, iterations=px - 1)
    return np.where(gap, 0, labels) if px else labels.copy()


def partition_map(labels: np.ndarray, fov_zyx: Triple, inner: tuple[slice, ...]) -> NDArray[np.uint8]:
    """Partition of every voxel of `labels[inner]`; the field of view around each must lie in `labels`."""
    import fastremap
    from scipy import ndimage

    numbers, _ = fastremap.renumber(labels, in_place=False)
    partitions = np.zeros(labels[inner].shape, np.uint8)
    volume = float(np.prod(fov_zyx))
    for number, box in enumerate(ndimage.find_objects(numbers.astype(np.int32, copy=False)), 1):
        common = [slice(max(b.start, i.start), min(b.stop, i.stop)) for b, i in zip(box, inner, strict=True)]
        if any(c.start >= c.stop for c in common):
            continue
        mask = numbers[box] == number
        # An object has no voxels outside its box, so that windows may be counted within it.
        in_box = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, box, strict=True))
        in_inner = tuple(slice(c.start - i.start, c.stop - i.start) for c, i in zip(common, inner, strict=True))
        fractions = window_counts(mask, fov_zyx)[in_box] / volume
        own = mask[in_box]
        partitions[in_inner][own] = np.digitize(fractions[own], PARTITIONS) + 1
    return partitions


@dataclass(frozen=True)
class BlockCoordinates:
    """What a block keeps. counts: all its voxels by partition; kept: (n, 3) coordinates of each."""

    counts: list[int]
    kept: list[NDArray[np.int32]]

    @classmethod
    def of(cls, partitions: NDArray[np.uint8], start_zyx: Sequence[int], rng: np.random.Generator) -> BlockCoordinates:
        counts, kept = [], []
        flat = partitions.ravel()
        for part in range(COUNT):
            found = np.flatnonzero(flat == part)
            counts.append(len(found))
            chosen = np.sort(rng.choice(found, SAMPLE, replace=False)) if len(found) > SAMPLE else found
            place = np.column_stack(np.unravel_index(chosen, partitions.shape))
            kept.append((place + np.asarray(start_zyx)).astype(np.int32))
        return cls(counts, kept)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"coordinates": np.concatenate(self.kept), "kept": np.array([len(k) for k in self.kept], np.int32)}

    @staticmethod
    def split(arrays: dict[str, np.ndarray]) -> list[NDArray[np.int32]]:
        """Coordinates by partition from what `arrays` gave."""
        return np.split(arrays["coordinates"], np.cumsum(arrays["kept"])[:-1])


class BalancedSampler:
    """Draws a partition, then one of its voxels, each evenly over all blocks.

    counts: (blocks, COUNT) voxels by partition. load: coordinates by partition of a block.
    background: whether voxels without an object are a partition, too (as in google/ffn).
    Raises UserError if no block has an object.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        load: Callable[[int], list[NDArray[np.int32]]],
        *,
        background: bool = False,
        cached_blocks: int = 64,
    ) -> None:
        self._load, self._cached_blocks = load, cached_blocks
        self._cache: OrderedDict[int, list[NDArray[np.int32]]] = OrderedDict()
        self._cumulative = np.cumsum(counts, axis=0, dtype=np.int64)
        if not len(counts) or not self._cumulative[-1, BACKGROUND + 1 :].any():
            raise UserError(
                "ffn-train: the labels hold no object further from the volumes' faces than half a training patch"
            )
        used = range(COUNT) if background else range(BACKGROUND + 1, COUNT)
        self.partitions = [p for p in used if self._cumulative[-1, p]]

    def draw(self, rng: np.random.Generator) -> tuple[int, Triple]:
        """(block, coordinate)."""
        part = self.partitions[int(rng.integers(len(self.partitions)))]
        column = self._cumulative[:, part]
        block = int(np.searchsorted(column, rng.integers(column[-1]), side="right"))
        kept = self._coordinates(block)[part]
        z, y, x = (int(v) for v in kept[int(rng.integers(len(kept)))])
        return block, (z, y, x)

    def _coordinates(self, block: int) -> list[NDArray[np.int32]]:
        if block not in self._cache:
            if len(self._cache) >= self._cached_blocks:
                self._cache.popitem(last=False)
            self._cache[block] = self._load(block)
        self._cache.move_to_end(block)
        return self._cache[block]

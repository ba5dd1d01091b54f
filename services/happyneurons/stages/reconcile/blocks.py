"""Reading subvolumes and putting blocks of the output together from them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from happyneurons.errors import NotFoundError, UserError
from happyneurons.imaging.subvolumes import Subvolume, SubvolumeGrid
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store

CHUNK = 64
"""Edge of the output's chunks, voxels."""
_MAX_BLOCK = 512

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """A box [start, stop) of the output, zyx, with faces on chunk borders or on the volume's faces."""

    start_zyx: Triple
    stop_zyx: Triple

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Block:
        """The block of a task's payload."""
        (z0, y0, x0), (z1, y1, x1) = payload["start_zyx"], payload["stop_zyx"]
        return cls((z0, y0, x0), (z1, y1, x1))

    @property
    def payload(self) -> dict[str, Any]:
        return {"start_zyx": list(self.start_zyx), "stop_zyx": list(self.stop_zyx)}

    @property
    def name(self) -> str:
        return "_".join(str(v) for v in self.start_zyx)

    @property
    def shape_zyx(self) -> Triple:
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)


def grid_of(artifact: Artifact) -> SubvolumeGrid:
    """The grid that a `subvolumes` artifact was segmented in. Raises UserError if it does not say."""
    size, overlap = artifact.properties.get("size_xyz"), artifact.properties.get("overlap_xyz")
    if size is None or overlap is None or artifact.bounds is None:
        raise UserError(f"input {artifact.uri}: subvolumes need bounds and the properties size_xyz and overlap_xyz")
    return SubvolumeGrid(artifact.bounds, size, overlap)


def number_of(grid: SubvolumeGrid, box: Subvolume) -> int:
    """Place of a box in the grid's order."""
    _, ny, nx = grid.shape_zyx
    z, y, x = box.index_zyx
    return (z * ny + y) * nx + x


def blocks(grid: SubvolumeGrid) -> Iterator[Block]:
    """Blocks that cover the volume: about as large as a box's core, so that each needs few boxes."""
    low, high = grid.bounds.minimum_xyz[::-1], grid.bounds.maximum_xyz[::-1]
    ranges = []
    for start, stop, size, overlap in zip(low, high, grid.size_xyz[::-1], grid.overlap_xyz[::-1], strict=True):
        edge = min(_MAX_BLOCK, max(CHUNK, (size - overlap) // CHUNK * CHUNK))
        ranges.append([(a, min(a + edge, stop)) for a in range(start, stop, edge)])
    for z, y, x in product(*ranges):
        yield Block((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def read_box(store: Store, box: Subvolume) -> np.ndarray | None:
    """(z, y, x) uint32 ids of a subvolume, or None if it is missing, damaged or of another shape."""
    try:
        segmentation = store.get_arrays(f"{box.name}.npz")["segmentation"]
    except (NotFoundError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
        return None
    if segmentation.shape != box.shape_zyx or segmentation.dtype.kind not in "ui":
        return None
    return segmentation.astype(np.uint32, copy=False)


def crop(array: np.ndarray, box: Subvolume, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
    """View of the part of a box's array that lies at [start, stop) of the volume."""
    return array[tuple(slice(a - o, b - o) for a, b, o in zip(start_zyx, stop_zyx, box.start_zyx, strict=True))]


class Mapping64:
    """From a box's local ids to global ids. Ids that it does not know become 0."""

    def __init__(self, local: np.ndarray, target: np.ndarray) -> None:
        self._table = np.zeros(int(local[-1]) + 1 if len(local) else 1, np.uint64)
        self._table[local] = target

    @classmethod
    def read(cls, store: Store, folder: str, box: Subvolume) -> Mapping64 | None:
        try:
            arrays = store.get_arrays(f"{folder}/{box.name}.npz")
        except NotFoundError:
            return None
        return cls(arrays["local"], arrays["target"])

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return self._table[np.where(ids < len(self._table), ids, 0)]


def assemble(
    block: Block, grid: SubvolumeGrid, subvolumes: Store, work: Store, mapping: str, *, fill: bool
) -> np.ndarray:
    """(z, y, x) uint64 ids of a block of the output.

    Every voxel takes the id that its owner gave it (the box whose core it lies in: there the
    network saw most around it). Where the owner has none and `fill` is set, the first box in grid
    order that has one decides; so a missing box is filled as far as its neighbours reach.
    One box is held at a time.
    """
    out = np.zeros(block.shape_zyx, np.uint64)
    candidates = grid.overlapping if fill else grid.owners
    for box in candidates(block.start_zyx, block.stop_zyx):
        to_global = Mapping64.read(work, mapping, box)
        ids = None if to_global is None else read_box(subvolumes, box)
        if to_global is None or ids is None:
            continue
        if fill:
            start, stop = _meet(box.start_zyx, box.stop_zyx, block)
            target = _part(out, block, start, stop)
            np.copyto(target, to_global(crop(ids, box, start, stop)), where=target == 0)
        start, stop = _meet(*grid.core(box), block)
        if all(a < b for a, b in zip(start, stop, strict=True)):
            target = _part(out, block, start, stop)
            own = to_global(crop(ids, box, start, stop))
            np.copyto(target, own, where=own > 0)
    return out


def _meet(start_zyx: Triple, stop_zyx: Triple, block: Block) -> tuple[Triple, Triple]:
    a = [max(p, q) for p, q in zip(start_zyx, block.start_zyx, strict=True)]
    b = [min(p, q) for p, q in zip(stop_zyx, block.stop_zyx, strict=True)]
    return (a[0], a[1], a[2]), (b[0], b[1], b[2])


def _part(out: np.ndarray, block: Block, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
    return out[tuple(slice(a - o, b - o) for a, b, o in zip(start_zyx, stop_zyx, block.start_zyx, strict=True))]


def counts(ids: np.ndarray) -> Mapping[str, np.ndarray]:
    """Non-zero ids of an array and their voxel counts."""
    unique, number = np.unique(ids, return_counts=True)
    return {"ids": unique[unique > 0], "counts": number[unique > 0].astype(np.int64)}

"""Reading subvolumes, which of them supplies a voxel, and putting blocks of the output together."""

from __future__ import annotations

import zipfile

import numpy as np

from happyneurons.errors import NotFoundError, UserError
from happyneurons.imaging.subvolumes import Subvolume, SubvolumeGrid
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple
from happyneurons.unions.output import CHUNK, Block, BlockGrid, LocalToGlobal

_MAX_BLOCK = 512


def grid_of(artifact: Artifact) -> SubvolumeGrid:
    """The grid that a `subvolumes` artifact was segmented in. Raises UserError if it does not say."""
    size, overlap = artifact.properties.get("size_xyz"), artifact.properties.get("overlap_xyz")
    if size is None or overlap is None or artifact.bounds is None:
        raise UserError(f"input {artifact.uri}: subvolumes need bounds and the properties size_xyz and overlap_xyz")
    return SubvolumeGrid(artifact.bounds, size, overlap)


def blocks(grid: SubvolumeGrid) -> BlockGrid:
    """Blocks that cover the volume: about as large as a box's core, so that each needs few boxes."""
    z, y, x = (
        min(_MAX_BLOCK, max(CHUNK, (size - overlap) // CHUNK * CHUNK))
        for size, overlap in zip(grid.size_xyz[::-1], grid.overlap_xyz[::-1], strict=True)
    )
    return BlockGrid(grid.bounds, (z, y, x))


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
    return _part(array, box.start_zyx, start_zyx, stop_zyx)


class Supply:
    """Which box supplies each voxel of a box's core.

    Every voxel takes the segment of its owner (the box whose core it lies in: there the network saw
    most around it). Where the owner has none and `fill` is set, the first box in grid order that has
    one decides; so a missing box is filled as far as its neighbours reach. That a segment is dropped
    later for its size changes nothing here: sizes are exactly the voxels of the output.
    """

    def __init__(self, grid: SubvolumeGrid, owner: Subvolume, ids: np.ndarray | None, *, fill: bool) -> None:
        """ids: (z, y, x) uint32 of the owner, None if it is missing."""
        self.start_zyx, self.stop_zyx = grid.core(owner)
        shape = tuple(b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        self._free = np.full(shape, fill)
        if fill and ids is not None:
            self._free &= crop(ids, owner, self.start_zyx, self.stop_zyx) == 0

    def wants(self, other: Subvolume) -> bool:
        """Whether there are voxels left that another box may supply."""
        start, stop = _meet(other.start_zyx, other.stop_zyx, self.start_zyx, self.stop_zyx)
        return _is_box(start, stop) and bool(_part(self._free, self.start_zyx, start, stop).any())

    def take(self, other: Subvolume, ids: np.ndarray) -> np.ndarray:
        """Ids (n,) of the voxels that another box supplies. Boxes must come in grid order."""
        start, stop = _meet(other.start_zyx, other.stop_zyx, self.start_zyx, self.stop_zyx)
        if not _is_box(start, stop):
            return ids[:0].ravel()
        free, theirs = _part(self._free, self.start_zyx, start, stop), crop(ids, other, start, stop)
        taken = free & (theirs > 0)
        free &= ~taken
        return theirs[taken]


def assemble(block: Block, grid: SubvolumeGrid, subvolumes: Store, work: Store, *, fill: bool) -> np.ndarray:
    """(z, y, x) uint64 ids of a block of the output, supplied as `Supply` says. One box is held at a time."""
    out = np.zeros(block.shape_zyx, np.uint64)
    decided = np.zeros(block.shape_zyx, bool)
    candidates = grid.overlapping if fill else grid.owners
    for box in candidates(block.start_zyx, block.stop_zyx):
        to_global = LocalToGlobal.read(work, box.name)
        ids = None if to_global is None else read_box(subvolumes, box)
        if to_global is None or ids is None:
            continue
        # Owners come in their turn and take their core from those before them.
        for (low, high), owner in (((box.start_zyx, box.stop_zyx), False), (grid.core(box), True)):
            start, stop = _meet(low, high, block.start_zyx, block.stop_zyx)
            if not _is_box(start, stop) or not (owner or fill):
                continue
            theirs, done = crop(ids, box, start, stop), _part(decided, block.start_zyx, start, stop)
            take = (theirs > 0) & (owner | ~done)
            np.copyto(_part(out, block.start_zyx, start, stop), to_global(theirs), where=take)
            done |= take
    return out


def _meet(start_zyx: Triple, stop_zyx: Triple, low_zyx: Triple, high_zyx: Triple) -> tuple[Triple, Triple]:
    """[start, stop) of what two boxes share; no box if they share nothing."""
    a = [max(p, q) for p, q in zip(start_zyx, low_zyx, strict=True)]
    b = [min(p, q) for p, q in zip(stop_zyx, high_zyx, strict=True)]
    return (a[0], a[1], a[2]), (b[0], b[1], b[2])


def _is_box(start_zyx: Triple, stop_zyx: Triple) -> bool:
    return all(a < b for a, b in zip(start_zyx, stop_zyx, strict=True))


def _part(array: np.ndarray, origin_zyx: Triple, start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
    """View of the part of an array, which starts at `origin`, that lies at [start, stop)."""
    return array[tuple(slice(a - o, b - o) for a, b, o in zip(start_zyx, stop_zyx, origin_zyx, strict=True))]

"""Which pairs are worth asking the network about, chosen over the whole volume.

Only numbers count here, a few for each segment and each touching pair, never voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Segments:
    """All segments of the volume: sorted ids (n,) uint64, voxels (n,) int64."""

    ids: np.ndarray
    voxels: np.ndarray

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """Voxels of segments (any shape); 0 for ids that do not occur."""
        if len(self.ids) == 0:
            return np.zeros(ids.shape, np.int64)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[place] == ids, self.voxels[place], 0)


def count_segments(blocks: Iterable[Arrays]) -> Segments:
    """Sum `ids`, `voxels` of all blocks."""
    found = [(b["ids"], b["voxels"]) for b in blocks]
    every = np.concatenate([np.zeros(0, np.uint64), *(i for i, _ in found)])
    ids, place = np.unique(every, return_inverse=True)
    voxels = np.zeros(len(ids), np.int64)
    np.add.at(voxels, place, np.concatenate([np.zeros(0, np.int64), *(v for _, v in found)]))
    return Segments(ids, voxels)


@dataclass(frozen=True)
class Candidates:
    """pairs (n, 2) uint64, the smaller id first; faces (n,); points (n, 3) zyx; voxels (n, 2) of the segments.

    touching: pairs that touch at all, chosen or not.
    """

    pairs: np.ndarray
    faces: np.ndarray
    points: np.ndarray
    voxels: np.ndarray
    touching: int

    def __len__(self) -> int:
        return len(self.pairs)


def choose(
    blocks: Iterable[Arrays],
    segments: Segments,
    *,
    min_contact_faces: int,
    max_partners: int,
    min_segment_voxels: int,
    block_zyx: Sequence[int],
) -> Candidates:
    """Contacts of all blocks, summed by pair, and of those the ones to ask about, ordered by place.

    A pair's decision point is that of the block where the two touch on most faces within a cell.
    Pairs are ranked by faces among those of the smaller of the two segments, and the first
    `max_partners` are kept: so the work grows with the number of segments, however many of them a
    large neuron touches.
    """
    tables = list(blocks)
    pairs = np.concatenate([np.zeros((0, 2), np.uint64), *(t["pairs"] for t in tables)])
    faces = np.concatenate([np.zeros(0, np.int64), *(t["faces"] for t in tables)])
    points = np.concatenate([np.zeros((0, 3), np.int64), *(t["points"] for t in tables)])
    densest = np.concatenate([np.zeros(0, np.int64), *(t["point_faces"] for t in tables)])
    unique, pair = np.unique(pairs, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    total = np.zeros(len(unique), np.int64)
    np.add.at(total, pair, faces)
    z, y, x = points.T
    best = np.lexsort((x, y, z, -densest, pair))
    best = best[np.searchsorted(pair[best], np.arange(len(unique)))]
    sizes = segments.sizes(unique)
    keep = (total >= min_contact_faces) & (sizes.min(axis=1, initial=np.iinfo(np.int64).max) >= min_segment_voxels)
    # The smaller of the two; of equal ones the one with the larger id.
    smaller = np.where(sizes[:, 0] < sizes[:, 1], unique[:, 0], unique[:, 1])
    keep[keep] &= _rank(smaller[keep], total[keep]) < max_partners
    chosen = np.flatnonzero(keep)
    z, y, x = points[best[chosen]].T
    blocks_of = points[best[chosen]] // np.asarray(block_zyx)
    chosen = chosen[np.lexsort((chosen, x, y, z, *blocks_of.T[::-1]))]
    return Candidates(unique[chosen], total[chosen], points[best[chosen]], sizes[chosen], len(unique))


def _rank(owner: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Place of each pair among those of its owner: most faces first, then in the order given."""
    order = np.lexsort((np.arange(len(owner)), -faces, owner))
    first = np.searchsorted(owner[order], owner[order])
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - first
    return rank

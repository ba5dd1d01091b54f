"""What each truth object and each segment adds to the variation of information."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from happyneurons.metrics.pairs import PairTable

_PIECES = 8
"""Of one object or segment, the largest pieces that are told apart in a list of the worst."""


@dataclass(frozen=True)
class Contributions:
    """One row for each object (or segment), sorted by id.

    ids: uint64. voxels: of the object; for a segment, those inside the truth. segmented: of those,
    voxels labelled in both. partners: segments in the object (objects in the segment). largest:
    the partner with most voxels, 0 if there is none; largest_fraction: its share of `voxels`.
    voi_split, voi_merge: bits; over all objects they add up to the VOI's split and merge parts, and
    so they do over all segments. An object's split part is what its own cuts cost; its merge part
    is its share in the mergers that its segments are.
    place_zyx: (n, 3) a voxel of the object, where its largest partner is.
    """

    ids: np.ndarray
    voxels: np.ndarray
    segmented: np.ndarray
    partners: np.ndarray
    largest: np.ndarray
    largest_fraction: np.ndarray
    voi_split: np.ndarray
    voi_merge: np.ndarray
    place_zyx: np.ndarray


def contributions(table: PairTable) -> tuple[Contributions, Contributions]:
    """(objects, segments) of a table (truth object, segment); segment 0 is what is not segmented.

    VOI as in Meila 2007, taken apart: a pair with c of n voxels, in an object of t and a segment of
    s of them, adds c/n log2(t/c) to the split part and c/n log2(s/c) to the merge part.
    """
    both = table.second > 0
    count = np.where(both, table.counts, 0)
    n = float(count.sum())
    _, object_of = np.unique(table.first, return_inverse=True)
    _, segment_of = np.unique(table.second, return_inverse=True)
    split, merge = np.zeros(len(count)), np.zeros(len(count))
    c = count[both].astype(np.float64)
    for out, group in ((split, object_of), (merge, segment_of)):
        total = np.bincount(group, weights=count)[group[both]]
        out[both] = c / n * np.log2(total / c) if n else 0.0
    segments = table.where(both)
    return (
        _rows(table.first, table.second, table, split, merge),
        _rows(segments.second, segments.first, segments, split[both], merge[both]),
    )


def _rows(
    ids: np.ndarray, partners: np.ndarray, table: PairTable, split: np.ndarray, merge: np.ndarray
) -> Contributions:
    # Segmented pairs first, the largest of them first: a group's first row is its largest partner.
    order = np.lexsort((partners, -table.counts, partners == 0, ids))
    unique, first, group = np.unique(ids[order], return_index=True, return_inverse=True)
    count, partner = table.counts[order], partners[order]
    real = partner > 0
    voxels = np.bincount(group, weights=count, minlength=len(unique)).astype(np.int64)
    largest = np.where(real[first], count[first], 0) if len(unique) else np.zeros(0, np.int64)
    return Contributions(
        ids=unique,
        voxels=voxels,
        segmented=np.bincount(group, weights=count * real, minlength=len(unique)).astype(np.int64),
        partners=np.bincount(group, weights=real, minlength=len(unique)).astype(np.int64),
        largest=partner[first],
        largest_fraction=largest / np.maximum(voxels, 1),
        voi_split=np.bincount(group, weights=split[order], minlength=len(unique)),
        voi_merge=np.bincount(group, weights=merge[order], minlength=len(unique)),
        place_zyx=table.place_zyx[order][first],
    )


def worst(cost: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest costs above 0, the largest first, equal ones in their order."""
    order = np.argsort(-cost, kind="stable")[:count]
    return np.asarray(order[cost[order] > 1e-12])


def pieces(ids: np.ndarray, table: PairTable, wanted: int) -> PairTable:
    """The largest pairs of `wanted` with another label than 0; `ids` is the table's first or second column."""
    rows = np.flatnonzero((ids == np.uint64(wanted)) & (table.second > 0))
    order = np.lexsort((rows, -table.counts[rows]))[:_PIECES]
    return table.where(rows[order])

"""From accepted pairs to global ids: connected components over all segments of all subvolumes.

Only numbers of segments and of pairs count here, never voxels. Segments are put in the order
(box, local id), so neither the order in which pairs were compared nor the order in which they are
added can change a result.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def segment_keys(box: int, ids: np.ndarray) -> np.ndarray:
    """int64 keys of segments, unique in the whole volume: box number * 2**32 + local id (uint32)."""
    return np.int64(box) << np.int64(32) | ids.astype(np.int64)


def local_ids(keys: np.ndarray) -> np.ndarray:
    """uint32 local ids of keys."""
    return (keys & np.int64(0xFFFFFFFF)).astype(np.uint32)


def numbers(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of `wanted` (any shape) in the sorted `keys`, -1 for those that are not there."""
    place = np.searchsorted(keys, wanted)
    if len(keys) == 0:
        return np.full(wanted.shape, -1)
    return np.where(keys[np.minimum(place, len(keys) - 1)] == wanted, place, -1)


def components(count: int, edges: Iterable[np.ndarray]) -> np.ndarray:
    """Component of every node: (count,) uint64, 1, 2, … in the order of each one's smallest member.

    edges: (n, 2) integer arrays of node numbers, in any order, repetitions allowed.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if count == 0:
        return np.zeros(0, np.uint64)
    parts = [np.asarray(e, np.int64).reshape(-1, 2) for e in edges]
    pairs = np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return number_by_first(labels)


def number_by_first(labels: np.ndarray) -> np.ndarray:
    """Rename labels to 1, 2, … (uint64) in the order in which they first occur."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.uint64)
    rank[np.argsort(first, kind="stable")] = np.arange(1, len(first) + 1, dtype=np.uint64)
    return rank[inverse]

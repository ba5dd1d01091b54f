"""From accepted pairs to global ids: connected components over all segments of all subvolumes.

Only numbers of segments and of pairs count here, never voxels. Segments are put in the order
(box, local id), so neither the order in which pairs were compared nor the order in which they are
added can change a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class SegmentIndex:
    """All segments of all boxes as consecutive numbers, in the order (box, local id).

    ids_by_box: for each box, in box order, its sorted unique local ids (0 excluded).
    """

    def __init__(self, ids_by_box: Sequence[np.ndarray]) -> None:
        self._ids = list(ids_by_box)
        self._offset = np.concatenate([[0], np.cumsum([len(ids) for ids in self._ids])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._offset[-1])

    def numbers(self, box: int, ids: np.ndarray) -> np.ndarray:
        """Numbers of local ids of a box; every id must be one of the box's."""
        return np.asarray(self._offset[box] + np.searchsorted(self._ids[box], ids))

    def of_box(self, box: int) -> slice:
        """The numbers of a box's segments, in the order of its local ids."""
        return slice(int(self._offset[box]), int(self._offset[box + 1]))


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

"""What one block knows of its segments and of the faces between them.

Method: voxel counts, bounding boxes and centroids as `cc3d.statistics`, faces as `cc3d.contacts` with 6-connectivity
(connected-components-3d, W. Silversmith), but as integers by axis, which add up over blocks without rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.statistics.tables import CONTACTS, NOTHING, SEGMENTS, reduce
from happyneurons.store.triples import Triple


class Faces(NamedTuple):
    """Faces across one axis between voxels of different labels, by pair.

    low, high: (n,) places of the two labels in the block's list, low < high; 0 is background.
    number: (n,) faces. twice_xyz: (n, 3) twice the sum of their middles, voxels of the volume.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    number: NDArray[np.int64]
    twice_xyz: NDArray[np.int64]


def count_block(
    labels_zyx: np.ndarray, start_zyx: Triple, shape_zyx: Triple, *, contacts: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows of SEGMENTS, rows of CONTACTS) of a block at start_zyx of the given shape.

    labels_zyx: the block with one layer of voxels beyond its far sides, as far as the volume goes. A face belongs to
    the block of its first voxel, so each face of the volume is counted by one block. Contacts: none if not wanted.
    """
    import fastremap

    dense, names = fastremap.renumber(np.ascontiguousarray(labels_zyx), preserve_zero=True)
    ids = np.zeros(int(dense.max(initial=0)) + 1, np.uint64)
    for name, place in names.items():
        ids[int(place)] = name
    tables, pairs = [_voxels(dense[tuple(slice(0, n) for n in shape_zyx)], ids, start_zyx)], []
    for axis_xyz in range(3):
        faces = _faces(dense, len(ids), start_zyx, shape_zyx, axis_xyz)
        tables += _face_rows(faces, ids, axis_xyz)
        if contacts:
            pairs.append(_contact_rows(faces, ids, axis_xyz))
    return reduce(SEGMENTS, tables), reduce(CONTACTS, pairs)


def _voxels(dense: np.ndarray, ids: NDArray[np.uint64], start_zyx: Triple) -> NDArray[np.int64]:
    import cc3d
    import fastremap

    # cc3d takes no numbers above that of voxels: those of the layer beyond may be.
    own, names = fastremap.renumber(np.ascontiguousarray(dense), preserve_zero=True)
    found = cc3d.statistics(own, no_slice_conversion=True)
    voxels = np.asarray(found["voxel_counts"]).astype(np.int64)
    place = np.zeros(len(voxels), np.int64)
    for old, new in names.items():
        place[int(new)] = old
    there = np.flatnonzero((voxels > 0) & (np.arange(len(voxels)) > 0))
    start = np.array(start_zyx, np.int64)
    boxes = np.asarray(found["bounding_boxes"]).astype(np.int64)[there] + np.repeat(start, 2)
    # The array is zyx, so its columns are, too. The mean times the number is the sum, which is far below 2**53.
    sums = np.rint(np.asarray(found["centroids"])[there] * voxels[there, np.newaxis]).astype(np.int64)
    sums += start * voxels[there, np.newaxis]
    rows = np.zeros((len(there), SEGMENTS.columns), np.int64)
    rows[:, 0] = ids[place[there]].astype(np.int64)
    rows[:, 1] = voxels[there]
    rows[:, 2:5] = sums[:, ::-1]
    rows[:, 11:14] = -boxes[:, 0::2][:, ::-1]
    rows[:, 14:17] = boxes[:, 1::2][:, ::-1]
    return rows


def _faces(dense: np.ndarray, labels: int, start_zyx: Triple, shape_zyx: Triple, axis_xyz: int) -> Faces:
    axis = 2 - axis_xyz
    here = [slice(0, n) for n in shape_zyx]
    here[axis] = slice(0, min(shape_zyx[axis], dense.shape[axis] - 1))
    there = list(here)
    there[axis] = slice(1, here[axis].stop + 1)
    p, q = dense[tuple(here)], dense[tuple(there)]
    where = np.nonzero(p != q)
    a, b = p[where].astype(np.int64), q[where].astype(np.int64)
    keys, pair, count = np.unique(np.minimum(a, b) * labels + np.maximum(a, b), return_inverse=True, return_counts=True)
    pair, count = pair.reshape(-1), count.astype(np.int64)
    twice = np.zeros((len(keys), 3), np.int64)
    for i in range(3):
        sums = np.bincount(pair, where[2 - i], len(keys)).astype(np.int64)
        twice[:, i] = 2 * (sums + start_zyx[2 - i] * count)
    twice[:, axis_xyz] += count  # a face lies half a voxel beyond the middle of its first voxel
    return Faces(keys // labels, keys % labels, count, twice)


def _face_rows(faces: Faces, ids: NDArray[np.uint64], axis_xyz: int) -> list[NDArray[np.int64]]:
    """Faces of each label, with the background or with another label."""
    outer = faces.low == 0
    found = []
    for column, own, rows_of in ((5, faces.high, outer), (8, faces.high, ~outer), (8, faces.low, ~outer)):
        rows = np.zeros((int(rows_of.sum()), SEGMENTS.columns), np.int64)
        rows[:, 0] = ids[own[rows_of]].astype(np.int64)
        rows[:, column + axis_xyz] = faces.number[rows_of]
        rows[:, 11:] = NOTHING
        found.append(rows)
    return found


def _contact_rows(faces: Faces, ids: NDArray[np.uint64], axis_xyz: int) -> NDArray[np.int64]:
    inner = faces.low > 0
    a, b = ids[faces.low[inner]], ids[faces.high[inner]]
    rows = np.zeros((len(a), CONTACTS.columns), np.int64)
    rows[:, 0], rows[:, 1] = np.minimum(a, b).astype(np.int64), np.maximum(a, b).astype(np.int64)
    rows[:, 2 + axis_xyz] = faces.number[inner]
    rows[:, 5 + 3 * axis_xyz : 8 + 3 * axis_xyz] = faces.twice_xyz[inner]
    return rows

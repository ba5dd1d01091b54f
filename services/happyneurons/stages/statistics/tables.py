"""Partial tables: rows of integers under one or two ids, added up in any order to the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.store.documents import Store

NOTHING = np.iinfo(np.int64).min
"""The maximum of no voxels."""


@dataclass(frozen=True)
class Layout:
    """Columns of a table, all int64: ids first, then what is added up, then what the maximum is taken of."""

    folder: str
    ids: int
    sums: int
    maxima: int

    @property
    def columns(self) -> int:
        return self.ids + self.sums + self.maxima

    @property
    def row_bytes(self) -> int:
        return 8 * self.columns

    def empty(self) -> NDArray[np.int64]:
        return np.zeros((0, self.columns), np.int64)


SEGMENTS = Layout("segments", ids=1, sums=10, maxima=6)
"""id | voxels, sum of x, y, z, faces with the background across x, y, z, faces with other segments across x, y, z
| -min x, y, z, max x, y, z (inclusive)."""
CONTACTS = Layout("contacts", ids=2, sums=12, maxima=0)
"""Smaller id, larger id | faces across x, y, z; twice the sum of x, y, z of the faces across x, then y, then z."""


def ids_of(layout: Layout, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n, ids) of a table's rows."""
    return rows[:, : layout.ids].astype(np.uint64)  # ids above 2**63 wrap there and back


def reduce(layout: Layout, tables: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One row for each id (pair), sorted."""
    rows = np.concatenate([layout.empty(), *tables])
    if not len(rows):
        return rows
    ids = ids_of(layout, rows)
    order = np.lexsort(ids.T[::-1])
    rows, ids = rows[order], ids[order]
    first = np.flatnonzero(np.concatenate([[True], (ids[1:] != ids[:-1]).any(axis=1)]))
    last = layout.ids + layout.sums
    return np.concatenate(
        [
            rows[first, : layout.ids],
            np.add.reduceat(rows[:, layout.ids : last], first, axis=0),
            np.maximum.reduceat(rows[:, last:], first, axis=0),
        ],
        axis=1,
    )


# --- parts: runs of ids that one task adds up -------------------------------------------------


def sample(ids: NDArray[np.uint64], one_in: int) -> NDArray[np.uint64]:
    """Some of the ids (or pairs, (n, ids)): the same ones wherever they turn up."""
    mixed = np.zeros(len(ids), np.uint64)
    for column in ids.T:  # the finalizer of splitmix64 (Steele, Lea and Flood 2014)
        mixed = mixed + column + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return ids[mixed % np.uint64(one_in) == 0]


def splitters(
    layout: Layout, samples: Iterable[Sequence[Sequence[int]]], one_in: int, per_part: int
) -> list[list[int]]:
    """First ids (pairs) of all parts but the first one, so that parts have about `per_part` rows."""
    found = [np.array(s, np.uint64).reshape(-1, layout.ids) for s in samples]
    distinct = np.unique(np.concatenate([np.zeros((0, layout.ids), np.uint64), *found]), axis=0)
    parts = max(1, min(len(distinct), round(len(distinct) * one_in / per_part)))
    return [distinct[len(distinct) * i // parts].tolist() for i in range(1, parts)]


def part_borders(layout: Layout, rows: NDArray[np.int64], starts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """(parts + 1,) numbers of a sorted table's rows between which each part lies."""
    ids = ids_of(layout, rows)
    borders = [0]
    for start in starts:
        low, high = 0, len(ids)
        for column, value in zip(ids.T, start, strict=True):
            key = np.uint64(value)
            a, b = (int(np.searchsorted(column[low:high], key, side)) for side in ("left", "right"))
            low, high = low + a, low + b
        borders.append(low)
    return np.array([*borders, len(ids)], np.int64)


def write_parts(
    store: Store, path: str, layout: Layout, rows: NDArray[np.int64], starts: Sequence[Sequence[int]]
) -> int:
    """A sorted table, so that each part can be read alone: borders, then rows, little-endian; returns bytes."""
    data = part_borders(layout, rows, starts).astype("<i8").tobytes() + rows.astype("<i8").tobytes()
    store.put(path, data)
    return len(data)


def read_part(store: Store, path: str, layout: Layout, part: int, parts: int) -> NDArray[np.int64]:
    """Rows of one part of what `write_parts` wrote."""
    first, last = np.frombuffer(store.get_range(path, 8 * part, 16), "<i8").tolist()
    if first == last:
        return layout.empty()
    data = store.get_range(path, 8 * (parts + 1) + first * layout.row_bytes, (last - first) * layout.row_bytes)
    return np.frombuffer(data, "<i8").astype(np.int64).reshape(-1, layout.columns)

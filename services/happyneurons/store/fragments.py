"""Pieces of objects, written block by block and read object by object.

Meshing and skeletonizing cut a volume into blocks, while their results belong to objects that run
through many blocks. Between the two steps each block leaves two documents:

`{block}.npz`   the index: `label` (sorted), `start`, `length` of its piece in bytes, and columns
                that the writer adds (voxel counts, say); small, read by every rank;
`{block}.bin`   the pieces one after the other, so that a run of neighbouring labels is one read.

Blocks are only ever written whole and by one task, so tasks never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.store.documents import Store


def write_fragments(
    store: Store, folder: str, block: str, pieces: Mapping[int, bytes], columns: Mapping[int, Mapping[str, int]]
) -> int:
    """Write a block's pieces; returns their bytes. `columns`: label → integers for the index.

    A label may have columns without a piece (it was counted, but left nothing): its length is 0.
    """
    labels = sorted(set(pieces) | set(columns))
    parts = [pieces.get(label, b"") for label in labels]
    lengths = np.array([len(p) for p in parts], dtype=np.int64)
    names = sorted({name for row in columns.values() for name in row})
    arrays: dict[str, np.ndarray] = {
        "label": np.array(labels, dtype=np.uint64),
        "length": lengths,
        "start": np.cumsum(lengths) - lengths,
    }
    for name in names:
        arrays[name] = np.array([columns.get(label, {}).get(name, 0) for label in labels], dtype=np.int64)
    if pieces:
        store.put(f"{folder}/{block}.bin", b"".join(parts))
    store.put_arrays(f"{folder}/{block}.npz", **arrays)
    return int(lengths.sum())


@dataclass(frozen=True)
class FragmentIndex:
    """Which label has a piece in which block: one row for each, sorted by label, then block."""

    blocks: tuple[str, ...]
    label: NDArray[np.uint64]
    block: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.int64]]

    @staticmethod
    def load(store: Store, folder: str, blocks: Iterable[str], columns: Iterable[str] = ()) -> FragmentIndex:
        """Read the index documents of `blocks`."""
        names = tuple(blocks)
        wanted = ("label", "start", "length", *columns)
        rows: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int64)] for name in wanted}
        rows["label"] = [np.zeros(0, np.uint64)]
        numbers: list[np.ndarray] = [np.zeros(0, np.int64)]
        for number, name in enumerate(names):
            arrays = store.get_arrays(f"{folder}/{name}.npz")
            count = len(arrays["label"])
            numbers.append(np.full(count, number, dtype=np.int64))
            for key in wanted:
                rows[key].append(arrays.get(key, np.zeros(count, np.int64)))
        joined = {key: np.concatenate(values) for key, values in rows.items()}
        block = np.concatenate(numbers)
        order = np.lexsort((block, joined["label"]))
        return FragmentIndex(
            names, joined["label"][order], block[order], joined["start"][order], joined["length"][order],
            {key: joined[key][order] for key in columns},
        )  # fmt: skip

    def totals(self, column: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(labels, sum of a column for each), labels ascending. `length` is a column too."""
        values = self.length if column == "length" else self.columns[column]
        labels, first = np.unique(self.label, return_index=True)
        if not len(labels):
            return labels, np.zeros(0, np.int64)
        return labels, np.add.reduceat(values, first)

    def read(self, store: Store, folder: str, labels: NDArray[Any]) -> dict[int, list[bytes]]:
        """Pieces of `labels` (ascending), in block order; neighbouring pieces come in one read."""
        chosen = np.flatnonzero(np.isin(self.label, labels) & (self.length > 0))
        pieces: dict[int, list[bytes]] = {}
        for number in np.unique(self.block[chosen]):
            rows = chosen[self.block[chosen] == number]
            ends = self.start[rows] + self.length[rows]
            breaks = np.flatnonzero(self.start[rows][1:] != ends[:-1]) + 1
            for run in np.split(rows, breaks):
                low, high = int(self.start[run[0]]), int(self.start[run[-1]] + self.length[run[-1]])
                data = store.get_range(f"{folder}/{self.blocks[number]}.bin", low, high - low)
                for row in run:
                    a = int(self.start[row]) - low
                    pieces.setdefault(int(self.label[row]), []).append(data[a : a + int(self.length[row])])
        return pieces


def label_groups(
    labels: NDArray[np.uint64], weights: NDArray[np.int64], max_labels: int, max_weight: int
) -> list[tuple[int, int]]:
    """Cut ascending labels into runs of at most `max_labels` and about `max_weight`: (first, last)."""
    groups: list[tuple[int, int]] = []
    begin, weight = 0, 0
    for i in range(len(labels)):
        if i > begin and (i - begin >= max_labels or weight + int(weights[i]) > max_weight):
            groups.append((int(labels[begin]), int(labels[i - 1])))
            begin, weight = i, 0
        weight += int(weights[i])
    if len(labels):
        groups.append((int(labels[begin]), int(labels[-1])))
    return groups

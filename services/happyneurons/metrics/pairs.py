"""Label pairs that also know where they are: what per-object tables and links are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.metrics.contingency import Contingency

BYTES_PER_PAIR = 56
"""Of a table in memory; adding tables up needs about four times that for all pairs together."""


@dataclass(frozen=True)
class PairTable:
    """Counts of label pairs, and a voxel of each: `counts[i]` voxels carry `first[i]` and `second[i]`.

    Pairs are unique and sorted by (first, second). first, second: uint64; counts: int64.
    place_zyx: (n, 3) int64, the middle of the pair's longest run along x, whose length is `run`;
    of equally long runs the first one in z, y, x. So a place lies in the thick of its object, and
    does not depend on the order in which blocks are added (it does on how runs are cut by them).
    """

    first: np.ndarray
    second: np.ndarray
    counts: np.ndarray
    run: np.ndarray
    place_zyx: np.ndarray

    @classmethod
    def empty(cls) -> PairTable:
        ids, numbers = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        return cls(ids, ids, numbers, numbers, np.zeros((0, 3), np.int64))

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, start_zyx: Sequence[int]) -> PairTable:
        """Table of two (z, y, x) label arrays whose first voxel is `start_zyx`; where `first` is 0, nothing counts."""
        if first.shape != second.shape:
            raise ValueError(f"label arrays differ in shape: {first.shape} and {second.shape}")
        if first.size == 0:
            return cls.empty()
        a, b = first.ravel(), second.ravel()
        begins = np.ones(a.size, bool)
        begins[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
        begins[:: first.shape[2]] = True  # a run ends with its row
        starts = np.flatnonzero(begins)
        lengths = np.diff(np.append(starts, a.size))
        scored = a[starts] > 0
        starts, lengths = starts[scored], lengths[scored]
        places = np.stack(np.unravel_index(starts + lengths // 2, first.shape), axis=1) + np.asarray(start_zyx)
        return cls._merged(
            a[starts].astype(np.uint64), b[starts].astype(np.uint64), lengths.astype(np.int64),
            lengths.astype(np.int64), places.astype(np.int64),
        )  # fmt: skip

    @classmethod
    def sum(cls, tables: Iterable[PairTable]) -> PairTable:
        """One table of all; the result does not depend on their order."""
        parts = [cls.empty(), *tables]
        columns = zip(*((p.first, p.second, p.counts, p.run, p.place_zyx) for p in parts), strict=True)
        return cls._merged(*(np.concatenate(column) for column in columns))

    @classmethod
    def _merged(
        cls, first: np.ndarray, second: np.ndarray, counts: np.ndarray, run: np.ndarray, place: np.ndarray
    ) -> PairTable:
        if not len(first):
            return cls.empty()
        order = np.lexsort((place[:, 2], place[:, 1], place[:, 0], -run, second, first))
        a, b = first[order], second[order]
        new = np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])])
        best = order[new]
        total = np.add.reduceat(counts[order], np.flatnonzero(new))
        return cls(first[best], second[best], total, run[best], place[best])

    def contingency(self) -> Contingency:
        """The counts alone."""
        return Contingency(self.first, self.second, self.counts)

    def where(self, keep: np.ndarray) -> PairTable:
        """The pairs at which the boolean array `keep` is true, or at the given places."""
        return PairTable(self.first[keep], self.second[keep], self.counts[keep], self.run[keep], self.place_zyx[keep])

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "first": self.first, "second": self.second, "counts": self.counts, "run": self.run,
            "place_zyx": self.place_zyx,
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> PairTable:
        return cls(*(arrays[name] for name in ("first", "second", "counts", "run", "place_zyx")))

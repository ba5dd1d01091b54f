"""How often each pair of labels occurs together: the sparse table behind every overlap figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Contingency:
    """Counts of label pairs: `counts[i]` places carry `first[i]` and `second[i]` together.

    Pairs are unique and sorted by (first, second), so equal content means equal arrays, however
    it was accumulated. All three arrays are 1D of the same length: uint64, uint64, int64.
    """

    first: np.ndarray
    second: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls) -> Contingency:
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Contingency:
        """Table of two label arrays of the same shape (any shape, any unsigned integer type)."""
        if first.shape != second.shape:
            raise ValueError(f"label arrays differ in shape: {first.shape} and {second.shape}")
        a, b = first.ravel(), second.ravel()
        if a.size == 0:
            return cls.empty()
        # Labels come in runs along x: counting runs instead of voxels sorts ten times less.
        starts = np.concatenate([[0], np.flatnonzero((a[1:] != a[:-1]) | (b[1:] != b[:-1])) + 1])
        lengths = np.diff(np.append(starts, a.size))
        return cls._summed(a[starts].astype(np.uint64), b[starts].astype(np.uint64), lengths)

    @classmethod
    def sum(cls, tables: Iterable[Contingency]) -> Contingency:
        """One table of all; the result does not depend on their order."""
        parts = list(tables)
        if not parts:
            return cls.empty()
        return cls._summed(
            np.concatenate([p.first for p in parts]),
            np.concatenate([p.second for p in parts]),
            np.concatenate([p.counts for p in parts]),
        )

    @classmethod
    def _summed(cls, first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> Contingency:
        if first.size == 0:
            return cls.empty()
        ids_a, a = np.unique(first, return_inverse=True)
        ids_b, b = np.unique(second, return_inverse=True)
        keys, group = np.unique(a.astype(np.int64) * len(ids_b) + b, return_inverse=True)
        total = np.zeros(len(keys), np.int64)
        np.add.at(total, group, counts)
        return cls(ids_a[keys // len(ids_b)], ids_b[keys % len(ids_b)], total)

    def where(self, keep: np.ndarray) -> Contingency:
        """The pairs at which the boolean array `keep` is true."""
        return Contingency(self.first[keep], self.second[keep], self.counts[keep])

    def first_totals(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, counts) of the first labels, sorted by id."""
        return _totals(self.first, self.counts)

    def second_totals(self) -> tuple[np.ndarray, np.ndarray]:
        return _totals(self.second, self.counts)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"first": self.first, "second": self.second, "counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Contingency:
        return cls(arrays["first"], arrays["second"], arrays["counts"])


def _totals(ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, group = np.unique(ids, return_inverse=True)
    total = np.zeros(len(unique), np.int64)
    np.add.at(total, group, counts)
    return unique, total

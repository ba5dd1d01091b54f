"""How often this process asked its stores, how long that took and what failed, by operation.

Counted where documents and volumes are read and written, whoever asks. Servers show the counts to
Prometheus; ranks on compute nodes, which nobody can scrape, write them into their job's progress.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Mapping

OPERATIONS = (
    "get", "get_range", "head", "put", "create", "delete", "list", "volume_open", "volume_read", "volume_write",
)  # fmt: skip
"""What is counted: `create` is put-if-absent, `list` a page of a listing, volume_… whole boxes of many chunks."""

BOUNDS_S = (0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 30.0)
"""Upper bounds of the classes of durations; one more class has what took longer."""

FAILURES = ("unavailable", "denied")
"""Kinds of failures: the store did not do what it was asked to; it refuses this process. What is not there, or is
there already, is an answer and no failure."""

Counts = dict[str, list[float]]
"""Operation → [seconds, failures of each kind, calls in each class of durations]: JSON as it stands."""

WIDTH = 1 + len(FAILURES) + len(BOUNDS_S) + 1


class StoreTelemetry:
    """Counts of one process. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counts = {}
        self._lock = threading.Lock()

    def observe(self, operation: str, seconds: float, failure: str = "") -> None:
        """Count a call. failure: one of FAILURES, or empty."""
        with self._lock:
            row = self._counts.setdefault(operation, [0] * WIDTH)
            row[0] += seconds
            if failure:
                row[1 + FAILURES.index(failure)] += 1
            row[1 + len(FAILURES) + bisect_left(BOUNDS_S, seconds)] += 1

    def snapshot(self) -> Counts:
        """What was counted so far; `changes` tells what came between two of them."""
        with self._lock:
            return {operation: list(row) for operation, row in self._counts.items()}


TELEMETRY = StoreTelemetry()
"""This process's counts."""


class Timed:
    """A call of a store, counted when the block ends. Set `failure` inside if it failed."""

    def __init__(self, operation: str) -> None:
        self.operation, self.failure = operation, ""
        self._begin = time.perf_counter()

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *_: object) -> None:
        TELEMETRY.observe(self.operation, time.perf_counter() - self._begin, self.failure)


def changes(before: Mapping[str, list[float]], after: Mapping[str, list[float]]) -> Counts:
    """What was counted between two snapshots; operations without a call are left out."""
    found = {}
    for operation, row in after.items():
        first = before.get(operation)
        if first is None:
            found[operation] = list(row)
        elif row != first:
            found[operation] = [a - b for a, b in zip(row, first, strict=True)]
    return found


def add(total: Counts, part: Mapping[str, list[float]]) -> None:
    """Add counts to others. What another version counted in other classes is left out."""
    for operation, row in part.items():
        if len(row) != WIDTH:
            continue
        known = total.get(operation)
        total[operation] = list(row) if known is None else [a + b for a, b in zip(known, row, strict=True)]


def rounded(counts: Mapping[str, list[float]]) -> Counts:
    """Counts as they are written down: milliseconds, whole numbers without a point."""
    return {operation: [round(row[0], 3), *(int(n) for n in row[1:])] for operation, row in counts.items()}

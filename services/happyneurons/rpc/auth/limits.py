"""How much a caller may ask at a time: calls a second, calls at work, streams."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from happyneurons.errors import OverloadedError

MOST_CALLERS = 10_000
"""Callers whose rate is remembered; of more, those that were silent longest are forgotten."""


class Rate:
    """A token bucket for each caller. Thread-safe."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str) -> None:
        """Count a call. Raises OverloadedError, which says when there is room for the next one."""
        with self._lock:
            now = self._clock()
            left, before = self._buckets.pop(name, (float(self._burst), now))
            left = min(float(self._burst), left + (now - before) * self._per_s)
            allowed = left >= 1
            self._buckets[name] = (left - allowed, now)
            if len(self._buckets) > MOST_CALLERS:
                self._buckets.popitem(last=False)
        if not allowed:
            raise OverloadedError(
                f"more than {self._per_s:g} calls a second (and {self._burst} at once) of {name or 'one caller'}",
                max(0.01, (1 - left) / self._per_s),
            )


class Slots:
    """Calls at work: so many of one caller, so many in all. Thread-safe."""

    def __init__(self, what: str, each: int | None, together: int | None) -> None:
        """what: such as `streams`. None: no limit."""
        self._what, self._each, self._together = what, each, together
        self._held: Counter[str] = Counter()
        self._sum = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """One call at work while the block lasts. Raises OverloadedError."""
        with self._lock:
            if self._each is not None and self._held[name] >= self._each:
                raise OverloadedError(f"{name or 'one caller'} has {self._each} {self._what} at work: end some first")
            if self._together is not None and self._sum >= self._together:
                raise OverloadedError(f"the server has {self._together} {self._what} at work: try again later")
            self._held[name] += 1
            self._sum += 1
        try:
            yield
        finally:
            with self._lock:
                self._sum -= 1
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]

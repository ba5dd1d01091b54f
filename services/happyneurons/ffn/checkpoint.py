"""The state of a half segmented subvolume, kept in the store, so that hours of work survive a kill.

Between two objects a canvas is its segmentation and its counters. Amid an object there is also its search: the
object's mask, where to go next, and where it has been. Both are kept as of a call of the network; what is lost is
what came after the last save.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from happyneurons.errors import DrainedError, NotFoundError
from happyneurons.ffn.canvas import Canvas, Step
from happyneurons.store.documents import Store


class CanvasCheckpoint:
    """One subvolume's document: `segmentation` (int32, with the marks of given up seeds), `next_seed` (the first that
    is not finished), `counters`, and `flood_…`, the search from that seed if there is one.

    store, path: where it lies. interval_s: time between two saves; infinite: only when stopping.
    stop: whether the work should be given up now; asked before each step of the network.
    clock: seconds.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        interval_s: float,
        *,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._path, self._interval_s = store, path, interval_s
        self._stop, self._clock = stop, clock
        self._saved_at = clock()
        self._next_seed = 0

    def restore(self, canvas: Canvas, seeds: int) -> int:
        """Bring a new canvas to where an earlier one was; returns how many of the seeds are done.

        What is not there, damaged or of another canvas is passed over: the work begins anew.
        """
        try:
            arrays = self._store.get_arrays(self._path)
            segmentation, done = arrays["segmentation"], int(arrays["next_seed"])
            counters = json.loads(arrays["counters"].tobytes())
        except (NotFoundError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
            return 0
        if segmentation.shape != canvas.segmentation.shape or int(arrays["seeds"]) != seeds:
            return 0
        if "flood_seed" in arrays:
            canvas.resume_flood(arrays)
        canvas.segmentation[...] = segmentation
        canvas.counters.clear()
        canvas.counters.update(counters)
        self._next_seed = done
        return done

    def passed(self, next_seed: int) -> None:
        """The canvas is done with all seeds before `next_seed`."""
        self._next_seed = next_seed

    def before_step(self, canvas: Canvas, seeds: int) -> None:
        """The network is about to be called: saves if it is time to.

        Raises DrainedError, after saving, if the work should be given up.
        """
        if self._stop():
            self.save(canvas, seeds)
            raise DrainedError(
                f"stopped after {self._next_seed} of {seeds} seeds; the rest is done by the next attempt"
            )
        if self._clock() - self._saved_at >= self._interval_s:
            self.save(canvas, seeds)

    def save(self, canvas: Canvas, seeds: int) -> None:
        self._store.put_arrays(
            self._path,
            segmentation=canvas.segmentation,
            next_seed=np.array(self._next_seed),
            seeds=np.array(seeds),
            counters=np.frombuffer(json.dumps(dict(canvas.counters)).encode(), np.uint8),
            **canvas.flood_state(),
        )
        self._saved_at = self._clock()

    def remove(self) -> None:
        self._store.delete(self._path)


class WatchedStep:
    """A step that calls `before` first. Whatever else the step has is reached through it."""

    def __init__(self, step: Step) -> None:
        self.architecture = step.architecture
        self.before: Callable[[], None] = lambda: None
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        self.before()
        return self._step(image, seed)

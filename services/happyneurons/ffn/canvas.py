"""The state of segmenting one subvolume, and the flooding of single objects.

Method: Canvas of google/ffn. All positions, shapes and arrays are (z, y, x). Probabilities are kept
as logits; NaN in the object mask means "not yet seen for this object".
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.movement import MovementQueue, Position
from happyneurons.ffn.options import InferenceOptions

FloatArray = NDArray[np.float32]
Box = tuple[slice, ...]

UNDECIDED_LOGIT = 1.0
"""Fast mode counts voxels of smaller |logit| as not yet explored."""


class Step(Protocol):
    """One step of a network: `(image, seed)` of its field of view, (z, y, x) float32 → logits."""

    architecture: Architecture

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray: ...


def logit(probability: float) -> float:
    return float(np.log(probability) - np.log1p(-probability))


def _component(mask: NDArray[np.bool_], seed: tuple[int, ...]) -> NDArray[np.bool_]:
    """The part of a mask that is joined to the seed by faces."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    return np.asarray(mask & (parts == parts[seed]))


class Canvas:
    """Segments objects one by one into `segmentation`.

    segmentation: int32; 0 free, -1 a seed that led to nothing (may be overwritten), else a segment.
    image: normalized float32. excluded: voxels that the field of view must not be centred on and
    that belong to no segment.
    counters: fov_steps (network calls), fov_skipped (fast mode), seeds_*, segments, voxels_*.
    """

    def __init__(
        self, image: FloatArray, step: Step, options: InferenceOptions, excluded: NDArray[np.bool_] | None = None
    ) -> None:
        self.image, self.options, self.excluded = image, options, excluded
        self.segmentation = np.zeros(image.shape, np.int32)
        self.counters: Counter[str] = Counter()
        self._step = step
        self._fov, self._deltas = step.architecture.fov_zyx, step.architecture.deltas_zyx
        self._half: Position = (self._fov[0] // 2, self._fov[1] // 2, self._fov[2] // 2)
        # What fast mode looks at: the field of view without a rim of half a delta's width.
        self._inner = tuple(slice(d // 2, f - d // 2) for f, d in zip(self._fov, self._deltas, strict=True))
        self._pad = np.float32(logit(options.pad_value))
        self._move = logit(options.move_threshold)
        self._mask: FloatArray = np.full(image.shape, np.nan, np.float32)
        self._low, self._high = np.zeros(3, np.int64), np.zeros(3, np.int64)  # centres visited for this object

    @property
    def half_fov(self) -> Position:
        return self._half

    def segment(self, seed: Position) -> int:
        """Flood an object from a seed. Returns its id, or 0 if there is none to be had from there."""
        options = self.options
        if not self._free(seed) or (self.excluded is not None and self.excluded[seed]):
            self.counters["seeds_taken"] += 1
            return 0
        near = tuple(slice(max(p - d, 0), p + d + 1) for p, d in zip(seed, options.min_boundary_dist_zyx, strict=True))
        if (self.segmentation[near] > 0).any():
            self.counters["seeds_near_segment"] += 1
            self._give_up(seed)
            return 0
        self._flood(seed)
        if self._mask[seed] < self._move:
            self.counters["seeds_weak"] += 1
            self._give_up(seed)
            return 0
        box = self._touched()
        mask = self._mask[box] >= logit(options.segment_threshold)
        found = int(mask.sum())
        mask &= self.segmentation[box] <= 0
        if self.excluded is not None:
            mask &= ~self.excluded[box]
        if options.keep_connected:
            mask = _component(mask, tuple(p - b.start for p, b in zip(seed, box, strict=True)))
        new = int(mask.sum())
        if new < options.min_segment_size:
            self.counters["seeds_small"] += 1
            self._give_up(seed)
            return 0
        self.counters["segments"] += 1
        self.counters["voxels_segmented"] += new
        self.counters["voxels_overlapping"] += found - new
        self.segmentation[box][mask] = self.counters["segments"]
        return self.counters["segments"]

    def _give_up(self, seed: Position) -> None:
        if self.segmentation[seed] == 0:
            self.segmentation[seed] = -1

    def _free(self, position: Position) -> bool:
        """Whether the field of view fits around the position, and nothing is segmented there yet."""
        for p, h, n in zip(position, self._half, self.image.shape, strict=True):
            if p < h or p + h >= n:
                return False
        return bool(self.segmentation[position] <= 0)

    def _valid(self, position: Position) -> bool:
        return not self._mask[position] < self._move and self._free(position)

    def _flood(self, seed: Position) -> None:
        """Move the field of view over the object until nothing is left to visit."""
        self._mask[self._touched()] = np.nan
        self._mask[seed] = logit(self.options.init_activation)
        self._low[:] = self._high[:] = seed
        queue = MovementQueue(seed, self._deltas, self._move)
        while (position := queue.pop(self._valid)) is not None:
            if self._mask[seed] < self._move:
                self.counters["seeds_lost"] += 1
                return
            if self.excluded is not None and self.excluded[position]:
                continue
            queue.expand(self._update(position), position)
            np.minimum(self._low, position, out=self._low)
            np.maximum(self._high, position, out=self._high)

    def _update(self, position: Position) -> FloatArray:
        """Run the network at a position (or not, in fast mode); the mask there as logits."""
        box = tuple(slice(p - h, p + h + 1) for p, h in zip(position, self._half, strict=True))
        old = self._mask[box]
        if self._explored(old):
            self.counters["fov_skipped"] += 1
            return np.where(np.isnan(old), self._pad, old)
        self.counters["fov_steps"] += 1
        logits = self._step(self.image[box], np.where(np.isnan(old), self._pad, old))
        threshold = self.options.disco_seed_threshold
        if threshold >= 0 and float(np.mean(logits >= self._move)) > threshold:
            # Errs on the side of splits: what was once rejected stays so (NaN compares as false).
            frozen = (old < 0) & (logits > old)
            logits = np.where(frozen, old, logits)
        self._mask[box] = logits
        return logits

    def _explored(self, old: FloatArray) -> bool:
        limit = self.options.skip_explored_fraction
        if not limit:
            return False
        decided = np.abs(old[self._inner]) > UNDECIDED_LOGIT
        return float(1.0 - decided.mean()) < limit

    def _touched(self) -> Box:
        """Box around all fields of view visited for the current object."""
        return tuple(
            slice(max(int(a) - h, 0), int(b) + h + 1) for a, b, h in zip(self._low, self._high, self._half, strict=True)
        )

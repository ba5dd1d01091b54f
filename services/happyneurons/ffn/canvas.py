"""The state of segmenting one subvolume, and the flooding of single objects.

Method: Canvas of google/ffn. All positions, shapes and arrays are (z, y, x). Probabilities are kept
as logits; NaN in the object mask means "not yet seen for this object".
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.movement import MovementQueue, Position, positions, positions_array
from happyneurons.ffn.options import InferenceOptions

FloatArray = NDArray[np.float32]
Box = tuple[slice, ...]

Faces = tuple[tuple[bool, bool], tuple[bool, bool], tuple[bool, bool]]
"""Something about the first and last face along z, y and x."""

NO_FACES: Faces = ((False, False), (False, False), (False, False))
ALL_FACES: Faces = ((True, True), (True, True), (True, True))

UNDECIDED_LOGIT = 1.0
"""Fast mode counts voxels of smaller |logit| as not yet explored."""


class Step(Protocol):
    """One step of a network: `(image, seed)` of its field of view, (z, y, x) float32 → logits."""

    architecture: Architecture

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray: ...


@dataclass
class Flood:
    """The search for one object. left_out: where fast mode did without the network, in order.

    pending: where the network is being asked; nothing of the answer has been used yet.
    """

    seed: Position
    queue: MovementQueue
    left_out: deque[Position] = field(default_factory=deque)
    pending: Position | None = None


def logit(probability: float) -> float:
    return float(np.log(probability) - np.log1p(-probability))


def _component(mask: NDArray[np.bool_], seed: tuple[int, ...]) -> NDArray[np.bool_]:
    """The part of a mask that is joined to the seed by faces."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    return np.asarray(mask & (parts == parts[seed]))


def _open_faces(inside: NDArray[np.bool_], unseen: NDArray[np.bool_]) -> int:
    """Number of voxel faces between the two masks."""
    count = 0
    for axis in range(3):
        first: list[slice] = [slice(None)] * 3
        second = list(first)
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(first), tuple(second)
        count += int(np.count_nonzero(inside[a] & unseen[b])) + int(np.count_nonzero(unseen[a] & inside[b]))
    return count


class Canvas:
    """Segments objects one by one into `segmentation`.

    segmentation: int32; 0 free, -1 a seed that led to nothing (may be overwritten), else a segment.
    image: normalized float32. excluded: voxels that the field of view must not be centred on and
    that belong to no segment.
    ends: faces beyond which nobody looks (all, unless other subvolumes overlap there): fast mode
    then takes care of the half field of view before them, where the network cannot be centred.
    counters: fov_steps (network calls), fov_skipped (fast mode), seeds_*, segments, voxels_*.
    """

    def __init__(
        self,
        image: FloatArray,
        step: Step,
        options: InferenceOptions,
        excluded: NDArray[np.bool_] | None = None,
        ends: Faces = ALL_FACES,
    ) -> None:
        self.image, self.options, self.excluded = image, options, excluded
        self.segmentation = np.zeros(image.shape, np.int32)
        self.counters: Counter[str] = Counter()
        self._step, self._ends = step, ends
        self._fov, self._deltas = step.architecture.fov_zyx, step.architecture.deltas_zyx
        self._half: Position = (self._fov[0] // 2, self._fov[1] // 2, self._fov[2] // 2)
        z, y, x = self._fov
        self._open_faces = max(1, round(options.revisit_open_fraction * (z * y * x / max(z, y, x))))
        self._pad = np.float32(logit(options.pad_value))
        self._move = logit(options.move_threshold)
        self._mask: FloatArray = np.full(image.shape, np.nan, np.float32)
        self._low, self._high = np.zeros(3, np.int64), np.zeros(3, np.int64)  # centres visited for this object
        self._flooding: Flood | None = None

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
        if options.skip_explored_fraction:
            mask &= self._mask[box] >= logit(max(options.segment_threshold, options.fast_segment_threshold))
            new = int(mask.sum())
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

    def flood_state(self) -> dict[str, np.ndarray]:
        """The search under way, to go on with in another canvas by `resume_flood`; empty between two objects.

        To be asked for between two objects, or while the network is called.
        """
        flood = self._flooding
        if flood is None or flood.pending is None:
            return {}
        queued, visited = flood.queue.state()
        return {
            "flood_seed": positions_array([flood.seed]),
            "flood_pending": positions_array([flood.pending]),
            "flood_queued": queued,
            "flood_visited": visited,
            "flood_left_out": positions_array(flood.left_out),
            "flood_centres": np.stack([self._low, self._high]),
            "flood_mask": self._mask[self._touched()],
        }

    def resume_flood(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up a search in a canvas that has no object at work; `segment` of its seed then goes on with it."""
        (seed,), (pending,) = positions(state["flood_seed"]), positions(state["flood_pending"])
        flood = self._begin(seed)
        flood.queue.set_state(state["flood_queued"], state["flood_visited"])
        flood.left_out.extend(positions(state["flood_left_out"]))
        flood.pending = pending
        self._low[:], self._high[:] = state["flood_centres"]
        self._mask[self._touched()] = state["flood_mask"]

    def _begin(self, seed: Position) -> Flood:
        self._mask[self._touched()] = np.nan
        self._mask[seed] = logit(self.options.init_activation)
        self._low[:] = self._high[:] = seed
        self._flooding = Flood(seed, MovementQueue(seed, self._deltas, self._move))
        return self._flooding

    def _flood(self, seed: Position) -> None:
        """Move the field of view over the object until nothing is left to visit."""
        flood = self._flooding
        if flood is None or flood.seed != seed:
            flood = self._begin(seed)
        queue = flood.queue
        while (position := flood.pending or queue.pop(self._valid) or self._unfinished(flood.left_out)) is not None:
            if self._mask[seed] < self._move:
                self.counters["seeds_lost"] += 1
                break
            if self.excluded is not None and self.excluded[position]:
                continue
            if queue.visited(position) or not self._explored(position):
                flood.pending = position
                logits = self._update(position)
                flood.pending = None
            else:
                self.counters["fov_skipped"] += 1
                flood.left_out.append(position)
                old = self._mask[self._box(position)]
                logits = np.where(np.isnan(old), self._pad, old)
            queue.expand(logits, position)
            np.minimum(self._low, position, out=self._low)
            np.maximum(self._high, position, out=self._high)
        self._flooding = None

    def _explored(self, position: Position) -> bool:
        """Fast mode: whether so little is new around a position that the search may go on without the network."""
        limit = self.options.skip_explored_fraction
        if not limit:
            return False
        old = self._mask[self._centre(position)]
        decided = np.abs(old) > UNDECIDED_LOGIT  # NaN compares as false
        return float(1.0 - decided.mean()) < limit

    def _unfinished(self, left_out: deque[Position]) -> Position | None:
        """Fast mode, once there is nowhere else to go: the next position left out where the object still borders on
        voxels that were never seen. That is so in thin cells and along the faces of the image."""
        while left_out:
            position = left_out.popleft()
            if self._valid(position):
                old = self._mask[self._centre(position)]
                if _open_faces(old >= 0, np.isnan(old)) >= self._open_faces:
                    self.counters["fov_revisited"] += 1
                    return position
        return None

    def _box(self, position: Position) -> Box:
        return tuple(slice(p - h, p + h + 1) for p, h in zip(position, self._half, strict=True))

    def _centre(self, position: Position) -> Box:
        """What counts in fast mode: the field of view without a rim of half a delta's width, which the next steps
        see better; but with it where they cannot go, at the image's ends."""
        box = []
        for p, h, d, n, (first, last) in zip(
            position, self._half, self._deltas, self.image.shape, self._ends, strict=True
        ):
            low, high = p - h, p + h + 1
            low += 0 if first and low < d else d // 2
            high -= 0 if last and high > n - d else d // 2
            box.append(slice(low, high))
        return tuple(box)

    def _update(self, position: Position) -> FloatArray:
        """Run the network at a position; the mask there as logits."""
        box = self._box(position)
        old = self._mask[box]
        logits = self._step(self.image[box], np.where(np.isnan(old), self._pad, old))
        self.counters["fov_steps"] += 1
        threshold = self.options.disco_seed_threshold
        if threshold >= 0 and float(np.mean(logits >= self._move)) > threshold:
            # Errs on the side of splits: what was once rejected stays so (NaN compares as false).
            frozen = (old < 0) & (logits > old)
            logits = np.where(frozen, old, logits)
        self._mask[box] = logits
        return logits

    def _touched(self) -> Box:
        """Box around all fields of view visited for the current object."""
        return tuple(
            slice(max(int(a) - h, 0), int(b) + h + 1) for a, b, h in zip(self._low, self._high, self._half, strict=True)
        )

"""Training examples: fields of view visited one after the other within a training patch.

As in inference, the field of view starts at the centre with an empty mask and moves to where the
network's own prediction reaches the move threshold; each visit is one example. Method: the policy
`max_pred_moves` of google/ffn's training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.augmentation import Augmentation, augment
from happyneurons.ffn.movement import MovementQueue, Position
from happyneurons.store.triples import Triple

FloatArray = NDArray[np.float32]
Cut = Callable[[np.random.Generator, Triple], tuple[FloatArray, np.ndarray]]
"""`(rng, half_zyx)` → normalized image and labels of a box of 2 · half + 1 voxels around a drawn coordinate."""

OBJECT, ELSEWHERE = 0.95, 0.05
"""Soft targets, and also what the seed and the empty mask are before the first step."""
MOVE_THRESHOLD = 0.9


def logit(probability: float) -> float:
    return float(np.log(probability / (1.0 - probability)))


@dataclass
class Patch:
    """A training patch: image, wanted mask and the mask so far (logits), one shape, (z, y, x)."""

    image: FloatArray
    wanted: NDArray[np.bool_]
    seed: FloatArray

    @property
    def centre(self) -> Position:
        z, y, x = (n // 2 for n in self.seed.shape)
        return (z, y, x)


def patch_half_zyx(architecture: Architecture, fov_moves: int, augmentation: Augmentation | None) -> Triple:
    """Voxels that a patch takes on each side of its centre, the margin for augmentation included.

    The field of view may move once more than `fov_moves`, as in google/ffn: the part that is
    judged (see `judged_box`) is then filled from all sides.
    """
    extra = augmentation.margin_px if augmentation else 0
    z, y, x = (f // 2 + d * (fov_moves + 1) for f, d in zip(architecture.fov_zyx, architecture.deltas_zyx, strict=True))
    return (z, y + extra, x + extra)


def judged_box(architecture: Architecture) -> tuple[slice, ...]:
    """The part of a patch whose mask is judged: what `fov_moves` moves reach."""
    return tuple(slice(d, -d) if d else slice(None) for d in architecture.deltas_zyx)


class PatchSource:
    """Cuts patches around drawn coordinates and augments them."""

    def __init__(
        self, cut: Cut, architecture: Architecture, *, fov_moves: int, augmentation: Augmentation | None
    ) -> None:
        self._cut, self._augmentation = cut, augmentation
        self._half = patch_half_zyx(architecture, fov_moves, augmentation)

    def draw(self, rng: np.random.Generator) -> Patch:
        image, labels = self._cut(rng, self._half)
        centre = labels[self._half]
        # Around a voxel without an object nothing is wanted.
        wanted = (labels == centre) & (labels != 0)
        if self._augmentation is not None:
            image, wanted = augment(image, wanted, self._augmentation, rng)
        seed = np.full(image.shape, logit(ELSEWHERE), np.float32)
        patch = Patch(image, wanted, seed)
        patch.seed[patch.centre] = logit(OBJECT)
        return patch


class Walker:
    """Walks the field of view over one patch after the other; `patch` is the current one."""

    def __init__(
        self,
        architecture: Architecture,
        draw: Callable[[], Patch | None],
        finished: Callable[[Patch], None] | None = None,
    ) -> None:
        self._fov, self._deltas = architecture.fov_zyx, architecture.deltas_zyx
        self._draw, self._finished = draw, finished
        self._patch: Patch | None = None
        self._queue: MovementQueue | None = None
        self._position: Position = (0, 0, 0)

    def next(self) -> tuple[FloatArray, FloatArray, FloatArray] | None:
        """(image, seed, target) of the next field of view; None when there are no more patches."""
        while True:
            position = None if self._queue is None else self._queue.pop(self._valid)
            if position is not None:
                break
            if self._patch is not None and self._finished:
                self._finished(self._patch)
            self._patch = self._draw()
            if self._patch is None:
                return None
            self._queue = MovementQueue(self._patch.centre, self._deltas, logit(MOVE_THRESHOLD))
        self._position = position
        patch, box = self._patch, self._box(position)
        assert patch is not None
        target = np.where(patch.wanted[box], np.float32(OBJECT), np.float32(ELSEWHERE))
        return patch.image[box], patch.seed[box], target

    def update(self, logits: FloatArray) -> None:
        """Take the network's prediction for the field of view given last."""
        assert self._patch is not None
        assert self._queue is not None
        self._patch.seed[self._box(self._position)] = logits
        self._queue.expand(logits, self._position)

    def _box(self, position: Position) -> tuple[slice, ...]:
        return tuple(slice(p - f // 2, p + f // 2 + 1) for p, f in zip(position, self._fov, strict=True))

    def _valid(self, position: Position) -> bool:
        """Within the patch, predicted, and (but for the start) wanted: wrong ways are not walked on."""
        patch = self._patch
        assert patch is not None
        if any(p < f // 2 or p + f // 2 >= n for p, f, n in zip(position, self._fov, patch.seed.shape, strict=True)):
            return False
        predicted = bool(patch.seed[position] >= logit(MOVE_THRESHOLD))
        return predicted and bool(patch.wanted[position] or position == patch.centre)

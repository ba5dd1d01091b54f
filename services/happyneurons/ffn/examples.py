"""Training examples: fields of view visited one after the other within a training patch.

As in inference, the field of view starts at the centre with an empty mask and moves to where the
network's own prediction reaches the move threshold; each visit is one example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.augmentation import Augmentation, augment
from happyneurons.ffn.movement import MovementQueue, Position
from happyneurons.ffn.sampling import BalancedSampler, TrainingVolume

FloatArray = NDArray[np.float32]

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


class PatchSource:
    """Cuts patches around balanced coordinates and augments them.

    A patch holds `fov_moves` moves of the field of view in each direction.
    """

    def __init__(
        self,
        volumes: Sequence[TrainingVolume],
        architecture: Architecture,
        *,
        fov_moves: int,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self._volumes, self._augmentation = volumes, augmentation
        moves = tuple(d * fov_moves for d in architecture.deltas_zyx)
        self.shape = tuple(f + 2 * m for f, m in zip(architecture.fov_zyx, moves, strict=True))
        extra = augmentation.margin_px if augmentation else 0
        self._half = np.array([self.shape[0] // 2, self.shape[1] // 2 + extra, self.shape[2] // 2 + extra])
        margin = tuple(int(v) for v in self._half)
        self._sampler = BalancedSampler(volumes, architecture.fov_zyx, (margin[0], margin[1], margin[2]), seed=seed)

    def draw(self, rng: np.random.Generator) -> Patch:
        index, position = self._sampler.draw(rng)
        volume = self._volumes[index]
        box = tuple(slice(p - h, p + h + 1) for p, h in zip(position, self._half, strict=True))
        image, wanted = volume.image[box], volume.labels[box] == volume.labels[position]
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

"""Where the field of view goes next: maxima on the faces of a cuboid around its centre.

Method: FaceMaxMovementPolicy of google/ffn. All positions and sizes are (z, y, x) in voxels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

Position = tuple[int, int, int]


def positions_array(of: Iterable[Position]) -> np.ndarray:
    """(n, 3) int64, zyx."""
    return np.array(list(of), np.int64).reshape(-1, 3)


def positions(array: np.ndarray) -> Iterator[Position]:
    return ((z, y, x) for z, y, x in array.tolist())


def face_maxima(logits: np.ndarray, deltas_zyx: Position, threshold: float) -> list[tuple[float, Position]]:
    """`(logit, offset from the centre)` of the highest voxel of each face at ± delta, best first.

    Faces are cut to ± delta in their plane as well; only maxima of at least `threshold` (a logit)
    are given; a voxel on two faces is given once.
    """
    centre = [n // 2 for n in logits.shape]
    box = [slice(c - d, c + d + 1) for c, d in zip(centre, deltas_zyx, strict=True)]
    found: set[tuple[float, Position]] = set()
    for axis, delta in enumerate(deltas_zyx):
        for step in (-delta, delta) if delta else ():
            selection: list[slice | int] = list(box)
            selection[axis] = centre[axis] + step
            face = logits[tuple(selection)]
            row, column = divmod(int(face.argmax()), face.shape[1])
            score = float(face[row, column])
            if score >= threshold:
                offset = [row - face.shape[0] // 2, column - face.shape[1] // 2]
                offset.insert(axis, step)
                found.add((score, (offset[0], offset[1], offset[2])))
    return sorted(found, reverse=True)


class MovementQueue:
    """First in, first out queue of positions; each cell of a lattice of deltas is visited once.

    The lattice is centred on the start, so that all directions are treated alike.
    """

    def __init__(self, start: Position, deltas_zyx: Position, threshold: float) -> None:
        self._start, self._deltas, self._threshold = start, deltas_zyx, threshold
        self._queue: deque[Position] = deque([start])
        self._done: set[Position] = set()

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) int64 positions in the queue, in order, and (m, 3) int64 cells visited."""
        return positions_array(self._queue), positions_array(sorted(self._done))

    def set_state(self, queued: np.ndarray, visited: np.ndarray) -> None:
        """Go on from where a queue of the same start was."""
        self._queue, self._done = deque(positions(queued)), set(positions(visited))

    def _cell(self, position: Position) -> Position:
        z, y, x = ((p - s + d // 2) // max(d, 1) for p, s, d in zip(position, self._start, self._deltas, strict=True))
        return (z, y, x)

    def pop(self, valid: Callable[[Position], bool]) -> Position | None:
        """The next position in a cell not yet visited for which `valid` holds; None at the end."""
        while self._queue:
            position = self._queue.popleft()
            if self._cell(position) not in self._done and valid(position):
                return position
        return None

    def visited(self, position: Position) -> bool:
        """Whether the position's cell was expanded before."""
        return self._cell(position) in self._done

    def expand(self, logits: np.ndarray, position: Position) -> None:
        """Mark the position's cell as visited and queue the face maxima of its field of view."""
        self._done.add(self._cell(position))
        for _, offset in face_maxima(logits, self._deltas, self._threshold):
            self._queue.append((position[0] + offset[0], position[1] + offset[1], position[2] + offset[2]))

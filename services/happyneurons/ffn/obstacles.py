"""Objects that are segmented already: they stay as they are, and new segments grow around them.

Method: `init_segmentation` of google/ffn. Its ids are of the whole volume; a subvolume has ids of
its own, 1…n in the order of the given ones, and new segments are numbered from n + 1 on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.ffn.canvas import Canvas


@dataclass(frozen=True)
class Obstacles:
    """labels: (z, y, x) int32, 0 free, 1…n. ids: (n,) uint64, `ids[i]` is what label i + 1 was given as."""

    labels: NDArray[np.int32]
    ids: NDArray[np.uint64]

    @classmethod
    def of(cls, segmentation: np.ndarray) -> Obstacles | None:
        """From ids (z, y, x) of any integer type, 0 is free. None if nothing is there.

        Raises UserError for negative ids.
        """
        if segmentation.dtype.kind == "i" and segmentation.min(initial=0) < 0:
            raise UserError("initial_segmentation: it has negative ids; give 0 (free) and positive ones")
        ids = np.unique(segmentation)
        ids = ids[ids > 0]
        if not len(ids):
            return None
        known = np.concatenate([np.zeros(1, ids.dtype), ids])
        labels = np.empty(segmentation.shape, np.int32)
        for z, plane in enumerate(segmentation):  # plane by plane: the positions are 8 bytes a voxel
            labels[z] = np.searchsorted(known, plane)
        return cls(labels, ids.astype(np.uint64))

    def place(self, canvas: Canvas, inner: tuple[slice, ...]) -> None:
        """Fill an empty canvas; `inner` is where the labels lie in it."""
        canvas.segmentation[inner] = self.labels
        canvas.counters["segments"] = canvas.counters["initial_segments"] = len(self.ids)

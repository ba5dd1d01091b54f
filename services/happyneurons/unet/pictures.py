"""Pictures of a training: patches with what was wanted and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from happyneurons.training.pictures import png

COLOURS = np.array([(80, 200, 80), (60, 120, 240), (230, 150, 60), (200, 80, 200), (70, 210, 220)], np.float64)
"""Blue, green, red; of the first classes, then again."""


class Sample(NamedTuple):
    """(y, x) arrays: image normalized, target class numbers (negative: nobody knows), predicted class numbers."""

    image: np.ndarray
    target: np.ndarray
    predicted: np.ndarray


def samples_png(samples: Sequence[Sample]) -> bytes:
    """A row for each patch: the image, what was wanted (dark: not annotated), what was predicted."""
    rows = []
    for sample in samples:
        grey = np.clip(128 + 50 * sample.image, 0, 255)
        shown = [np.repeat(grey[..., np.newaxis], 3, axis=-1)]
        for classes in (sample.target, sample.predicted):
            picture = np.repeat(grey[..., np.newaxis], 3, axis=-1)
            picture[classes < 0] *= 0.4
            inside = classes > 0
            picture[inside] = 0.5 * picture[inside] + 0.5 * COLOURS[(classes[inside] - 1) % len(COLOURS)]
            shown.append(picture)
        rows.append(np.hstack([np.pad(p, ((1, 1), (1, 1), (0, 0)), constant_values=90) for p in shown]))
    return png(np.rint(np.vstack(rows)).astype(np.uint8))

"""Pictures of a training: patches with what was wanted and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from happyneurons.ffn.examples import Patch
from happyneurons.training.pictures import png


def samples_png(patches: Sequence[Patch], *, zoom: int = 3) -> bytes:
    """A row for each patch, its middle section: the image, what was wanted, the predicted probability."""
    rows = []
    for patch in patches:
        middle = patch.centre[0]
        tissue = np.clip(128 + 50 * patch.image[middle], 0, 255)
        wanted = np.where(patch.wanted[middle], 255.0, 0.0)
        logits = np.clip(np.nan_to_num(patch.seed[middle].astype(np.float64)), -30, 30)
        predicted = 255.0 / (1.0 + np.exp(-logits))
        rows.append(np.pad(np.hstack([np.pad(a, 1, constant_values=90) for a in (tissue, wanted, predicted)]), 1))
    width = max(r.shape[1] for r in rows)
    picture = np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]))) for r in rows])
    return png(np.kron(np.rint(picture).astype(np.uint8), np.ones((zoom, zoom), np.uint8)))

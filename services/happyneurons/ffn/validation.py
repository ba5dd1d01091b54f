"""Judging a network: voxels of whole patches, walked over as in inference, against the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.examples import Patch, PatchSource, Walker, judged_box, logit

SEGMENT_THRESHOLD = 0.6
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(image, seed)`, both (batch, z, y, x) float32 → logits of that shape."""


def judge(
    predict: Predict,
    architecture: Architecture,
    source: PatchSource,
    numbers: Sequence[int],
    *,
    seed: int,
    batch_size: int,
    seen: Callable[[int, Patch], None] | None = None,
) -> list[int]:
    """[true positive, false positive, false negative, true negative] voxels over patches.

    numbers: which patches; patch i is drawn from (seed, i), whatever the others are.
    seen: called with the number of each patch and the patch with its final mask.
    """
    counts = np.zeros(4, np.int64)
    inside = judged_box(architecture)
    todo = iter(numbers)

    class Numbered(Walker):
        """A walker that takes the next patch of all."""

        def __init__(self) -> None:
            self._number = -1
            super().__init__(architecture, self._next_patch, self._count)

        def _next_patch(self) -> Patch | None:
            number = next(todo, None)
            if number is None:
                return None
            self._number = number
            return source.draw(np.random.default_rng([seed, 2**31, number]))

        def _count(self, patch: Patch) -> None:
            mask, wanted = patch.seed[inside] >= logit(SEGMENT_THRESHOLD), patch.wanted[inside]
            pairs = (mask & wanted, mask & ~wanted, ~mask & wanted, ~mask & ~wanted)
            counts[:] += [int(p.sum()) for p in pairs]
            if seen:
                seen(self._number, patch)

    walkers: list[Numbered] = [Numbered() for _ in range(batch_size)]
    while walkers:
        pairs = [(walker, example) for walker in walkers if (example := walker.next()) is not None]
        walkers = [walker for walker, _ in pairs]
        if pairs:
            logits = predict(np.stack([e[0] for _, e in pairs]), np.stack([e[1] for _, e in pairs]))
            for (walker, _), predicted in zip(pairs, logits, strict=True):
                walker.update(predicted)
    return [int(c) for c in counts]


def figures(counts: Sequence[int]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of counts from `judge`."""
    right, wrong, missed, rest = (float(c) for c in counts)
    return {
        "accuracy": (right + rest) / max(right + wrong + missed + rest, 1.0),
        "precision": right / max(right + wrong, 1.0),
        "recall": right / max(right + missed, 1.0),
        "f1": 2 * right / max(2 * right + wrong + missed, 1.0),
    }

"""Judging predicted masks: voxels counted, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def count(predicted: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """(classes, 3) int64: true positive, false positive and false negative pixels of each class.

    predicted, target: class numbers of the same shape, 0 background; where the target is negative nobody knows.
    """
    known = target >= 0
    table = np.zeros((classes, 3), np.int64)
    for number in range(1, classes + 1):
        found, wanted = (predicted == number) & known, target == number
        table[number - 1] = (found & wanted).sum(), (found & ~wanted).sum(), (wanted & ~found).sum()
    return table


def figures(counts: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Dice, IoU, precision and recall, means over the classes; with several classes `dice_NAME` of each too.

    A class that is neither there nor predicted counts as found.
    """
    tp, fp, fn = (counts[:, i].astype(float) for i in range(3))

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)

    dice = share(2 * tp, 2 * tp + fp + fn)
    row = {
        "dice": dice, "iou": share(tp, tp + fp + fn), "precision": share(tp, tp + fp), "recall": share(tp, tp + fn),
    }  # fmt: skip
    result = {name: float(values.mean()) for name, values in row.items()}
    if len(names) > 1:
        result |= {f"dice_{name}": float(value) for name, value in zip(names, dice, strict=True)}
    return result

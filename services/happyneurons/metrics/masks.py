"""Figures that compare masks with ground truth: by voxel, and by object.

All come from one sparse table of (truth, found) labels with background among them, which can be
accumulated block by block.
"""

from __future__ import annotations

import numpy as np

from happyneurons.metrics.contingency import Contingency


def overlap_figures(both: float, truth: float, found: float) -> dict[str, float]:
    """Dice, IoU, precision and recall of two sets by their sizes; two empty sets agree."""

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 1.0

    return {
        "dice": share(2 * both, truth + found),
        "iou": share(both, truth + found - both),
        "precision": share(both, found),
        "recall": share(both, truth),
    }


def voxel_figures(table: Contingency) -> dict[str, float]:
    """Figures of what is not background, whatever its label."""
    inside, marked = table.first > 0, table.second > 0
    both, truth, found = (float(table.counts[rows].sum()) for rows in (inside & marked, inside, marked))
    return overlap_figures(both, truth, found)


def class_figures(table: Contingency) -> dict[int, dict[str, float]]:
    """Figures of each label but background that occurs on either side, by label."""
    labels = np.union1d(table.first, table.second)
    figures = {}
    for label in labels[labels > 0].tolist():
        inside, marked = table.first == np.uint64(label), table.second == np.uint64(label)
        both, truth, found = (float(table.counts[rows].sum()) for rows in (inside & marked, inside, marked))
        figures[int(label)] = overlap_figures(both, truth, found)
    return figures


def object_figures(table: Contingency, least_iou: float) -> dict[str, float]:
    """Objects that were found: a true one and a found one match if their IoU is least_iou or more.

    least_iou: 0.5 or more, so that none matches two (at 0.5 itself the IoU must be larger).
    matched_iou: mean over the matches; panoptic_quality:
    Kirillov et al., CVPR 2019.
    """
    if least_iou < 0.5:
        raise ValueError(f"IoU of matches {least_iou}: at 0.5 or more each object has one match at most")
    truth_ids, truth_counts = table.first_totals()
    found_ids, found_counts = table.second_totals()
    pairs = table.where((table.first > 0) & (table.second > 0))
    a = truth_counts[np.searchsorted(truth_ids, pairs.first)]
    b = found_counts[np.searchsorted(found_ids, pairs.second)]
    iou = pairs.counts / np.maximum(a + b - pairs.counts, 1)
    # Both halves of an object that was cut in two have an IoU of one half with it.
    good = (iou > least_iou) if least_iou == 0.5 else (iou >= least_iou)
    matched, truth, found = int(good.sum()), int((truth_ids > 0).sum()), int((found_ids > 0).sum())
    figures = overlap_figures(matched, truth, found)
    mean = float(iou[good].mean()) if matched else 0.0
    return {
        "precision": figures["precision"],
        "recall": figures["recall"],
        "f1": figures["dice"],
        "matched_iou": mean,
        "panoptic_quality": figures["dice"] * mean if truth + found else 1.0,
        "truth": float(truth),
        "found": float(found),
        "matched": float(matched),
    }

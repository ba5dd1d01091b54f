"""Masks against true ones: a round that counts, block by block, and the part of the report that comes of it.

masks/{block}.npz   sparse table (truth, found) with background
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.imaging.blocks import BlockGrid
from happyneurons.imaging.layers import UNKNOWN_SIZE, Layer
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.masks import class_figures, object_figures, voxel_figures
from happyneurons.stages.evaluate.stage import REPORT
from happyneurons.store.volumes import Volume, open_volume

MAX_CLASSES = 254


def scores_masks(context: Context[Any]) -> bool:
    return context.optional_input("mask") is not None


def _found(context: Context[Any]) -> Volume:
    volume: Volume = context.once("mask", lambda: open_volume(context.input("mask").data_uri))
    return volume


def _truth(context: Context[Any]) -> Layer:
    """The truth as seen at the mask's voxels."""

    def make() -> Layer:
        size = _found(context).voxel_size_nm_xyz
        return Layer.open(context.input("mask_truth").data_uri, size, UNKNOWN_SIZE if size == UNKNOWN_SIZE else None)

    layer: Layer = context.once("mask truth", make)
    return layer


def _box(context: Context[Any]) -> tuple[list[int], list[int]]:
    """[start, stop) of what is scored: what both volumes have, of params.bounds_xyz."""
    volume, layer = _found(context), _truth(context)
    own, image = layer.voxel_size_nm_xyz[::-1], layer.image_size_nm_xyz[::-1]
    first, last = (
        [round(v * p / q) for v, p, q in zip(ends, own, image, strict=True)]
        for ends in (layer.volume.start_zyx, layer.volume.stop_zyx)
    )
    low = [max(a, b) for a, b in zip(volume.start_zyx, first, strict=True)]
    high = [min(a, b) for a, b in zip(volume.stop_zyx, last, strict=True)]
    if context.params.bounds_xyz is not None:
        a, b = context.params.bounds_xyz
        low = [max(p, q) for p, q in zip(low, a[::-1], strict=True)]
        high = [min(p, q) for p, q in zip(high, b[::-1], strict=True)]
    return low, high


def check_masks(context: Context[Any]) -> None:
    """Raise UserError if mask and truth do not fit."""
    if context.optional_input("mask_truth") is None:
        raise UserError("evaluate: no ground truth for the mask; give the input mask_truth")
    for name, volume in (("mask", _found(context)), ("mask_truth", _truth(context).volume)):
        if volume.dtype.kind not in "uib":
            raise UserError(f"evaluate: {name} has type {volume.dtype}, whole numbers were expected: {volume.uri}")
    low, high = _box(context)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise UserError("evaluate: mask and mask_truth have no voxels in common; do both lie in the same coordinates?")


class Masks(Round):
    """Task: a block; counts which label of the mask lies on which of the truth."""

    name = "masks"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        low, high = _box(context)
        edge = context.params.block_voxels
        for block in BlockGrid((low[0], low[1], low[2]), (high[0], high[1], high[2]), (edge, edge, edge)):
            yield Task(key=block.key, payload={"start_zyx": block.start_zyx, "stop_zyx": block.stop_zyx})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        start, stop = task.payload["start_zyx"], task.payload["stop_zyx"]
        found = _found(context).read(start, stop)
        truth = _truth(context).read(start, stop, lambda values: values)
        table = Contingency.of(truth.astype(np.uint64), found.astype(np.uint64))
        context.output_store(REPORT).put_arrays(f"masks/{task.key}.npz", **table.arrays())
        return TaskResult(data={"pairs": len(table.counts)}, voxels=int(found.size))


def masks_report(context: Context[Any]) -> dict[str, Any]:
    """The part `mask` of the report. Tables are added one at a time."""
    store, total = context.output_store(REPORT), Contingency.empty()
    for key, _ in context.results(Masks.name):
        total = Contingency.sum([total, Contingency.from_arrays(store.get_arrays(f"masks/{key}.npz"))])
    low, high = _box(context)
    report: dict[str, Any] = {
        "bounds": {"minimum_xyz": low[::-1], "maximum_xyz": high[::-1]},
        "voxels": voxel_figures(total),
        "unscored_blocks": list(context.quarantined(Masks.name)),
    }
    if context.params.mask_labels == "objects":
        report["objects"] = object_figures(total, context.params.mask_match_iou)
        report["objects"]["least_iou"] = context.params.mask_match_iou
        return report
    if len(np.union1d(total.first, total.second)) > MAX_CLASSES + 1:
        raise UserError(
            f"evaluate: mask and mask_truth have more than {MAX_CLASSES} labels, which are not classes; set "
            "params.mask_labels to objects"
        )
    report["classes"] = {str(label): figures for label, figures in class_figures(total).items()}
    return report

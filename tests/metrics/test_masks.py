"""Figures of masks, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.masks import class_figures, object_figures, voxel_figures
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

TRUTH = np.zeros((4, 40, 70), np.uint8)
TRUTH[:, :10, :10], TRUTH[:, 20:30, :10], TRUTH[:, 20:30, 60:] = 1, 2, 3
FOUND = np.zeros_like(TRUTH)
FOUND[:, :10, :8] = 5  # IoU 0.8 with object 1
FOUND[:, 20:25, :10], FOUND[:, 25:30, :10] = 6, 7  # object 2 in two halves
FOUND[:, 35:, 30:40] = 8  # nothing is there


def test_objects_are_matched_by_overlap():
    figures = object_figures(Contingency.of(TRUTH, FOUND), 0.5)
    assert (figures["truth"], figures["found"], figures["matched"]) == (3, 4, 1)
    assert figures["precision"] == pytest.approx(1 / 4)
    assert figures["recall"] == pytest.approx(1 / 3)
    assert figures["matched_iou"] == pytest.approx(0.8)
    assert object_figures(Contingency.of(TRUTH, FOUND), 0.85)["matched"] == 0
    with pytest.raises(ValueError, match="0.4"):
        object_figures(Contingency.of(TRUTH, FOUND), 0.4)


def test_voxels_and_classes():
    figures = voxel_figures(Contingency.of(TRUTH, FOUND))
    assert figures["precision"] == pytest.approx(180 / 230)
    assert figures["recall"] == pytest.approx(180 / 300)
    assert figures["dice"] == pytest.approx(2 * 180 / 530)
    assert figures["iou"] == pytest.approx(180 / 350)
    assert class_figures(Contingency.of(TRUTH, TRUTH))[3]["dice"] == 1
    assert class_figures(Contingency.of(TRUTH, FOUND))[3] == {"dice": 0, "iou": 0, "precision": 1.0, "recall": 0}


def put(root: Path, name: str, array: np.ndarray) -> str:
    uri = Store(str(root)).url(name)
    volume = create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=array.shape, voxel_size_nm_xyz=(8, 8, 40), dtype="uint8",
        layer_type="segmentation",
    )  # fmt: skip
    volume.write((0, 0, 0), array)
    return uri


def test_the_stage_scores_block_by_block(tmp_path):
    inputs = {"mask": put(tmp_path, "found", FOUND), "mask_truth": put(tmp_path, "truth", TRUTH)}
    store = Store(str(tmp_path / "store"))
    params = {"mask_labels": "objects", "block_voxels": 32}
    metrics = run_stage(store, "evaluate", inputs=inputs, params=params).metrics
    assert metrics["mask_dice"] == pytest.approx(2 * 180 / 530)
    assert metrics["mask_object_recall"] == pytest.approx(1 / 3)
    inner = {"bounds_xyz": [[0, 0, 0], [10, 10, 4]]}
    classes = run_stage(store, "evaluate", inputs={**inputs, "mask": inputs["mask_truth"]}, params=inner).metrics
    assert classes["mask_iou_1"] == 1
    assert "mask_iou_2" not in classes
    with pytest.raises(UserError, match="give the input mask_truth"):
        run_stage(store, "evaluate", inputs={"mask": inputs["mask"]}, params={})

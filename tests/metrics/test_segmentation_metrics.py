"""Segmentation figures agree with scikit-image's, whole or accumulated by blocks."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, variation_of_information

from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.segmentation import connected_objects, coverage, fill_nearest, scores, truth_table


def check_against_skimage(segmentation: np.ndarray, truth: np.ndarray) -> None:
    result = scores(truth_table(segmentation, truth))
    both = (segmentation > 0) & (truth > 0)
    gt, seg = truth[both].astype(np.int64), segmentation[both].astype(np.int64)
    split, merge = variation_of_information(gt, seg)
    # Its "precision" divides by the pairs of the truth, its "recall" by those of the segmentation.
    error, recall, precision = adapted_rand_error(gt, seg)
    assert result.voi_split == pytest.approx(split, abs=1e-9)
    assert result.voi_merge == pytest.approx(merge, abs=1e-9)
    assert result.adapted_rand_error == pytest.approx(error, abs=1e-12)
    assert result.rand_precision == pytest.approx(precision, abs=1e-12)
    assert result.rand_recall == pytest.approx(recall, abs=1e-12)
    assert result.voxels == both.sum()


def test_published_ffn_result_scores_as_with_skimage(shared_data: Path) -> None:
    segmentation = np.load(shared_data / "fib25/google_ffn_crop_0-128.npz")["segmentation"][:64]
    with h5py.File(shared_data / "fib25/labels_z000-128.h5") as file:
        truth = connected_objects(file["labels"][:64, :128, :128])
    check_against_skimage(segmentation, truth)


@settings(max_examples=60)
@given(arrays(np.uint32, (2, 3, 4, 5), elements=st.integers(0, 4)))
def test_random_labels_score_as_with_skimage(labels: np.ndarray) -> None:
    segmentation, truth = labels
    both = Contingency.of(truth[(truth > 0) & (segmentation > 0)], segmentation[(truth > 0) & (segmentation > 0)])
    # scikit-image divides by zero where no two voxels share an object or a segment.
    if both.counts.size and both.first_totals()[1].max() > 1 and both.second_totals()[1].max() > 1:
        check_against_skimage(segmentation, truth)


@settings(max_examples=60)
@given(arrays(np.uint64, (2, 64), elements=st.sampled_from([0, 1, 2, 2**40, 2**63 + 5])), st.integers(1, 63))
def test_blocks_add_up_to_the_whole(labels: np.ndarray, cut: int) -> None:
    whole = Contingency.of(*labels)
    parts = [Contingency.of(*labels[:, cut:]), Contingency.of(*labels[:, :cut]), Contingency.empty()]
    summed = Contingency.sum(parts)
    for name, value in whole.arrays().items():
        assert (summed.arrays()[name] == value).all()
    assert whole.counts.sum() == 64
    pairs = list(zip(*labels.tolist(), strict=True))
    for a, b, n in zip(whole.first.tolist(), whole.second.tolist(), whole.counts.tolist(), strict=True):
        assert pairs.count((a, b)) == n


def test_a_split_and_a_merger_cost_what_they_should() -> None:
    truth = np.repeat([1, 2], 8).astype(np.uint32)
    split = np.repeat([1, 2, 3], [4, 4, 8]).astype(np.uint32)
    result = scores(truth_table(split, truth))
    assert (result.voi_split, result.voi_merge) == (pytest.approx(0.5), 0.0)
    assert (result.rand_precision, result.segments, result.truth_objects) == (1.0, 3, 2)
    merged = scores(truth_table(np.ones(16, np.uint32), truth))
    assert (merged.voi_split, merged.voi_merge) == (0.0, pytest.approx(1.0))
    assert merged.rand_recall == 1.0


def test_unsegmented_voxels_count_in_the_coverage_only() -> None:
    truth = np.array([0, 1, 1, 2, 2], np.uint32)
    table = truth_table(np.array([7, 5, 0, 6, 0], np.uint32), truth)
    assert coverage(table) == 0.5
    assert scores(table).voxels == 2
    assert math.isnan(scores(truth_table(np.zeros(5, np.uint32), truth)).voi_split)
    assert coverage(Contingency.empty()) == 0.0


def test_fill_takes_the_nearest_segment() -> None:
    segmentation = np.zeros((1, 1, 9), np.uint64)
    segmentation[..., 1], segmentation[..., 8] = 2**50, 3
    assert fill_nearest(segmentation).ravel().tolist() == [2**50] * 5 + [3] * 4
    assert (fill_nearest(np.zeros((2, 2, 2), np.uint32)) == 0).all()


def test_objects_are_26_connected_parts() -> None:
    labels = np.zeros((2, 2, 5), np.uint64)
    labels[0, 0, 0] = labels[1, 1, 1] = 2**60  # they touch at a corner
    labels[0, 0, 4] = 2**60
    labels[1, 1, 2] = 9
    objects = connected_objects(labels)
    assert objects[0, 0, 0] == objects[1, 1, 1] != objects[0, 0, 4]
    assert len(np.unique(objects)) == 4
    assert ((objects > 0) == (labels > 0)).all()


def test_objects_of_a_view_are_those_of_its_copy() -> None:
    labels = np.ones((6, 1, 3), np.uint32)
    labels[4, 0, 2] = 0
    view = labels[4:6, :, 2:]
    assert connected_objects(view).ravel().tolist() == [0, 1]

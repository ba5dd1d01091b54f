"""Tables of single objects add up to the figures of the whole, and know where things are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.objects import contributions, pieces, worst
from happyneurons.metrics.pairs import PairTable
from happyneurons.metrics.segmentation import fill_nearest, scores

LABELS = arrays(np.uint64, (3, 4, 7), elements=st.integers(0, 4))


def equal(a: PairTable | Contingency, b: PairTable | Contingency) -> bool:
    return all(np.array_equal(array, b.arrays()[name]) for name, array in a.arrays().items())


@settings(max_examples=60)
@given(LABELS, LABELS)
def test_contributions_add_up_to_the_variation_of_information(truth, segmentation):
    table = PairTable.of(truth, segmentation, (0, 0, 0))
    inside = truth > 0
    expected = Contingency.of(truth[inside], segmentation[inside])
    assert equal(table.contingency(), expected)
    whole = scores(expected)
    for rows in contributions(table):
        if whole.voxels:
            assert rows.voi_split.sum() == pytest.approx(whole.voi_split, abs=1e-9)
            assert rows.voi_merge.sum() == pytest.approx(whole.voi_merge, abs=1e-9)
        assert rows.segmented.sum() == whole.voxels
    objects, segments = contributions(table)
    assert objects.voxels.sum() == inside.sum()
    assert np.array_equal(segments.ids, np.unique(segmentation[inside & (segmentation > 0)]))


@settings(max_examples=60)
@given(LABELS, LABELS, st.permutations(range(4)))
def test_a_place_carries_its_pair_and_blocks_can_be_added_in_any_order(truth, segmentation, order):
    halves = [(z, x) for z in (slice(0, 2), slice(2, 3)) for x in (slice(0, 4), slice(4, 7))]
    parts = [PairTable.of(truth[z, :, x], segmentation[z, :, x], (z.start, 0, x.start)) for z, x in halves]
    total = PairTable.sum(parts[i] for i in order)
    again = PairTable.sum(parts)
    assert equal(total, again)
    whole = PairTable.of(truth, segmentation, (0, 0, 0))
    assert np.array_equal(total.counts, whole.counts)
    for table in (total, whole):
        at = tuple(table.place_zyx.T)
        assert np.array_equal(truth[at], table.first)
        assert np.array_equal(segmentation[at], table.second)


def test_the_costliest_mistakes_come_first():
    truth, segmentation = np.zeros((1, 4, 100), np.uint64), np.zeros((1, 4, 100), np.uint64)
    truth[0, 0], truth[0, 1], truth[0, 2], truth[0, 3] = 1, 2, 3, 4
    segmentation[0, 0, :50], segmentation[0, 0, 50:] = 10, 11  # 1 is cut in the middle
    segmentation[0, 1, :90], segmentation[0, 1, 90:95] = 12, 13  # 2 lost an end, and some of it is not segmented
    segmentation[0, 2:] = 14  # 3 and 4 are one
    objects, segments = contributions(PairTable.of(truth, segmentation, (7, 0, 0)))
    assert objects.ids[worst(objects.voi_split, 5)].tolist() == [1, 2]
    assert segments.ids[worst(segments.voi_merge, 5)].tolist() == [14]
    assert objects.partners.tolist() == [2, 2, 1, 1]
    assert objects.largest_fraction.tolist() == [0.5, 0.9, 1, 1]
    assert objects.segmented.tolist() == [100, 95, 100, 100]
    found = pieces(PairTable.of(truth, segmentation, (7, 0, 0)).first, PairTable.of(truth, segmentation, (7, 0, 0)), 2)
    assert (found.second.tolist(), found.counts.tolist()) == ([12, 13], [90, 5])
    assert found.place_zyx.tolist() == [[7, 1, 45], [7, 1, 92]]


@settings(max_examples=40)
@given(arrays(np.uint32, (6, 7, 8), elements=st.sampled_from([0, 0, 0, 0, 0, 1, 2])), st.integers(1, 3))
def test_fill_reaches_as_far_as_it_is_told_and_is_the_same_in_a_part(segmentation, reach):
    filled, unlimited = fill_nearest(segmentation, reach), fill_nearest(segmentation)
    places = np.argwhere(segmentation > 0)
    if not len(places):
        return
    grid = np.stack(np.meshgrid(*map(np.arange, segmentation.shape), indexing="ij"), axis=-1)
    squared = ((grid[..., None, :] - places) ** 2).sum(axis=-1)
    near = squared.min(axis=-1) <= reach**2
    assert np.array_equal(filled > 0, near)
    assert np.array_equal(filled[near], unlimited[near])
    # In a block with a margin of `reach`, the same: some nearest segment, and none beyond the reach.
    part = fill_nearest(segmentation[:, :, reach:], reach)[:, :, reach:]
    assert np.array_equal(part > 0, near[:, :, 2 * reach :])

"""Run lengths of skeletons whose mistakes are known by hand."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from happyneurons.metrics.run_length import UNKNOWN, RunLengths, crossings, mergers, run_lengths


def chain(*lengths: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(skeleton, edges, length) of straight skeletons with that many edges of length 2 each."""
    skeleton = np.concatenate([np.full(n + 1, i) for i, n in enumerate(lengths)])
    starts = np.flatnonzero(skeleton[1:] == skeleton[:-1])
    edges = np.stack([starts, starts + 1], axis=1)
    return skeleton, edges, np.full(len(edges), 2.0)


def figures(skeleton, edges, length, segment, merger_nodes=3):
    segment = np.asarray(segment, np.uint64)
    merged = mergers([crossings(skeleton, segment, merger_nodes)[1]])
    return run_lengths(int(skeleton.max()) + 1, skeleton, edges, length, segment, merged)


def test_without_a_mistake_the_run_length_is_the_largest_there_is():
    found = figures(*chain(4, 8), [1] * 5 + [2] * 9).figures()
    # A random place is on the long skeleton (16) twice as often as on the short one (8).
    assert found["erl"] == found["erl_max"] == found["erl_by_segment"] == pytest.approx((8**2 + 16**2) / 24)
    assert found["correct_fraction"] == 1


def test_a_split_ends_a_run_and_costs_its_edge():
    found = figures(*chain(10), [1] * 4 + [2] * 7)
    assert (found.runs[0], found.longest[0], found.split[0]) == (2, 12, 2)
    assert found.figures()["erl"] == pytest.approx((6**2 + 12**2) / 20)
    assert found.figures()["erl_max"] == 20


def test_unsegmented_nodes_are_omitted():
    found = figures(*chain(10), [1] * 5 + [0] * 2 + [1] * 4)
    assert (found.omitted[0], found.split[0], found.runs[0]) == (6, 0, 2)
    whole = found.figures()
    # The same segment on both sides of a gap: two runs, for one cannot walk across.
    assert whole["erl"] == pytest.approx((8**2 + 6**2) / 20)
    assert whole["erl_by_segment"] == pytest.approx(14**2 / 20)


@pytest.mark.parametrize(("nodes", "merged"), [(3, True), (2, False)])
def test_a_segment_on_two_skeletons_is_a_merger_from_some_nodes_on(nodes, merged):
    skeleton, edges, length = chain(6, 6)
    segment = [1] * 7 + [1] * nodes + [2] * (7 - nodes)
    found = figures(skeleton, edges, length, segment)
    if merged:  # both sides count 0
        assert found.correct.tolist() == [0, 6]
        assert found.merged.tolist() == [12, 4]
        assert found.figures()["erl"] == pytest.approx(6**2 / 24)
    else:
        assert found.merged.sum() == 0
        assert found.correct.tolist() == [12, 10]
        assert found.longest.tolist() == [12, 8]


def test_branches_of_one_segment_are_one_run():
    edges = np.array([[0, 1], [1, 2], [1, 3]])
    found = figures(np.zeros(4, int), edges, np.array([1.0, 2.0, 4.0]), [5, 5, 5, 5])
    assert (found.runs[0], found.longest[0]) == (1, 7)


def test_what_could_not_be_looked_up_is_not_scored():
    found = figures(*chain(4), [1, 1, 1, int(UNKNOWN), 1])
    assert (found.path[0], found.correct[0], found.omitted[0]) == (4, 4, 0)


def test_skeletons_can_be_done_one_by_one():
    rng = np.random.default_rng(0)
    skeleton, edges, length = chain(30, 40, 50, 20)
    segment = np.repeat(rng.integers(0, 6, 30), 5)[: len(skeleton)].astype(np.uint64)
    groups = [np.isin(skeleton, part) for part in ([0, 1], [2], [3])]
    merged = mergers([crossings(skeleton[g], segment[g], 4)[1] for g in groups])
    together = figures(skeleton, edges, length, segment, 4)
    parts = []
    for group in groups:
        inside = group[edges[:, 0]]
        first = int(skeleton[group].min())
        moved = edges[inside] - np.flatnonzero(group)[0]
        count = len(np.unique(skeleton[group]))
        parts.append(run_lengths(count, skeleton[group] - first, moved, length[inside], segment[group], merged))
    joined = RunLengths.joined(p.arrays() for p in parts)
    assert len(merged) > 0
    for field in fields(RunLengths):
        assert getattr(joined, field.name) == pytest.approx(getattr(together, field.name)), field.name
    kinds = together.correct + together.merged + together.split + together.omitted
    assert kinds == pytest.approx(together.path)


def test_no_skeleton_no_figures():
    assert run_lengths(0, *(np.zeros(s, int) for s in (0, (0, 2), 0, 0)), np.zeros(0, np.uint64)).figures() is None

"""Agglomeration: what touches, who is asked about, what is decided, joined and written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from happyneurons.errors import UserError
from happyneurons.stages.agglomerate.boxes import masked
from happyneurons.stages.agglomerate.candidates import Segments, choose, count_segments
from happyneurons.stages.agglomerate.contacts import Contacts, find_contacts, grow, halo
from happyneurons.stages.agglomerate.joining import APART, LARGE, Joined, Pair, join
from happyneurons.stages.agglomerate.judging import Rules, judge
from happyneurons.stages.agglomerate.reviews import read_reviews
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume


class TestContacts:
    def whole(self, labels: np.ndarray) -> Contacts:
        return find_contacts(labels, (0, 0, 0), ((0, 0, 0), labels.shape))  # type: ignore[arg-type]

    def test_faces_are_counted_between_each_pair(self) -> None:
        labels = np.zeros((6, 8, 10), np.uint64)
        labels[:, :4, :5], labels[:, :4, 5:], labels[:, 4:] = 7, 2**40, 3
        found = self.whole(labels)
        assert found.pairs.tolist() == [[3, 7], [3, 2**40], [7, 2**40]]
        assert found.faces.tolist() == [6 * 5, 6 * 5, 6 * 4]
        for (a, b), (z, y, x) in zip(found.pairs.tolist(), found.points.tolist(), strict=True):
            near = labels[max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert {a, b} <= set(near.ravel().tolist())

    def test_background_alone_touches_nobody(self) -> None:
        labels = np.zeros((4, 4, 4), np.uint32)
        assert len(self.whole(labels).pairs) == 0
        labels[:2] = 5
        assert len(self.whole(labels).pairs) == 0

    @pytest.mark.parametrize(("gap", "touches"), [(0, True), (1, True), (4, True), (5, False)])
    def test_a_gap_of_up_to_max_gap_counts_as_touching(self, gap: int, touches: bool) -> None:
        labels = np.zeros((5, 5, 30), np.uint32)
        labels[:, :, :10], labels[:, :, 10 + gap :] = 1, 2
        found = self.whole(grow(labels, 4, (1.0, 1.0, 1.0)))
        assert found.pairs.tolist() == ([[1, 2]] if touches else [])

    def test_gaps_are_measured_in_space(self) -> None:
        """Sections 10 times as thick as a pixel: one empty section is a gap of 10."""
        labels = np.zeros((5, 8, 8), np.uint32)
        labels[:2], labels[3:] = 1, 2
        assert len(self.whole(grow(labels, 4, (1.0, 1.0, 1.0))).pairs) == 1
        assert len(self.whole(grow(labels, 4, (40.0, 4.0, 4.0))).pairs) == 0

    def test_the_point_lies_where_most_faces_are(self) -> None:
        labels = np.zeros((40, 64, 64), np.uint32)
        labels[:, :32], labels[:2, 32:, 40:] = 1, 2  # a narrow touch …
        labels[20:36, 32:, 4:12] = 2  # … and a broad one
        z, y, x = self.whole(labels).points[0].tolist()
        assert 20 <= z < 36
        assert y == 31
        assert 4 <= x < 12

    def test_blocks_count_what_the_whole_counts(self) -> None:
        rng = np.random.default_rng(1)
        labels = np.kron(rng.integers(0, 6, (6, 6, 6)), np.ones((6, 6, 6), np.uint32)).astype(np.uint32)
        whole = self.whole(grow(labels, 3, (1.0, 1.0, 1.0)))
        sums: dict[tuple[int, int], int] = {}
        edge = halo(3)
        for z, y, x in np.ndindex(2, 2, 2):
            start = (z * 18, y * 18, x * 18)
            low = [max(a - edge, 0) for a in start]
            part = labels[tuple(slice(a, b + 18 + edge) for a, b in zip(low, start, strict=True))]
            core = (start, tuple(a + 18 for a in start))
            found = find_contacts(grow(part, 3, (1.0, 1.0, 1.0)), tuple(low), core)  # type: ignore[arg-type]
            for key, faces in zip(map(tuple, found.pairs.tolist()), found.faces.tolist(), strict=True):
                sums[key] = sums.get(key, 0) + faces
        expected = dict(zip(map(tuple, whole.pairs.tolist()), whole.faces.tolist(), strict=True))
        assert sums.keys() == expected.keys()
        # Voxels equally near to two segments may go to either: a few faces, never a pair.
        assert sum(abs(sums[k] - n) for k, n in expected.items()) <= 0.02 * sum(expected.values())


def contacts(*rows: tuple[int, int, int, tuple[int, int, int], int]) -> dict[str, np.ndarray]:
    a, b, faces, points, densest = zip(*rows, strict=True)
    return {
        "pairs": np.array([a, b], np.uint64).T,
        "faces": np.array(faces),
        "points": np.array(points),
        "point_faces": np.array(densest),
    }


class TestCandidates:
    segments = Segments(np.array([1, 2, 3, 4, 5], np.uint64), np.array([10**6, 500, 400, 300, 20]))

    def choose(self, *tables: dict[str, np.ndarray], **params: int) -> Any:
        given = {"min_contact_faces": 10, "max_partners": 2, "min_segment_voxels": 100, **params}
        return choose(tables, self.segments, block_zyx=(64, 64, 64), **given)

    def test_contacts_of_blocks_add_up_and_the_densest_place_is_taken(self) -> None:
        found = self.choose(
            contacts((1, 2, 6, (1, 1, 1), 5)), contacts((1, 2, 7, (70, 1, 1), 6), (1, 3, 9, (70, 2, 2), 9))
        )
        assert found.pairs.tolist() == [[1, 2]]
        assert (found.faces.tolist(), found.points.tolist()) == ([13], [[70, 1, 1]])
        assert found.voxels.tolist() == [[10**6, 500]]
        assert found.touching == 2

    def test_each_segment_is_asked_about_with_its_largest_contacts_to_larger_ones(self) -> None:
        table = contacts(
            (1, 4, 50, (0, 0, 0), 50), (2, 4, 90, (0, 0, 9), 9), (3, 4, 70, (0, 0, 5), 9), (1, 2, 20, (0, 9, 0), 9),
            (1, 3, 20, (9, 0, 0), 9), (1, 5, 99, (9, 9, 9), 9),
        )  # fmt: skip
        found = self.choose(table)
        # 4's third contact is left out, and 5 is too small; 1 may have as many as it likes.
        assert sorted(found.pairs.tolist()) == [[1, 2], [1, 3], [2, 4], [3, 4]]
        assert found.points.tolist() == sorted(found.points.tolist())

    def test_order_of_blocks_changes_nothing(self) -> None:
        tables = [contacts((1, 2, 20, (0, 0, z), 5), (2, 3, 15 + z, (0, 3, z), 7)) for z in range(4)]
        forth, back = self.choose(*tables), self.choose(*tables[::-1])
        for name in ("pairs", "faces", "points", "voxels"):
            np.testing.assert_array_equal(getattr(forth, name), getattr(back, name))

    def test_no_contacts(self) -> None:
        assert len(self.choose()) == 0

    def test_segments_are_counted_over_blocks(self) -> None:
        found = count_segments(
            {"ids": np.array(ids, np.uint64), "voxels": np.array(n)} for ids, n in (([2, 9], [5, 6]), ([9], [4]))
        )
        assert (found.ids.tolist(), found.voxels.tolist()) == ([2, 9], [5, 10])
        assert found.sizes(np.array([9, 3, 2], np.uint64)).tolist() == [10, 0, 5]


class TestJudging:
    rules = Rules(0.6, 0.6, 0.02, small_voxels=1000, small_min_recovered=0.5, min_piece_voxels=100)
    good: dict[str, float] = {
        "a_from_a": 0.9, "b_from_a": 0.9, "a_from_b": 0.7, "b_from_b": 0.9, "iou": 0.8, "deleted_a": 0.0,
        "deleted_b": 0.01, "piece_a": 5000, "piece_b": 800,
    }  # fmt: skip

    def verdict(self, voxels: tuple[int, int] = (9000, 8000), **changes: float) -> Any:
        return judge({**self.good, **changes}, voxels, self.rules)

    def test_both_floods_must_agree(self) -> None:
        assert self.verdict() == (0.7, True, "both floods recover both segments")
        nan = float("nan")
        for changes, reason in (
            ({"b_from_a": 0.3}, "flood from a"),
            ({"a_from_b": 0.3}, "flood from b"),
            ({"a_from_b": nan, "b_from_b": nan, "iou": nan, "deleted_b": nan}, "only one of the two"),
            ({"b_from_a": nan, "a_from_b": nan}, "fits into neither"),
            ({"iou": 0.5}, "differ"),
            ({"deleted_b": 0.03}, "took back"),
            ({"piece_b": 99}, "fewer than 100 voxels"),
        ):
            score, merge, text = self.verdict(**changes)
            assert not merge
            assert reason in text
            assert score == score  # never NaN: it is sorted by

    def test_a_small_segment_is_judged_by_the_flood_from_the_large_one(self) -> None:
        nan = float("nan")
        lost = {"a_from_b": nan, "b_from_b": nan, "iou": nan, "deleted_b": nan}
        assert self.verdict((9000, 900), **lost)[:2] == (0.9, True)
        assert not self.verdict((9000, 900), **{**lost, "b_from_a": 0.4}).merge
        assert not self.verdict((9000, 900), **{**lost, "deleted_a": 0.5}).merge
        assert not self.verdict((900, 9000), **{**lost, "b_from_a": 0.9}).merge  # the small one's own flood
        assert self.verdict((900, 9000), a_from_b=0.8, iou=0.1)[:2] == (0.8, True)


class TestJoining:
    def join(self, *pairs: Pair, voxels: dict[int, int] | None = None, **more: Any) -> Joined:
        sizes = voxels or {s: 100 - s for p in pairs for s in (p.a, p.b)}
        return join(pairs, sizes, **{"large_voxels": 1000, "large_min_score": 0.9, **more})

    def test_an_object_keeps_the_id_of_its_largest_segment(self) -> None:
        found = self.join(Pair(2, 5, 0.7), Pair(5, 9, 0.8), Pair(3, 4, 0.9), voxels={2: 5, 3: 7, 4: 7, 5: 6, 9: 50})
        assert found == Joined({2: 9, 3: 3, 4: 3, 5: 9, 9: 9}, {})

    def test_large_objects_are_joined_by_high_scores_only(self) -> None:
        large = {1: 5000, 2: 5000}
        assert self.join(Pair(1, 2, 0.95), voxels=large).target == {1: 1, 2: 1}
        assert self.join(Pair(1, 2, 0.8), voxels=large) == Joined({}, {(1, 2): LARGE})
        assert self.join(Pair(1, 2, 0.1, accepted=True), voxels=large).target == {1: 1, 2: 1}

    def test_no_chain_through_a_fragment_joins_two_large_ones(self) -> None:
        found = self.join(Pair(1, 3, 0.85), Pair(2, 3, 0.8), voxels={1: 5000, 2: 6000, 3: 10})
        assert found == Joined({1: 1, 3: 1}, {(2, 3): LARGE})

    def test_what_a_person_rejected_stays_apart_by_any_way(self) -> None:
        pairs = [Pair(1, 2, 0.9), Pair(2, 3, 0.8), Pair(3, 4, 0.7)]
        found = self.join(*pairs, apart=[(1, 4)])
        assert found == Joined({1: 1, 2: 1, 3: 1}, {(3, 4): APART})

    @given(
        raw=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4)), max_size=25),
        apart=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=3),
        order=st.randoms(use_true_random=False),
    )
    @settings(max_examples=60, deadline=None)
    def test_the_order_of_pairs_changes_nothing(self, raw: Any, apart: Any, order: Any) -> None:
        unique = {(min(a, b), max(a, b)): score / 4 for a, b, score in raw if a != b}
        pairs = [Pair(a, b, score) for (a, b), score in unique.items()]
        apart = [(a, b) for a, b in apart if a != b]
        voxels = {s: 100 * s for s in range(1, 13)}
        found = self.join(*pairs, voxels=voxels, apart=apart)
        order.shuffle(pairs)
        assert self.join(*pairs, voxels=voxels, apart=apart) == found
        for a, b in apart:
            assert found.target.get(a, a) != found.target.get(b, b)


class TestReviews:
    def read(self, folder: Path, text: str) -> Any:
        (folder / "reviewed").write_text(text)
        return read_reviews(str(folder / "reviewed"))

    def test_csv_and_json_say_the_same(self, tmp_path: Path) -> None:
        rows = [[7, 3, "Accept ", 1.0], [4, 5, "", 0.2], [1, 2, "reject", 0.5]]
        columns = ["segment_a", "segment_b", "review", "score"]
        expected = {(1, 2): "reject", (3, 7): "accept"}
        text = "\n".join(",".join(map(str, row)) for row in [columns, *rows])
        assert self.read(tmp_path, text) == expected
        assert self.read(tmp_path, "\ufeff" + text) == expected  # as spreadsheets write it
        assert self.read(tmp_path, json.dumps({"columns": columns, "rows": rows})) == expected
        objects = [dict(zip(columns, row, strict=True)) for row in rows]
        assert self.read(tmp_path, json.dumps(objects)) == expected

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("segment_a,segment_b,review\n1,2,maybe\n", "row 1: review is 'maybe'"),
            ("segment_a,segment_b,review\n1,2,accept\n2,1,reject\n", "row 2: 1 and 2 are both accepted and rejected"),
            ("segment_a,segment_b,review\n1,1,accept\n", "no pair"),
            ("segment_a,segment_b,review\n1,x,accept\n", "must be ids"),
            ("a,b\n1,2\n", "columns segment_a, segment_b and review are needed"),
            ("[1, 2", "neither such a CSV nor such a JSON"),
        ],
    )
    def test_what_cannot_be_understood_is_refused(self, tmp_path: Path, text: str, problem: str) -> None:
        with pytest.raises(UserError, match=problem):
            self.read(tmp_path, text)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no"):
            read_reviews(str(tmp_path / "nothing.csv"))


def put(store: Store, name: str, array: np.ndarray, layer: Any, **more: Any) -> str:
    uri = store.url(name)
    given = {"start_zyx": (0, 0, 0), "voxel_size_nm_xyz": (8.0, 8.0, 8.0), **more}
    stop = np.add(given["start_zyx"], array.shape)
    volume = create_volume(uri, stop_zyx=stop, dtype=str(array.dtype), layer_type=layer, **given)
    volume.write(given["start_zyx"], array)
    return uri


def test_masks_are_read_at_their_own_resolution(store: Store) -> None:
    from happyneurons.store.volumes import open_volume

    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2, 3] = 1
    volume = open_volume(put(store, "mask", mask, "image", voxel_size_nm_xyz=(16.0, 16.0, 8.0)))
    found = masked(volume, (-1, 3, 5), (3, 7, 20), (8.0, 8.0, 8.0))
    expected = np.zeros((4, 4, 15), bool)
    expected[2, 1:3, 1:3] = True  # z = 1, y = 4 and 5, x = 6 and 7
    np.testing.assert_array_equal(found, expected)
    assert not masked(volume, (90, 0, 0), (95, 4, 4), (8.0, 8.0, 8.0)).any()


def table(manifest: Any) -> list[dict[str, Any]]:
    document = Store(manifest.outputs["decisions"].data_uri).get_json("table.json")
    return [dict(zip(document["columns"], row, strict=True)) for row in document["rows"]]


def csv_table(manifest: Any) -> list[dict[str, str]]:
    text = Store(manifest.outputs["decisions"].data_uri).get("decisions.csv").decode()
    return list(csv.DictReader(io.StringIO(text)))

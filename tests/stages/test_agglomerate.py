"""Agglomeration: what touches, who is asked about, what is decided, joined and written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, weight_shapes
from happyneurons.ffn.model import Model, save_model
from happyneurons.imaging.layers import Layer
from happyneurons.jobs.journal import Entry, JournalWriter
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.stages.agglomerate.candidates import Segments, choose, count_segments
from happyneurons.stages.agglomerate.contacts import Contacts, find_contacts, grow, halo
from happyneurons.stages.agglomerate.joining import APART, LARGE, Joined, Pair, join
from happyneurons.stages.agglomerate.judging import Rules, judge
from happyneurons.stages.agglomerate.reviews import read_reviews
from happyneurons.store.artifacts import Artifact, Manifest, artifact_uri, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.worker.context import JobContext
from happyneurons.worker.local import run_stage

from .attempts import files, run_with_ranks


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
        assert self.verdict() == (0.7, True, "both floods recover both segments", False)
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
            score, merge, text, _ = self.verdict(**changes)
            assert not merge
            assert reason in text
            assert score == score  # never NaN: it is sorted by

    def test_a_small_segment_is_judged_by_the_flood_from_the_large_one(self) -> None:
        nan = float("nan")
        lost = {"a_from_b": nan, "b_from_b": nan, "iou": nan, "deleted_b": nan}
        assert self.verdict((9000, 900), **lost)[::2] == (0.9, "the flood from a recovers the small segment")
        assert self.verdict((9000, 900), **lost).one_sided
        assert not self.verdict((9000, 900)).one_sided  # both agree, small or not
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
        # However high its score: the fragment's own flood had no say.
        sure = self.join(Pair(1, 3, 0.99), Pair(2, 3, 0.98, one_sided=True), voxels={1: 5000, 2: 6000, 3: 10})
        assert sure == found

    def test_what_a_person_rejected_stays_apart_by_any_way(self) -> None:
        pairs = [Pair(1, 2, 0.9), Pair(2, 3, 0.8), Pair(3, 4, 0.7)]
        found = self.join(*pairs, apart=[(1, 4)])
        assert found == Joined({1: 1, 2: 1, 3: 1}, {(3, 4): APART})

    @given(
        raw=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4)), max_size=25),
        apart=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=3),
        order=st.randoms(use_true_random=False),
    )
    @settings(max_examples=60)
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
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2, 3] = 1
    uri = put(store, "mask", mask, "image", voxel_size_nm_xyz=(16.0, 16.0, 8.0))
    layer = Layer.open(uri, (8.0, 8.0, 8.0))
    found = layer.read((-1, 3, 5), (3, 7, 20), lambda values: values != 0)
    expected = np.zeros((4, 4, 15), bool)
    expected[2, 1:3, 1:3] = True  # z = 1, y = 4 and 5, x = 6 and 7
    np.testing.assert_array_equal(found, expected)
    assert not layer.read((90, 0, 0), (95, 4, 4), lambda values: values != 0).any()


START = (3, -7, 11)
PARAMS: dict[str, Any] = {
    "keep_connected": True, "small_voxels": 1000, "min_piece_voxels": 20, "min_contact_faces": 10,
    "min_segment_voxels": 50, "radius_xyz": [10, 10, 10], "num_mips": 1, "max_partners": 4,
}  # fmt: skip


def brightness_network(store: Store) -> str:
    """A network whose object is all that is bright in its field of view; keep_connected does the rest."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(Brightness.architecture).items()}
    weights["conv0_a/weights"][1, 1, 1, 0] = (1, -1)  # how much brighter, how much darker than the mean
    weights["conv0_b/weights"][1, 1, 1] = np.eye(2)
    weights["conv_lom/weights"][0, 0, 0, :, 0] = (2, -2)
    model = Store(store.url("network"))
    save_model(model, Model(Brightness.architecture, weights))
    return model.uri


def tubes() -> tuple[np.ndarray, np.ndarray]:
    """Four bright tubes along x with dark walls, and a segmentation of them with known errors.

    1 and 2 are one tube, cut where two blocks of the stage meet; 4 and 5 are one tube with an unsegmented gap;
    6 is a small end of 3. 7 and 8 touch in the segmentation, but a wall lies between them in the image.
    """
    image, labels = np.full((14, 48, 250), 20, np.uint8), np.zeros((14, 48, 250), np.uint64)
    for y, cut, first, second in ((2, 192, 1, 2), (13, 240, 3, 6), (24, 100, 4, 5), (35, 60, 7, 8)):
        tube = (slice(2, 12), slice(y, y + 10))
        image[tube] = 100 - 2 * np.hypot(*np.indices((10, 10)) - 4.5).astype(np.uint8)[..., np.newaxis]
        labels[tube], labels[(*tube, slice(cut, None))] = first, second
    labels[:, 24:34, 98:101] = 0
    image[:, 35:45, 59:61] = 20
    return image, labels


class Brightness:
    """What the brightness network computes, without the seconds that TensorFlow takes to start."""

    architecture = Architecture(
        depth=2, features=2, fov_zyx=(9, 9, 9), deltas_zyx=(3, 3, 3), image_mean=60, image_stddev=10
    )

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        return seed + 2 * image


@pytest.fixture(scope="module", autouse=True)
def _quick_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("happyneurons.stages.agglomerate.rounds.step_of", lambda context: Brightness())
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, str]]:
    """A store with the tubes, and the inputs of the stage."""
    store = Store(str(tmp_path_factory.mktemp("tubes")))
    image, labels = tubes()
    inputs = {
        "image": put(store, "image", image, "image", start_zyx=START),
        "segmentation": put(store, "labels", labels, "segmentation", start_zyx=START),
        "model": brightness_network(store),
    }
    return store, inputs


@pytest.fixture(scope="module")
def result(case: tuple[Store, dict[str, str]]) -> Manifest:
    return run_stage(case[0], "agglomerate", inputs=case[1], params=PARAMS)


def voxels(manifest: Manifest) -> np.ndarray:
    volume = open_volume(manifest.outputs["segmentation"].data_uri)
    assert volume.start_zyx == START
    return volume.read(volume.start_zyx, volume.stop_zyx)


def joined(labels: np.ndarray, *groups: tuple[int, ...]) -> np.ndarray:
    """Labels with each group renamed to its first member."""
    out = labels.copy()
    for first, *others in groups:
        out[np.isin(labels, others)] = first
    return out


def table(manifest: Manifest) -> dict[tuple[int, int], dict[str, Any]]:
    """Rows of the table of decisions by pair."""
    document = Store(manifest.outputs["decisions"].data_uri).get_json("table.json")
    rows = [dict(zip(document["columns"], row, strict=True)) for row in document["rows"]]
    found = {(row["segment_a"], row["segment_b"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_parts_of_a_tube_are_joined_and_tubes_are_not(result: Manifest) -> None:
    _, labels = tubes()
    # 5 is the larger part of its tube, and gives it its id.
    np.testing.assert_array_equal(voxels(result), joined(labels, (1, 2), (3, 6), (5, 4)))
    figures = result.metrics
    assert (figures["input_segments"], figures["segments"], figures["merged_pairs"]) == (8, 5, 3)
    assert figures["pairs"] == len(table(result))
    assert figures["coverage"] == pytest.approx((labels > 0).mean())
    assert open_volume(result.outputs["segmentation"].data_uri, 1).voxel_size_nm_xyz == (16.0, 16.0, 16.0)


def test_the_table_tells_what_was_found_where(result: Manifest) -> None:
    rows = table(result)
    merged = {pair for pair, row in rows.items() if row["decision"] == "merge"}
    assert merged == {(1, 2), (3, 6), (4, 5)}
    assert {(1, 3), (7, 8)} <= rows.keys() - merged
    row = rows[1, 2]
    assert (row["voxels_a"], row["voxels_b"]) == (10 * 10 * 192, 10 * 10 * 58)
    assert 100 <= row["faces"] < 250  # the cut, and what both have grown into the walls beside it
    assert row["x"] in (START[2] + 191, START[2] + 192)
    assert min(row["b_from_a"], row["a_from_b"], row["iou"]) > 0.9
    assert row["score"] == min(row["b_from_a"], row["a_from_b"])
    assert (row["joined_id"], row["reason"]) == (1, "both floods recover both segments")
    apart = rows[7, 8]
    assert (apart["joined_id"], apart["score"]) == (None, 0.0)
    assert apart["b_from_a"] in (None, 0.0)
    text = Store(result.outputs["decisions"].data_uri).get("decisions.csv").decode()
    lines = {(int(r["segment_a"]), int(r["segment_b"])): r for r in csv.DictReader(io.StringIO(text))}
    assert lines.keys() == rows.keys()
    assert lines[1, 2]["decision"] == "merge"
    assert lines[7, 8]["joined_id"] == lines[7, 8]["review"] == ""


def test_a_review_overrides_the_scores_without_asking_again(
    case: tuple[Store, dict[str, str]], result: Manifest, tmp_path: Path
) -> None:
    store, inputs = case
    text = Store(result.outputs["decisions"].data_uri).get("decisions.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    reviews = {("1", "2"): "reject", ("7", "8"): "accept"}
    for row in rows:
        row["review"] = reviews.get((row["segment_a"], row["segment_b"]), "")
    with (tmp_path / "reviewed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*rows, {"segment_a": "8", "segment_b": "2", "review": "accept"}])
    again = run_stage(
        store,
        "agglomerate",
        inputs={**inputs, "scored": result.outputs["decisions"].uri},
        params={**PARAMS, "reviewed": str(tmp_path / "reviewed.csv")},
    )
    _, labels = tubes()
    np.testing.assert_array_equal(voxels(again), joined(labels, (3, 6), (5, 4), (8, 7, 2)))
    assert again.provenance["tasks_computed"] < result.provenance["tasks_computed"]
    found = table(again)
    assert found[1, 2]["reason"] == "reviewed: reject"
    assert found[1, 2]["b_from_a"] == table(result)[1, 2]["b_from_a"]
    assert (found[2, 8]["decision"], found[2, 8]["joined_id"]) == ("merge", 8)
    assert again.metrics["reviewed_pairs"] == 3
    # The new table goes on from there: other thresholds, same reviews.
    third = run_stage(
        store,
        "agglomerate",
        inputs={**inputs, "scored": again.outputs["decisions"].uri},
        params={**PARAMS, "small_min_recovered": 1.0, "min_recovered": 1.0, "reviewed": str(tmp_path / "reviewed.csv")},
    )
    assert {pair for pair, row in table(third).items() if row["decision"] == "merge"} >= {(7, 8), (2, 8)}


def test_reviews_and_scores_that_do_not_fit_are_refused(
    case: tuple[Store, dict[str, str]], result: Manifest, tmp_path: Path
) -> None:
    store, inputs = case
    scored = {**inputs, "scored": result.outputs["decisions"].uri}

    def review(*rows: str) -> dict[str, Any]:
        path = tmp_path / f"{len(rows)}.csv"
        path.write_text("segment_a,segment_b,review\n" + "\n".join(rows))
        return {**PARAMS, "reviewed": str(path)}

    with pytest.raises(UserError, match="names segment 99, which does not occur"):
        run_stage(store, "agglomerate", inputs=scored, params=review("1,99,accept"))
    contradiction = review("1,2,accept", "2,3,accept", "1,3,reject")
    with pytest.raises(UserError, match="would join two segments that are rejected"):
        run_stage(store, "agglomerate", inputs=scored, params=contradiction)
    with pytest.raises(UserError, match="made with other params.max_gap_px"):
        run_stage(store, "agglomerate", inputs=scored, params={**PARAMS, "max_gap_px": 2})


def test_inputs_that_do_not_fit_are_refused(case: tuple[Store, dict[str, str]]) -> None:
    store, inputs = case
    image, labels = tubes()
    with pytest.raises(UserError, match="leaves no room for the field of view; .4, 4, 4. is the least"):
        run_stage(store, "agglomerate", inputs=inputs, params={"radius_xyz": [3, 9, 9]})
    elsewhere = put(store, "elsewhere", labels, "segmentation", start_zyx=(0, 0, 0))
    with pytest.raises(UserError, match="reaches beyond the image"):
        run_stage(store, "agglomerate", inputs={**inputs, "segmentation": elsewhere}, params={})
    coarse = put(store, "coarse", image, "image", start_zyx=START, voxel_size_nm_xyz=(32.0, 32.0, 32.0))
    with pytest.raises(UserError, match="no level of the segmentation's voxel size"):
        run_stage(store, "agglomerate", inputs={**inputs, "image": coarse}, params={})
    with pytest.raises(UserError, match="skip_below must not be above min_recovered"):
        run_stage(store, "agglomerate", inputs=inputs, params={"skip_below": 0.7})


def test_masked_voxels_join_nothing(case: tuple[Store, dict[str, str]]) -> None:
    """The place where 1 and 2 meet is masked."""
    store, inputs = case
    _, labels = tubes()
    mask = np.zeros(labels.shape, np.uint8)
    mask[:, :12, 180:204] = 1
    uri = publish_mask(store, put(store, "mask", mask, "image", start_zyx=START))
    manifest = run_stage(store, "agglomerate", inputs={**inputs, "mask": uri}, params=PARAMS)
    assert table(manifest)[1, 2]["decision"] == "keep"
    assert table(manifest)[4, 5]["decision"] == "merge"


def publish_mask(store: Store, data_uri: str) -> str:
    """A published mask artifact, as another job would leave it."""
    key = "0" * 40
    uri = artifact_uri(store, key, "mask")
    artifact = Artifact(kind="mask", uri=uri, data_uri=data_uri, digest="0" * 64, voxel_size_nm_xyz=(8.0, 8.0, 8.0))
    manifest = Manifest(
        job_key=key, stage="mask", stage_version="1", params={}, inputs={}, outputs={"mask": artifact}, provenance={}
    )
    # load_artifact looks for an artifact's data below its job's key.
    for path in Store(data_uri).list(""):
        Store(store.url(f"artifacts/{key}/mask")).put(path, Store(data_uri).get(path))
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return uri


def test_the_order_of_tasks_and_doing_them_twice_change_nothing(
    case: tuple[Store, dict[str, str]], result: Manifest, tmp_path: Path
) -> None:
    """The rounds by hand, tasks in random order, some of them twice: every byte equals the plain run's."""
    stage = load_stage("agglomerate")
    spec = make_spec(stage, inputs=case[1], params=PARAMS)
    other = Store(str(tmp_path / "other"))
    context = JobContext(other, spec, stage, threads=1)
    journal = JournalWriter(other, spec.key, 1)
    rng = np.random.default_rng(0)
    for round_ in stage().rounds(context):
        round_.prepare(context)
        tasks = list(round_.plan(context))
        for i in rng.permutation(np.concatenate([np.arange(len(tasks)), np.arange(0, len(tasks), 2)])):
            journal.add(round_.name, Entry(tasks[i].key, round_.run(tasks[i], context).data))
        journal.flush()
    context.close()
    assert spec.key == result.job_key
    assert files(other, spec.key) == files(case[0], spec.key)
    assert len(files(other, spec.key)) > 12


@pytest.mark.slow
def test_two_ranks_leave_the_same_bytes(case: tuple[Store, dict[str, str]], result: Manifest, tmp_path: Path) -> None:
    # To the last bit the stand-in of the other tests is the network as TensorFlow computes it.
    spec = make_spec(load_stage("agglomerate"), inputs=case[1], params={**PARAMS, "backend": "tensorflow"})
    other = Store(str(tmp_path / "other"))
    save_spec(other, spec)
    run_with_ranks(other, spec, 2)
    assert files(other, spec.key) == files(case[0], result.job_key)

"""Reconciliation: overlapping subvolumes with ids of their own become one volume."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.imaging.subvolumes import SubvolumeGrid
from happyneurons.jobs.journal import Entry, JournalWriter
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.segmentation import connected_objects, coverage, scores, truth_table
from happyneurons.stages import load_stage
from happyneurons.stages.reconcile.overlaps import OverlapRules, compare
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, load_artifact, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.pyramid import factors_xyz
from happyneurons.store.volumes import open_volume
from happyneurons.worker.context import JobContext
from happyneurons.worker.local import run_stage

from .attempts import files, run_and_die, run_with_ranks

VOXEL_NM = (10.0, 10.0, 10.0)


def publish_subvolumes(
    store: Store, labels: np.ndarray, size_xyz: Any, overlap_xyz: Any, *, start_zyx: Any = (0, 0, 0), seed: int = 0
) -> str:
    """Cut labels into boxes, as the stage segment would leave them: parts of each box, shuffled ids."""
    stop = np.add(start_zyx, labels.shape)
    bounds = Bounds(minimum_xyz=tuple(start_zyx[::-1]), maximum_xyz=tuple(int(v) for v in stop[::-1]))
    rng = np.random.default_rng(seed)
    key = hashlib.sha256(repr((labels.tobytes(), size_xyz, overlap_xyz, seed)).encode()).hexdigest()
    data = Store(store.url(f"artifacts/{key}/subvolumes"))
    for box in SubvolumeGrid(bounds, size_xyz, overlap_xyz):
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(box.start_zyx, box.stop_zyx, start_zyx, strict=True))
        parts = connected_objects(labels[inside])
        names = np.concatenate([[0], rng.permutation(int(parts.max())) + 1]).astype(np.uint32)
        data.put_arrays(f"{box.name}.npz", segmentation=names[parts], start_zyx=np.asarray(box.start_zyx))
    uri = artifact_uri(store, key, "subvolumes")
    artifact = Artifact(
        kind="subvolumes", uri=uri, data_uri=data.uri, digest=key, voxel_size_nm_xyz=VOXEL_NM, bounds=bounds,
        properties={"size_xyz": list(size_xyz), "overlap_xyz": list(overlap_xyz)},
    )  # fmt: skip
    manifest = Manifest(
        job_key=key, stage="segment", stage_version="0", params={}, inputs={}, outputs={"subvolumes": artifact},
        provenance={},
    )  # fmt: skip
    store.create_json(manifest_path(key), manifest.model_dump())
    return uri


def data_of(store: Store, uri: str) -> Store:
    return Store(load_artifact(uri).data_uri)


def reconcile(store: Store, uri: str, **params: Any) -> tuple[np.ndarray, Manifest]:
    manifest = run_stage(store, "reconcile", inputs={"subvolumes": uri}, params={"num_mips": 0, **params})
    volume = open_volume(manifest.outputs["segmentation"].data_uri)
    return volume.read(volume.start_zyx, volume.stop_zyx), manifest


def sizes(manifest: Manifest) -> np.ndarray:
    """Voxels by id, as the table says; [0] is 0."""
    data = Store(manifest.outputs["merges"].data_uri)
    out = np.zeros(int(manifest.metrics["segments"]) + 1, np.int64)
    for path in data.list("sizes"):
        arrays = data.get_arrays(path)
        first = int(arrays["first"][0])
        assert (out[first : first + len(arrays["voxels"])] == 0).all()
        out[first : first + len(arrays["voxels"])] = arrays["voxels"]
    return out


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]).astype(np.uint64), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> np.ndarray:
    with h5py.File(shared_data / "fib25/labels_z000-128.h5") as file:
        return np.asarray(file["labels"][:96, :120, :120])


def test_truth_cut_into_subvolumes_comes_back_exactly(store: Store, truth: np.ndarray) -> None:
    uri = publish_subvolumes(store, truth, (64, 64, 64), (24, 24, 24), start_zyx=(5, -7, 11))
    found, manifest = reconcile(store, uri, min_overlap_voxels=1)
    expected = connected_objects(truth)
    assert same_partition(found, expected)
    assert manifest.metrics["segments"] == expected.max()
    assert manifest.metrics["missing_subvolumes"] == 0
    assert manifest.metrics["merges"] == manifest.metrics["subvolume_segments"] - expected.max()
    assert manifest.outputs["segmentation"].bounds == Bounds(minimum_xyz=(11, -7, 5), maximum_xyz=(131, 113, 101))


def test_ids_do_not_depend_on_local_ids_beyond_their_order(store: Store, truth: np.ndarray) -> None:
    """Other local ids give other global ids, but the same objects."""
    a, _ = reconcile(store, publish_subvolumes(store, truth[:64, :64], (48, 48, 48), (24, 24, 24), seed=1))
    b, _ = reconcile(store, publish_subvolumes(store, truth[:64, :64], (48, 48, 48), (24, 24, 24), seed=2))
    assert same_partition(a, b)


def test_missing_and_damaged_subvolumes_cost_only_what_nobody_else_saw(store: Store, truth: np.ndarray) -> None:
    crop = truth[:64, :100, :100]
    uri = publish_subvolumes(store, crop, (60, 60, 64), (20, 20, 20))
    data = data_of(store, uri)
    data.delete("0_0_40.npz")
    data.put("0_40_0.npz", b"not a zip archive")
    found, manifest = reconcile(store, uri, min_overlap_voxels=1)
    assert manifest.metrics["missing_subvolumes"] == 2
    seen = np.zeros(crop.shape, bool)
    seen[:, :60, :60] = seen[:, 40:, 40:] = True
    assert (found[~seen] == 0).all()
    assert ((found > 0) == (crop > 0))[seen].all()
    found_without, _ = reconcile(store, uri, min_overlap_voxels=1, fill=False)
    own = np.zeros(crop.shape, bool)
    own[:, :50, :50] = own[:, 50:, 50:] = True
    assert ((found_without > 0) == (own & (crop > 0))).all()


def test_the_order_of_tasks_and_doing_them_twice_change_nothing(store: Store, truth: np.ndarray) -> None:
    """The rounds by hand, tasks in random order, some of them twice: every byte equals the plain run's."""
    uri = publish_subvolumes(store, truth[:40, :64, :90], (30, 40, 40), (16, 16, 0))
    manifest = run_stage(store, "reconcile", inputs={"subvolumes": uri}, params={"min_size_voxels": 50})
    stage = load_stage("reconcile")
    spec = make_spec(stage, inputs={"subvolumes": uri}, params={"min_size_voxels": 50})
    other = Store(store.url("other"))
    context = JobContext(other, spec, stage, threads=1)
    journal = JournalWriter(other, spec.key, 1)
    rng = np.random.default_rng(0)
    for round_ in stage().rounds(context):
        round_.prepare(context)
        tasks = list(round_.plan(context))
        for i in rng.permutation(np.concatenate([np.arange(len(tasks)), np.arange(0, len(tasks), 2)])):
            result = round_.run(tasks[i], context)
            journal.add(round_.name, Entry(tasks[i].key, result.data))
        journal.flush()
    context.close()

    assert manifest.job_key == spec.key
    assert files(other, spec.key) == files(store, spec.key)
    assert [r.name for r in stage().rounds(context)][2:6] == ["join_0", "join_1", "number_1", "number_0"]
    assert {"join", "ids", "mapping", "sizes"} <= {
        path.split("/")[1] for path in files(store, spec.key) if "merges" in path
    }


@pytest.mark.slow
def test_ranks_and_kills_change_nothing(store: Store, truth: np.ndarray, tmp_path: Path) -> None:
    """8 ranks, and an attempt killed in each kind of round, one after the other: the bytes of one rank."""
    uri = publish_subvolumes(store, truth[:40, :64, :90], (30, 40, 40), (16, 16, 0))
    data_of(store, uri).delete("0_0_14.npz")
    params = {"min_size_voxels": 50}
    spec = make_spec(load_stage("reconcile"), inputs={"subvolumes": uri}, params=params)
    run_stage(store, "reconcile", inputs={"subvolumes": uri}, params=params)

    many = Store(str(tmp_path / "many"))
    save_spec(many, spec)
    run_with_ranks(many, spec, 8)
    assert files(many, spec.key) == files(store, spec.key)
    killed = Store(str(tmp_path / "killed"))
    save_spec(killed, spec)
    for round_name, after in (("overlaps", 5), ("join_0", 1), ("number_0", 2)):
        assert run_and_die(killed, spec, round_name, after) == -signal.SIGKILL
    run_with_ranks(killed, spec, 1)
    assert files(killed, spec.key) == files(store, spec.key)


def test_nothing_readable_is_refused(store: Store) -> None:
    uri = publish_subvolumes(store, np.ones((8, 8, 20), np.uint32), (12, 8, 8), (4, 0, 0))
    data = data_of(store, uri)
    for path in list(data.list("")):
        data.delete(path)
    with pytest.raises(UserError, match="none of the 2 subvolumes"):
        reconcile(store, uri)


def test_subvolumes_without_overlap_are_refused(store: Store) -> None:
    uri = publish_subvolumes(store, np.ones((8, 8, 20), np.uint32), (10, 8, 8), (0, 0, 0))
    with pytest.raises(UserError, match="do not overlap along x"):
        reconcile(store, uri)


def test_size_filter_counts_the_whole_volume(store: Store) -> None:
    labels = np.zeros((16, 16, 128), np.uint32)
    labels[4:8, 4:8, :] = 1  # 2048 voxels, fewer in every box
    labels[12:14, 12:14, 60:70] = 2  # 40 voxels
    uri = publish_subvolumes(store, labels, (32, 16, 16), (12, 4, 4))
    kept, manifest = reconcile(store, uri, min_overlap_voxels=8, min_size_voxels=2000)
    assert (kept == (labels == 1)).all()
    assert manifest.metrics["dropped_segments"] == 1
    assert sizes(manifest).tolist() == [0, 2048]


def test_pyramid_shows_the_same_place_at_every_level(store: Store) -> None:
    labels = np.zeros((20, 60, 140), np.uint32)
    labels[:, :, :60], labels[:, :31, 60:], labels[:, 31:, 60:] = 1, 2, 3
    uri = publish_subvolumes(store, labels, (60, 60, 20), (10, 10, 4), start_zyx=(7, 3, -5))
    found, manifest = reconcile(store, uri, num_mips=5)
    folder = manifest.outputs["segmentation"].data_uri
    full = open_volume(folder)
    for mip in (1, 2):
        level = open_volume(folder, mip)
        halved = level.read(level.start_zyx, level.stop_zyx)
        assert level.start_zyx == tuple(a // 2**mip for a in full.start_zyx)
        assert level.stop_zyx == tuple(-(-a // 2**mip) for a in full.stop_zyx)
        assert level.voxel_size_nm_xyz == tuple(10.0 * 2**mip for _ in range(3))
        centres = [
            np.clip(np.arange(a, b) * 2**mip + 2 ** (mip - 1) - o, 0, n - 1)
            for a, b, o, n in zip(level.start_zyx, level.stop_zyx, full.start_zyx, found.shape, strict=True)
        ]
        assert (halved == found[np.ix_(*centres)]).mean() > 0.95
        assert set(np.unique(halved)) == set(np.unique(found))
    with pytest.raises(UserError, match="no mip level 3"):  # level 2 fits into one chunk
        open_volume(folder, 3)


def test_anisotropic_voxels_are_halved_where_they_are_fine() -> None:
    assert factors_xyz((4.0, 4.0, 40.0)) == (2, 2, 1)
    assert factors_xyz((32.0, 32.0, 40.0)) == (2, 2, 2)
    assert factors_xyz((10.0, 10.0, 10.0)) == (2, 2, 2)


class TestDecisions:
    """Two boxes' segments in their overlap, 20 x 20 x 40 voxels."""

    rules = OverlapRules(min_voxels=20, min_agreement=0.6, min_coverage=0.2)

    def overlap(self, *boxes: tuple[int, slice, slice]) -> np.ndarray:
        out = np.zeros((20, 20, 40), np.uint32)
        for label, y, x in boxes:
            out[:, y, x] = label
        return out

    def edges(self, a: np.ndarray, b: np.ndarray) -> list[list[int]]:
        forth, back = compare(a, b, self.rules), compare(b, a, self.rules)
        assert forth.edges.tolist() == sorted(e[::-1] for e in back.edges.tolist())
        assert forth.rejected == back.rejected
        assert (forth.doubted_a == back.doubted_b).all()
        assert (forth.doubted_b == back.doubted_a).all()
        return list(forth.edges.tolist())

    def test_two_crossings_of_one_neurite_are_both_joined(self) -> None:
        a = self.overlap((1, slice(0, 6), slice(0, 40)), (2, slice(12, 20), slice(0, 40)))
        b = self.overlap((9, slice(0, 6), slice(0, 40)), (9, slice(12, 20), slice(0, 40)))
        assert self.edges(a, b) == [[1, 9], [2, 9]]
        found = compare(a, b, self.rules)
        assert found.whole.tolist() == [False, False]  # neither is most of 9
        assert len(found.doubted_a) == len(found.doubted_b) == found.rejected == 0

    def test_a_merger_takes_only_the_larger_part(self) -> None:
        a = self.overlap((1, slice(0, 14), slice(0, 40)), (2, slice(14, 20), slice(0, 40)))
        b = self.overlap((9, slice(0, 20), slice(0, 40)))
        assert self.edges(a, b) == [[1, 9]]
        found = compare(a, b, self.rules)
        assert (found.rejected, found.whole.tolist()) == (1, [True])
        assert (found.doubted_a.tolist(), found.doubted_b.tolist()) == ([], [9])

    def test_crumbs_raise_no_doubt(self) -> None:
        a = self.overlap((1, slice(0, 19), slice(0, 40)), (2, slice(19, 20), slice(0, 40)))
        assert len(compare(a, self.overlap((9, slice(0, 20), slice(0, 40))), self.rules).doubted_b) == 0

    def test_what_one_box_split_is_joined_if_asked_for(self) -> None:
        a = self.overlap(
            (1, slice(0, 10), slice(0, 40)), (2, slice(10, 16), slice(0, 40)), (3, slice(16, 20), slice(0, 40))
        )
        b = self.overlap((9, slice(0, 17), slice(0, 40)))  # a quarter of 3
        asked = OverlapRules(20, 0.6, 0.3, min_contained_voxels=1000)
        assert compare(a, b, self.rules).edges.tolist() == []
        found = compare(a, b, asked)
        assert (found.edges.tolist(), found.whole.tolist()) == ([[1, 9], [2, 9]], [True, True])
        assert compare(b, a, asked).edges.tolist() == [[9, 1], [9, 2]]
        assert compare(a, b, OverlapRules(20, 0.6, 0.2, min_contained_voxels=5000)).edges.tolist() == [[1, 9]]

    def test_an_even_merger_joins_nothing(self) -> None:
        a = self.overlap((1, slice(0, 10), slice(0, 40)), (2, slice(10, 20), slice(0, 40)))
        assert self.edges(a, self.overlap((9, slice(0, 20), slice(0, 40)))) == []

    def test_segments_that_end_before_the_face_still_agree(self) -> None:
        a = self.overlap((1, slice(2, 12), slice(0, 30)))
        b = self.overlap((9, slice(2, 12), slice(18, 40)))
        assert self.edges(a, b) == [[1, 9]]

    def test_a_sliver_that_bleeds_into_an_unsegmented_object_is_not_taken(self) -> None:
        a = self.overlap((1, slice(0, 18), slice(0, 40)))
        b = self.overlap((9, slice(16, 20), slice(0, 40)))
        assert self.edges(a, b) == []

    def test_two_objects_that_meet_are_not_one(self) -> None:
        # All that both boxes labelled agrees, but either is mostly where the other box has nothing.
        a = self.overlap((1, slice(0, 8), slice(0, 40)))
        b = self.overlap((9, slice(5, 16), slice(0, 40)))
        assert self.edges(a, b) == []
        asked = OverlapRules(20, 0.6, 0.2, min_contained_voxels=1000)
        assert compare(a, b, asked).edges.tolist() == []
        b = self.overlap((9, slice(4, 16), slice(0, 40)))  # half of 1
        assert self.edges(a, b) == [[1, 9]]
        assert compare(a, b, asked).edges.tolist() == [[1, 9]]

    def test_too_few_voxels_decide_nothing(self) -> None:
        a = np.zeros((4, 4, 4), np.uint32)
        a[0, :4, :4] = 1
        assert self.edges(a, a) == []

    def test_empty_overlap(self) -> None:
        empty = np.zeros((3, 4, 5), np.uint32)
        assert self.edges(empty, empty) == []


def test_segmentation_errors_stay_where_they_are(store: Store, truth: np.ndarray) -> None:
    """Subvolumes with errors of FFN kind: background between objects, splits, one merger a box."""
    crop = truth[:, :96, :96]
    clean = connected_objects(crop)
    uri = publish_subvolumes(store, clean, (64, 64, 64), (32, 32, 32))
    data = data_of(store, uri)
    rng = np.random.default_rng(3)
    for path in sorted(data.list("")):
        arrays = data.get_arrays(path)
        segmentation = arrays["segmentation"]
        inner = np.zeros(segmentation.shape, bool)  # nothing is segmented right at the box's faces
        inner[3:-3, 3:-3, 3:-3] = True
        edge = np.zeros(segmentation.shape, bool)
        for axis in range(3):
            edge |= segmentation != np.roll(segmentation, 1, axis)
        touching = Contingency.of(segmentation[:, :-1], segmentation[:, 1:])
        segmentation[edge | ~inner] = 0
        ids, sizes = np.unique(segmentation[segmentation > 0], return_counts=True)
        largest = ids[np.argsort(-sizes)]
        contacts = touching.where((touching.first == largest[2]) & np.isin(touching.second, largest[:9]))
        contacts = contacts.where(contacts.second != largest[2])
        merged = contacts.second[np.argmax(contacts.counts)]
        segmentation[segmentation == largest[2]] = merged
        halves = (segmentation == largest[1]) & (np.arange(64)[:, None, None] > rng.integers(20, 44))
        segmentation[halves] = ids.max() + 1  # a split
        data.put_arrays(path, segmentation=segmentation, start_zyx=arrays["start_zyx"])
    # With a merger of large objects in every box, what one box contains of another is no evidence.
    found, manifest = reconcile(store, uri, min_contained_voxels=0)
    result = scores(truth_table(found, clean))
    assert coverage(truth_table(found, clean)) > 0.6
    assert result.voi_merge < 0.45
    assert result.voi_split < 0.4
    assert manifest.metrics["rejected_pairs"] > 0
    assert manifest.metrics["doubted_segments"] > 0
    contained = scores(truth_table(reconcile(store, uri)[0], clean))
    assert contained.voi_split < result.voi_split - 0.1
    assert contained.voi_merge > result.voi_merge

"""Evaluation: perfect results score perfectly, known errors score as known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.acquisition.truth import AcquisitionTruth
from happyneurons.errors import UserError
from happyneurons.imaging.warp import GridWarp
from happyneurons.metrics.segmentation import connected_objects, scores, truth_table
from happyneurons.store.artifacts import Artifact, ArtifactKind, Manifest, artifact_uri, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

VOXEL_NM = (10.0, 10.0, 10.0)
SHIFT_XY = (17.0, -9.0)
"""Where the aligned frame of these tests lies: canonical px + SHIFT_XY."""


def publish(store: Store, kind: ArtifactKind, write: Callable[[Store], None], **properties: Any) -> str:
    key = hashlib.sha256(repr((kind, properties, id(write))).encode()).hexdigest()
    data = Store(store.url(f"artifacts/{key}/out"))
    write(data)
    uri = artifact_uri(store, key, "out")
    artifact = Artifact(kind=kind, uri=uri, data_uri=data.uri, digest=key, properties=properties)
    manifest = Manifest(
        job_key=key, stage="x", stage_version="0", params={}, inputs={}, outputs={"out": artifact}, provenance={}
    )
    store.create_json(manifest_path(key), manifest.model_dump())
    return uri


def volume(path: Path, labels: np.ndarray, start_zyx: tuple[int, int, int] = (0, 0, 0)) -> str:
    kind = "image" if labels.dtype == np.uint8 else "segmentation"
    made = create_volume(
        str(path), start_zyx=start_zyx, stop_zyx=np.add(start_zyx, labels.shape).tolist(),
        voxel_size_nm_xyz=VOXEL_NM, dtype=labels.dtype.name, layer_type=kind,
    )  # fmt: skip
    made.write(start_zyx, labels)
    return f"precomputed://{path}"


def report_of(manifest: Manifest) -> Any:
    return Store(manifest.outputs["report"].data_uri).get_json("report.json")


def without_places(value: Any) -> Any:
    """A report without positions: which voxel stands for an object depends on where blocks end."""
    if isinstance(value, dict):
        return {k: without_places(v) for k, v in value.items() if k != "position_xyz"}
    return [without_places(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def labels(shared_data: Path) -> np.ndarray:
    with h5py.File(shared_data / "fib25/labels_z000-128.h5") as file:
        return np.asarray(file["labels"][:12, :160, :200]).astype(np.uint64)


class TestSameFrame:
    def evaluate(self, store: Store, segmentation: str, truth: str, **params: Any) -> Manifest:
        return run_stage(store, "evaluate", inputs={"segmentation": segmentation, "truth": truth}, params=params)

    def test_published_ffn_result_scores_as_computed_at_once(
        self, store: Store, tmp_path: Path, shared_data: Path
    ) -> None:
        found = np.load(shared_data / "fib25/google_ffn_crop_0-128.npz")["segmentation"][:48].astype(np.uint64)
        truth = f"h5://{shared_data}/fib25/labels_z000-128.h5?labels"
        with h5py.File(shared_data / "fib25/labels_z000-128.h5") as file:
            expected = scores(truth_table(found, connected_objects(file["labels"][:48, :128, :128])))
        manifest = self.evaluate(store, volume(tmp_path / "seg", found), truth)
        metrics, report = manifest.metrics, report_of(manifest)["segmentation"]
        assert metrics["voi_split"] == pytest.approx(expected.voi_split)
        assert metrics["voi_merge"] == pytest.approx(expected.voi_merge)
        assert metrics["adapted_rand_error"] == pytest.approx(expected.adapted_rand_error)
        assert metrics["fill_voi_split"] > metrics["voi_split"]
        assert report["fill"]["voxels"] == report["truth_voxels"] > report["raw"]["voxels"]
        assert metrics["coverage"] == pytest.approx(report["raw"]["voxels"] / report["truth_voxels"])
        assert (report["frame"], report["truth_relabelled"]) == ("volume", True)

    def test_blocks_give_what_one_piece_gives(self, store: Store, tmp_path: Path, labels: np.ndarray) -> None:
        truth = volume(tmp_path / "truth", labels, (5, 6, 7))
        wrong = np.where(np.arange(200) < 90, labels, labels + 1000).astype(np.uint64)
        wrong[labels % 5 == 0] = 0
        segmentation = volume(tmp_path / "seg", wrong, (5, 6, 7))
        whole = self.evaluate(store, segmentation, truth, relabel_truth=False, fill="none")
        blocks = self.evaluate(
            store, segmentation, truth, relabel_truth=False, fill="none", one_piece_max_voxels=0, block_voxels=64
        )
        assert blocks.provenance["tasks_computed"] > whole.provenance["tasks_computed"]
        assert without_places(report_of(blocks)) == without_places(report_of(whole))
        assert whole.metrics["voi_split"] > 0.1
        assert "fill_voi_split" not in whole.metrics

    def test_bounds_and_margin_choose_what_is_scored(self, store: Store, tmp_path: Path, labels: np.ndarray) -> None:
        wrong = labels.copy()
        wrong[:, :, 100:] = 7
        wrong[:, :20] = 8
        segmentation, truth = volume(tmp_path / "seg", wrong), volume(tmp_path / "truth", labels)
        bounds = [[0, 0, 0], [120, 160, 12]]
        good = self.evaluate(
            store, segmentation, truth, bounds_xyz=bounds, inner_margin_xyz=[20, 20, 2], relabel_truth=False
        )
        assert (good.metrics["voi_split"], good.metrics["voi_merge"]) == (0.0, 0.0)
        assert report_of(good)["segmentation"]["bounds"] == {"minimum_xyz": [20, 20, 2], "maximum_xyz": [100, 140, 10]}
        assert self.evaluate(store, segmentation, truth, relabel_truth=False).metrics["voi_merge"] > 0.5

    def test_nothing_in_common_is_refused(self, store: Store, tmp_path: Path, labels: np.ndarray) -> None:
        segmentation = volume(tmp_path / "seg", labels, (100, 0, 0))
        truth = volume(tmp_path / "truth", labels)
        with pytest.raises(UserError, match="no voxel in common"):
            self.evaluate(store, segmentation, truth)
        empty = volume(tmp_path / "empty", np.zeros_like(labels))
        with pytest.raises(UserError, match="no truth where the segmentation is"):
            self.evaluate(store, truth, empty)

    def test_nothing_to_compare_is_refused(self, store: Store, tmp_path: Path, labels: np.ndarray) -> None:
        segmentation = volume(tmp_path / "seg", labels)
        with pytest.raises(UserError, match="give segmentation and truth"):
            run_stage(store, "evaluate", inputs={"segmentation": segmentation})
        with pytest.raises(UserError, match="nothing to compare"):
            run_stage(store, "evaluate")


class TestThroughTheMicroscope:
    """An acquisition of the labels' volume, and a montage and alignment made from its own truth."""

    MISSING = 7

    @pytest.fixture
    def folder(self, tmp_path: Path, labels: np.ndarray) -> Path:
        image = np.zeros(labels.shape, np.uint8)
        simulate_acquisition(
            volume(tmp_path / "em", image, (3, 40, 50)).removeprefix("precomputed://"), tmp_path / "acquired",
            labels_uri=volume(tmp_path / "labels", labels, (3, 40, 50)), tiles=(2, 1), overlap_px=24,
            faults={self.MISSING: "missing_section"}, section_rotation_deg=0.5, section_shift_px=3.0,
        )  # fmt: skip
        return tmp_path / "acquired"

    def stacks(
        self, store: Store, folder: Path, *, tile_shift: float = 0.0, section_shift: float = 0.0, dropped: int = -1
    ) -> tuple[str, str]:
        """A montage and an alignment without error, save for the shifts along x of tile 0_1 and of section 9."""
        truth = AcquisitionTruth(folder)
        sections = [z for z in range(3, 15) if z != self.MISSING]

        def montage(data: Store) -> None:
            for z in sections:
                section, arrays = truth.section_warp(z), {}
                assert section is not None
                for col in range(2):
                    tile = truth.tile_warp(z, 0, col)
                    assert tile is not None
                    place = tile.with_nodes(section.inverse(tile.nodes.reshape(-1, 2)).reshape(tile.nodes.shape))
                    arrays |= place.translated((tile_shift * col, 0.0)).arrays(f"tile_0_{col}")
                data.put_arrays(f"transforms/{z:06d}.npz", **arrays)

        def align(data: Store) -> None:
            for z in sections:
                section = truth.section_warp(z)
                assert section is not None
                shift = np.add(SHIFT_XY, (section_shift if z == 9 else 0.0, 0.0))
                if z != dropped:
                    data.put_arrays(f"transforms/{z:06d}.npz", **section.translated(shift).arrays("section"))

        source = publish(store, "section_stack", montage, shift=tile_shift)
        return source, publish(store, "section_stack", align, source=source, shift=section_shift)

    def evaluate(self, store: Store, folder: Path, **inputs: str) -> Manifest:
        return run_stage(store, "evaluate", inputs=inputs, params={"acquisition": str(folder)})

    def segmentation(self, tmp_path: Path, labels: np.ndarray) -> str:
        """The labels, where the aligned frame shows them, with ids of their own and room around."""
        padded = np.pad(labels + 10**6, ((0, 0), (20, 20), (20, 20)), constant_values=5)
        return volume(tmp_path / "seg", padded, (3, 40 + int(SHIFT_XY[1]) - 20, 50 + int(SHIFT_XY[0]) - 20))

    def test_perfect_results_score_perfectly(
        self, store: Store, tmp_path: Path, folder: Path, labels: np.ndarray
    ) -> None:
        _, aligned = self.stacks(store, folder)
        manifest = self.evaluate(store, folder, segmentation=self.segmentation(tmp_path, labels), aligned=aligned)
        metrics, report = manifest.metrics, report_of(manifest)
        # Not exactly zero: parts of one body that only meet outside the picture are two objects.
        assert metrics["voi_merge"] < 0.05
        assert metrics["voi_split"] < 0.002
        assert metrics["coverage"] == 1.0
        assert metrics["montage_seam_p95_px"] < 0.01
        assert metrics["montage_global_p95_px"] < 0.01
        assert metrics["align_adjacent_p95_px"] < 0.05
        assert metrics["align_absolute_p95_px"] < 0.05
        assert metrics["align_sections"] == metrics["montage_sections"] == 11
        assert metrics["align_failed_sections"] == metrics["montage_failed_sections"] == 0
        shown = report["segmentation"]["truth_voxels"] / (11 * labels[0].size)
        assert 0.6 < shown < 1.0
        assert report["segmentation"]["frame"] == "tissue"

    def test_blocks_and_skeletons_go_through_the_microscope_too(
        self, store: Store, tmp_path: Path, folder: Path, labels: np.ndarray
    ) -> None:
        _, aligned = self.stacks(store, folder)
        x = np.arange(30, 170)
        layer = tmp_path / "skeletons"
        layer.mkdir()
        (layer / "info").write_text('{"@type": "neuroglancer_skeletons"}')
        vertices = (np.stack([x + 50, np.full_like(x, 80 + 40), np.full_like(x, 5)], axis=1) + 0.5) * VOXEL_NM
        edges = np.stack([np.arange(len(x) - 1), np.arange(1, len(x))], axis=1)
        header = np.array([len(x), len(edges)], "<u4").tobytes()
        (layer / "1").write_bytes(header + vertices.astype("<f4").tobytes() + edges.astype("<u4").tobytes())
        along = labels[5 - 3, 80, x]
        runs = np.diff(np.flatnonzero(np.concatenate([[True], along[1:] != along[:-1], [True]]))) - 1
        inputs = {
            "segmentation": self.segmentation(tmp_path, labels), "aligned": aligned, "skeletons": f"precomputed://{layer}"
        }  # fmt: skip
        figures = []
        for pieces in ({}, {"one_piece_max_voxels": 0, "block_voxels": 64}):
            params = {"acquisition": str(folder), "fill": "none", **pieces}
            figures.append(run_stage(store, "evaluate", inputs=inputs, params=params).metrics)
        whole, blocks = figures
        assert len(runs) >= 3
        assert whole["erl_voxels"] == pytest.approx((runs**2).sum() / (len(x) - 1), rel=0.1)
        assert whole["path_split_fraction"] == pytest.approx((len(runs) - 1) / (len(x) - 1), rel=0.1)
        assert whole["path_omitted_fraction"] == 0
        for name in ("voi_split", "voi_merge", "adapted_rand_error", "truth_objects", "segments", "erl_voxels"):
            assert blocks[name] == pytest.approx(whole[name], abs=0.01, rel=0.01), name

    def test_a_misplaced_tile_and_section_show(self, store: Store, folder: Path) -> None:
        montage, aligned = self.stacks(store, folder, tile_shift=4.0, section_shift=3.0, dropped=12)
        manifest = self.evaluate(store, folder, montage=montage, aligned=aligned)
        metrics, report = manifest.metrics, report_of(manifest)
        assert metrics["montage_seam_median_px"] == pytest.approx(4.0, abs=0.05)
        assert 0.1 < metrics["montage_global_median_px"] < 4.0
        adjacent = {s["z"]: s["adjacent"].get("median") for s in report["alignment"]["sections"]}
        assert adjacent[8] == pytest.approx(3.0, abs=0.2)  # the tile stretches the frame
        assert adjacent[9] == pytest.approx(3.0, abs=0.2)  # the tile stretches the frame
        assert adjacent[4] < 0.5
        assert report["alignment"]["failed_sections"] == [12]
        assert "segmentation" not in report
        assert "voi_split" not in metrics

    def test_an_error_of_alignment_is_not_blamed_on_the_segmentation(
        self, store: Store, tmp_path: Path, folder: Path, labels: np.ndarray
    ) -> None:
        _, aligned = self.stacks(store, folder, section_shift=6.0)
        moved = labels.copy()
        moved[9 - 3] = np.roll(labels[9 - 3], 6, axis=1)
        manifest = self.evaluate(store, folder, segmentation=self.segmentation(tmp_path, moved), aligned=aligned)
        assert manifest.metrics["voi_split"] < 0.01
        still = self.evaluate(store, folder, segmentation=self.segmentation(tmp_path / "b", labels), aligned=aligned)
        assert still.metrics["voi_split"] > 5 * manifest.metrics["voi_split"]

    def test_a_section_that_is_not_there_is_not_scored(
        self, store: Store, tmp_path: Path, folder: Path, labels: np.ndarray
    ) -> None:
        _, aligned = self.stacks(store, folder)
        wrong = labels.copy()
        wrong[self.MISSING - 3] = 99
        a = self.evaluate(store, folder, segmentation=self.segmentation(tmp_path, wrong), aligned=aligned)
        b = self.evaluate(store, folder, segmentation=self.segmentation(tmp_path / "b", labels), aligned=aligned)
        assert a.metrics == b.metrics

    def test_a_stack_between_montage_and_alignment_is_followed(
        self, store: Store, tmp_path: Path, folder: Path, labels: np.ndarray
    ) -> None:
        """Here one of half the size, as `normalize` makes it; the alignment enlarges it again."""
        montage, aligned = self.stacks(store, folder)
        truth = AcquisitionTruth(folder)
        half = GridWarp.affine([[0.5, 0, -0.25], [0, 0.5, -0.25]])
        sections = [z for z in range(3, 15) if z != self.MISSING]

        def normalize(data: Store) -> None:
            for z in sections:
                data.put_arrays(f"transforms/{z:06d}.npz", **half.arrays("section"))

        def align(data: Store) -> None:
            for z in sections:
                section = truth.section_warp(z)
                assert section is not None
                # The section's own map, for pixels twice as large.
                fine = GridWarp(half.map(section.origin_xy[None])[0], section.spacing_px / 2, section.nodes)
                assert np.allclose(fine.sources(), half.map(section.sources().reshape(-1, 2)).reshape(fine.nodes.shape))
                data.put_arrays(f"transforms/{z:06d}.npz", **fine.translated(SHIFT_XY).arrays("section"))

        normalized = publish(store, "section_stack", normalize, source=montage)
        through = publish(store, "section_stack", align, source=normalized)
        segmentation = self.segmentation(tmp_path, labels)
        direct = self.evaluate(store, folder, segmentation=segmentation, aligned=aligned).metrics
        indirect = self.evaluate(store, folder, segmentation=segmentation, aligned=through, montage=montage).metrics
        assert indirect == pytest.approx(direct, abs=0.01)
        other, _ = self.stacks(store, folder, tile_shift=1.0)
        with pytest.raises(UserError, match="not made from the input montage"):
            self.evaluate(store, folder, aligned=aligned, montage=other)

    def test_aligned_sections_are_needed_to_carry_labels(
        self, store: Store, tmp_path: Path, folder: Path, labels: np.ndarray
    ) -> None:
        with pytest.raises(UserError, match="give the aligned sections"):
            self.evaluate(store, folder, segmentation=self.segmentation(tmp_path, labels))

    def test_a_folder_without_truth_is_refused(self, store: Store, tmp_path: Path, folder: Path) -> None:
        montage, _ = self.stacks(store, folder)
        with pytest.raises(UserError, match="no truth/truth.json"):
            self.evaluate(store, tmp_path / "elsewhere", montage=montage)

"""The stages segment and ffn-train through the job interface, with the shipped demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.acquisition.phantom import Phantom, make_phantom
from happyneurons.errors import UserError
from happyneurons.imaging.subvolumes import SubvolumeGrid
from happyneurons.metrics.segmentation import scores, truth_table
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

MODEL = str(Path(__file__).resolve().parents[2] / "services" / "happyneurons" / "models" / "demo_ffn")
DEMO = {
    "mirror_faces": True,
    "keep_connected": True,
    "min_segment_size": 300,
    "seed_order": "depth",
    "skip_explored_fraction": 0.2,
}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom((32, 64, 80), seed=9)


def put(store: Store, name: str, array: np.ndarray, layer: Any, voxel_size: float = 8.0) -> str:
    uri = store.url(name)
    volume = create_volume(
        uri,
        start_zyx=(0, 0, 0),
        stop_zyx=array.shape,
        voxel_size_nm_xyz=(voxel_size,) * 3,
        dtype=str(array.dtype),
        layer_type=layer,
        chunk_zyx=(32, 32, 32),
    )
    volume.write((0, 0, 0), array)
    return uri


def boxes(artifact: Artifact) -> dict[str, np.ndarray]:
    """Segmentation of each subvolume, found by the grid alone, as reconcile does it."""
    assert artifact.bounds is not None
    grid = SubvolumeGrid(artifact.bounds, artifact.properties["size_xyz"], artifact.properties["overlap_xyz"])
    assert len(grid) == artifact.properties["boxes"]
    found = {}
    for box in grid:
        arrays = artifact.store().get_arrays(f"{box.name}.npz")
        assert arrays["start_zyx"].tolist() == list(box.start_zyx)
        assert arrays["segmentation"].dtype == np.uint32
        assert arrays["segmentation"].shape == box.shape_zyx
        found[box.name] = arrays["segmentation"]
    return found


def test_demo_model_segments_a_phantom_it_has_not_seen(store: Store, phantom: Phantom) -> None:
    image = put(store, "image", phantom.image, "image")
    params = {**DEMO, "subvolume_size_xyz": [80, 64, 32], "overlap_xyz": [16, 16, 16]}
    manifest = run_stage(store, "segment", inputs={"image": image, "model": MODEL}, params=params)
    (segmentation,) = boxes(load_artifact(manifest.outputs["subvolumes"].uri)).values()
    figures = scores(truth_table(segmentation, phantom.labels))
    assert figures.adapted_rand_error < 0.1
    labelled = phantom.labels > 0
    assert (segmentation[labelled] > 0).mean() > 0.7
    assert manifest.metrics["segments"] == segmentation.max()
    assert manifest.metrics["coverage"] == pytest.approx((segmentation > 0).mean())
    assert manifest.metrics["fov_steps"] > 0


def test_overlapping_subvolumes_with_a_coarse_mask(store: Store, phantom: Phantom) -> None:
    image = put(store, "image", phantom.image, "image")
    coarse = np.zeros((16, 32, 40), np.uint8)
    coarse[:, :16] = 1  # y < 32 at full resolution
    mask = run_stage_mask(store, coarse)
    params = {**DEMO, "subvolume_size_xyz": [48, 64, 32], "overlap_xyz": [16, 16, 16]}
    inputs = {"image": image, "model": MODEL, "mask": mask}
    manifest = run_stage(store, "segment", inputs=inputs, params=params)
    found = boxes(load_artifact(manifest.outputs["subvolumes"].uri))
    assert sorted(found) == ["0_0_0", "0_0_32"]
    for segmentation in found.values():
        assert not segmentation[:, :32].any()
        assert segmentation[:, 32:].any()
        ids = np.unique(segmentation)
        assert ids.tolist() == list(range(len(ids)))


def run_stage_mask(store: Store, mask: np.ndarray) -> str:
    """A published mask artifact of 16 nm voxels, as another job would leave it."""
    from happyneurons.store.artifacts import Bounds, Manifest, artifact_uri, manifest_path

    key = "0" * 64
    data_uri = put(store, f"artifacts/{key}/mask", mask, "image", voxel_size=16.0)
    z, y, x = mask.shape
    artifact = Artifact(
        kind="mask",
        uri=artifact_uri(store, key, "mask"),
        data_uri=data_uri,
        digest="0" * 64,
        voxel_size_nm_xyz=(16.0, 16.0, 16.0),
        bounds=Bounds(minimum_xyz=(0, 0, 0), maximum_xyz=(x, y, z)),
    )
    manifest = Manifest(
        job_key=key, stage="mask", stage_version="1", params={}, inputs={}, outputs={"mask": artifact}, provenance={}
    )
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return artifact.uri


def test_bounds_and_requests_that_do_not_fit(store: Store, phantom: Phantom) -> None:
    inputs = {"image": put(store, "image", phantom.image, "image"), "model": MODEL}
    with pytest.raises(UserError, match="bounds_xyz"):
        run_stage(store, "segment", inputs=inputs, params={"bounds_xyz": [[0, 0, 0], [81, 64, 32]]})
    with pytest.raises(UserError, match="smaller than the network's field of view"):
        run_stage(store, "segment", inputs=inputs, params={"bounds_xyz": [[0, 0, 0], [20, 64, 32]]})
    with pytest.raises(UserError, match="must be one of auto, keras, tensorflow, winograd"):
        run_stage(store, "segment", inputs=inputs, params={"backend": "abacus"})
    params = {**DEMO, "bounds_xyz": [[20, 10, 4], [60, 50, 30]], "mirror_faces": False}
    manifest = run_stage(store, "segment", inputs=inputs, params=params)
    artifact = load_artifact(manifest.outputs["subvolumes"].uri)
    assert list(boxes(artifact)) == ["4_10_20"]
    assert artifact.bounds is not None
    assert artifact.bounds.shape_zyx == (26, 40, 40)


def test_training_makes_a_model_that_segment_takes(store: Store, phantom: Phantom) -> None:
    image = put(store, "image", phantom.image, "image")
    labels = put(store, "labels", phantom.labels, "segmentation")
    params = {
        "steps": 8, "block_steps": 4, "batch_size": 2, "validation_patches": 2,
        "depth": 2, "features": 4, "fov_xyz": [11, 11, 9], "deltas_xyz": [3, 3, 2],
    }  # fmt: skip
    manifest = run_stage(store, "ffn-train", inputs={"image": [image], "labels": [labels]}, params=params)
    model = manifest.outputs["model"]
    properties = load_artifact(model.uri).properties
    assert properties["architecture"]["fov_zyx"] == [9, 11, 11]
    assert properties["architecture"]["image_mean"] == pytest.approx(phantom.image.mean(), abs=0.1)
    kept = ["samples/00000004.png", "samples/00000008.png", "weights.npz"]
    assert sorted(Store(model.data_uri).list("")) == ["curves.png", "history.json", "model.json", *kept]
    assert manifest.metrics["step"] == 8
    further = run_stage(
        store,
        "ffn-train",
        inputs={"image": [image], "labels": [labels], "initial_model": [model.uri]},
        params={**params, "steps": 4, "seed": 2},
    )
    assert further.job_key != manifest.job_key
    bounds = {"bounds_xyz": [[0, 0, 0], [24, 24, 20]]}
    run_stage(store, "segment", inputs={"image": image, "model": further.outputs["model"].uri}, params=bounds)
    with pytest.raises(UserError, match="pairs"):
        run_stage(store, "ffn-train", inputs={"image": [image], "labels": [labels, labels]}, params=params)

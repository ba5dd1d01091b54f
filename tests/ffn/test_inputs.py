"""Segment's inputs: masks, initial segmentation, seeds, and what is refused before work."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from happyneurons.acquisition.phantom import Phantom, make_phantom
from happyneurons.errors import UserError
from happyneurons.ffn.canvas import Step
from happyneurons.ffn.inference import segment_subvolume
from happyneurons.ffn.obstacles import Obstacles
from happyneurons.ffn.options import InferenceOptions
from happyneurons.imaging.subvolumes import SubvolumeGrid
from happyneurons.stages.segment import stage as segment_stage
from happyneurons.stages.segment.masks import MaskRule
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

from .test_inference import Neighbourhood, blocks_image

MODEL = str(Path(__file__).resolve().parents[2] / "services" / "happyneurons" / "models" / "demo_ffn")
OPTIONS = InferenceOptions(skip_explored_fraction=0, min_segment_size=500)


def put(store: Store, name: str, array: np.ndarray, layer: Any = "image", voxel_nm: float = 8.0, at: int = 0) -> str:
    """A precomputed volume; `at`: offset of its first voxel along each axis."""
    start = (at,) * 3
    stop = [at + n for n in array.shape]
    uri = store.url(name)
    volume = create_volume(
        uri, start_zyx=start, stop_zyx=stop, voxel_size_nm_xyz=(voxel_nm,) * 3, dtype=str(array.dtype),
        layer_type=layer, chunk_zyx=(32, 32, 32),
    )  # fmt: skip
    volume.write(start, array)
    return uri


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_rules_say_which_values_are_meant(dtype: Any) -> None:
    values = np.array([0, 1, 2, 3, 100], dtype)

    def meant(**rule: Any) -> list[int]:
        return [int(v) for v in values[MaskRule(**rule)(values)]]

    assert meant() == [1, 2, 3, 100]
    assert meant(values=[0, 3]) == [0, 3]
    assert meant(minimum=2) == [2, 3, 100]
    assert meant(minimum=0, maximum=1.5) == [0, 1]
    assert meant(values=[3], invert=True) == [0, 1, 2, 100]
    big = np.array([2**53, 2**53 + 1], np.uint64)
    assert MaskRule(values=[2**53 + 1])(big).tolist() == [False, True]


# --- obstacles ------------------------------------------------------------------------------------


def test_objects_that_are_there_stay_and_new_ones_grow_around_them() -> None:
    image = blocks_image()
    given = np.zeros(image.shape, np.uint64)
    given[:, 5:18, :30] = np.where(image[:, 5:18, :30] == 50, 7 << 40, 0)
    given[0, 0, 0] = 5
    obstacles = Obstacles.of(given)
    assert obstacles is not None
    assert obstacles.ids.tolist() == [5, 7 << 40]
    excluded = np.zeros(image.shape, bool)
    excluded[:, :, :10] = True  # a mask does not take away what is there
    result = segment_subvolume(image, Neighbourhood(), OPTIONS, obstacles=obstacles, excluded=excluded)
    np.testing.assert_array_equal(result.segmentation == 2, given == 7 << 40)
    assert (result.segmentation == 1).sum() == 1
    new = np.unique(result.segmentation[image == 90])
    assert new.max() >= 3
    assert result.segments == result.segmentation.max()
    assert result.counters["initial_segments"] == 2
    tiny = segment_subvolume(image[:5], Neighbourhood(), OPTIONS, obstacles=Obstacles.of(given[:5]))
    np.testing.assert_array_equal(tiny.segmentation == 2, given[:5] == 7 << 40)
    assert Obstacles.of(np.zeros((2, 2, 2), np.uint32)) is None
    with pytest.raises(UserError, match="negative ids"):
        Obstacles.of(np.full((2, 2, 2), -3, np.int32))


def test_given_seeds_and_masks_for_seeds_only() -> None:
    image = blocks_image()
    points = np.array([[12, 11, 20], [0, 0, 0]])  # in the tube of grey value 50; where the field of view does not fit
    result = segment_subvolume(image, Neighbourhood(), OPTIONS, points=points)
    np.testing.assert_array_equal(result.segmentation > 0, image == 50)
    unseeded = np.zeros(image.shape, bool)
    unseeded[:, 20:, :40] = True  # most of the other tube: it still grows into it
    result = segment_subvolume(image, Neighbourhood(), OPTIONS, unseeded=unseeded)
    assert (result.segmentation[image == 90] > 0).all()
    unseeded[:] = True
    assert not segment_subvolume(image, Neighbourhood(), OPTIONS, unseeded=unseeded).segmentation.any()


# --- through the stage ----------------------------------------------------------------------------

DEMO = {"min_segment_size": 300, "seed_order": "depth", "skip_explored_fraction": 0.2, "keep_connected": True}


class Lost(Neighbourhood):
    """Raises after so many calls, then after so many more, …"""

    def __init__(self, left: list[int]) -> None:
        super().__init__()
        self.left = left

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        if self.left:
            self.left[0] -= 1
            if self.left[0] < 0:
                del self.left[0]
                raise OSError(errno.EIO, "the node is gone")
        return super().__call__(image, seed)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom((32, 40, 80), seed=9)


def cell_bodies(phantom: Phantom) -> np.ndarray:
    """(16, 20, 40) uint32 at half the resolution: the two largest objects of the phantom, ids 1000 and 2000."""
    coarse = phantom.labels[::2, ::2, ::2]
    ids, counts = np.unique(coarse[coarse > 0], return_counts=True)
    a, b = ids[np.argsort(-counts)[:2]]
    return np.where(coarse == a, 1000, np.where(coarse == b, 2000, 0)).astype(np.uint32)


def test_initial_segmentation_and_masks_go_through_segment_and_reconcile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two boxes, on nodes that are lost again and again; the network is a stand-in of known result."""
    bodies = np.zeros((12, 20, 32), np.uint32)
    bodies[4:8, 3:8, 8:24] = 1000
    bodies[4:8, 12:16, 12:28] = 2000
    tissue = np.zeros((6, 10, 16), np.uint8)
    tissue[:, :8] = 2  # y < 32 of 40
    vessel = np.zeros((12, 20, 32), np.uint8)
    vessel[:, :4] = 1  # y < 8
    inputs = {
        "image": put(store, "image", blocks_image()),
        "model": MODEL,
        "mask": [put(store, "tissue", tissue, voxel_nm=32), put(store, "vessel", vessel, voxel_nm=16)],
        "initial_segmentation": put(store, "bodies", bodies, "segmentation", voxel_nm=16),
    }
    params = {
        "subvolume_size_xyz": [40, 40, 24], "overlap_xyz": [24, 16, 8], "checkpoint_s": 1e-6,
        "min_segment_size": 300, "mask_rules": [{"values": [2], "invert": True}, {}],
    }  # fmt: skip
    steps: list[Lost] = []

    def lost(*_: object) -> Step:
        steps.append(Lost([60, 40]))
        return steps[-1]

    monkeypatch.setattr(segment_stage, "make_step", lost)
    manifest = run_stage(store, "segment", inputs=inputs, params=params)
    assert steps[0].left == []  # it was lost twice
    artifact = load_artifact(manifest.outputs["subvolumes"].uri)
    assert not [name for name in artifact.store().list("") if "checkpoints" in name]
    assert manifest.metrics["input_cover"] == 1

    fine = bodies.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert artifact.bounds is not None
    grid = SubvolumeGrid(artifact.bounds, params["subvolume_size_xyz"], params["overlap_xyz"])
    assert len(grid) == 2
    for box in grid:
        arrays = artifact.store().get_arrays(f"{box.name}.npz")
        own = fine[tuple(slice(a, b) for a, b in zip(box.start_zyx, box.stop_zyx, strict=True))]
        ids = np.concatenate([[0], arrays["initial_ids"]])
        kept = arrays["segmentation"] <= len(arrays["initial_ids"])
        np.testing.assert_array_equal(np.where(kept, ids[np.where(kept, arrays["segmentation"], 0)], 0), own)
        new = arrays["segmentation"] > len(arrays["initial_ids"])
        assert new.any()
        assert not new[:, :8].any()
        assert not new[:, 32:].any()

    undisturbed = Store(store.uri + "-undisturbed")
    monkeypatch.setattr(segment_stage, "make_step", lambda *_: Neighbourhood())
    expected = run_stage(undisturbed, "segment", inputs=inputs, params=params)
    assert expected.outputs["subvolumes"].digest == manifest.outputs["subvolumes"].digest
    for box in grid:
        path = f"artifacts/{manifest.job_key}/subvolumes/{box.name}.npz"
        assert undisturbed.get(path) == store.get(path)

    joined = run_stage(store, "reconcile", inputs={"subvolumes": artifact.uri}, params={"num_mips": 0})
    from happyneurons.store.volumes import open_volume

    whole = open_volume(load_artifact(joined.outputs["segmentation"].uri).data_uri).read((0, 0, 0), fine.shape)
    for body in (1000, 2000):
        (final,) = np.unique(whole[fine == body])
        assert final > 0
        np.testing.assert_array_equal(whole == final, fine == body)


def refused(store: Store, phantom: Phantom, match: str, params: dict[str, Any] | None = None, **inputs: Any) -> None:
    given = {"image": put(store, "image", phantom.image), "model": MODEL, **inputs}
    with pytest.raises(UserError, match=match):
        run_stage(store, "segment", inputs=given, params={"bounds_xyz": [[0, 0, 0], [40, 40, 32]], **(params or {})})


def trained_at(store: Store, voxel_nm: float) -> str:
    """The demo model, saying what it was trained on."""
    model = Store(MODEL)
    document = model.get_json("model.json")
    document["training"]["voxel_size_nm_xyz"] = [voxel_nm] * 3
    target = Store(store.url(f"model-{voxel_nm:g}"))
    target.put("weights.npz", model.get("weights.npz"))
    target.put_json("model.json", document)
    return target.uri


def test_another_voxel_size_than_the_models_is_refused(store: Store, phantom: Phantom) -> None:
    why = r"voxels of 8 x 8 x 8 nm \(xyz\), the model was trained on 16 x 16 x 16 nm.*any_voxel_size"
    refused(store, phantom, why, model=trained_at(store, 16))
    refused(store, phantom, why, {"model_voxel_size_nm_xyz": [16, 16, 16]})
    refused(store, phantom, "voxels of 9 x 9 x 9", {"voxel_size_nm_xyz": [9, 9, 9]}, model=trained_at(store, 8))
    # Meant, within 10 %, or another tolerance: the next refusal comes instead.
    ill = {"seeds_xyz": [[1000, 0, 0]]}
    refused(store, phantom, "none of the 1 seeds", {**ill, "any_voxel_size": True}, model=trained_at(store, 16))
    refused(store, phantom, "none of the 1 seeds", ill, model=trained_at(store, 8.7))
    refused(store, phantom, "none of the 1 seeds", {**ill, "voxel_size_tolerance": 0.3}, model=trained_at(store, 10))


def test_masks_and_segmentations_elsewhere_are_refused(store: Store, phantom: Phantom) -> None:
    away = np.ones((8, 8, 8), np.uint8)
    mask = put(store, "away", away, at=400)
    refused(store, phantom, r"mask .*away does not overlap.*\(3200, 3200, 3200\)..\(3264, 3264, 3264\) nm", mask=mask)
    bodies = put(store, "bodies", away.astype(np.uint32), "segmentation", at=400)
    refused(store, phantom, "initial_segmentation .*bodies does not overlap", initial_segmentation=bodies)
    rules = {"mask_rules": [{}, {}]}
    refused(store, phantom, "1 masks and 2 params.mask_rules", rules, mask=put(store, "here", away))
    refused(store, phantom, "expected", initial_segmentation=put(store, "grey", away))


def test_images_that_a_model_cannot_know_are_refused(store: Store, phantom: Phantom, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "image.h5", "w") as file:
        file["odd"] = np.zeros((40, 40, 40), bool)
    refused(store, phantom, "type bool, grey values were expected", image=f"h5://{tmp_path}/image.h5?odd")
    thin = Store(store.url("thin"))
    model = Store(MODEL)
    thin.put_json("model.json", model.get_json("model.json"))
    weights = model.get_arrays("weights.npz")
    thin.put_arrays("weights.npz", **{**weights, "conv2_b/weights": weights["conv2_b/weights"][..., :8]})
    refused(store, phantom, r"conv2_b/weights has shape \(3, 3, 3, 16, 8\), expected", model=thin.uri)
    refused(store, phantom, "params.depth is 12, but the model .* has 6 modules", {"depth": 12})


@pytest.mark.slow
def test_checkpoints_of_another_shape_or_for_other_grey_values(
    store: Store, phantom: Phantom, fib25_checkpoint: str
) -> None:
    model = f"ckpt://{fib25_checkpoint}"
    refused(store, phantom, "params.depth is 9, but .* has 12 modules", {"depth": 9}, model=model)
    refused(store, phantom, "smaller than the network's field of view", model=model)
    deep = put(store, "deep", phantom.image.astype(np.float32))
    refused(
        store, phantom, "type float32, and the checkpoint does not tell", {"fov_xyz": [17] * 3}, image=deep, model=model
    )


@pytest.mark.slow
def test_seeds_from_a_table(store: Store, phantom: Phantom) -> None:
    inside = np.argwhere(cell_bodies(phantom) == 1000)
    centre = inside[len(inside) // 2] * 2  # zyx
    rows = [[float(v) for v in (centre[::-1] + 0.5) * 8], [1e6, 0, 0]]
    tables = {
        "nm": {"columns": ["note", "x_nm", "y_nm", "z_nm"], "rows": [["a", *row] for row in rows]},
        "bad": {"columns": ["x", "y"], "rows": []},
    }
    uris = {name: table_artifact(store, name, table) for name, table in tables.items()}
    refused(store, phantom, "columns x, y; x, y, z or x_nm", seeds=uris["bad"])
    refused(store, phantom, "both as", {"seeds_xyz": [[1, 1, 1]]}, seeds=uris["nm"])
    inputs = {"image": put(store, "image", phantom.image), "model": MODEL}
    params = {
        **DEMO,
        "subvolume_size_xyz": [80, 40, 32],
        "overlap_xyz": [0, 0, 0],
        "min_segment_size": 20,
        "mirror_faces": True,
    }
    by_table = run_stage(store, "segment", inputs={**inputs, "seeds": uris["nm"]}, params=params)
    assert by_table.metrics["segments"] == 1
    by_param = run_stage(store, "segment", inputs=inputs, params={**params, "seeds_xyz": [centre[::-1].tolist()]})
    a, b = (load_artifact(m.outputs["subvolumes"].uri).store().get("0_0_0.npz") for m in (by_table, by_param))
    assert a == b


def table_artifact(store: Store, name: str, table: dict[str, Any]) -> str:
    """A published table, as another job would leave it."""
    from happyneurons.store.artifacts import Artifact, Manifest, artifact_uri, manifest_path

    key = name.ljust(40, "0")
    store.put_json(f"artifacts/{key}/table/table.json", table)
    artifact = Artifact(
        kind="table", uri=artifact_uri(store, key, "table"), data_uri=store.url(f"artifacts/{key}/table"), digest=key
    )
    manifest = Manifest(
        job_key=key, stage="t", stage_version="1", params={}, inputs={}, outputs={"table": artifact}, provenance={}
    )
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return artifact.uri

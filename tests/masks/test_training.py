"""Mask-train through the job interface: it learns, survives a kill, and its model makes masks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.stages.mask_train.params import section_numbers
from happyneurons.store.artifacts import artifact_uri, load_manifest
from happyneurons.store.documents import Store
from happyneurons.unet.architecture import Architecture, initial_weights, weight_shapes
from happyneurons.unet.inference import predict_section
from happyneurons.unet.model import load_model
from happyneurons.worker.local import run_stage
from tests.stages.attempts import files, run_and_die, run_with_ranks

from .test_objects import put, read

SMALL: dict[str, Any] = {
    "classes": [{"name": "blob", "values": [2]}], "unlabelled_values": [9], "depth": 1, "features": 8, "patch_px": 32,
    "steps": 40, "block_steps": 10, "batch_size": 4, "warmup_steps": 5, "learning_rate": 0.02,
    "validation_sections": 5, "augmentation": {"elastic_px": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bright blobs, drawn on sections 2 and 5 only, at half the picture's resolution; section 3 says nothing."""
    root, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(5)
    truth = np.zeros((8, 96, 112), np.uint8)
    y, x = np.mgrid[:96, :112]
    for z in range(8):
        for _ in range(7):
            cy, cx, r = rng.uniform(0, 96), rng.uniform(0, 112), rng.uniform(7, 13)
            truth[z][(y - cy) ** 2 + (x - cx) ** 2 < r * r] = 1
    image = np.clip(100 + 70.0 * truth + rng.normal(0, 12, truth.shape), 0, 255).astype(np.uint8)
    labels = np.zeros((8, 48, 56), np.uint32)
    for z in (2, 5):
        labels[z] = 2 * truth[z, ::2, ::2]
    labels[2, :10, :10] = 9
    return {
        "image": put(root, "image", image, (10.0, 10.0, 40.0)),
        "labels": put(root, "labels", labels, (20.0, 20.0, 40.0)),
        "truth": put(root, "truth", truth, (10.0, 10.0, 40.0)),
    }


def inputs(drawn: dict[str, str]) -> dict[str, str]:
    return {"image": drawn["image"], "labels": drawn["labels"]}


@pytest.fixture(scope="module")
def trained(drawn: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """(store, key of the job)."""
    store = Store(str(tmp_path_factory.mktemp("trained")))
    return store, run_stage(store, "mask-train", inputs=inputs(drawn), params=SMALL).job_key


@pytest.mark.slow
def test_it_learns_from_one_section_and_shows_how(trained):
    store, key = trained
    manifest = load_manifest(store, key)
    assert manifest is not None
    assert manifest.metrics["dice"] > 0.85
    left = files(store, key)
    history = json.loads(left["model/history.json"])
    assert [row["step"] for row in history] == [10, 20, 30, 40]
    assert max(row["dice"] for row in history) == manifest.metrics["dice"]
    assert {"model/curves.png", "model/samples/00000040.png", "model/weights.npz"} <= set(left)
    assert not any("checkpoints" in path or "survey" in path for path in left)
    model = load_model(manifest.outputs["model"].data_uri)
    assert model.voxel_size_nm_xyz == (10.0, 10.0, 40.0)
    assert model.architecture.classes == ("blob",)
    # Only the annotated section counts: about 100 + 70 times the share of blobs.
    assert 100 < model.architecture.image_mean < 170


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(drawn, trained, tmp_path):
    _, key = trained
    store = Store(str(tmp_path))
    spec = make_spec(load_stage("mask-train"), inputs=inputs(drawn), params=SMALL)
    save_spec(store, spec)
    assert run_and_die(store, spec, "train-000002", 1) == -9
    run_with_ranks(store, spec, 2)
    assert spec.key == key
    assert files(store, key) == files(trained[0], key)


@pytest.mark.slow
def test_the_model_makes_masks_of_any_part_by_any_number_of_ranks(drawn, trained, tmp_path):
    source, key = trained
    given = {"image": drawn["image"], "model": artifact_uri(source, key, "model")}
    params = {"num_mips": 0, "context_px": 8, "patch_px": 48, "block_size_xyz": [64, 64, 64]}
    whole = run_stage(Store(str(tmp_path / "one")), "mask", inputs=given, params=params)
    truth = read_uri(drawn["truth"]) > 0
    found = read(whole, "mask") > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    store = Store(str(tmp_path / "two"))
    spec = make_spec(load_stage("mask"), inputs=given, params=params)
    save_spec(store, spec)
    run_with_ranks(store, spec, 2)
    assert files(store, spec.key) == files(Store(str(tmp_path / "one")), whole.job_key)


def read_uri(uri: str) -> np.ndarray:
    from happyneurons.store.volumes import open_volume

    volume = open_volume(uri)
    return volume.read(volume.start_zyx, volume.stop_zyx)


@pytest.mark.slow
def test_a_model_of_other_voxels_is_refused(drawn, trained, tmp_path):
    store, key = trained
    image = put(tmp_path, "coarse", np.zeros((4, 64, 64), np.uint8), (16.0, 16.0, 40.0))
    with pytest.raises(UserError, match="no level of the image has such voxels"):
        run_stage(store, "mask", inputs={"image": image, "model": artifact_uri(store, key, "model")}, params={})


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"sections": "1-5"}, "section 5 is in params.sections and in params.validation_sections"),
        ({"sections": "0,99"}, "names section 99"),
        ({"patch_px": 50, "depth": 3}, "a multiple of 16"),
        ({"classes": [{"name": "a", "values": [2]}, {"name": "b", "values": [2]}]}, "two meanings"),
        ({"classes": [{"name": "a"}, {"name": "b"}]}, "only one class may leave"),
        ({"classes": [{"name": "a", "values": [7]}]}, "no voxel of the training labels is background or a"),
    ],
)
def test_wrong_requests_are_refused(drawn, tmp_path, params, words):
    with pytest.raises(UserError, match=words):
        run_stage(Store(str(tmp_path)), "mask-train", inputs=inputs(drawn), params={**SMALL, **params})


def test_sections_are_named_in_short():
    assert section_numbers("0-3,7,10-30:10") == [0, 1, 2, 3, 7, 10, 20, 30]


def test_blending_changes_nothing_where_patches_agree():
    image = np.random.default_rng(0).random((70, 91), np.float32)

    def predict(patch: np.ndarray) -> np.ndarray:
        return np.stack([patch, 1 - patch])

    found = predict_section(image, predict, 2, size_px=32, overlap_px=10, flips=True)
    np.testing.assert_allclose(found[0], image, atol=1e-6)
    np.testing.assert_allclose(found[1], 1 - image, atol=1e-6)


def test_reach_is_the_networks_own():
    from happyneurons.unet.network import Predictor

    architecture = Architecture(depth=2, features=2, stem_px=2)
    assert set(initial_weights(architecture, 1)) == set(weight_shapes(architecture))
    predict = Predictor(architecture, initial_weights(architecture, 1), 256)
    image = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    before = predict(image)
    image[128, 128] += 100
    _, y, x = np.nonzero(predict(image) != before)
    reach = max(np.abs(y - 128).max(), np.abs(x - 128).max())
    assert architecture.reach_px / 2 < reach <= architecture.reach_px

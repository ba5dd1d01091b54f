"""normalize evens out contrast, does not depend on blocks, and keeps background and status apart."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.errors import UserError
from happyneurons.imaging.transforms import AlignTransforms
from happyneurons.stages.normalize.blocks import Artifacts, Frame, Section
from happyneurons.stages.normalize.contrast import Histograms, equalize, moments
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, load_artifact, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.worker.local import run_stage

Z0 = 5
STATUS = ["ok", "failed", "flagged", "ok"]


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """Four sections of 300 x 430 px: lit unevenly, the second absent, a background at the left."""
    image = make_phantom((8, 300, 430), seed=2).image[:4].astype(np.float64)
    image *= np.linspace(0.35, 1.1, 430)[np.newaxis, np.newaxis] * np.array([1, 1, 0.8, 1.1])[:, np.newaxis, np.newaxis]
    image = np.clip(np.rint(image), 1, 255)
    image[:, :, :40] = 0
    image[1] = 0
    return image.astype(np.uint8)


@pytest.fixture
def stack(store: Store, raw: np.ndarray) -> str:
    """The sections as a published section_stack."""
    key = "0" * 40
    data = Store(store.url(f"artifacts/{key}/stack"))
    volume = create_volume(
        data.url("image"), start_zyx=(Z0, 0, 0), stop_zyx=(Z0 + 4, *raw.shape[1:]), voxel_size_nm_xyz=(8, 8, 40),
        dtype="uint8", layer_type="image", chunk_zyx=(1, 1024, 1024),
    )  # fmt: skip
    for i, status in enumerate(STATUS):
        data.put_json(f"sections/{Z0 + i:06d}.json", {"z": Z0 + i, "status": status, "reason": f"is {status}"})
        if status != "failed":
            volume.write((Z0 + i, 0, 0), raw[i : i + 1])
    artifact = Artifact(
        kind="section_stack", uri=artifact_uri(store, key, "stack"), data_uri=data.uri, digest="d",
        voxel_size_nm_xyz=(8, 8, 40), bounds=Bounds(minimum_xyz=(0, 0, Z0), maximum_xyz=(430, 300, Z0 + 4)),
    )  # fmt: skip
    manifest = Manifest(
        job_key=key, stage="x", stage_version="1", params={}, inputs={}, outputs={"stack": artifact}, provenance={}
    )
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return artifact.uri


def normalize(store: Store, stack: str, **params: Any) -> tuple[Manifest, Artifact, np.ndarray, np.ndarray]:
    manifest = run_stage(store, "normalize", inputs={"stack": stack}, params=params)
    output = load_artifact(manifest.outputs["stack"].uri)
    image, mask = open_volume(f"{output.data_uri}/image"), open_volume(f"{output.data_uri}/mask")
    box = image.start_zyx, image.stop_zyx
    return manifest, output, image.read(*box), mask.read(*box)


def test_contrast_becomes_even(store: Store, stack: str, raw: np.ndarray) -> None:
    manifest, output, image, mask = normalize(store, stack, tile_px=64, clip_limit=4)
    assert image.shape == raw.shape
    assert output.bounds == load_artifact(stack).bounds
    assert output.properties == {"source": stack, "scale": 1.0, "z_range": [Z0, Z0 + 4], "mask": True}
    left, right = np.s_[0, :, 50:120], np.s_[0, :, 350:420]
    before, after = (float(picture[right].mean()) - float(picture[left].mean()) for picture in (raw, image))
    assert before > 60
    assert abs(after) < before / 4
    assert image[left].std() > 1.5 * raw[left].std()
    # Background stays background, and nothing else becomes it.
    assert np.array_equal(image[0] > 0, raw[0] > 0)
    assert np.array_equal(mask[0], (raw[0] > 0).astype(np.uint8))
    assert manifest.metrics["sections_ok"] == 2
    assert manifest.metrics["valid_fraction"] == pytest.approx(390 / 430, abs=1e-3)


def test_sections_without_picture_are_passed_on(store: Store, stack: str) -> None:
    manifest, output, image, mask = normalize(store, stack)
    documents = [output.store().get_json(f"sections/{Z0 + i:06d}.json") for i in range(4)]
    assert [d["status"] for d in documents] == STATUS
    assert documents[1] == {"z": Z0 + 1, "status": "failed", "reason": "is failed"}
    assert not image[1].any()
    assert not mask[1].any()
    assert image[2].any()
    assert manifest.metrics["sections_failed"] == 1
    assert output.store().exists(f"transforms/{Z0:06d}.npz")
    assert not output.store().exists(f"transforms/{Z0 + 1:06d}.npz")


@pytest.mark.parametrize("clip_limit", [0, 2])
def test_mean_and_sd_are_what_was_asked_for(clip_limit: float, store: Store, stack: str) -> None:
    _, output, image, mask = normalize(store, stack, clip_limit=clip_limit, target_mean=128, target_std=30)
    for i in (0, 2, 3):
        values = image[i][mask[i] > 0].astype(np.float64)
        assert values.mean() == pytest.approx(128, abs=1.5)
        assert values.std() == pytest.approx(30, abs=2.5)
        document = output.store().get_json(f"sections/{Z0 + i:06d}.json")
        assert document["normalized_mean"] == pytest.approx(values.mean(), abs=0.01)


def test_nothing_asked_nothing_done(store: Store, stack: str, raw: np.ndarray) -> None:
    _, _, image, _ = normalize(store, stack, clip_limit=0)
    assert np.array_equal(image, raw)


def test_scaling_down_keeps_places(store: Store, stack: str, raw: np.ndarray) -> None:
    _, output, image, mask = normalize(store, stack, clip_limit=0, downsample=4)
    assert image.shape == (4, 75, 108)
    assert output.voxel_size_nm_xyz == (32, 32, 40)
    assert output.properties["scale"] == 0.25
    expected = cv2.resize(raw[0, :, 40:428], (97, 75), interpolation=cv2.INTER_AREA)
    assert np.abs(image[0, :, 10:107].astype(int) - expected).max() <= 1
    # The last column covers two px of the input and two of nothing: half is enough to be valid.
    assert mask[0, :, 107].all()
    assert not mask[0, :, :10].any()
    transforms = AlignTransforms(output)
    middle = transforms.map(Z0, [[1.5, 1.5], [41.5, 9.5]])
    assert middle is not None
    assert np.allclose(middle, [[0, 0], [10, 2]])
    back = transforms.inverse(Z0, [[107.0, 74.0]])
    assert back is not None
    assert np.allclose(back, [[429.5, 297.5]])


def test_artifacts_are_masked_small_dark_things_are_not(store: Store, stack: str, raw: np.ndarray) -> None:
    source = open_volume(f"{load_artifact(stack).data_uri}/image")
    section = raw[3].copy()
    section[100:160, 200:280] = 3  # dirt
    section[30:34, 300:304] = 3  # a vesicle
    section[200:240, 300:360] = 254  # charging
    source.write((Z0 + 3, 0, 0), section[np.newaxis])  # type: ignore[union-attr]
    _, _, image, mask = normalize(store, stack, artifact_below=10, artifact_above=250)
    assert not mask[3, 110:150, 210:270].any()
    assert not mask[3, 210:230, 310:350].any()
    assert mask[3, 28:36, 298:306].all()
    wrong = (mask[3] == 0) & (section > 0)
    assert 60 * 80 + 40 * 60 - 400 < wrong.sum() < 60 * 80 + 40 * 60 + 400
    assert (image[3] > 0).sum() == (section > 0).sum()


def test_blocks_do_not_show(store: Store, stack: str, raw: np.ndarray) -> None:
    """Histograms, mapping and artifact masks in small blocks equal those of the whole section at once."""
    volume = open_volume(f"{load_artifact(stack).data_uri}/image")
    frame = Frame.of(volume.start_zyx, volume.stop_zyx, 2)
    section = Section(volume, None, Z0, frame, Artifacts(40, 220, 9))  # type: ignore[arg-type]
    whole_picture, whole_valid = section.read(frame.y0, frame.x0, frame.y1, frame.x1)
    assert 0 < whole_valid.mean() < 1
    whole, parts = Histograms(150, 215, 50), Histograms(150, 215, 50)
    whole.add(whole_picture, whole_valid, 0, 0)
    tables = whole.tables(2.0, 120.0, None)
    mapped = tables.apply(whole_picture, 0, 0)
    for y0, x0, y1, x1 in frame.blocks(37):
        picture, valid = section.read(y0, x0, y1, x1)
        assert np.array_equal(picture, whole_picture[y0:y1, x0:x1])
        assert np.array_equal(valid, whole_valid[y0:y1, x0:x1])
        parts.add(picture, valid, y0, x0)
        assert np.array_equal(tables.apply(picture, y0, x0), mapped[y0:y1, x0:x1])
    assert np.array_equal(whole.counts, parts.counts)


def test_it_agrees_with_opencvs_clahe() -> None:
    """On a picture whose size is a multiple of the tiles', away from rounding."""
    picture = make_phantom((8, 256, 256), seed=5).image[0]
    histograms = Histograms(256, 256, 64)
    histograms.add(picture, np.ones(picture.shape, bool), 0, 0)
    ours = histograms.tables(2.0, None, None).apply(picture, 0, 0).astype(int)
    theirs = cv2.createCLAHE(2.0, (4, 4)).apply(picture).astype(int)
    assert np.abs(ours - theirs).mean() < 4
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.995


def test_tables_are_monotonic_and_limited() -> None:
    peak = np.zeros((1, 256))
    peak[0, 100] = 1000
    slopes = np.diff(equalize(peak, 3.0)[0])
    assert (slopes >= 0).all()
    assert slopes.max() < 3.5
    assert moments(np.zeros(256, np.int64)) == (0.0, 0.0)


def test_wrong_parameters_are_refused(store: Store, stack: str) -> None:
    with pytest.raises(UserError, match="artifact_below must be less"):
        normalize(store, stack, artifact_below=200, artifact_above=100)
    with pytest.raises(UserError, match=r"params\.downsample"):
        normalize(store, stack, downsample=0)

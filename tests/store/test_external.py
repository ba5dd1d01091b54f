"""Artifacts: resolving URIs of our own jobs and of data made elsewhere."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, Manifest, artifact_uri, load_artifact, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume


def _manifest(store: Store, key: str) -> Manifest:
    output = Artifact(
        kind="table", uri=artifact_uri(store, key, "table"), data_uri=store.url(f"artifacts/{key}/table"), digest="d"
    )
    return Manifest(
        job_key=key, stage="s", stage_version="1", params={}, inputs={}, outputs={"table": output}, provenance={}
    )


def test_artifacts_of_our_own(store: Store) -> None:
    store.create_json(manifest_path("k"), _manifest(store, "k").model_dump(mode="json"))
    artifact = load_artifact(artifact_uri(store, "k", "table"))
    assert (artifact.kind, artifact.digest) == ("table", "d")
    assert artifact.store().uri == store.url("artifacts/k/table")
    with pytest.raises(UserError, match="no output 'picture'; there are table"):
        load_artifact(artifact_uri(store, "k", "picture"))
    with pytest.raises(UserError, match=r"has not published a result \(yet\)"):
        load_artifact(artifact_uri(store, "other", "table"))


def test_a_store_may_be_moved(store: Store, tmp_path: Path) -> None:
    store.create_json(manifest_path("k"), _manifest(store, "k").model_dump(mode="json"))
    moved = tmp_path / "moved"
    Path(store.uri.removeprefix("file://")).rename(moved)
    artifact = load_artifact(artifact_uri(Store(str(moved)), "k", "table"))
    assert artifact.data_uri == f"{moved.as_uri()}/artifacts/k/table"


@pytest.mark.parametrize("prefix", ["", "precomputed://"])
def test_precomputed_volumes(store: Store, prefix: str) -> None:
    create_volume(
        store.url("v"), start_zyx=(1, 2, 3), stop_zyx=(9, 10, 11), voxel_size_nm_xyz=(4, 4, 40),
        dtype="uint64", layer_type="segmentation", chunk_zyx=(8, 8, 8),
    )  # fmt: skip
    artifact = load_artifact(prefix + store.url("v"))
    assert artifact.kind == "segmentation"
    assert artifact.data_uri == store.url("v")
    assert artifact.voxel_size_nm_xyz == (4, 4, 40)
    assert artifact.bounds is not None
    assert artifact.bounds.minimum_xyz == (3, 2, 1)
    assert artifact.bounds.shape_zyx == (8, 8, 8)


def test_the_digest_of_external_data_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "em.h5"

    def write(value: int) -> str:
        with h5py.File(path, "w") as file:
            file["em"] = np.full((4 + value, 4, 4), value, np.uint8)
        return load_artifact(f"h5://{path}?em").digest

    first = write(1)
    assert load_artifact(f"h5://{path}?em").digest == first
    assert write(2) != first


def test_hdf5_kinds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = np.zeros((2, 3, 4), np.uint8)
        file["labels"] = np.zeros((2, 3, 4), np.uint32)
    image, labels = (load_artifact(f"h5://{tmp_path}/x.h5?{name}") for name in ("em", "labels"))
    assert (image.kind, labels.kind) == ("image_volume", "segmentation")
    assert image.bounds is not None
    assert image.bounds.maximum_xyz == (4, 3, 2)
    assert image.digest != labels.digest


def test_errors_of_external_data(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no {tmp_path}/nowhere"):
        load_artifact(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists(), "looking must not make folders"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a precomputed volume"):
        load_artifact(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no TensorFlow checkpoint there .*model\.index is missing"):
        load_artifact(f"ckpt://{tmp_path}/model")
    with pytest.raises(UserError, match="scheme must be one of"):
        load_artifact("ftp://host/volume")
    for info in (b"{not json", b"[]", b'{"type": "image"}', b'{"type": "image", "scales": [{"size": [1, 2]}]}'):
        store.put("broken/info", info)
        with pytest.raises(UserError, match="its info file does not describe a precomputed volume"):
            load_artifact(store.url("broken"))


def test_real_em(shared_data: Path) -> None:
    artifact = load_artifact(f"h5://{shared_data}/fib25/em.h5?em")
    assert artifact.kind == "image_volume"
    assert artifact.bounds is not None
    assert artifact.bounds.shape_zyx == (250, 250, 250)

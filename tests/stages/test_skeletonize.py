"""Skeletons: where the tubes are, one piece over the borders of blocks, trees, readable by CloudVolume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cloudvolume.lib import Bbox

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.layers import open_skeletons
from happyneurons.store.skeletons import SkeletonLayer
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

pytest.importorskip("kimimaro")

VOXEL_NM = (8.0, 8.0, 16.0)
OFFSET_ZYX = (5, 10, 20)


def write_labels(folder: Path, labels: np.ndarray) -> str:
    uri = (folder / "labels").as_uri()
    volume = create_volume(
        uri, start_zyx=OFFSET_ZYX, stop_zyx=tuple(np.add(OFFSET_ZYX, labels.shape)), voxel_size_nm_xyz=VOXEL_NM,
        dtype="uint64", layer_type="segmentation", chunk_zyx=(32, 32, 32),
    )  # fmt: skip
    volume.write(OFFSET_ZYX, labels.astype(np.uint64))
    return uri


@pytest.fixture(scope="module")
def tubes(tmp_path_factory: pytest.TempPathFactory) -> str:
    labels = np.zeros((48, 64, 96), np.uint64)
    labels[20:26, 30:40, :] = 7  # along x through all blocks: 95 · 8 nm
    labels[20:26, 40:64, 44:54] = 7  # with a branch along y: about 24 · 8 nm and half the tube
    labels[:, 4:12, 4:12] = 2**40  # along z: 47 · 16 nm
    labels[40:44, 60:63, 2:6] = 9  # dust
    return write_labels(tmp_path_factory.mktemp("tubes"), labels)


def skeletonize(tmp_path: Path, uri: str, **params: object) -> Manifest:
    defaults: dict[str, object] = {
        "block_size_xyz": [48, 64, 32], "dust_threshold_voxels": 100, "const_nm": 50, "tick_length_nm": 60,
    }  # fmt: skip
    return run_stage(
        Store(tmp_path.as_uri()), "skeletonize", inputs={"segmentation": uri}, params={**defaults, **params}
    )


def components(edges: np.ndarray, count: int) -> int:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return int(connected_components(graph, directed=False)[0])


def test_skeletons_run_along_the_tubes_and_over_the_borders_of_blocks(tmp_path: Path, tubes: str) -> None:
    manifest = skeletonize(tmp_path, tubes, swc=True)
    artifact = manifest.outputs["skeletons"]
    assert manifest.metrics["skeletons"] == 2
    assert artifact.properties["largest_segments"] == [7, 2**40]
    assert manifest.metrics["branch_points"] == 1
    # The middles of both tubes and the branch: 0.76 + 0.22 + 0.75 µm, at most bent a little.
    assert manifest.metrics["path_um"] == pytest.approx(1.73, rel=0.12)
    reader = open_skeletons(artifact.data_uri)
    tube, column = reader.get(7), reader.get(2**40)
    for skeleton in (tube, column):
        assert components(skeleton.edges, len(skeleton.vertices)) == 1
        assert len(skeleton.edges) == len(skeleton.vertices) - 1
    x, y = (np.array(OFFSET_ZYX)[::-1] * VOXEL_NM)[:2]
    middle = np.array([x + 8 * 8, y + 8 * 8])
    assert np.abs(column.vertices[:, :2] - middle).max() < 3 * 8
    assert np.ptp(column.vertices[:, 2]) == pytest.approx(47 * 16, abs=32)
    assert column.radius.max() == pytest.approx(4 * 8, abs=8)

    rows = np.loadtxt(artifact.store().get(f"swc/{2**40}.swc").decode().splitlines())
    assert len(rows) == len(column.vertices)
    assert (rows[:, 6] < rows[:, 0]).all(), "parents come before children"
    np.testing.assert_allclose(np.sort(rows[:, 4]), np.sort(column.vertices[:, 2]) / 1000, atol=1e-4)


def test_bytes_are_the_same_again(tmp_path: Path, tubes: str) -> None:
    first, second = (skeletonize(tmp_path / name, tubes).outputs["skeletons"] for name in "ab")
    files = sorted(first.store().list(""))
    assert files == sorted(second.store().list(""))
    assert [f for f in files if first.store().get(f) != second.store().get(f)] == []
    assert not any(name.endswith(".bin") for name in files), "pieces are removed when all is merged"


def test_a_sharded_layer_holds_the_same_and_answers_by_box(tmp_path: Path, tubes: str) -> None:
    plain, sharded = (skeletonize(tmp_path, tubes, sharded=s).outputs["skeletons"] for s in (False, True))
    assert [f for f in sharded.store().list("") if f.endswith(".shard")]
    one, other = SkeletonLayer(plain.store()), SkeletonLayer(sharded.store())
    assert one.names() == other.names() == ["7", str(2**40)]
    for name in one.names():
        np.testing.assert_array_equal(one.read(name).vertices_nm, other.read(name).vertices_nm)
        np.testing.assert_array_equal(one.read(name).edges, other.read(name).edges)
    for artifact in (plain, sharded):
        index = open_skeletons(artifact.data_uri).spatial_index
        low = np.array(OFFSET_ZYX[::-1])
        everything = Bbox(low * VOXEL_NM, (low + [96, 64, 48]) * VOXEL_NM)
        assert set(index.query(everything)) == {7, 2**40}
        branch = Bbox((low + [44, 50, 20]) * VOXEL_NM, (low + [54, 60, 26]) * VOXEL_NM)
        assert set(index.query(branch)) == {7}


def test_real_neurons(tmp_path: Path, shared_data: Path) -> None:
    import h5py

    with h5py.File(shared_data / "fib25" / "labels_z000-128.h5") as file:
        labels = file["labels"][32:80, 60:124, 60:124]
    manifest = skeletonize(tmp_path, write_labels(tmp_path, labels), dust_threshold_voxels=2000, const_nm=100)
    bodies = {int(v) for v, n in zip(*np.unique(labels, return_counts=True), strict=True) if v and n >= 2000}
    reader = open_skeletons(manifest.outputs["skeletons"].data_uri)
    found = manifest.outputs["skeletons"].properties["largest_segments"]
    assert set(found) <= bodies
    assert len(found) > 0.8 * len(bodies)
    for label in found[:5]:
        vertices = reader.get(label).vertices
        voxels = np.floor(vertices / VOXEL_NM).astype(int)[:, ::-1] - OFFSET_ZYX
        assert (labels[tuple(voxels.T)] == label).mean() > 0.95, "skeletons lie inside their segments"


def test_wrong_requests_are_refused(tmp_path: Path, tubes: str) -> None:
    with pytest.raises(UserError, match="block_size_xyz"):
        skeletonize(tmp_path, tubes, block_size_xyz=[8, 64, 64])
    with pytest.raises(UserError, match=r"params\.const_nm"):
        skeletonize(tmp_path, tubes, const_nm=-1)

"""Meshes: closed and in the right place, equal whatever the blocks, readable by CloudVolume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cloudvolume.lib import Bbox

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.fragments import FragmentIndex, label_groups, write_fragments
from happyneurons.store.layers import open_meshes
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

VOXEL_NM = (8.0, 8.0, 16.0)
OFFSET_ZYX = (5, 10, 20)


def write_labels(folder: Path, labels: np.ndarray, offset: tuple[int, int, int] = OFFSET_ZYX) -> str:
    uri = (folder / "labels").as_uri()
    volume = create_volume(
        uri, start_zyx=offset, stop_zyx=tuple(np.add(offset, labels.shape)), voxel_size_nm_xyz=VOXEL_NM,
        dtype="uint64", layer_type="segmentation", chunk_zyx=(32, 32, 32),
    )  # fmt: skip
    volume.write(offset, labels.astype(np.uint64))
    return uri


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    labels = np.zeros((48, 64, 64), np.uint64)
    labels[ball(labels.shape, (24, 32, 32), 18)] = 7  # runs through all blocks
    labels[0:6, 0:8, 0:8] = 2**40  # at the volume's corner
    labels[40:42, 60:62, 2:4] = 9  # dust inside a block
    labels[20:23, 0:3, 60:63] = 2**40  # a part of its own, smaller than dust
    labels[31:33, 2:4, 60:62] = 11  # dust on the border of two blocks
    return write_labels(tmp_path_factory.mktemp("shapes"), labels), labels


def mesh(tmp_path: Path, uri: str, **params: object) -> Manifest:
    defaults = {"block_size_xyz": [32, 32, 32], "dust_threshold_voxels": 20}
    return run_stage(Store(tmp_path.as_uri()), "mesh", inputs={"segmentation": uri}, params={**defaults, **params})


def volume_nm3(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume inside a closed surface (divergence theorem)."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return float(abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6)


def open_edges(faces: np.ndarray) -> int:
    """Edges that belong to one triangle only: holes, or seams that do not fit."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return int((np.unique(edges, axis=0, return_counts=True)[1] == 1).sum())


def weld(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return np.unique(np.round(vertices, 2), axis=0, return_inverse=True)[1].reshape(-1)[faces]


@pytest.mark.parametrize("sharded", [False, True])
def test_meshes_are_closed_in_place_and_without_dust(
    tmp_path: Path, shapes: tuple[str, np.ndarray], sharded: bool
) -> None:
    uri, labels = shapes
    before = {p.name: p.stat().st_mtime_ns for p in Path(uri.removeprefix("file://")).rglob("*")}
    manifest = mesh(tmp_path, uri, max_error_nm=0, sharded=sharded)
    artifact = manifest.outputs["mesh"]
    assert manifest.metrics["meshes"] == 2
    assert artifact.properties["count"] == 2
    assert artifact.properties["largest_segments"] == [7, 2**40]
    reader = open_meshes(artifact.data_uri)
    for label in (7, 2**40):
        found = reader.get(label)[label]
        assert open_edges(weld(found.vertices, found.faces)) == 0
        voxels = np.argwhere(labels == label) + OFFSET_ZYX
        low, high = voxels.min(0)[::-1] * VOXEL_NM, (voxels.max(0) + 1)[::-1] * VOXEL_NM
        np.testing.assert_allclose(found.vertices.min(0), low, atol=0.5)
        np.testing.assert_allclose(found.vertices.max(0), high, atol=0.5)
        expected = (labels == label).sum() * np.prod(VOXEL_NM)
        assert volume_nm3(found.vertices, found.faces) == pytest.approx(expected, rel=0.06)
    low = np.array(OFFSET_ZYX[::-1])
    assert set(reader.spatial_index.query(Bbox(low * VOXEL_NM, (low + 4) * VOXEL_NM))) == {2**40}
    assert set(reader.spatial_index.query(Bbox(low * VOXEL_NM, (low + 40) * VOXEL_NM))) == {7, 2**40}
    files = set(artifact.store().list(""))
    assert not any(name.endswith(".bin") for name in files), "pieces are removed when all is merged"
    assert ("7.index" in files) != sharded
    listed = artifact.store().get_json("segment_properties/info")["inline"]
    assert listed["ids"] == ["7", str(2**40)]
    assert before == {p.name: p.stat().st_mtime_ns for p in Path(uri.removeprefix("file://")).rglob("*")}


def test_simplification_keeps_the_seams_closed_and_the_shape(tmp_path: Path, shapes: tuple[str, np.ndarray]) -> None:
    uri, labels = shapes
    exact = mesh(tmp_path, uri, max_error_nm=0)
    simple = mesh(tmp_path, uri, max_error_nm=16, reduction=50)
    found = open_meshes(simple.outputs["mesh"].data_uri).get(7)[7]
    assert simple.metrics["triangles"] < 0.5 * exact.metrics["triangles"]
    assert open_edges(weld(found.vertices, found.faces)) == 0
    expected = (labels == 7).sum() * np.prod(VOXEL_NM)
    assert volume_nm3(found.vertices, found.faces) == pytest.approx(expected, rel=0.06)


def test_levels_of_detail_cover_the_same_object(tmp_path: Path, shapes: tuple[str, np.ndarray]) -> None:
    uri, labels = shapes
    manifest = mesh(tmp_path, uri, max_error_nm=8, levels=3, min_chunk_nm=100, block_size_xyz=[64, 64, 48])
    reader = open_meshes(manifest.outputs["mesh"].data_uri)
    levels = [reader.get(7, lod=lod)[7] for lod in range(3)]
    counts = [len(level.faces) for level in levels]
    assert counts[0] > counts[1] > counts[2]
    expected = (labels == 7).sum() * np.prod(VOXEL_NM)
    for level in levels:
        assert volume_nm3(level.vertices, level.faces) == pytest.approx(expected, rel=0.12)
    header = reader.get_manifest(7)
    for fine, coarse in zip(header.fragment_positions[:-1], header.fragment_positions[1:], strict=True):
        parents = {tuple(p) for p in np.asarray(coarse).tolist()}
        assert {tuple(p) for p in (np.asarray(fine) // 2).tolist()} <= parents


def test_bytes_do_not_depend_on_the_order_of_tasks(tmp_path: Path, shapes: tuple[str, np.ndarray]) -> None:
    from happyneurons.stages.mesh.multires import encode
    from happyneurons.stages.mesh.surfaces import block_surfaces, join

    _, labels = shapes
    pad = [(1, 1)] * 3
    runs = []
    for _ in range(2):
        found = block_surfaces(labels, (0, 0, 0), pad, VOXEL_NM, max_error_nm=8, reduction=20)
        runs.append(encode(join([found[7]]), levels=3, chunk_nm=100, detail_nm=8, vertex_bits=16))
    assert runs[0] is not None
    assert runs[0] == runs[1]


def test_real_neurons_by_both_backends(tmp_path: Path, shared_data: Path) -> None:
    import h5py

    pytest.importorskip("igneous")
    with h5py.File(shared_data / "fib25" / "labels_z000-128.h5") as file:
        labels = file["labels"][32:80, 60:124, 60:124]
    uri = write_labels(tmp_path, labels)
    bodies = {int(v) for v, n in zip(*np.unique(labels, return_counts=True), strict=True) if v and n >= 1000}
    for backend in ("zmesh", "igneous"):
        manifest = mesh(tmp_path, uri, dust_threshold_voxels=1000, backend=backend, max_error_nm=8)
        reader = open_meshes(manifest.outputs["mesh"].data_uri)
        assert manifest.metrics["meshes"] == len(bodies)
        for label in manifest.outputs["mesh"].properties["largest_segments"][:3]:
            found = reader.get(label)[label]
            voxels = np.argwhere(labels == label) + OFFSET_ZYX
            np.testing.assert_allclose(found.vertices.min(0), voxels.min(0)[::-1] * VOXEL_NM, atol=12)
            np.testing.assert_allclose(found.vertices.max(0), (voxels.max(0) + 1)[::-1] * VOXEL_NM, atol=12)


def test_wrong_requests_are_refused(tmp_path: Path, shapes: tuple[str, np.ndarray]) -> None:
    with pytest.raises(UserError, match="block_size_xyz"):
        mesh(tmp_path, shapes[0], block_size_xyz=[8, 64, 64])
    with pytest.raises(UserError, match="mip"):
        mesh(tmp_path, shapes[0], mip=5)


def test_an_empty_segmentation_gives_an_empty_layer(tmp_path: Path) -> None:
    uri = write_labels(tmp_path, np.zeros((32, 32, 32), np.uint64))
    manifest = mesh(tmp_path, uri)
    assert manifest.metrics["meshes"] == 0
    info = json.loads(manifest.outputs["mesh"].store().get("info"))
    assert info["@type"] == "neuroglancer_multilod_draco"


def test_fragments_come_back_by_label_in_block_order(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri())
    write_fragments(store, "w", "b", {3: b"333", 1: b"1"}, {1: {"voxels": 5}, 2: {"voxels": 4}})
    write_fragments(store, "w", "a", {3: b"3a", 2**60: b"big"}, {3: {"voxels": 2}})
    index = FragmentIndex.load(store, "w", ["b", "a"], ["voxels"])
    labels, voxels = index.totals("voxels")
    assert labels.tolist() == [1, 2, 3, 2**60]
    assert voxels.tolist() == [5, 4, 2, 0]
    pieces = index.read(store, "w", np.array([1, 2, 3, 2**60], np.uint64))
    assert pieces == {1: [b"1"], 3: [b"333", b"3a"], 2**60: [b"big"]}
    assert label_groups(labels, voxels, 2, 100) == [(1, 2), (3, 2**60)]
    assert label_groups(labels, voxels, 9, 8) == [(1, 1), (2, 2**60)]

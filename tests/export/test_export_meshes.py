"""OBJ and PLY: the source's surface in its place, closed, outward, read by what did not write it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume import CloudVolume, Mesh

from happyneurons.errors import UserError
from happyneurons.export import export_layer, open_layer
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.layers import open_meshes
from happyneurons.store.volumes import create_volume
from happyneurons.viewer.sources import FolderSource
from happyneurons.viewer.volume_server import VolumeServer
from happyneurons.worker.local import run_stage

VOXEL_NM = (7.3, 8.1, 15.7)
OFFSET_ZYX = (5, 10, 20)
BIG = 2**63 + 11


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A ball (7) over several chunks, a box at the volume's corner (BIG), as each form of layer."""
    pytest.importorskip("zmesh")
    folder = tmp_path_factory.mktemp("layers")
    z, y, x = np.indices((32, 48, 48))
    labels = np.where((z - 16) ** 2 * 4 + (y - 24) ** 2 + (x - 24) ** 2 <= 15**2, 7, 0).astype(np.uint64)
    labels[:6, :8, :8] = BIG
    uri = (folder / "labels").as_uri()
    create_volume(
        uri, start_zyx=OFFSET_ZYX, stop_zyx=tuple(np.add(OFFSET_ZYX, labels.shape)), voxel_size_nm_xyz=VOXEL_NM,
        dtype="uint64", layer_type="segmentation", chunk_zyx=(32, 32, 32),
    ).write(OFFSET_ZYX, labels)  # fmt: skip
    found: dict[str, Any] = {"labels": labels, "segmentation": uri}
    for name, sharded in (("sharded", True), ("unsharded", False)):
        manifest = run_stage(
            Store((folder / "store").as_uri()), "mesh", inputs={"segmentation": uri},
            params={"sharded": sharded, "levels": 2, "min_chunk_nm": 64, "dust_threshold_voxels": 0, "max_error_nm": 0},
        )  # fmt: skip
        found[name] = manifest.outputs["mesh"].uri
    # Legacy, as other programs write it into a segmentation: two fragments that meet in a plane, inside out.
    legacy = folder / "legacy"
    shutil.copytree(folder / "labels", legacy)
    info = json.loads((legacy / "info").read_text())
    (legacy / "info").write_text(json.dumps({**info, "mesh": "mesh"}))
    volume = CloudVolume(legacy.as_uri(), progress=False)
    vertices, faces = cube()
    volume.mesh.put(Mesh(vertices, faces[:, ::-1], segid=3), compress=None)
    left, right = faces[: len(faces) // 2], faces[len(faces) // 2 :]
    for number, part in enumerate((left, right)):
        (legacy / "mesh" / f"5:0:{number}").write_bytes(Mesh(vertices, part, segid=5).to_precomputed())
    (legacy / "mesh" / "5:0").write_text(json.dumps({"fragments": ["5:0:0", "5:0:1"]}))
    return {**found, "legacy": legacy.as_uri()}


def cube() -> tuple[np.ndarray, np.ndarray]:
    """(8, 3) corners of a cube of 100 nm and its 12 faces, counterclockwise from outside."""
    vertices = np.array([[x, y, z] for x in (0, 100) for y in (0, 100) for z in (0, 100)], np.float32) + 1000
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return vertices, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], np.uint32)


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(vertices, faces, comments) by what the header says, as any reader does it."""
    header, _, data = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    counts = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith("element")}
    kinds = {"float": "<f4", "int": "<i4", "uint": "<u4", "uchar": "u1"}
    corners = [kinds[line.split()[1]] for line in lines if line.startswith("property") and "list" not in line]
    (listed,) = (line.split() for line in lines if line.startswith("property list"))
    vertex = np.dtype([(axis, kind) for axis, kind in zip("xyz", corners, strict=True)])
    face = np.dtype([("count", kinds[listed[2]]), ("corner", kinds[listed[3]], 3)])
    vertices = np.frombuffer(data, vertex, counts["vertex"])
    faces = np.frombuffer(data, face, counts["face"], vertex.itemsize * counts["vertex"])
    assert len(data) == vertices.nbytes + faces.nbytes
    assert (faces["count"] == 3).all()
    return np.stack([vertices[a] for a in "xyz"], 1), faces["corner"], [v[8:] for v in lines if v.startswith("comment")]


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    text = path.read_text()
    mesh = Mesh.from_obj(text)
    return mesh.vertices, mesh.faces, [line[2:] for line in text.splitlines() if line.startswith("#")]


READERS = {"ply": read_ply, "obj": read_obj}


def enclosed(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def unmatched_edges(faces: np.ndarray) -> int:
    """Edges without exactly one neighbour that runs along them the other way."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    forward, n = np.unique(edges, axis=0, return_counts=True)
    backward = np.unique(edges[:, ::-1], axis=0)
    return int((n > 1).sum()) + len(set(map(tuple, forward.tolist())) ^ set(map(tuple, backward.tolist())))


@pytest.mark.parametrize(("source", "form"), [("sharded", "ply"), ("sharded", "obj"), ("unsharded", "ply")])
def test_meshes_are_those_of_the_source_closed_and_outward(
    layers: dict[str, Any], tmp_path: Path, source: str, form: Any
) -> None:
    done = export_layer(layers[source], tmp_path.as_uri(), form)
    assert (done.written, done.missing, done.failed) == (2, [], {})
    reader = open_meshes(load_artifact(layers[source]).data_uri)
    for segment in (7, BIG):
        vertices, faces, comments = READERS[form](tmp_path / f"{segment}.{form}")
        theirs = reader.get(segment)[segment]
        assert len(faces) == len(theirs.faces)
        assert len(vertices) < len(theirs.vertices) or len(reader.get_manifest(segment).fragment_positions[0]) == 1
        assert unmatched_edges(faces) == 0, "pieces of a mesh are joined, their faces turned alike"
        voxels = np.argwhere(layers["labels"] == segment) + OFFSET_ZYX
        low, high = voxels.min(0)[::-1] * VOXEL_NM, (voxels.max(0) + 1)[::-1] * VOXEL_NM
        np.testing.assert_allclose(vertices.min(0), low, atol=0.5)
        np.testing.assert_allclose(vertices.max(0), high, atol=0.5)
        expected = len(voxels) * np.prod(VOXEL_NM)
        assert enclosed(vertices, faces) == pytest.approx(expected, rel=0.12), "positive: outward"
        assert comments[1] == f"source {layers[source]}"
        assert comments[3:] == [f"segment {segment}", "units nanometres, axes x y z of the volume", "level of detail 0"]


def test_a_level_of_detail_is_that_of_the_source_or_its_coarsest(layers: dict[str, Any], tmp_path: Path) -> None:
    reader = open_meshes(load_artifact(layers["sharded"]).data_uri)
    levels = {s: reader.get_manifest(s).num_lods for s in (7, BIG)}
    assert levels[7] == 2
    export_layer(layers["sharded"], tmp_path.as_uri(), "ply", lod=1)
    for segment, count in levels.items():
        faces = read_ply(tmp_path / f"{segment}.ply")[1]
        assert len(faces) == len(reader.get(segment, lod=min(1, count - 1))[segment].faces)
        assert unmatched_edges(faces) == 0


def test_legacy_fragments_inside_a_segmentation_are_joined_and_turned(layers: dict[str, Any], tmp_path: Path) -> None:
    done = export_layer(layers["legacy"], tmp_path.as_uri(), "ply", units="um")
    assert done.written == 2
    for segment in (3, 5):
        vertices, faces, comments = read_ply(tmp_path / f"{segment}.ply")
        assert (len(vertices), len(faces), unmatched_edges(faces)) == (8, 12, 0)
        assert enclosed(vertices, faces) == pytest.approx(1e-3, rel=1e-4), "µm³, outward"
        assert "units micrometres, axes x y z of the volume" in comments
    with pytest.raises(UserError, match="one level of detail"):
        export_layer(layers["legacy"], tmp_path.as_uri(), "ply", lod=1)


def test_layers_of_a_web_server(layers: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(load_artifact(layers["sharded"]).data_uri.removeprefix("file://"))
    legacy = Path(layers["legacy"].removeprefix("file://"))
    with VolumeServer({"mesh": FolderSource(folder), "legacy": FolderSource(legacy)}) as server:
        web = f"precomputed://{server.data_url('mesh')}"
        assert export_layer(web, (tmp_path / "a").as_uri(), "ply").written == 2, "its table lists them"
        largest = export_layer(web, (tmp_path / "b").as_uri(), "ply", largest=1)
        assert (largest.written, (tmp_path / "b" / "7.ply").is_file()) == (1, True)
        inside = f"precomputed://{server.data_url('legacy')}"
        assert export_layer(inside, (tmp_path / "c").as_uri(), "obj", ids=[5]).written == 1
        with pytest.raises(UserError, match="name segments with --ids"):
            export_layer(inside, (tmp_path / "c").as_uri(), "obj")
    export_layer(layers["sharded"], (tmp_path / "d").as_uri(), "ply")
    here, there = (read_ply(tmp_path / name / f"{BIG}.ply") for name in "da")
    np.testing.assert_array_equal(here[0], there[0])


def test_what_is_there_is_kept_if_its_header_says_the_same(layers: dict[str, Any], tmp_path: Path) -> None:
    export_layer(layers["sharded"], tmp_path.as_uri(), "obj")
    content = (tmp_path / "7.obj").read_bytes()
    before = (tmp_path / f"{BIG}.obj").stat().st_ino
    (tmp_path / "7.obj").write_bytes(content[:40])  # another program's, or half of one
    again = export_layer(layers["sharded"], tmp_path.as_uri(), "obj")
    assert (again.written, again.unchanged) == (1, 1)
    assert (tmp_path / "7.obj").read_bytes() == content
    assert (tmp_path / f"{BIG}.obj").stat().st_ino == before
    assert export_layer(layers["sharded"], tmp_path.as_uri(), "obj", lod=1).written == 2, "other options"
    assert export_layer(layers["unsharded"], tmp_path.as_uri(), "obj", lod=1).written == 2, "another source"
    assert export_layer(layers["unsharded"], tmp_path.as_uri(), "obj", lod=1, force=True).written == 2


def test_segments_without_a_mesh_and_damaged_ones_do_not_stop_the_others(
    layers: dict[str, Any], tmp_path: Path
) -> None:
    for source in ("sharded", "unsharded", "legacy"):
        done = export_layer(layers[source], (tmp_path / source).as_uri(), "ply", ids=[4, 7, 3, 2**40 + 1])
        assert (done.written, done.missing) == (1, sorted({3, 4, 7, 2**40 + 1} - {3 if source == "legacy" else 7}))
    copy = tmp_path / "copy"
    shutil.copytree(load_artifact(layers["unsharded"]).data_uri.removeprefix("file://"), copy)
    (copy / "7").write_bytes(b"not a mesh" * 100)
    done = export_layer(copy.as_uri(), (tmp_path / "rest").as_uri(), "ply")
    assert (done.written, list(done.failed)) == (1, [7])
    assert [p.name for p in (tmp_path / "rest").glob("*.ply")] == [f"{BIG}.ply"]


def test_what_cannot_be_exported_is_said_before_anything_is_written(
    layers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = (tmp_path / "image").as_uri()
    create_volume(
        image, start_zyx=(0, 0, 0), stop_zyx=(4, 4, 4), voxel_size_nm_xyz=(8, 8, 8), dtype="uint8", layer_type="image"
    )
    cases: list[tuple[str, Any, str]] = [
        (image, "ply", "a image_volume, not a layer of meshes"),
        (layers["segmentation"], "ply", "the stage `mesh` makes them"),
        (layers["sharded"], "swc", "not a layer of skeletons"),
        (layers["sharded"], "stl", "there are obj, ply, swc"),
    ]
    for source, form, what in cases:
        with pytest.raises(UserError, match=what):
            export_layer(source, (tmp_path / "out").as_uri(), form)
    layer = open_layer(layers["sharded"], "mesh_layer")
    with pytest.raises(UserError, match="lies inside of the layer"):
        export_layer(layer, f"{layer.data_uri}/obj", "obj")
    with pytest.raises(UserError, match="no user, password or signature"):
        open_layer("precomputed://https://me:secret@host/mesh", "mesh_layer")
    info = Path(layers["legacy"].removeprefix("file://"), "info")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "info").write_text(json.dumps({**json.loads(info.read_text()), "mesh": "../legacy/mesh"}))
    with pytest.raises(UserError, match="lie elsewhere"):
        export_layer(elsewhere.as_uri(), (tmp_path / "out").as_uri(), "obj")
    monkeypatch.setenv("HPN_ALLOWED_ROOTS", json.dumps([str(tmp_path)]))
    for source in (layers["sharded"], "precomputed://http://127.0.0.1:9/mesh"):
        with pytest.raises(UserError, match="may not be read here"):
            export_layer(source, (tmp_path / "out").as_uri(), "obj")
    assert not (tmp_path / "out").exists()

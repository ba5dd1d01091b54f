"""annotate-push and -pull: places and ids come back exactly; what is wrong with an annotation is said before work."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.annotations.drawings import neuroglancer_layer
from happyneurons.annotations.nml import parse_nml, read_points_nm
from happyneurons.errors import UserError
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.skeletons import SkeletonLayer
from happyneurons.store.volumes import open_volume
from happyneurons.worker.local import run_stage
from tests.annotations.files import TREE, VOLUME, annotation, data_zip, nml, zipped
from tests.formats.volumes import SIZE_NM_XYZ, START_ZYX, opened, voxels, whole, write

FALLBACK = VOLUME.format(fallback=' fallbackLayer="segmentation"')
PLAIN = VOLUME.format(fallback="")


def pull(store: Store, source: str, inputs: dict[str, str] | None = None, **params: Any) -> Manifest:
    return run_stage(store, "annotate-pull", inputs=inputs or {}, params={"source": source, **params})


def labels_of(manifest: Manifest) -> tuple[np.ndarray, Any]:
    volume = open_volume(manifest.outputs["labels"].data_uri)
    return volume.read(volume.start_zyx, volume.stop_zyx), volume


def push(store: Store, tmp_path: Path, **params: Any) -> tuple[Manifest, str]:
    """The manifest, and the URI of the segmentation that was pushed."""
    for name in ("image", "labels"):
        (tmp_path / name).mkdir()
    image = write(tmp_path / "image", "precomputed", voxels("uint8"))
    labels = write(tmp_path / "labels", "precomputed", voxels("uint64"))
    inputs = {"image": image, "segmentation": labels}
    return run_stage(store, "annotate-push", inputs=inputs, params={"shard_px": 32, "num_mips": 1, **params}), labels


@pytest.mark.parametrize("data_format", ["webknossos-wkw", "webknossos-zarr3"])
def test_a_corrected_crop_comes_back_to_its_place(data_format: str, store: Store, tmp_path: Path) -> None:
    shift = (16, 8, 0)
    pushed, segmentation = push(store, tmp_path, format=data_format, shift_xyz=shift)
    dataset = pushed.outputs["dataset"]
    for layer, dtype in (("color", "uint8"), ("segmentation", "uint64")):
        there = opened(f"{dataset.properties['uri']}?{layer}")
        np.testing.assert_array_equal(whole(there), voxels(dtype))
        assert there.start_zyx == tuple(np.add(START_ZYX, shift[::-1]))
    # A person changed one block, 32³ voxels from the dataset's origin on; all else is the fallback layer's.
    drawn = np.full((5, 6, 7), 77, np.uint32)
    at = (START_ZYX[0] + 4, START_ZYX[1] + 8 + 3, START_ZYX[2] + 16 + 4)
    source = annotation(tmp_path / "a.zip", TREE + FALLBACK, data_zip(tmp_path, drawn, at, data_format))
    manifest = pull(store, source, {"dataset": dataset.uri, "fallback": segmentation})
    labels, volume = labels_of(manifest)
    expected = voxels("uint64").copy()
    block = np.zeros((32, 32, 32), np.uint64)
    block[at[0] : at[0] + 5, at[1] : at[1] + 6, at[2] : at[2] + 7] = 77
    first = np.add(START_ZYX, shift[::-1])
    inner = block[tuple(slice(a, None) for a in first)]
    expected[tuple(slice(0, n) for n in np.minimum(inner.shape, expected.shape))] = inner[: expected.shape[0]]
    np.testing.assert_array_equal(labels, expected)
    assert volume.start_zyx == START_ZYX
    assert volume.voxel_size_nm_xyz == pytest.approx(SIZE_NM_XYZ)
    assert manifest.metrics["changed_blocks"] == 1
    table = manifest.outputs["points"].store().get_json("table.json")
    assert table["rows"][0][:3] == [6 - 16, 8 - 8, 4]
    layer = SkeletonLayer(manifest.outputs["skeletons"].store())
    assert layer.names() == ["4"]  # the soma has no edge
    np.testing.assert_allclose(
        layer.read("4").vertices_nm[0], (np.array([6.5, 8.5, 4.5]) - shift) * SIZE_NM_XYZ, rtol=1e-6
    )


def test_a_dataset_is_never_written_over(store: Store, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "datasource-properties.json").write_text('{"dataLayers": [{"name": "color"}]}')
    with pytest.raises(UserError, match="there is a dataset already"):
        push(store, tmp_path, target=str(tmp_path / "dataset"))


@pytest.mark.parametrize(
    ("file", "layer", "start", "labelled"),
    [
        ("l4_sample__explorational__suser__94b271", None, (1024, 3392, 3296), 64576),
        ("multi_volume_example_CREMI", "Volume_2", (0, 416, 544), 16616),
    ],
)
def test_annotations_of_webknossos(
    file: str, layer: str | None, start: tuple[int, int, int], labelled: int, shared_data: Path, store: Store
) -> None:
    source = str(shared_data / "webknossos" / "annotations" / f"{file}.zip")
    manifest = pull(store, source, layer=layer)
    labels, volume = labels_of(manifest)
    assert volume.start_zyx == start
    assert int((labels > 0).sum()) == labelled == manifest.metrics["labelled_voxels"]


def test_what_real_annotations_lack_is_said(shared_data: Path, store: Store) -> None:
    folder = shared_data / "webknossos" / "annotations"
    for name, params, text in (
        ("nml_with_volumes.zip", {}, "without volume data: the data of segmentation was left out"),
        ("nml_with_volumes.nml", {"take": ["labels"]}, "without volume data"),
        ("multi_volume_example_CREMI.zip", {}, "2 volume layers; choose params.layer: Volume_2, Volume"),
        ("multi_volume_example_CREMI.zip", {"layer": "x"}, "no layer 'x' with data; it has Volume_2, Volume"),
        ("multi_volume_example_CREMI.zip", {"layer": "Volume"}, "corrects the layer 'segmentation'"),
        ("empty_volume_annotation.zip", {}, "nobody painted"),
        ("bounding-boxes-example.zip", {"bounding_box": "b", "changes_only": True}, "there are Bounding box 1"),
        ("l4_sample__explorational__suser__94b271.zip", {"trees": "^soma"}, None),
        ("l4_sample__explorational__suser__94b271.zip", {"trees": "^soma", "take": ["points"]}, "no tree with nodes"),
        ("l4_sample__explorational__suser__94b271.zip", {"dataset_name": "other"}, "of the dataset 'l4_sample', not"),
        ("l4_sample__explorational__suser__94b271.zip", {"mip": 9}, "magnifications 1-1-1, 2-2-1"),
        ("nothing.zip", {}, "there is no file"),
    ):
        if text is None:
            assert set(pull(store, str(folder / name), **params).outputs) == {"labels"}
            continue
        with pytest.raises(UserError, match=text):
            pull(store, str(folder / name), **params)


def test_files_that_are_broken_or_not_to_be_trusted(store: Store, tmp_path: Path) -> None:
    good = data_zip(tmp_path, np.ones((5, 6, 7), np.uint32), START_ZYX)

    def changed(**files: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(good)) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        return zipped({**held, **{name.replace("__", "/"): data for name, data in files.items()}})

    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("1/header.wkw")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    other_length = b"WKW\x01\x06\x02\x03\x04" + bytes(8)
    for data, text in (
        (changed(**{"1__z0__y0__x0.wkw": other_length}), r"blocks of 64³ voxels.*header.wkw says 32³"),
        (changed(**{"..__evil": b"x"}), "leads out of the folder"),
        (link.getvalue(), "is a link"),
        (good[:-30], "damaged or cut off"),
        (zipped({"readme.txt": b"x"}), "neither WKW"),
    ):
        with pytest.raises(UserError, match=text):
            pull(store, annotation(tmp_path / "bad.zip", PLAIN, data))
    assert not (tmp_path / "evil").exists()
    with pytest.raises(UserError, match="more than 1000; if it is to be trusted"):
        big = zipped({"1/z0/y0/x0.wkw": bytes(10_000)})
        pull(store, annotation(tmp_path / "bomb.zip", PLAIN, big), max_unpacked_gb=1e-6)
    cut = tmp_path / "cut.zip"
    cut.write_bytes(Path(annotation(tmp_path / "whole.zip", PLAIN, good)).read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged or cut off"):
        pull(store, str(cut))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]>' + nml(TREE), "document type definition"),
        (nml(TREE)[:-30], "cut off"),
        ("<other/>", "begins with <other>"),
        ("<things/>", "no <scale>"),
        (nml('<thing id="1"><nodes><node id="1" x="1" y="2"/></nodes></thing>'), "<node> lacks 'z'"),
        (nml('<thing id="1"><nodes/><edges><edge source="1" target="2"/></edges></thing>'), "edge to node 1"),
        (nml(TREE, size=(0, 1, 1)), "voxel size"),
    ],
)
def test_nml_that_is_none(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_nml(text.encode(), "x.nml")


def test_voxel_sizes_and_datasets_must_be_those_that_were_pushed(store: Store, tmp_path: Path) -> None:
    pushed, _ = push(store, tmp_path)
    dataset = {"dataset": pushed.outputs["dataset"].uri}
    with pytest.raises(UserError, match="of the dataset 'other', not of 'crop'"):
        pull(store, annotation(tmp_path / "a.zip", TREE, dataset="other"), dataset)
    with pytest.raises(UserError, match="those of the dataset that was pushed"):
        pull(store, annotation(tmp_path / "b.zip", TREE, size=(8, 8, 40)), dataset)


def test_points_and_a_neuroglancer_layer(shared_data: Path) -> None:
    data = (shared_data / "webknossos" / "nmls" / "generated_skeleton_snapshot.nml").read_bytes()
    positions, trees = read_points_nm(data)
    np.testing.assert_allclose(positions[:2], [[5.5, 16.5, 62.5], [38.5, 16.5, 62.5]])
    assert trees.tolist() == [1, 1, 1, 6]
    layer = neuroglancer_layer("drawn", parse_nml(data, "x"))
    assert [a["type"] for a in layer["annotations"]] == ["point"] * 3 + ["line"] * 2 + ["point"]
    assert layer["annotations"][0]["description"] == "A WkTree · A comment 1"
    assert layer["source"]["transform"]["outputDimensions"]["z"] == [25e-9, "m"]

"""Statistics of segments: what cc3d finds in the whole volume at once, whatever blocks, parts, ranks and kills."""

from __future__ import annotations

import csv
import io
import signal
from pathlib import Path
from typing import Any

import cc3d
import fastremap
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from happyneurons.errors import JobFailedError, UserError
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.stages.statistics.counting import count_block
from happyneurons.stages.statistics.tables import (
    CONTACTS,
    SEGMENTS,
    ids_of,
    part_borders,
    read_part,
    reduce,
    sample,
    splitters,
    write_parts,
)
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

from .attempts import files, run_and_die, run_with_ranks

VOXEL_NM = (4.0, 5.0, 33.0)
OFFSET_ZYX = (7, 3, 100)
SHAPE = (35, 70, 75)
BLOCKS = {"block_size_xyz": [32, 32, 16]}  # 3 x 3 x 3 of them, the last ones thinner
TOP = 2**63


def phantom() -> np.ndarray:
    """(z, y, x) uint64: thousands of warped cells with scattered ids, some in several places, some background."""
    rng = np.random.default_rng(7)
    z, y, x = np.indices(SHAPE)
    place = (z + np.sin(y / 5)).astype(int) // 4 * 10_000 + (y + x // 9) // 4 * 100 + (x + y // 7) // 5
    values, inverse = np.unique(place, return_inverse=True)
    names = rng.integers(1, 3 * len(values), len(values)).astype(np.uint64) * np.uint64(TOP // (2 * len(values)))
    names[rng.random(len(values)) < 0.15] = 0
    labels = names[inverse.reshape(SHAPE)]
    labels[:, 30:34, 40:44] = 11  # runs through all blocks
    labels[20, 20, 20] = 2**64 - 1
    return labels


LABELS = phantom()


def write(folder: Path, labels: np.ndarray, dtype: str = "uint64", layer_type: Any = "segmentation") -> str:
    uri = folder.as_uri()
    volume = create_volume(
        uri, start_zyx=OFFSET_ZYX, stop_zyx=tuple(np.add(OFFSET_ZYX, labels.shape)), voxel_size_nm_xyz=VOXEL_NM,
        dtype=dtype, layer_type=layer_type, chunk_zyx=(16, 16, 16),
    )  # fmt: skip
    volume.write(OFFSET_ZYX, labels.astype(dtype))
    return f"precomputed://{uri}"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("volume") / "labels", LABELS)


def table(manifest: Manifest, folder: str) -> list[dict[str, str]]:
    """All rows of a table, in the order of its files."""
    store = manifest.outputs["table"].store()
    rows: list[dict[str, str]] = []
    for path in sorted(store.list(folder)):
        rows += csv.DictReader(io.StringIO(store.get(path).decode()))
    return rows


def expected_segments(labels: np.ndarray, offset_zyx: Any) -> dict[int, tuple[int, list[int], list[float]]]:
    """id → (voxels, min and max xyz, centroid xyz) by cc3d on the whole."""
    dense, names = fastremap.renumber(np.ascontiguousarray(labels), preserve_zero=True)
    found = cc3d.statistics(dense, no_slice_conversion=True)
    result = {}
    for name, i in names.items():
        if name:
            box = found["bounding_boxes"][i].astype(int)
            low, high = (box[0::2] + offset_zyx)[::-1], (box[1::2] + 1 + offset_zyx)[::-1]
            centroid = (found["centroids"][i] + offset_zyx)[::-1].tolist()
            result[int(name)] = (int(found["voxel_counts"][i]), [*low.tolist(), *high.tolist()], centroid)
    return result


def expected_contacts(labels: np.ndarray) -> dict[tuple[int, int], tuple[int, float]]:
    """pair → (faces, area in nm²) by cc3d on the whole."""
    dense, names = fastremap.renumber(np.ascontiguousarray(labels), preserve_zero=True)
    back = {new: int(old) for old, new in names.items()}
    faces = cc3d.contacts(dense, connectivity=6, surface_area=False)
    areas = cc3d.contacts(dense, connectivity=6, surface_area=True, anisotropy=VOXEL_NM[::-1])
    return {tuple(sorted((back[a], back[b]))): (int(n), areas[a, b]) for (a, b), n in faces.items()}  # type: ignore[misc]


def check(manifest: Manifest, labels: np.ndarray, offset_zyx: Any) -> None:
    segments, contacts = table(manifest, "segments"), table(manifest, "contacts")
    wanted = expected_segments(labels, offset_zyx)
    assert [int(row["segment"]) for row in segments] == sorted(wanted)
    bounds = ("min_x", "min_y", "min_z", "max_x", "max_y", "max_z")
    for row in segments:
        voxels, box, centroid = wanted[int(row["segment"])]
        assert (int(row["voxels"]), [int(row[name]) for name in bounds]) == (voxels, box)
        assert [float(row[f"centroid_{axis}"]) for axis in "xyz"] == pytest.approx(centroid, rel=1e-12)
        assert float(row["volume_nm3"]) == voxels * 4 * 5 * 33
    pairs = expected_contacts(labels)
    assert [(int(row["segment_a"]), int(row["segment_b"])) for row in contacts] == sorted(pairs)
    for row in contacts:
        faces, area = pairs[int(row["segment_a"]), int(row["segment_b"])]
        assert int(row["faces"]) == faces
        assert float(row["area_nm2"]) == pytest.approx(area, rel=1e-6)
    assert manifest.metrics["segments"] == len(wanted)
    assert manifest.metrics["contacts"] == len(pairs)
    assert manifest.metrics["voxels"] == (labels > 0).sum()
    # What a segment touches is the sum of its contacts.
    touched = dict.fromkeys(wanted, 0.0)
    for row in contacts:
        for name in ("segment_a", "segment_b"):
            touched[int(row[name])] += float(row["area_nm2"])
    assert {int(row["segment"]): float(row["contact_area_nm2"]) for row in segments} == pytest.approx(touched)


def test_as_cc3d_of_the_whole_in_several_parts(uri: str, tmp_path: Path) -> None:
    params = {**BLOCKS, "rows_per_part": 1000}
    manifest = run_stage(Store(str(tmp_path)), "statistics", inputs={"segmentation": uri}, params=params)
    check(manifest, LABELS, OFFSET_ZYX)
    artifact = manifest.outputs["table"]
    summary = artifact.store().get_json("summary.json")
    assert len(summary["segment_files"]) > 1
    assert len(summary["contact_files"]) > 3
    for file in [*summary["segment_files"], *summary["contact_files"]]:
        assert file["rows"] < 2000, "parts have about as many rows as asked for"
    assert sum(file["rows"] for file in summary["contact_files"]) == manifest.metrics["contacts"]
    left = {path.split("/")[0] for path in artifact.store().list("")}
    assert not left & {"_blocks", "_gathered"}, "partial tables are removed when all is done"
    # The preview and Neuroglancer's list: the largest first.
    rows = {int(row["segment"]): row for row in table(manifest, "segments")}
    by_size = sorted(rows, key=lambda i: (-int(rows[i]["voxels"]), i))
    shown = artifact.store().get_json("table.json")
    assert [row[0] for row in shown["rows"]] == by_size[:1000]
    assert dict(zip(shown["columns"], map(str, shown["rows"][0]), strict=True)) == rows[by_size[0]]
    listed = artifact.store().get_json("segment_properties/info")["inline"]
    assert listed["ids"] == [str(i) for i in by_size]
    volume = listed["properties"][0]
    assert volume["values"][0] == pytest.approx(float(rows[by_size[0]]["volume_nm3"]) / 1e9)


def test_a_box_and_other_blocks(uri: str, tmp_path: Path) -> None:
    low, high = np.array([9, 20, 111]), np.array([41, 60, 170])
    params = {"bounds_xyz": [low[::-1].tolist(), high[::-1].tolist()], "block_size_xyz": [37, 16, 1000]}
    manifest = run_stage(Store(str(tmp_path)), "statistics", inputs={"segmentation": uri}, params=params)
    inside = LABELS[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, OFFSET_ZYX, strict=True))]
    check(manifest, inside, low)
    assert manifest.outputs["table"].bounds.minimum_xyz == (111, 20, 9)  # type: ignore[union-attr]


def test_small_segments_are_left_out_of_both_tables(uri: str, tmp_path: Path) -> None:
    params = {**BLOCKS, "rows_per_part": 1000, "min_voxels": 60}
    manifest = run_stage(Store(str(tmp_path)), "statistics", inputs={"segmentation": uri}, params=params)
    ids, voxels = np.unique(LABELS, return_counts=True)
    small = ids[voxels < 60]
    kept = np.where(np.isin(LABELS, small), np.uint64(0), LABELS)
    wanted = expected_segments(kept, OFFSET_ZYX)
    assert 100 < len(wanted) < len(ids) - 100
    assert [int(row["segment"]) for row in table(manifest, "segments")] == sorted(wanted)
    found = {(int(r["segment_a"]), int(r["segment_b"])): int(r["faces"]) for r in table(manifest, "contacts")}
    assert found == {pair: faces for pair, (faces, _) in expected_contacts(kept).items()}
    assert manifest.metrics["dropped_segments"] == len(small)


def test_surfaces_and_middles_of_shapes_known_by_hand(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 40), np.uint64)
    labels[2:6, 3:8, 4:16] = 5  # x 4..16, y 3..8, z 2..6
    labels[2:6, 3:8, 16:30] = 6  # touches it across x, on both sides of the border of two blocks
    uri = write(tmp_path / "labels", labels)
    store = Store(str(tmp_path / "store"))
    manifest = run_stage(store, "statistics", inputs={"segmentation": uri}, params={"block_size_xyz": [16, 16, 16]})
    (contact,) = table(manifest, "contacts")
    assert (int(contact["faces"]), float(contact["area_nm2"])) == (20, 20 * 5 * 33)
    middle = [float(contact[f"centroid_{axis}"]) for axis in "xyz"]
    assert middle == [100 + 15.5, 3 + 5, 7 + 3.5]
    first = table(manifest, "segments")[0]
    sides_nm2 = 20 * 5 * 33 + 2 * (12 * 4) * (4 * 33) + 2 * (12 * 5) * (4 * 5)  # one across x, two each across y and z
    assert float(first["background_area_nm2"]) == sides_nm2
    assert float(first["contact_area_nm2"]) == 20 * 5 * 33
    without = run_stage(store, "statistics", inputs={"segmentation": uri}, params={"contacts": False})
    assert "contacts" not in without.metrics
    assert table(without, "contacts") == []
    assert table(without, "segments") == table(manifest, "segments")


def test_nothing_but_background(tmp_path: Path) -> None:
    uri = write(tmp_path / "labels", np.zeros((20, 20, 20)))
    manifest = run_stage(Store(str(tmp_path / "store")), "statistics", inputs={"segmentation": uri})
    store = manifest.outputs["table"].store()
    assert manifest.metrics["segments"] == manifest.metrics["contacts"] == 0
    assert store.get("segments/000000.csv").startswith(b"segment,voxels,")
    assert store.get("contacts/000000.csv").startswith(b"segment_a,segment_b,faces,")


def test_a_block_that_cannot_be_read_is_named_and_not_counted(tmp_path: Path) -> None:
    labels = LABELS.astype(np.uint16)  # stored raw
    uri = write(tmp_path / "labels", labels, "uint16")
    # The last chunk of the first block: no other block's layer beyond reaches into it.
    (chunk,) = (tmp_path / "labels").glob("*/116-132_19-35_7-23*")
    chunk.write_bytes(b"\x01")
    store = Store(str(tmp_path / "store"))
    params = {"block_size_xyz": [32, 32, 16]}
    with pytest.raises(JobFailedError, match="1 tasks failed"):
        run_stage(store, "statistics", inputs={"segmentation": uri}, params=params)
    manifest = run_stage(
        Store(str(tmp_path / "other")), "statistics", inputs={"segmentation": uri}, params=params, allow_failed_tasks=1
    )
    assert manifest.metrics["missing_blocks"] == 1
    there = labels.copy()
    there[:16, :32, :32] = 0
    assert manifest.metrics["voxels"] == (there > 0).sum()
    assert {int(row["segment"]) for row in table(manifest, "segments")} == set(np.unique(there).tolist()) - {0}
    summary = manifest.outputs["table"].store().get_json("summary.json")
    assert summary["missing_blocks"] == ["100-132_3-35_7-23"]


@pytest.mark.slow
def test_ranks_and_kills_change_nothing(uri: str, tmp_path: Path) -> None:
    params = {**BLOCKS, "rows_per_part": 1000, "min_voxels": 20}
    spec = make_spec(load_stage("statistics"), inputs={"segmentation": uri}, params=params)
    stores = {name: Store(str(tmp_path / name)) for name in ("plain", "ranks", "killed")}
    for store in stores.values():
        save_spec(store, spec)
    run_stage(stores["plain"], "statistics", inputs={"segmentation": uri}, params=params)
    run_with_ranks(stores["ranks"], spec, 2)
    assert run_and_die(stores["killed"], spec, "segments", 2) == -signal.SIGKILL
    run_with_ranks(stores["killed"], spec, 1)
    wanted = files(stores["plain"], spec.key)
    assert wanted
    assert files(stores["ranks"], spec.key) == wanted == files(stores["killed"], spec.key)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mip": 3}, "it has no mip level 3"),
        (
            {"bounds_xyz": [[0, 0, 0], [120, 20, 20]]},
            "no box within the segmentation, \\(100, 3, 7\\)..\\(175, 73, 42\\)",
        ),
        ({"bounds_xyz": [[110, 10, 10], [110, 20, 20]]}, "no box within the segmentation"),
        ({"block_size_xyz": [64, 64, 8]}, "expected at least 16 voxels along each axis"),
        ({"min_voxels": 0}, "min_voxels"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(
    uri: str, tmp_path: Path, params: dict[str, Any], message: str
) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match=message):
        run_stage(store, "statistics", inputs={"segmentation": uri}, params=params)
    assert not list(store.list("artifacts"))


def test_an_image_is_no_segmentation(tmp_path: Path) -> None:
    uri = write(tmp_path / "image", np.zeros((20, 20, 20)), "uint8", "image")
    with pytest.raises(UserError, match="segmentation.*image_volume"):
        run_stage(Store(str(tmp_path / "store")), "statistics", inputs={"segmentation": uri})


@settings(max_examples=40)
@given(
    labels=arrays(np.uint64, (5, 6, 7), elements=st.sampled_from([0, 1, 2, 2**63 + 5])),
    cut=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
)
def test_blocks_add_up_to_the_whole(labels: np.ndarray, cut: tuple[int, int, int]) -> None:
    whole = count_block(labels, (0, 0, 0), (5, 6, 7), contacts=True)
    found: list[list[np.ndarray]] = [[], []]
    for corner in np.ndindex(2, 2, 2):
        start = [c * i for c, i in zip(cut, corner, strict=True)]
        stop = [n if i else c for c, i, n in zip(cut, corner, labels.shape, strict=True)]
        beyond = labels[tuple(slice(a, b + 1) for a, b in zip(start, stop, strict=True))]
        shape = np.subtract(stop, start)
        block = count_block(beyond, tuple(start), tuple(shape.tolist()), contacts=True)  # type: ignore[arg-type]
        for tables, rows in zip(found, block, strict=True):
            tables.append(rows)
    np.testing.assert_array_equal(reduce(SEGMENTS, found[0]), whole[0])
    np.testing.assert_array_equal(reduce(CONTACTS, found[1][::-1]), whole[1])


def test_a_segment_with_many_partners_is_divided_over_parts(tmp_path: Path) -> None:
    rows = np.zeros((5000, CONTACTS.columns), np.int64)
    rows[:, 0], rows[:, 1] = 4, np.arange(5000) * 3 + 10
    rows[4000:, 0] = -1  # 2**64 - 1
    rows = reduce(CONTACTS, [rows])
    starts = splitters(CONTACTS, [sample(ids_of(CONTACTS, rows), 4).tolist()], 4, 1000)
    assert len(starts) in (4, 5)
    sizes = np.diff(part_borders(CONTACTS, rows, starts))
    assert sizes.sum() == 5000
    assert sizes.max() < 1500
    store = Store(str(tmp_path))
    write_parts(store, "x.bin", CONTACTS, rows, starts)
    parts = [read_part(store, "x.bin", CONTACTS, part, len(sizes)) for part in range(len(sizes))]
    np.testing.assert_array_equal(np.concatenate(parts), rows)

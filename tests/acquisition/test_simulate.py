"""A simulated acquisition shows the source, and its truth says exactly where each pixel is from."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from scipy.ndimage import map_coordinates

from happyneurons.acquisition.metadata import AcquisitionDocument, SectionDocument, read_document
from happyneurons.acquisition.phantom import make_phantom
from happyneurons.acquisition.simulate import FAULTS, simulate_acquisition
from happyneurons.acquisition.truth import AcquisitionTruth
from happyneurons.errors import UserError
from happyneurons.imaging.warp import GridWarp
from happyneurons.store.volumes import create_volume, open_volume


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A precomputed image that does not start at 0."""
    image = make_phantom((8, 192, 224), seed=1).image
    uri = (tmp_path_factory.mktemp("source") / "image").as_uri()
    volume = create_volume(
        uri, start_zyx=(10, 30, 50), stop_zyx=(18, 222, 274), voxel_size_nm_xyz=(8, 8, 8),
        dtype="uint8", layer_type="image",
    )  # fmt: skip
    volume.write((10, 30, 50), image)
    return uri


@pytest.fixture(scope="module")
def acquired(source: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AcquisitionDocument]:
    folder = tmp_path_factory.mktemp("acquired")
    return folder, simulate_acquisition(source, folder, tiles=(2, 2), overlap_px=40, seed=5)


def tile(folder: Path, z: int, row: int, col: int) -> np.ndarray:
    return np.asarray(tifffile.imread(folder / f"sections/{z:06d}/tile_r{row}_c{col}.tif"))


def grid(picture: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]]
    return np.stack([x.ravel(), y.ravel()], -1)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.[tn][ip][fz]"))}


def test_pixels_are_the_sources_where_the_truth_says(source: str, acquired: tuple[Path, AcquisitionDocument]) -> None:
    folder, document = acquired
    truth, volume = AcquisitionTruth(folder), open_volume(source)
    assert truth.image_uri == source
    for z in (10, 17):
        plane = volume.read((z, 30, 50), (z + 1, 222, 274))[0].astype(np.float64)
        for row in range(2):
            for col in range(2):
                picture = tile(folder, z, row, col)
                assert picture.shape == (document.tile_height_px, document.tile_width_px)
                xy = truth.tile_to_canonical(z, row, col, grid(picture))
                assert xy is not None
                # Only tissue is shown: no border in any tile.
                assert (xy >= (50, 30)).all()
                assert (xy <= (273, 221)).all()
                at = (xy - (50, 30)).T[::-1]
                expected = map_coordinates(plane, at, order=3)
                assert np.corrcoef(expected, picture.ravel())[0, 1] > 0.97
                # One px off it is plainly worse: the truth is not just about right.
                shifted = map_coordinates(plane, at + 1, order=3, mode="nearest")
                assert np.corrcoef(shifted, picture.ravel())[0, 1] < 0.92


def test_overlapping_tiles_agree_about_a_point(acquired: tuple[Path, AcquisitionDocument]) -> None:
    folder, _ = acquired
    truth = AcquisitionTruth(folder)
    left, right = truth.tile_warp(12, 0, 0), truth.tile_warp(12, 0, 1)
    assert left is not None
    assert right is not None
    picture = tile(folder, 12, 0, 0).astype(np.float64)
    beside = tile(folder, 12, 0, 1).astype(np.float64)
    height, width = picture.shape
    y, x = np.mgrid[10 : height - 10, width - 28 : width - 12]
    points = np.stack([x.ravel(), y.ravel()], -1)
    there = right.inverse(left.map(points))
    assert np.allclose(right.map(there), left.map(points), atol=1e-3)
    seen = map_coordinates(beside, there.T[::-1], order=3, mode="nearest")
    assert np.corrcoef(seen, picture[y.ravel(), x.ravel()])[0, 1] > 0.9


def test_tiles_lie_where_the_metadata_say_but_for_the_jitter(acquired: tuple[Path, AcquisitionDocument]) -> None:
    folder, document = acquired
    truth = AcquisitionTruth(folder)
    section = read_document(folder / "sections/000013/section.json", SectionDocument)
    assert [(t.row, t.col) for t in section.tiles] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    off = []
    for entry in section.tiles:
        nominal = np.array([entry.stage_x_nm, entry.stage_y_nm]) / section.pixel_size_nm
        xy = truth.tile_to_canonical(13, entry.row, entry.col, [[20.0, 20.0]])
        ideal = truth.section_to_canonical(13, [nominal + 20])
        assert xy is not None
        assert ideal is not None
        off.append(np.abs(xy - ideal).max())
    assert 0.2 < max(off) < 4.5  # twice the sd of 2 px, and a little turn
    assert section.tiles[1].stage_x_nm == (document.tile_width_px - 40) * 8
    assert truth.tile_to_canonical(13, 7, 7, [[0.0, 0.0]]) is None
    assert truth.section_to_canonical(99, [[0.0, 0.0]]) is None


def test_sections_wander_within_their_limits(acquired: tuple[Path, AcquisitionDocument]) -> None:
    truth = AcquisitionTruth(acquired[0])
    at = np.array([[10.0, 10.0], [150.0, 10.0], [80.0, 120.0]])
    maps = [truth.section_to_canonical(z, at) for z in range(10, 18)]
    moved = np.array([m for m in maps if m is not None])
    assert moved.shape == (8, 3, 2)
    assert 1.0 < moved.std(axis=0).max() < 9.0


def test_bytes_depend_on_the_seed_only_and_complete_sections_are_kept(source: str, tmp_path: Path) -> None:
    calls: list[int] = []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate_acquisition(source, whole, sections=(10, 13), seed=2)
    simulate_acquisition(source, parts, sections=(10, 13), seed=2)
    assert snapshot(whole) == snapshot(parts)
    # As if stopped in the middle of section 11: its tiles are there in part, its document is not.
    (parts / "sections/000011/section.json").unlink()
    (parts / "sections/000011/tile_r0_c1.tif").unlink()
    kept = (parts / "sections/000010/tile_r0_c0.tif").stat().st_mtime_ns
    began = (parts / "acquisition.json").stat().st_mtime_ns
    simulate_acquisition(source, parts, sections=(10, 13), seed=2, on_section=lambda z, _: calls.append(z))
    assert snapshot(whole) == snapshot(parts)
    assert calls == [10, 11, 12]
    assert (parts / "sections/000010/tile_r0_c0.tif").stat().st_mtime_ns == kept
    assert (parts / "acquisition.json").stat().st_mtime_ns == began
    with pytest.raises(UserError, match="other settings"):
        simulate_acquisition(source, parts, sections=(10, 13), seed=3)


def test_section_documents_come_last(source: str, tmp_path: Path) -> None:
    def look(z: int, folder: Path) -> None:
        document = read_document(folder / "section.json", SectionDocument)
        assert all((folder / t.file).stat().st_size > 0 for t in document.tiles)
        assert not (folder.parent / f"{z + 1:06d}").exists()
        assert not list(folder.glob(".*"))

    simulate_acquisition(source, tmp_path, sections=(10, 12), on_section=look)


def test_the_pace_is_kept_by_waiting_for_what_is_left(source: str, tmp_path: Path) -> None:
    waits: list[float] = []
    simulate_acquisition(source, tmp_path, sections=(10, 13), pace_s=1000.0, wait=waits.append)
    assert waits[0] == 0
    assert 900 < waits[1] <= 1000
    assert 1900 < waits[2] <= 2000


def test_without_distortion_the_tiles_are_the_source(source: str, tmp_path: Path) -> None:
    simulate_acquisition(
        source, tmp_path, sections=(10, 11), tiles=(1, 1), border="reflect", stage_jitter_px=0, section_shift_px=0,
        section_rotation_deg=0, elastic_px=0, brightness=0, contrast=0, noise=0, vignetting=0,
    )  # fmt: skip
    assert np.array_equal(tile(tmp_path, 10, 0, 0), open_volume(source).read((10, 30, 50), (11, 222, 274))[0])


def test_reflected_borders_cover_the_whole_source(source: str, tmp_path: Path) -> None:
    document = simulate_acquisition(source, tmp_path, sections=(10, 11), tiles=(2, 1), border="reflect")
    assert document.tile_height_px == 192
    assert min(int(tile(tmp_path, 10, 0, c).min()) for c in (0, 1)) > 0


def test_real_tissue_from_hdf5(shared_data: Path, tmp_path: Path) -> None:
    uri = f"h5://{shared_data}/fib25/em.h5?em"
    document = simulate_acquisition(uri, tmp_path, sections=(100, 102), labels_uri="h5://data/labels.h5?labels")
    assert document.voxel_size_nm_xyz == (10.0, 10.0, 10.0)
    assert document.z_range == (100, 102)
    # Kept without the working folder of whoever simulated: others read the truth elsewhere.
    assert AcquisitionTruth(tmp_path).labels_uri == f"h5://{Path.cwd()}/data/labels.h5?labels"
    with np.load(tmp_path / "truth/000100.npz") as arrays:
        assert GridWarp.from_arrays(arrays, "tile_0_1").nodes.shape[2] == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_befall_only_their_section(fault: str, source: str, tmp_path: Path) -> None:
    simulate_acquisition(source, tmp_path, sections=(10, 12), faults={11: fault})
    assert tile(tmp_path, 10, 0, 1).std() > 10
    broken = tmp_path / "sections/000011"
    if fault == "missing_section":
        assert not broken.exists()
        return
    files = sorted(p.name for p in broken.glob("*.tif"))
    assert files == (["tile_r0_c0.tif"] if fault == "missing_tile" else ["tile_r0_c0.tif", "tile_r0_c1.tif"])
    assert len(json.loads((broken / "section.json").read_text())["tiles"]) == 2


def test_impossible_requests_say_what_to_do(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="take fewer tiles"):
        simulate_acquisition(source, tmp_path, tiles=(9, 9), overlap_px=30)
    with pytest.raises(UserError, match="0:4 are not in"):
        simulate_acquisition(source, tmp_path, sections=(0, 4))
    with pytest.raises(UserError, match="no such setting: jitter"):
        simulate_acquisition(source, tmp_path, jitter=3)
    with pytest.raises(UserError, match="no fault 'fire'"):
        simulate_acquisition(source, tmp_path, faults={11: "fire"})
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["x"] = np.zeros((2, 64, 64), np.uint32)
    with pytest.raises(UserError, match="expected an image of uint8"):
        simulate_acquisition(f"h5://{tmp_path}/labels.h5?x", tmp_path / "a")
    with pytest.raises(UserError, match="no truth"):
        AcquisitionTruth(tmp_path)
    assert not (tmp_path / "acquisition.json").exists()

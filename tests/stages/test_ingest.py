"""ingest finds tiles in each layout, and says of each tile what is wrong with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import tifffile

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.errors import UserError
from happyneurons.stages.ingest.check import check_tile, decode
from happyneurons.stages.ingest.stage import Ingest, IngestParams
from happyneurons.store.artifacts import Artifact, Manifest, load_artifact
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("source") / "em.h5"
    with h5py.File(file, "w") as f:
        f["em"] = make_phantom((8, 128, 192), seed=1).image
        f["em"].attrs["voxel_size_nm_xyz"] = (8.0, 8.0, 40.0)
    return f"h5://{file}?em"


def ingest(store: Store, source: Path | str, **params: Any) -> tuple[Manifest, Artifact]:
    manifest = run_stage(store, "ingest", inputs={}, params={"source": str(source), **params})
    return manifest, load_artifact(manifest.outputs["tiles"].uri)


def section(tiles: Artifact, z: int) -> dict[str, Any]:
    document: dict[str, Any] = tiles.store().get_json(f"sections/{z:06d}.json")
    return document


def test_a_simulated_acquisition(source: str, store: Store, tmp_path: Path) -> None:
    document = simulate_acquisition(source, tmp_path / "a", sections=(2, 5), tiles=(2, 1))
    manifest, tiles = ingest(store, tmp_path / "a")
    assert tiles.kind == "tile_set"
    assert tiles.voxel_size_nm_xyz == (8.0, 8.0, 40.0)
    assert tiles.properties == {
        "z_range": [2, 5], "tile_width": document.tile_width_px, "tile_height": document.tile_height_px,
        "dtype": "uint8", "pixel_size_nm": 8.0, "grid": [2, 1],
    }  # fmt: skip
    assert tiles.bounds is not None
    assert tiles.bounds.maximum_xyz == (2 * document.tile_width_px - document.overlap_px, document.tile_height_px, 5)
    assert manifest.metrics == {"sections": 3, "sections_ok": 3, "tiles": 6, "tiles_ok": 6}
    second = section(tiles, 3)["tiles"][1]
    assert second["x_px"] == document.tile_width_px - document.overlap_px
    assert (second["row"], second["col"], second["y_px"], second["status"]) == (0, 1, 0, "ok")
    assert Path(second["uri"].removeprefix("file://")) == tmp_path / "a/sections/000003/tile_r0_c1.tif"
    # The same folder again is the same job; a touched tile makes another one of it.
    assert ingest(store, tmp_path / "a")[0].job_key == manifest.job_key
    os.utime(tmp_path / "a/sections/000003/tile_r0_c1.tif", ns=(1, 1))
    assert ingest(store, tmp_path / "a")[0].job_key != manifest.job_key


def test_sections_outside_the_range_do_not_change_the_job(source: str, tmp_path: Path) -> None:
    simulate_acquisition(source, tmp_path, sections=(0, 4))
    stage, ranged = Ingest(), IngestParams(source=str(tmp_path), z_range=(0, 2))
    before, whole = stage.fingerprint(ranged), stage.fingerprint(IngestParams(source=str(tmp_path)))
    shutil.rmtree(tmp_path / "sections/000003")
    shutil.rmtree(tmp_path / "truth")
    assert stage.fingerprint(ranged) == before
    assert stage.fingerprint(IngestParams(source=str(tmp_path))) != whole


def test_copied_tiles_outlive_their_source(source: str, store: Store, tmp_path: Path) -> None:
    simulate_acquisition(source, tmp_path / "a", sections=(0, 1))
    _, tiles = ingest(store, tmp_path / "a", copy_tiles=True)
    shutil.rmtree(tmp_path / "a")
    for tile in section(tiles, 0)["tiles"]:
        path = tiles.store().relative(tile["uri"])
        assert path is not None
        assert decode(tiles.store().get(path)).shape == (tile["height"], tile["width"])


@pytest.mark.parametrize(
    ("fault", "status", "verdict"),
    [
        ("missing_tile", "missing", "flagged"),
        ("truncated", "truncated", "flagged"),
        ("wrong_size", "wrong_size", "flagged"),
        ("duplicate", "duplicate", "flagged"),
        ("blank", "blank", "flagged"),
        ("blank_section", "blank", "blank"),
    ],
)
def test_faults_are_marked(fault: str, status: str, verdict: str, source: str, store: Store, tmp_path: Path) -> None:
    simulate_acquisition(source, tmp_path / "a", sections=(0, 3), faults={1: fault})
    manifest, tiles = ingest(store, tmp_path / "a", missing="mark")
    assert [section(tiles, z)["status"] for z in range(3)] == ["ok", verdict, "ok"]
    broken = section(tiles, 1)["tiles"][1]
    assert broken["status"] == status
    assert broken["problem"]
    assert (broken["width"], broken["height"]) != (0, 0)
    assert manifest.metrics[f"sections_{verdict}"] == 1
    assert manifest.metrics["tiles"] == 6


@pytest.mark.parametrize("fault", ["missing_tile", "truncated", "wrong_size"])
def test_by_default_a_damaged_tile_stops_the_job(fault: str, source: str, store: Store, tmp_path: Path) -> None:
    simulate_acquisition(source, tmp_path / "a", sections=(0, 3), faults={1: fault})
    with pytest.raises(UserError, match=r"section 1: tile row 0, column 1 .*tile_r0_c1\.tif") as error:
        ingest(store, tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not any(path.endswith("manifest.json") for path in store.list("jobs"))


def test_a_missing_section(source: str, store: Store, tmp_path: Path) -> None:
    simulate_acquisition(source, tmp_path / "a", sections=(0, 3), faults={1: "missing_section"})
    with pytest.raises(UserError, match="section 1 is missing"):
        ingest(store, tmp_path / "a")
    manifest, tiles = ingest(store, tmp_path / "a", missing="mark")
    assert section(tiles, 1)["status"] == "missing"
    assert manifest.metrics["sections_missing"] == 1


def test_real_tiles_by_their_names(shared_data: Path, store: Store) -> None:
    folder = shared_data / "vemstitch" / "section_165"
    manifest, tiles = ingest(
        store, folder, pattern="{z}_{row}_{col}.png", pixel_size_nm=8, section_thickness_nm=40,
        tile_overlap_fraction=0.1,
    )  # fmt: skip
    assert manifest.metrics["tiles_ok"] == 9
    assert tiles.properties["grid"] == [3, 3]
    assert tiles.properties["z_range"] == [165, 166]
    assert (tiles.properties["tile_width"], tiles.properties["tile_height"]) == (2048, 1768)
    last = section(tiles, 165)["tiles"][-1]
    assert (last["row"], last["col"]) == (2, 2)
    assert last["x_px"] == pytest.approx(2 * 0.9 * 2048)
    assert last["uri"].endswith("165_3_3.png")
    # The same with a regular expression.
    regex, again = r"(?P<z>\d+)_(?P<row>\d)_(?P<col>\d)\.png", {"pixel_size_nm": 8, "section_thickness_nm": 40}
    assert section(ingest(store, folder, layout="pattern", pattern=regex, **again)[1], 165) == section(tiles, 165)


def pictures(folder: Path, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (40, 60), dtype=np.uint8))


def test_names_say_which_tiles_are_missing(store: Store, tmp_path: Path) -> None:
    pictures(tmp_path, [f"s{z}/t-{r}-{c}.png" for z in (4, 6) for r in (1, 2) for c in (1, 2)])
    (tmp_path / "s6/t-2-1.png").unlink()
    options: dict[str, Any] = {
        "pattern": "s{z}/t-{row}-{col}.png", "pixel_size_nm": 5, "section_thickness_nm": 30
    }  # fmt: skip
    with pytest.raises(UserError, match="section 5 is missing"):
        ingest(store, tmp_path, **options)
    with pytest.raises(UserError, match=r"section 6: tile row 1, column 0 is missing \(s6/t-2-1\.png\)"):
        ingest(store, tmp_path, z_range=(6, 7), **options)
    _, tiles = ingest(store, tmp_path, missing="mark", **options)
    assert [section(tiles, z)["status"] for z in (4, 5, 6)] == ["ok", "missing", "flagged"]
    assert [t["status"] for t in section(tiles, 6)["tiles"]] == ["ok", "ok", "missing", "ok"]


def test_a_trakem2_import_list(store: Store, tmp_path: Path) -> None:
    places = {"a.png": (0, 0, 0), "b.png": (52.5, 3, 0), "c.png": (-2, 34, 0), "d.png": (54, 36, 0), "e.png": (0, 0, 1)}
    pictures(tmp_path, list(places))
    lines = [f"{tmp_path / name}\t{x}\t{y}\t{z}" for name, (x, y, z) in places.items()]
    lines[-1] = "e.png\t0\t0\t1\t60\t40\t0\t255\t0"  # relative paths and further columns are fine
    (tmp_path / "import.txt").write_text("\n".join(lines) + "\n")
    _, tiles = ingest(store, tmp_path / "import.txt", pixel_size_nm=4, section_thickness_nm=50)
    found = [(t["row"], t["col"], t["x_px"], t["y_px"]) for t in section(tiles, 0)["tiles"]]
    assert found == [(0, 0, 0, 0), (0, 1, 52.5, 3), (1, 0, -2, 34), (1, 1, 54, 36)]
    assert tiles.properties["z_range"] == [0, 2]
    (tmp_path / "import.txt").write_text("a.png 0 0 0\n")
    with pytest.raises(UserError, match=r"import.txt, line 1: expected 'path<TAB>x<TAB>y<TAB>z'"):
        ingest(store, tmp_path / "import.txt", pixel_size_nm=4, section_thickness_nm=50)


def test_wrong_requests_say_what_to_do(store: Store, tmp_path: Path) -> None:
    pictures(tmp_path, ["1_1_1.png"])
    with pytest.raises(UserError, match="set pattern"):
        ingest(store, tmp_path)
    with pytest.raises(UserError, match="set pixel_size_nm and section_thickness_nm"):
        ingest(store, tmp_path, pattern="{z}_{row}_{col}.png")
    with pytest.raises(UserError, match="no tiles found"):
        ingest(store, tmp_path, pattern="{z}.tif", pixel_size_nm=1, section_thickness_nm=1)
    with pytest.raises(UserError, match="name the parts z, row and col"):
        ingest(store, tmp_path, pattern="{section}.tif", pixel_size_nm=1, section_thickness_nm=1)
    with pytest.raises(UserError, match="there is no"):
        ingest(store, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"params.z_range"):
        ingest(store, tmp_path, z_range=[3, 3])
    (tmp_path / "acquisition.json").write_text('{"cols": 0}')
    with pytest.raises(UserError, match=r"acquisition\.json: "):
        ingest(store, tmp_path)


def test_damage_is_found_in_every_format(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 80), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "plain.tif", picture)
    tifffile.imwrite(tmp_path / "packed.tif", picture, compression="zlib")
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "a.jpg"), picture)
    for name in ("plain.tif", "packed.tif", "a.png", "a.jpg"):
        path = tmp_path / name
        assert check_tile(path, (80, 64), "uint8", 2, False).status == "ok"
        data = path.read_bytes()
        for share in (0.0, 0.01, 0.5, 0.97):
            path.write_bytes(data[: int(share * len(data))])
            facts = check_tile(path, (80, 64), "uint8", 2, False)
            assert facts.status == "truncated", (name, share)
            assert str(path) in facts.problem
    tifffile.imwrite(tmp_path / "deep.tif", picture.astype(np.uint16))
    assert check_tile(tmp_path / "deep.tif", (80, 64), "uint8", 2, False).status == "wrong_type"
    tifffile.imwrite(tmp_path / "colour.tif", np.stack([picture] * 3, -1), photometric="rgb")
    assert check_tile(tmp_path / "colour.tif", (80, 64), "uint8", 2, False).status == "wrong_type"

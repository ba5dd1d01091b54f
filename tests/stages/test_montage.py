"""The montage stage on simulated tiles whose true positions are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from happyneurons.errors import JobFailedError, UserError
from happyneurons.imaging.transforms import MontageTransforms, transforms_path
from happyneurons.stages.montage.params import MontageParams
from happyneurons.stages.montage.tiles import Section, Tile, TileReader, neighbours
from happyneurons.store.artifacts import Artifact, Manifest, load_artifact, load_manifest
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume
from happyneurons.worker.local import run_stage


def tissue(height: int, width: int, seed: int) -> np.ndarray:
    """Cells with dark membranes and a fine texture, float32."""
    rng = np.random.default_rng(seed)
    coarse = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 7)
    fine = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 1.3)
    membranes = np.exp(-((coarse / coarse.std() / 0.15) ** 2))
    return (165 - 90 * membranes + 14 * fine / fine.std()).astype(np.float32)


@dataclass
class Acquisition:
    """Sections of tiles cut from tissue, as a published tile_set, and where each tile truly lies."""

    folder: Path
    rows: int
    cols: int
    width: int
    height: int
    overlap: int
    sections: int = 1
    jitter: float = 4.0
    noise: float = 5.0
    turn: float = 0.001
    exposure: bool = True
    stage_offset: float = 0.0
    change: Callable[[int, dict[str, Any], np.ndarray], np.ndarray | None] | None = None
    status: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store(str(self.folder))
        self.truth: dict[tuple[int, int, int], np.ndarray] = {}
        self.scenes: dict[int, np.ndarray] = {}
        rng = np.random.default_rng(5)
        for z in range(self.sections):
            tiles = self._section(z, rng)
            document = {"z": z, "status": self.status.get(z, "ok"), "tiles": tiles}
            self.store.put_json(f"artifacts/tiles/tiles/sections/{z:06d}.json", document)
        self.tiles = self._publish()

    def _section(self, z: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        border = 100
        total = (
            self.cols * (self.width - self.overlap) + self.overlap,
            self.rows * (self.height - self.overlap) + self.overlap,
        )
        scene = tissue(total[1] + 2 * border, total[0] + 2 * border, z)
        self.scenes[z] = scene[border:-border, border:-border]
        documents = []
        for row in range(self.rows):
            for col in range(self.cols):
                nominal = np.array([col * (self.width - self.overlap), row * (self.height - self.overlap)], float)
                linear = np.eye(2) + rng.normal(0, self.turn, (2, 2))
                middle = np.array([self.width / 2, self.height / 2])
                shift = nominal + rng.uniform(-self.jitter, self.jitter, 2) + middle - linear @ middle
                matrix = np.column_stack([linear, shift])
                self.truth[z, row, col] = matrix
                picture = cv2.warpAffine(
                    scene, matrix + [[0, 0, border], [0, 0, border]], (self.width, self.height),
                    flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
                )  # fmt: skip
                gain, offset = (rng.uniform(0.9, 1.1), rng.uniform(-10, 10)) if self.exposure else (1.0, 0.0)
                picture = (picture - 128) * gain + 128 + offset + rng.normal(0, self.noise, picture.shape)
                path = self.folder / "raw" / f"{z:06d}" / f"{row}_{col}.tif"
                document = {
                    "uri": path.as_uri(), "row": row, "col": col, "width": self.width, "height": self.height,
                    "x_px": float(nominal[0]) + z * self.stage_offset, "y_px": float(nominal[1]),
                    "status": "ok", "problem": "",
                }  # fmt: skip
                pixels: np.ndarray | None = np.clip(picture, 0, 255).round().astype(np.uint8)
                if self.change is not None:
                    pixels = self.change(z, document, pixels)
                if pixels is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    tifffile.imwrite(path, pixels)
                documents.append(document)
        return documents

    def _publish(self) -> Artifact:
        uri = f"{self.store.uri}/jobs/tiles/manifest.json#tiles"
        artifact = Artifact(
            kind="tile_set", uri=uri, data_uri=f"{self.store.uri}/artifacts/tiles/tiles", digest="tiles",
            voxel_size_nm_xyz=(4.0, 4.0, 40.0),
            properties={"z_range": [0, self.sections], "tile_width": self.width, "tile_height": self.height,
                        "pixel_size_nm": 4.0, "grid": [self.cols, self.rows]},
        )  # fmt: skip
        manifest = Manifest(
            job_key="tiles", stage="ingest", stage_version="0", params={}, inputs={}, outputs={"tiles": artifact},
            provenance={},
        )  # fmt: skip
        self.store.put_json("jobs/tiles/manifest.json", manifest.model_dump(mode="json"))
        return load_artifact(uri)

    def run(self, **params: Any) -> Result:
        manifest = run_stage(self.store, "montage", inputs={"tiles": self.tiles.uri}, params=params)
        assert load_manifest(self.store, manifest.job_key) == manifest
        return Result(self, manifest)


@dataclass
class Result:
    acquisition: Acquisition
    manifest: Manifest

    def __post_init__(self) -> None:
        self.stack = self.manifest.outputs["stack"]
        self.transforms = MontageTransforms(self.stack)

    def section(self, z: int) -> dict[str, Any]:
        document: dict[str, Any] = self.stack.store().get_json(f"sections/{z:06d}.json")
        return document

    def picture(self, z: int) -> np.ndarray:
        volume = open_volume(f"{self.stack.data_uri}/image")
        (_, y0, x0), (_, y1, x1) = volume.start_zyx, volume.stop_zyx
        return volume.read((z, y0, x0), (z + 1, y1, x1))[0]

    def seam_errors(self, z: int) -> np.ndarray:
        """Distance in the stack between the places of the same tissue in two tiles, px."""
        a = self.acquisition
        errors = []
        x, y = np.meshgrid(np.arange(3.0, a.width - 3, 5), np.arange(3.0, a.height - 3, 5))
        p = np.stack([x, y], axis=-1).reshape(-1, 2)
        placed = self.transforms.tiles(z)
        for i, first in enumerate(placed):
            m = a.truth[z, *first]
            scene = p @ m[:, :2].T + m[:, 2]
            for second in placed[i + 1 :]:
                n = a.truth[z, *second]
                q = (scene - n[:, 2]) @ np.linalg.inv(n[:, :2]).T
                inside = (q >= 2).all(axis=1) & (q <= [a.width - 3, a.height - 3]).all(axis=1)
                if inside.any():
                    here, there = self.transforms.map(z, first, p[inside]), self.transforms.map(z, second, q[inside])
                    assert here is not None
                    assert there is not None
                    errors.append(np.linalg.norm(here - there, axis=1))
        return np.concatenate(errors)


def test_two_tiles_with_twenty_px_overlap_join_to_a_fraction_of_a_pixel(tmp_path: Path) -> None:
    made = Acquisition(tmp_path, rows=1, cols=2, width=150, height=250, overlap=20, sections=4)
    result = made.run()
    errors = np.concatenate([result.seam_errors(z) for z in range(4)])
    assert np.median(errors) < 0.2
    assert np.percentile(errors, 95) < 0.5
    metrics = result.manifest.metrics
    assert (metrics["sections_ok"], metrics["sections_flagged"], metrics["sections_failed"]) == (4, 0, 0)
    assert metrics["sections_by_set_standard"] == 4
    assert 0 < metrics["seam_median_px"] < metrics["seam_p95_px"] < 0.7
    assert result.stack.voxel_size_nm_xyz == (4.0, 4.0, 40.0)
    assert result.stack.bounds is not None
    assert result.stack.bounds.maximum_xyz == (280 + 64, 250 + 64, 4)


def test_picture_shows_the_tissue_where_the_transforms_say(tmp_path: Path) -> None:
    made = Acquisition(tmp_path, rows=2, cols=2, width=260, height=240, overlap=40, exposure=False, noise=2)
    result = made.run()
    picture = result.picture(0)
    scene = made.scenes[0]
    rng = np.random.default_rng(0)
    points = rng.uniform(60, 400, (4000, 2)).round()
    back = result.transforms.inverse(0, points)
    assert back is not None
    (rows, cols), xy = back
    assert (rows >= 0).all()
    tissue_xy = np.empty_like(xy)
    for row in range(2):
        for col in range(2):
            these = (rows == row) & (cols == col)
            m = made.truth[0, row, col]
            tissue_xy[these] = xy[these] @ m[:, :2].T + m[:, 2]
    inside = ((tissue_xy > 1) & (tissue_xy < np.array(scene.shape[::-1]) - 2)).all(axis=1)
    expected = cv2.remap(
        scene, tissue_xy[inside, 0].astype(np.float32)[None], tissue_xy[inside, 1].astype(np.float32)[None],
        cv2.INTER_CUBIC,
    )[0]  # fmt: skip
    shown = picture[points[inside, 1].astype(int), points[inside, 0].astype(int)]
    assert np.corrcoef(expected, shown)[0, 1] > 0.98
    assert np.abs(expected - shown).mean() < 4


def test_nine_tiles_keep_position_scale_and_rotation(tmp_path: Path) -> None:
    made = Acquisition(tmp_path, rows=3, cols=3, width=220, height=200, overlap=36)
    result = made.run()
    assert result.section(0)["status"] == "ok"
    assert np.percentile(result.seam_errors(0), 95) < 0.6
    middle = np.array([[109.5, 99.5]])
    placed = np.concatenate([result.transforms.map(0, t, middle) for t in result.transforms.tiles(0)])  # type: ignore[misc]
    nominal = np.array([[c * 184, r * 164] for r in range(3) for c in range(3)]) + middle + 32
    np.testing.assert_allclose(placed.mean(axis=0), nominal.mean(axis=0), atol=0.01)
    corner = 100 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    for tile in result.transforms.tiles(0):
        turned = result.transforms.map(0, tile, middle + corner)
        assert turned is not None
        linear = np.linalg.lstsq(corner, turned - turned.mean(axis=0), rcond=None)[0]
        np.testing.assert_allclose(linear, np.eye(2), atol=0.006)


def test_a_large_stage_error_is_found_with_the_next_parameter_set(tmp_path: Path) -> None:
    def misplace(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        if (tile["row"], tile["col"]) == (1, 1):
            tile["x_px"] += 75
            tile["y_px"] -= 60
        return pixels

    made = Acquisition(tmp_path, rows=2, cols=2, width=240, height=240, overlap=40, change=misplace)
    result = made.run(margin_px=120)
    document = result.section(0)
    assert document["status"] == "ok"
    assert document["parameter_set"] == "wide"
    assert result.manifest.metrics["sections_by_set_wide"] == 1
    assert np.percentile(result.seam_errors(0), 95) < 0.6


def test_a_strange_tile_is_placed_by_the_stage_and_flagged(tmp_path: Path) -> None:
    def replace(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        strange = (tile["row"], tile["col"]) == (1, 2)
        return np.clip(tissue(*pixels.shape, seed=99), 0, 255).astype(np.uint8) if strange else pixels

    made = Acquisition(tmp_path, rows=2, cols=3, width=200, height=200, overlap=36, change=replace)
    result = made.run()
    document = result.section(0)
    assert document["status"] == "flagged"
    assert document["groups"] == 2
    assert "1_2 could not be joined" in document["reason"]
    mapped = result.transforms.map(0, (1, 2), [[0.0, 0.0]])
    assert mapped is not None
    assert np.abs(mapped - [2 * 164 + 32, 164 + 32]).max() < 12
    assert result.manifest.metrics["sections_flagged"] == 1


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("upside down", {"1_1"}),
        ("turned", {"1_1"}),
        ("black", {"1_1"}),
        ("neighbours swapped", {"0_1", "0_2"}),
        ("swapped", {"0_0", "1_2"}),
    ],
)
def test_tiles_that_are_not_what_they_should_be_are_reported(tmp_path: Path, name: str, apart: set[str]) -> None:
    spoil: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "upside down": lambda p: p[::-1, ::-1].copy(), "turned": lambda p: np.rot90(p).copy(), "black": np.zeros_like,
    }  # fmt: skip

    def change(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        return spoil[name](pixels) if name in spoil and (tile["row"], tile["col"]) == (1, 1) else pixels

    made = Acquisition(tmp_path, rows=2, cols=3, width=240, height=240, overlap=40, change=change)
    if name not in spoil:
        path = "artifacts/tiles/tiles/sections/000000.json"
        document = made.store.get_json(path)
        one, other = (t for t in document["tiles"] if f"{t['row']}_{t['col']}" in apart)
        one["uri"], other["uri"] = other["uri"], one["uri"]
        made.store.put_json(path, document)
    document = made.run().section(0)
    assert document["status"] == "flagged"
    assert {tile for tile, group in document["placed"].items() if group} == apart
    assert all(tile in document["reason"] for tile in apart)


def test_tiles_of_noise_are_told_and_not_looked_at_again(tmp_path: Path) -> None:
    def resin(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        shade = np.linspace(110, 140, pixels.shape[1])  # an uneven beam is no structure
        noise = np.random.default_rng(tile["col"]).normal(shade, 8, pixels.shape)
        return noise.astype(np.uint8) if z else pixels

    result = Acquisition(tmp_path, rows=1, cols=2, width=200, height=200, overlap=40, sections=2, change=resin).run()
    assert result.section(0)["status"] == "ok"
    blank = result.section(1)
    assert blank["status"] == "flagged"
    assert "nothing but noise" in blank["reason"]
    assert list(blank["sets_tried"]) == ["standard"]


def test_missing_and_damaged_tiles_flag_their_section_only(tmp_path: Path) -> None:
    def damage(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray | None:
        if (tile["row"], tile["col"]) != (0, 1):
            return pixels
        if z == 1:
            tile |= {"status": "missing", "problem": "no such file"}
            return None
        if z == 2:
            path = tmp_path / "raw" / "000002" / "0_1.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, pixels)
            path.write_bytes(path.read_bytes()[:5000])
            return None
        return pixels

    made = Acquisition(
        tmp_path, rows=2, cols=2, width=200, height=200, overlap=36, sections=5, change=damage,
        status={3: "missing", 4: "blank"},
    )  # fmt: skip
    result = made.run()
    assert [result.section(z)["status"] for z in range(5)] == ["ok", "flagged", "flagged", "missing", "blank"]
    assert "0_1: no such file" in result.section(1)["reason"]
    assert "0_1.tif is damaged" in result.section(2)["reason"]
    for z in (1, 2):
        assert result.transforms.tiles(z) == [(0, 0), (1, 0), (1, 1)]
        assert result.transforms.map(z, (0, 1), [[0.0, 0.0]]) is None
        assert np.percentile(result.seam_errors(z), 95) < 0.6
        assert result.picture(z)[200, 60] > 0
    for z in (3, 4):
        assert not result.picture(z).any()
        assert result.transforms.tiles(z) == []
    metrics = result.manifest.metrics
    assert [metrics[f"sections_{s}"] for s in ("ok", "flagged", "failed", "missing", "blank")] == [1, 2, 0, 1, 1]


def test_a_section_of_unreadable_tiles_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    def remove(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray | None:
        return None if z == 0 else pixels

    result = Acquisition(tmp_path, rows=1, cols=2, width=150, height=150, overlap=30, sections=2, change=remove).run()
    assert [result.section(z)["status"] for z in range(2)] == ["failed", "ok"]
    assert "none of its tiles can be read" in result.section(0)["reason"]
    assert not result.picture(0).any()


def test_brightness_and_contrast_are_evened_out(tmp_path: Path) -> None:
    def dim(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        return (pixels * 0.7 + 10).astype(np.uint8) if tile["col"] else pixels

    made = Acquisition(
        tmp_path, rows=1, cols=2, width=200, height=240, overlap=40, exposure=False, noise=1, change=dim, turn=0,
    )  # fmt: skip
    exposure = made.run().section(0)["exposure"]
    (gain_a, _), (gain_b, _) = exposure["0_0"], exposure["0_1"]
    assert gain_b / gain_a == pytest.approx(1 / 0.7, rel=0.06)
    even = {g: gain * grey + offset for g, grey in (("0_0", 165.0), ("0_1", 125.5)) for gain, offset in [exposure[g]]}
    assert even["0_0"] == pytest.approx(even["0_1"], abs=3)
    assert made.run(exposure=False).section(0)["exposure"] == {"0_0": [1.0, 0.0], "0_1": [1.0, 0.0]}


def test_bytes_do_not_depend_on_the_run(tmp_path: Path) -> None:
    made = Acquisition(tmp_path / "a", rows=2, cols=2, width=180, height=170, overlap=30, sections=2)
    results = [made.run(), made.run(tile_cache_mb=17)]  # another key: computed again
    assert results[0].manifest.job_key != results[1].manifest.job_key
    first, second = ({p: r.stack.store().get(p) for p in r.stack.store().list("")} for r in results)
    assert first == second
    assert {transforms_path(0), transforms_path(1), "sections/000000.json", "image/info"} < set(first)


def test_one_tile_is_a_section_too(tmp_path: Path) -> None:
    made = Acquisition(tmp_path, rows=1, cols=1, width=120, height=90, overlap=0)
    result = made.run(margin_px=10)
    assert result.section(0)["status"] == "ok"
    assert result.section(0)["confidence"] == 1
    tile = tifffile.imread(tmp_path / "raw/000000/0_0.tif")
    np.testing.assert_array_equal(result.picture(0)[10:100, 10:130], np.maximum(tile, 1))


def test_sixteen_bit_tiles_need_a_grey_range(tmp_path: Path) -> None:
    def deepen(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        return pixels.astype(np.uint16) * 200 + 1000

    made = Acquisition(tmp_path, rows=1, cols=2, width=150, height=150, overlap=30, change=deepen)
    with pytest.raises((UserError, JobFailedError), match="set grey_range"):
        made.run()
    result = made.run(grey_range=[1000, 1000 + 255 * 200])
    assert result.section(0)["status"] == "ok"
    assert 100 < np.median(result.picture(0)[50:150, 50:250]) < 200


def test_sections_apart_on_the_wafer_need_an_origin_of_their_own(tmp_path: Path) -> None:
    made = Acquisition(
        tmp_path, rows=1, cols=2, width=150, height=150, overlap=30, sections=2, stage_offset=50_000.25
    )  # fmt: skip
    with pytest.raises(UserError, match="set origin to 'section'"):
        made.run()
    result = made.run(origin="section")
    assert result.picture(0).shape == (150 + 64, 270 + 64)
    assert [result.section(z)["status"] for z in range(2)] == ["ok", "ok"]
    assert all(np.count_nonzero(result.picture(z)) > 0.9 * 150 * 270 for z in range(2))


def test_tiles_beyond_the_canvas_are_told(tmp_path: Path) -> None:
    made = Acquisition(tmp_path, rows=1, cols=2, width=150, height=150, overlap=30, jitter=8)
    document = made.run(margin_px=0).section(0)
    assert document["status"] == "flagged"
    assert "raise margin_px" in document["reason"]


def real_tiles(shared_data: Path, folder: str) -> list[Tile]:
    """3 × 3 distorted tiles of 2048 × 1768 px of which only row and column are known; their overlap is about 10 %."""
    tiles = []
    for path in sorted((shared_data / "vemstitch" / folder).glob("*.png")):
        row, col = (int(n) - 1 for n in path.stem.split("_")[1:])
        tiles.append(Tile(row, col, col * 1843.0, row * 1591.0, 2048, 1768, path.as_uri()))
    return tiles


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "median_px"), [("section_165", 0.6), ("sample_2", 0.4)])
def test_matches_that_the_solve_did_not_see_lie_on_one_another(
    shared_data: Path, folder: str, median_px: float
) -> None:
    from happyneurons.stages.montage.match import match_pair
    from happyneurons.stages.montage.solve import place

    params, tiles, reader = MontageParams(), real_tiles(shared_data, folder), TileReader(None, 1_000_000_000)
    wide = next(s for s in params.sets if s.stage_error_px is None)
    matched = [match_pair(tiles, a, b, reader, wide) for a, b in neighbours(tiles, 40)]
    pairs = [p for p in matched if p is not None]
    # Neighbouring blocks overlap: every second group of ten is held back, not every second match.
    held = [np.arange(len(p.matches)) // 10 % 2 == 1 for p in pairs]
    seen = [replace(p, matches=p.matches.select(~h)) for p, h in zip(pairs, held, strict=True)]
    elastic = {"node_spacing_px": params.node_spacing_px, "membrane": params.membrane, "bending": params.bending}
    warps = place(tiles, seen, **elastic).warps
    misses = [
        np.linalg.norm(warps[p.a].map(p.matches.xy_a[h]) - warps[p.b].map(p.matches.xy_b[h]), axis=1)
        for p, h in zip(pairs, held, strict=True)
    ]
    assert len({(p.a, p.b) for p in pairs}) >= 12
    assert np.median(np.concatenate(misses)) < median_px


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "p95_px"), [("section_165", 1.5), ("sample_2", 0.8)])
def test_real_distorted_tiles_join_without_stage_positions(shared_data: Path, folder: str, p95_px: float) -> None:
    from happyneurons.stages.montage.section import montage_section

    tiles = real_tiles(shared_data, folder)
    montage = montage_section(
        Section(0, "ok", tuple(tiles), ()), MontageParams(), TileReader(None, 1_000_000_000), (0.0, 0.0)
    )
    figures = montage.figures
    assert (figures["status"], figures["groups"], figures["tiles"]) == ("ok", 1, 9)
    assert figures["pairs_joined"] == figures["pairs_expected"] == 12
    assert figures["seam_p95_px"] < p95_px
    # What the data's README says of the distances of tiles, with 10 px to spare for their distortion. Along
    # rows and columns only: the stage's axes are turned against the scan's, so the diagonal is no measure.
    middles = np.array([layer.warp.map([[1023.5, 883.5]])[0] for layer in montage.layers]).reshape(3, 3, 2)
    across, down = np.diff(middles[..., 0], axis=1), np.diff(middles[..., 1], axis=0)
    assert 1830 < across.min() < across.max() < 1868
    assert 1579 < down.min() < down.max() < 1646
    for layer in montage.layers:  # scale 1, not turned
        source, target = layer.warp.sources().reshape(-1, 2), layer.warp.nodes.reshape(-1, 2)
        linear = np.linalg.lstsq(source - source.mean(axis=0), target - target.mean(axis=0), rcond=None)[0]
        np.testing.assert_allclose(linear, np.eye(2), atol=0.003)


def test_an_empty_tile_set_is_refused(tmp_path: Path) -> None:
    made = Acquisition(tmp_path, rows=1, cols=1, width=50, height=50, overlap=0)
    made.store.put_json("artifacts/tiles/tiles/sections/000000.json", {"z": 0, "status": "missing", "tiles": []})
    with pytest.raises(UserError, match="none of the 1 sections"):
        made.run()

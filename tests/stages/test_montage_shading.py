"""Darkening towards the rim of tiles: found from seams, removed from the picture, never made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from happyneurons.stages.montage.shading import Shading
from tests.stages.test_montage import Acquisition, Result

SIZE = 260


def darkened(pixels: np.ndarray, radial: float) -> np.ndarray:
    x = (np.arange(pixels.shape[1]) - (pixels.shape[1] - 1) / 2) / ((SIZE - 1) / 2)
    y = (np.arange(pixels.shape[0]) - (pixels.shape[0] - 1) / 2) / ((SIZE - 1) / 2)
    return np.clip(np.rint(pixels * np.exp(radial * (x**2 + y[:, np.newaxis] ** 2))), 0, 255).astype(np.uint8)


def acquisition(folder: Path, radial: float, sections: int = 6, rows: int = 2) -> Acquisition:
    def change(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        return darkened(pixels, radial)

    return Acquisition(folder, rows=rows, cols=2, width=SIZE, height=SIZE, overlap=40, sections=sections, change=change)


def unevenness(result: Result) -> float:
    """Standard deviation of the broad differences in brightness between picture and tissue, grey values."""
    found = []
    for z, scene in result.acquisition.scenes.items():
        picture = result.picture(z)[32:-32, 32:-32].astype(np.float32)
        # Tiles lie a few px beside their nominal places, which broad means do not see.
        difference = cv2.GaussianBlur(picture - scene[: picture.shape[0], : picture.shape[1]], (0, 0), 20)
        found.append(difference[20:-20, 20:-20].std())
    return float(np.mean(found))


def test_shading_that_all_tiles_share_is_found_and_removed_whatever_their_exposure(tmp_path: Path) -> None:
    made = acquisition(tmp_path, -0.12)
    evened, left = made.run(), made.run(shading=False)
    for name in ("shading_x", "shading_y"):
        assert evened.manifest.metrics[name] == pytest.approx(-0.12, abs=0.015)
        assert name not in left.manifest.metrics
    assert unevenness(evened) < 0.5 * unevenness(left)


def test_optics_of_an_earlier_stack_serve_one_section_that_could_not_tell_them(tmp_path: Path) -> None:
    earlier = acquisition(tmp_path / "a", -0.12).run().stack.store().get_json("optics.json")
    assert earlier["shading_x"] == pytest.approx(-0.12, abs=0.015)
    one = acquisition(tmp_path / "b", -0.12, sections=1)
    assert unevenness(one.run(optics=earlier)) < 0.5 * unevenness(one.run())


def test_no_shading_is_made_of_tissue_and_exposure(tmp_path: Path) -> None:
    assert "shading_x" not in acquisition(tmp_path, 0.0).run().manifest.metrics


def test_tiles_side_by_side_say_nothing_of_up_and_down(tmp_path: Path) -> None:
    metrics = acquisition(tmp_path, -0.12, rows=1).run().manifest.metrics
    assert metrics["shading_x"] == pytest.approx(-0.12, abs=0.015)
    assert metrics["shading_y"] == 0


def test_part_of_a_tile_is_corrected_as_the_whole_would_be() -> None:
    # By the longer side's half: the shorter side has less of it.
    shading, rng = Shading(SIZE, 200, -0.1, -0.1 * (199 / (SIZE - 1)) ** 2), np.random.default_rng(0)
    flat = rng.integers(60, 180, (200, SIZE)).astype(np.uint8)
    whole = shading.corrected(darkened(flat, -0.1), 0, 0)
    part = shading.corrected(darkened(flat, -0.1)[50:120, 30:200], 30, 50)
    assert np.array_equal(part, whole[50:120, 30:200])
    ratio = whole.astype(float) / flat
    assert ratio.std() < 0.01
    x, y = np.meshgrid(np.arange(SIZE), np.arange(200))
    assert shading.gain(np.column_stack([x.ravel(), y.ravel()])).mean() == pytest.approx(1, abs=0.01)

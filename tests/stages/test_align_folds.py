"""align cuts sections along folds: both sides go home, what is hidden stays blank, and nothing else is cut."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from happyneurons.imaging.cut_warp import HIDDEN, CutWarp
from happyneurons.imaging.transforms import AlignTransforms
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.stages.align.cut_mesh import Cut, CutGrid, cut_along
from happyneurons.stages.align.folds import Jump, candidates, jump, mean_jump
from happyneurons.stages.align.prepare import ARTIFACT, TISSUE
from happyneurons.stages.align.system import NodeGrid
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume
from happyneurons.worker.local import run_stage
from tests.stages.attempts import files, run_and_die, run_with_ranks
from tests.stages.test_align import CORNER_XY, SECTIONS, SIZE, Z0, Warps, align, distorted, publish, tissue
from tests.stages.test_align_windows import LONG

__all__ = ["distorted", "tissue"]  # fixtures

FOLDED, AT, HIDES, BAND = 9, 100, 12.0, 4
"""Section, x of the fold, px of tissue that it hides, half its width."""


# --- whole stage ---------------------------------------------------------------------------------


def hides(y: np.ndarray) -> np.ndarray:
    """px of tissue that a fold hides which ends within the section, at y = 120."""
    return np.asarray(HIDES * np.clip((120 - y) / 50, 0, 1))


@pytest.fixture(scope="module")
def folded(distorted: tuple[np.ndarray, Warps]) -> np.ndarray:
    """The sections, one with a fold."""
    pictures = distorted[0].copy()
    pictures[FOLDED] = with_fold(pictures[FOLDED], AT)
    return pictures


def with_fold(picture: np.ndarray, at: int) -> np.ndarray:
    """Tissue right of the fold has moved to the left."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    from_x = np.where(x < at, x, x + hides(y)).astype(np.float32)
    folded = cv2.remap(picture, from_x, y, cv2.INTER_LINEAR, borderValue=0)
    folded[(np.abs(x - at) <= BAND) & (hides(y) > 0)] = 10
    return folded


def beside(side: int, near: float, far: float) -> np.ndarray:
    """(n, 2) px of the folded section on one side of the fold, so far from its middle."""
    x, y = np.meshgrid(np.arange(0, SIZE, 2.0), np.arange(25, 100, 4.0))
    px = np.stack([x, y], axis=-1).reshape(-1, 2)
    away = side * (px[:, 0] - AT)
    return px[(away > near) & (away < far)]


def errors_beside(stack: Artifact, truth: Warps, px: np.ndarray, side: int) -> np.ndarray:
    """Distance of tissue beside the fold from where its neighbours have it, px."""
    transforms = AlignTransforms(stack)
    was = px + np.column_stack([hides(px[:, 1]), np.zeros(len(px))]) if side > 0 else px
    inside = (was > 12).all(axis=1) & (was < SIZE - 12).all(axis=1)
    places = truth[FOLDED].map(was[inside] + CORNER_XY)
    here = transforms.map(Z0 + FOLDED, px[inside] + CORNER_XY)
    there = [transforms.map(Z0 + FOLDED + d, truth[FOLDED + d].inverse(places)) for d in (-1, 1)]
    assert here is not None
    return np.asarray(np.linalg.norm(here - np.mean(there, axis=0), axis=1))


def fold_jumps(stack: Artifact) -> dict[int, list[float]]:
    documents = (document(stack, i) for i in range(SECTIONS))
    return {d["z"] - Z0: d["fold_jumps_px"] for d in documents if "fold_jumps_px" in d}


def document(stack: Artifact, i: int) -> dict[str, Any]:
    found: dict[str, Any] = stack.store().get_json(f"sections/{Z0 + i:06d}.json")
    return found


@pytest.mark.parametrize("params", [{}, LONG], ids=["whole", "windows"])
def test_tissue_beside_a_fold_goes_home_and_what_it_hides_stays_blank(
    store: Store, distorted: tuple[np.ndarray, Warps], folded: np.ndarray, params: dict[str, int]
) -> None:
    manifest, aligned = align(store, publish(store, folded), **params)
    assert list(fold_jumps(aligned)) == [FOLDED]
    (found,) = fold_jumps(aligned)[FOLDED]
    assert 0.6 * HIDES < found < 1.1 * HIDES
    assert manifest.metrics["sections_cut"] == 1
    for side in (-1, 1):
        error = errors_beside(aligned, distorted[1], beside(side, BAND + 3, 24), side)
        assert len(error) > 50
        assert np.median(error) < HIDES / 8
        assert np.percentile(error, 95) < HIDES / 4
    transforms = AlignTransforms(aligned)
    y = np.arange(20, 70, 3.0)
    on_it = transforms.map(Z0 + FOLDED, np.column_stack([np.full_like(y, AT), y]) + CORNER_XY)
    assert np.isnan(on_it).all()
    left, right = (
        transforms.map(Z0 + FOLDED, np.column_stack([np.full_like(y, AT + x), y]) + CORNER_XY) for x in (-8, 8)
    )
    assert left is not None
    assert right is not None
    width = np.linalg.norm(right - left, axis=1) - 16
    np.testing.assert_allclose(np.median(width), HIDES, atol=3)
    # In the middle between both sides nothing is shown, in the picture neither.
    middle = (left + right) / 2
    assert np.isnan(transforms.inverse(Z0 + FOLDED, middle)).all()
    picture = open_volume(f"{aligned.data_uri}/image")
    low, high = picture.start_zyx, picture.stop_zyx
    section = picture.read((Z0 + FOLDED, *low[1:]), (Z0 + FOLDED + 1, *high[1:]))[0]
    j, i = np.rint(middle - CORNER_XY).astype(int).T[::-1]
    assert not section[j, i].any()
    # Blank are the band, which is a little wider than it was drawn, and what it hides; nothing is between px of sheets.
    rows = section[25:70, 30:170]
    blank = np.count_nonzero(rows == 0, axis=1)
    assert np.median(blank) == pytest.approx(HIDES + 2 * BAND + 2, abs=6)
    assert np.count_nonzero(np.diff((rows == 0).astype(int), axis=1) == 1) == len(rows)


def test_a_fold_through_the_section_may_hide_much(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    """Nine per cent of the section: the smaller side is far from where a search for the larger one looks."""
    pictures, truth, gone, at = distorted[0].copy(), distorted[1], 18, 120
    whole = pictures[FOLDED].copy()
    pictures[FOLDED, :, at:-gone] = whole[:, at + gone :]
    pictures[FOLDED, :, -gone:] = 0
    pictures[FOLDED, :, at - BAND : at + BAND] = 10
    _, aligned = align(store, publish(store, pictures))
    assert fold_jumps(aligned)[FOLDED] == [pytest.approx(gone, abs=1.5)]
    transforms = AlignTransforms(aligned)
    x, y = np.meshgrid(np.arange(at + BAND + 3, SIZE - gone - 4, 4.0), np.arange(30, 170, 4.0))
    px = np.stack([x, y], axis=-1).reshape(-1, 2) + CORNER_XY
    here = transforms.map(Z0 + FOLDED, px)
    places = truth[FOLDED].map(px + [gone, 0])
    there = [transforms.map(Z0 + FOLDED + d, truth[FOLDED + d].inverse(places)) for d in (-1, 1)]
    assert here is not None
    error = np.linalg.norm(here - np.mean(there, axis=0), axis=1)
    assert np.median(error) < 0.6
    assert np.percentile(error, 95) < 2


def test_neighbours_may_both_be_folded_and_a_scratch_is_no_fold(
    store: Store, distorted: tuple[np.ndarray, Warps]
) -> None:
    pictures = distorted[0][FOLDED - 3 : FOLDED + 4].copy()
    pictures[3], pictures[4] = with_fold(pictures[3], AT), with_fold(pictures[4], 60)
    pictures[3, 30:190, 160:165] = 10
    manifest, aligned = align(store, publish(store, pictures))
    found = {z: d["fold_jumps_px"] for z in range(7) if "fold_jumps_px" in (d := document(aligned, z))}
    assert {z: len(jumps) for z, jumps in found.items()} == {3: 1, 4: 1}
    again = sorted(p for p in files(store, manifest.job_key) if p.endswith("_sheets.npz"))
    pairs = [(Z0 + 2, Z0 + 3), (Z0 + 3, Z0 + 4), (Z0 + 4, Z0 + 5)]
    assert [p.rsplit("/", 1)[-1] for p in again] == [f"{a:06d}_{b:06d}_sheets.npz" for a, b in pairs]
    transforms, y = AlignTransforms(aligned), np.arange(40, 90, 5.0)
    for z, at, there in ((3, AT, False), (3, 60, True), (3, 162, True), (4, 60, False), (4, AT, True)):
        mapped = transforms.map(Z0 + z, np.column_stack([np.full_like(y, at), y]) + CORNER_XY)
        assert np.isfinite(mapped).all() if there else np.isnan(mapped).all()


def test_without_cuts_what_is_hidden_is_spread(
    store: Store, distorted: tuple[np.ndarray, Warps], folded: np.ndarray
) -> None:
    manifest, aligned = align(store, publish(store, folded), cut_folds=False)
    assert manifest.metrics["sections_cut"] == 0
    assert not isinstance(AlignTransforms(aligned).warp(Z0 + FOLDED), CutWarp)
    right = errors_beside(aligned, distorted[1], beside(1, BAND + 3, 24), 1)
    assert np.median(right) > HIDES / 4


@pytest.mark.slow
def test_ranks_and_kills_change_nothing(tmp_path: Path, folded: np.ndarray) -> None:
    stack = publish(Store(str(tmp_path / "input")), folded[FOLDED - 2 : FOLDED + 3])
    spec = make_spec(load_stage("align"), inputs={"stack": stack}, params={})
    stores = {name: Store(str(tmp_path / name)) for name in ("plain", "ranks", "killed")}
    for store in stores.values():
        save_spec(store, spec)
    manifest = run_stage(stores["plain"], "align", inputs={"stack": stack})
    assert manifest.metrics["sections_cut"] == 1
    run_with_ranks(stores["ranks"], spec, 2)
    for round_name, after in (("folds", 1), ("render", 2)):
        assert run_and_die(stores["killed"], spec, round_name, after) == -signal.SIGKILL
    run_with_ranks(stores["killed"], spec, 1)
    wanted = files(stores["plain"], spec.key)
    assert any("cuts/" in name for name in wanted)
    assert files(stores["ranks"], spec.key) == wanted == files(stores["killed"], spec.key)


def test_a_dark_process_is_no_fold(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    """A dark band that all sections have, and that moves with the tissue."""
    pictures, truth = distorted[0].copy(), distorted[1]
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    for picture, warp in zip(pictures, truth, strict=True):
        place = warp.map(np.stack([x, y], axis=-1).reshape(-1, 2) + CORNER_XY) - CORNER_XY
        there = (np.abs(place[:, 0] - 90 - 0.1 * place[:, 1]) < 4) & (place[:, 1] < 130)
        picture[there.reshape(picture.shape)] = 20
    manifest, aligned = align(store, publish(store, pictures))
    assert manifest.metrics["sections_cut"] == 0
    assert fold_jumps(aligned) == {}


# --- parts ---------------------------------------------------------------------------------------


def grid() -> NodeGrid:
    return NodeGrid(400, 300, 50.0)


Line = tuple[tuple[int, int], tuple[int, int]] | tuple[tuple[int, int], tuple[int, int], int]


def bands(*lines: Line) -> np.ndarray:
    """(h, w) bool: lines, 7 px wide by default, in a working picture of the grid above at half its size."""
    picture = np.zeros((150, 200), np.uint8)
    for start, end, *width in lines:
        cv2.line(picture, start, end, 1, *(width or [7]))
    return picture.astype(bool)


def cut(*lines: Line) -> Cut:
    found = cut_along(bands(*lines), grid(), 2)
    assert found is not None
    return found


def linear(points: np.ndarray, mesh: CutGrid, values: Callable[[np.ndarray], np.ndarray]) -> None:
    """Asserts that a map which is linear everywhere is the same on all sheets."""
    ny, nx = mesh.grid.shape
    j, i = np.divmod(mesh.places, nx)
    assert set(mesh.places) == set(range(ny * nx))
    at_nodes = values(np.column_stack([i, j]) * mesh.grid.spacing_px)
    np.testing.assert_allclose(mesh.basis(points) @ at_nodes, values(points), atol=1e-9)


LINES: dict[str, list[Line]] = {
    "through": [((90, -10), (120, 160))],
    "slit": [((60, 40), (140, 110))],
    "to the border": [((100, -10), (96, 100))],
    "along nodes": [((100, 20), (100, 130))],
    "crossing": [((30, 20), (170, 130)), ((40, 130), (160, 15))],
    "wide": [((60, -10), (90, 160), 70)],
    "two": [((50, 20), (60, 140)), ((150, 10), (130, 120))],
    "bent": [((40, 30), (150, 40)), ((150, 40), (150, 120)), ((150, 120), (60, 110))],
}


@pytest.mark.parametrize("name", LINES)
def test_a_linear_map_is_the_same_on_all_sheets(name: str) -> None:
    found = cut(*LINES[name])
    points = np.random.default_rng(1).uniform([0, 0], [399, 299], (4000, 2))
    seen = points[found.sheet_at(points) != HIDDEN]
    linear(seen, CutGrid(grid(), found), lambda p: np.column_stack([0.3 * p[:, 0] + 2, p[:, 0] - 0.7 * p[:, 1]]))


@pytest.mark.parametrize("name", LINES)
def test_maps_jump_across_cuts_only(name: str) -> None:
    """Values of the unknowns by chance: neighbouring px differ by a slope's worth, unless a cut lies between them."""
    found, rng = cut(*LINES[name]), np.random.default_rng(3)
    mesh = CutGrid(grid(), found)
    values = rng.normal(0, 1, (mesh.count, 1))
    y, x = np.mgrid[:300, :400]
    px = np.stack([x, y], axis=-1).reshape(-1, 2).astype(float)
    shown = (found.sheet_at(px) != HIDDEN).reshape(300, 400)
    field = (mesh.basis(px) @ values).reshape(300, 400)
    steepest = 2 * np.ptp(values) / mesh.grid.spacing_px
    for axis in (0, 1):
        both = np.logical_and(*(np.roll(shown, -k, axis) for k in (0, 1)))
        step = np.abs(np.roll(field, -1, axis) - field)
        inner = np.delete(np.where(both, step, 0), -1, axis)
        assert inner.max() < steepest
    # And across the cut they do.
    assert len(np.unique(mesh.places)) < mesh.count


def test_sides_of_a_cut_through_the_section_hang_together_no_more() -> None:
    mesh = CutGrid(grid(), cut(*LINES["through"]))
    whole = mesh.precision(1.0, 200.0)
    assert whole.shape == (mesh.count, mesh.count)
    from scipy.sparse.csgraph import connected_components

    assert connected_components(whole, directed=False)[0] == 2
    assert connected_components(CutGrid(grid(), cut(*LINES["slit"])).precision(1.0, 200.0), directed=False)[0] == 1


def test_a_grid_without_cuts_is_the_plain_one() -> None:
    assert cut_along(bands(((60, 60), (64, 60))), grid(), 2) is None
    assert cut_along(np.zeros((150, 200), bool), grid(), 2) is None


def test_cuts_are_kept() -> None:
    found = cut(*LINES["crossing"])
    again = Cut.from_arrays(found.arrays())
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert found.sheets > 4


def test_bands_are_long_and_thin() -> None:
    kind = np.full((200, 300), TISSUE, np.uint8)
    kind[:90, 100:107] = ARTIFACT
    kind[93:140, 100:107] = ARTIFACT  # behind a faint place
    cv2.ellipse(kind, (220, 100), (50, 35), 0, 0, 360, ARTIFACT, -1)
    cv2.line(kind, (20, 180), (35, 180), ARTIFACT, 5)
    found = candidates(kind, 30.0)
    assert found.max() == 1
    assert found[10, 103] == found[91, 103] == found[130, 103] == 1
    assert not found[:, 150:].any()


def test_a_jump_is_told_from_tissue_that_moves() -> None:
    """A fold moves tissue against both neighbours alike; tissue goes on the way it went."""
    found, band, rng = cut(*LINES["through"]), bands(*LINES["through"]), np.random.default_rng(4)
    xy = rng.uniform([20, 20], [380, 280], (1500, 2))
    right = (found.sheet_at(xy) == found.sheet_at(np.array([[330.0, 20.0]]))[0])[:, None]
    assert found.sheets == 3

    def across(by: float) -> Jump | None:
        slope = (xy - 200) @ np.array([[0.01, 0.004], [-0.02, 0.005]])
        return jump(found, band, xy, slope + right * [by, 0] + rng.normal(0, 1.0, xy.shape), 50.0)

    above, below = across(20.0), across(20.0)
    assert above is not None
    assert abs(abs(above.xy_px[0]) - 20) < 4 * above.error_px
    assert (torn := mean_jump([above, below])) is not None
    assert torn.torn(2)
    assert (moving := mean_jump([across(20.0), across(-20.0)])) is not None
    assert not moving.torn(2)
    assert (nothing := mean_jump([across(0.0), None])) is not None
    assert not nothing.torn(2)
    assert mean_jump([None, None]) is None

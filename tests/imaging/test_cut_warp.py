"""CutWarp: sheets where they hold, nothing on cuts, back again, npz round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from happyneurons.imaging.aligntk_maps import map_of
from happyneurons.imaging.cut_warp import HIDDEN, CutWarp, section_warp
from happyneurons.imaging.transforms import AlignTransforms, transforms_path
from happyneurons.imaging.warp import GridWarp
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store

JUMP_PX = 30.0


@pytest.fixture
def fold() -> CutWarp:
    """200 x 100 px of which x = 80 to 90 lie on a fold; left of it tissue stays, right of it it moves by 30 px."""
    left, right = GridWarp.identity(200, 100, 50), GridWarp.translation((JUMP_PX, 0), 200, 100, 50)
    sheet_of = np.zeros((20, 40), np.uint8)
    sheet_of[:, 18:] = 1
    sheet_of[:, 16:18] = HIDDEN
    return CutWarp([left, right], sheet_of, (0.0, 0.0), 5.0)


def test_both_sides_go_their_way_and_the_fold_nowhere(fold: CutWarp) -> None:
    mapped = fold.map([[10.0, 10.0], [79.0, 10.0], [85.0, 10.0], [90.0, 10.0], [199.0, 99.0], [np.nan, 3.0]])
    expected = [[10, 10], [79, 10], [np.nan] * 2, [90 + JUMP_PX, 10], [199 + JUMP_PX, 99], [np.nan] * 2]
    np.testing.assert_allclose(mapped, expected, atol=1e-9)


def test_what_the_fold_hides_has_no_source(fold: CutWarp) -> None:
    x = np.arange(0.0, 229.0, 0.5)
    back = fold.inverse(np.column_stack([x, np.full_like(x, 40.0)]))
    shown = (x < 79.4) | (x > 89.6 + JUMP_PX)
    hidden = (x > 79.6) & (x < 89.4 + JUMP_PX)
    assert np.isfinite(back[shown]).all()
    assert np.isnan(back[hidden]).all()
    np.testing.assert_allclose(fold.map(back[shown])[:, 0], x[shown], atol=1e-4)


def test_no_target_is_lost_where_sheets_meet() -> None:
    """Two sheets of one map: they differ by rounding, and the border between them runs through px."""
    rng = np.random.default_rng(2)
    plain = GridWarp.affine([[1.01, 0.02, 3.0], [-0.015, 0.99, 5.0]], 300, 300, 60)
    bent = plain.with_nodes(plain.nodes + rng.normal(0, 2, plain.nodes.shape))
    other = bent.with_nodes(bent.nodes + rng.normal(0, 1e-7, bent.nodes.shape))
    sheet_of = (rng.random((100, 100)) < 0.5).astype(np.uint8)
    warp = CutWarp([bent, other], sheet_of, (0.0, 0.0), 3.0)
    sources = rng.uniform(5, 290, (20_000, 2))
    np.testing.assert_allclose(warp.inverse(warp.map(sources)), sources, atol=1e-3)


def test_from_another_corner(fold: CutWarp) -> None:
    corner = np.array([40.0, -30.0])
    points = np.array([[10.0, 10.0], [85.0, 10.0], [150.0, 60.0]])
    np.testing.assert_allclose(fold.from_corner(corner).map(points + corner), fold.map(points) + corner)
    np.testing.assert_allclose(fold.translated((1, 2)).map(points), fold.map(points) + [1, 2])


def test_kept_and_read_again(fold: CutWarp, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put_arrays(transforms_path(3), **fold.arrays("section"))
    transforms = AlignTransforms(Artifact(kind="section_stack", uri=store.uri, data_uri=store.uri, digest="0"))
    points = np.random.default_rng(0).uniform(0, 190, (500, 2))
    assert isinstance(transforms.warp(3), CutWarp)
    mapped, back = transforms.map(3, points), transforms.inverse(3, points)
    np.testing.assert_array_equal(mapped, fold.map(points))
    np.testing.assert_array_equal(back, fold.inverse(points))
    plain = section_warp(GridWarp.identity().arrays("section"), "section")
    assert isinstance(plain, GridWarp)
    with pytest.raises(KeyError):
        section_warp(fold.arrays("section"), "tile_0_1")


def test_aligntk_gets_the_sheet_of_the_whole_section(fold: CutWarp) -> None:
    assert np.array_equal(map_of(fold, "a", "b").places, map_of(fold.sheets[0], "a", "b").places)


def test_sheets_that_do_not_exist_are_refused(fold: CutWarp) -> None:
    with pytest.raises(ValueError, match="sheet 1 is named, there are 1"):
        CutWarp(fold.sheets[:1], fold.sheet_of, (0, 0), 5.0)
    with pytest.raises(ValueError, match="1 to 255 sheets"):
        CutWarp([], fold.sheet_of, (0, 0), 5.0)

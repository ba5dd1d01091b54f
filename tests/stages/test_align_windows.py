"""Long stacks: windows that overlap, solved by tasks of their own, say what the stack as a whole says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.imaging.transforms import AlignTransforms
from happyneurons.stages.align.params import AlignParams, Lengths
from happyneurons.stages.align.system import NodeGrid
from happyneurons.stages.align.windows import weights, windows
from happyneurons.store.documents import Store
from tests.stages.attempts import files
from tests.stages.test_align import SECTIONS, Z0, Warps, align, distorted, errors, grid_points, publish, tissue

__all__ = ["distorted", "tissue"]  # fixtures
LONG = {"window_sections": 8, "window_overlap": 4}


@pytest.mark.parametrize(("count", "size", "overlap"), [(10_000, 256, 24), (257, 256, 24), (20, 8, 4), (9, 8, 2)])
def test_windows_cover_all_sections_and_their_shares_add_up(count: int, size: int, overlap: int) -> None:
    found = windows(count, size, overlap)
    total = np.zeros(count)
    for i, window in enumerate(found):
        total[window.start : window.stop] += weights(found, i)
        assert window.stop - window.start <= size + 1
    np.testing.assert_allclose(total, 1)
    for before, after in pairwise(found):
        assert before.stop - after.start == overlap


def test_large_sections_are_aligned_as_finely_as_small_ones() -> None:
    params, voxel_nm = AlignParams(), (2.5, 2.5, 30.0)
    small, large, huge = (Lengths.of(params, n, n, voxel_nm) for n in (2080, 8320, 100_000))
    assert (large.factor, large.node_spacing_px, large.spacing_px) == (3, 104, 17)
    assert (small.factor, small.node_spacing_px, small.spacing_px) == (3, 104, 17)
    assert NodeGrid(100_000, 100_000, huge.node_spacing_px).shape == (81, 81)
    assert 100_000 / huge.factor <= 4096
    # Windows do not outgrow memory.
    assert small.window_sections == 256
    assert large.window_sections == huge.window_sections == 48
    assert Lengths.of(AlignParams(window_sections=300), 8320, 8320, voxel_nm).window_sections == 300


def test_thin_sections_are_not_matched_on_more_px_than_detail_needs() -> None:
    for thickness_nm, factor in ((30.0, 3), (20.0, 2), (10.0, 2), (2.5, 2)):
        assert Lengths.of(AlignParams(), 2080, 2080, (2.5, 2.5, thickness_nm)).factor == factor


@pytest.mark.slow
def test_windows_say_what_the_whole_stack_says(tmp_path: Path, distorted: tuple[np.ndarray, Warps]) -> None:
    pictures, truth = distorted
    stores = [Store(str(tmp_path / name)) for name in ("whole", "windows")]
    (_, whole), (manifest, cut) = (
        align(store, publish(store, pictures), **params) for store, params in zip(stores, ({}, LONG), strict=True)
    )
    names = [p.split("/", 1)[-1] for p in files(stores[1], manifest.job_key)]
    assert len([n for n in names if n.startswith("solve/0")]) == len(windows(SECTIONS, 8, 4)) > 3
    points = grid_points()
    apart = []
    for z in range(Z0, Z0 + SECTIONS):
        one, other = AlignTransforms(whole).map(z, points), AlignTransforms(cut).map(z, points)
        assert one is not None
        assert other is not None
        apart.append(np.linalg.norm(one - other, axis=1))
    assert np.median(np.concatenate(apart)) < 0.3
    (adjacent, absolute, scale), (_, absolute_whole, _) = errors(cut, truth), errors(whole, truth)
    assert np.median(adjacent) < 0.6
    assert np.median(absolute) < 1.3 * np.median(absolute_whole)
    assert abs(scale - 1) < 0.005
    assert manifest.metrics["scale_error"] < 1e-4


def test_windows_must_be_longer_than_what_they_share(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    with pytest.raises(UserError, match="at most half of window_sections"):
        align(store, publish(store, distorted[0]), window_sections=8, window_overlap=5)

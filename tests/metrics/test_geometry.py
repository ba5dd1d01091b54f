"""Montage and alignment errors, on displacements that are known."""

from __future__ import annotations

import numpy as np
import pytest

from happyneurons.imaging.warp import GridWarp
from happyneurons.metrics.geometry import (
    alignment_errors,
    figures,
    fit_affine,
    fit_similarity,
    grid_points,
    montage_errors,
)

ROTATED = np.array([[0.8, -0.6, 30.0], [0.6, 0.8, -12.0]])
"""A rotation with a shift."""


def tiles(shift_of_last: tuple[float, float] = (0.0, 0.0)) -> dict[tuple[int, int], GridWarp]:
    """2 x 2 tiles of 200 x 150 px that overlap by 40 px."""
    found = {(r, c): GridWarp.translation((160 * c, 110 * r), 200, 150, 50) for r in range(2) for c in range(2)}
    found[1, 1] = found[1, 1].translated(shift_of_last)
    return found


def test_a_true_montage_has_no_error_however_it_lies() -> None:
    turned = {t: w.then(GridWarp.affine(ROTATED)) for t, w in tiles().items()}
    errors = montage_errors(turned, tiles(), (200, 150))
    assert len(errors.seam) > 50
    assert errors.seam.max() < 1e-6
    assert errors.residual.max() < 1e-6
    assert errors.unplaced == ()


def test_a_displaced_tile_is_seen_at_its_seams_only() -> None:
    errors = montage_errors(tiles((3.0, 4.0)), tiles(), (200, 150))
    displaced = np.isclose(errors.seam, 5.0)
    assert 0.3 < displaced.mean() < 0.7
    assert errors.seam[~displaced] == pytest.approx(0.0, abs=1e-6)
    assert 0.1 < np.median(errors.residual) < 5.0


def test_a_tile_without_a_place_is_named() -> None:
    found: dict[tuple[int, int], GridWarp | None] = {**tiles(), (0, 1): None}
    errors = montage_errors(found, tiles(), (200, 150))
    assert errors.unplaced == ((0, 1),)
    assert np.isfinite(errors.residual).all()


def test_nothing_placed() -> None:
    errors = montage_errors({}, tiles(), (200, 150))
    assert (len(errors.seam), len(errors.residual), len(errors.unplaced)) == (0, 0, 4)
    assert figures(errors.seam) == {}


def test_a_shifted_section_shows_on_both_sides_of_it() -> None:
    points = grid_points((0, 0), (300, 200), 20)
    aligned = {z: points.copy() for z in range(11)}
    aligned[5] = points + [0.0, 2.0]
    errors = alignment_errors(points, aligned)
    medians = {z: float(np.median(e)) for z, e in errors.adjacent.items()}
    assert medians == {z: pytest.approx(2.0 if z in (4, 5) else 0.0, abs=1e-3) for z in range(10)}
    assert np.median(errors.absolute) == pytest.approx(2.0 / 11, rel=0.01)


def test_shrinking_the_stack_gains_nothing() -> None:
    points = grid_points((0, 0), (300, 200), 20)
    rng = np.random.default_rng(0)
    noisy = {z: points + rng.normal(0, 1.0, 2) for z in range(20)}
    small = {z: 0.1 * xy for z, xy in noisy.items()}
    plain, shrunk = alignment_errors(points, noisy), alignment_errors(points, small)
    for z, errors in plain.adjacent.items():
        assert shrunk.adjacent[z] == pytest.approx(errors, rel=1e-6)
    assert shrunk.absolute == pytest.approx(plain.absolute, rel=1e-6)


def test_a_gap_is_measured_across() -> None:
    points = grid_points((0, 0), (100, 100), 10)
    hidden = np.full_like(points, np.nan)
    errors = alignment_errors(points, {0: points, 1: hidden, 2: points + [3.0, 0.0], 3: points + [3.0, 0.0]})
    assert list(errors.adjacent) == [0, 2]
    assert np.median(errors.adjacent[0]) == pytest.approx(3.0)
    assert alignment_errors(points, {0: hidden}).adjacent == {}


def test_fits_recover_their_kind_of_map() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 100, (50, 2))
    turned = 1.7 * points @ ROTATED[:, :2].T + ROTATED[:, 2]
    assert fit_similarity(points, turned) == pytest.approx(turned)
    sheared = points @ np.array([[1.0, 0.3], [0.0, 1.2]]) + 5
    assert fit_affine(points, sheared) == pytest.approx(sheared)
    assert np.abs(fit_similarity(points, sheared) - sheared).max() > 1
    mirrored = points * [-1, 1]
    assert np.abs(fit_similarity(points, mirrored) - mirrored).max() > 1

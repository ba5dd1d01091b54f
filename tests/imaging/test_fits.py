"""Fits to matches: affine with ridge, smooth maps along a strip."""

from __future__ import annotations

import numpy as np

from happyneurons.imaging import fits
from happyneurons.imaging.matching import Matches


def test_affine_is_recovered_and_weights_count() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1000, (80, 2))
    matrix = np.array([[1.001, 0.002, 40.0], [-0.003, 0.999, -7.0]])
    q = fits.apply_affine(matrix, p)
    np.testing.assert_allclose(fits.fit_affine(p, q), matrix, atol=1e-6)
    q[:20] += 50
    weights = np.r_[np.zeros(20), np.ones(60)]
    np.testing.assert_allclose(fits.fit_affine(p, q, weights), matrix, atol=1e-6)


def test_ridge_keeps_a_line_of_points_from_shearing() -> None:
    p = np.column_stack([np.full(30, 5.0), np.linspace(0, 300, 30)])
    fitted = fits.fit_affine(p, p + np.array([3.0, 1.0]), ridge=25.0)
    np.testing.assert_allclose(fitted, [[1, 0, 3], [0, 1, 1]], atol=1e-6)


def strip(wrong: int) -> tuple[Matches, np.ndarray]:
    """200 matches along a bent seam, 0.2 px off; the first ones anywhere within 15 px."""
    rng = np.random.default_rng(1)
    p = np.column_stack([rng.uniform(900, 980, 200), rng.uniform(0, 1000, 200)])
    s = (p[:, 1] - 500) / 500
    q = p + np.column_stack([-900 + 4 * s**2, 7 + 12 * s - 3 * s**3])
    true = q.copy()
    q += rng.normal(0, 0.2, q.shape)
    q[:wrong] += rng.uniform(-15, 15, (wrong, 2))
    return Matches(p, q, np.full(200, 0.7)), true


def test_smooth_map_follows_a_bent_seam_and_drops_wrong_matches() -> None:
    matches, true = strip(wrong=60)
    keep, course = fits.fit_smooth(matches)
    far = np.linalg.norm(matches.xy_b - true, axis=1) > 3
    assert not keep[far].any()
    assert keep[60:].mean() > 0.97
    assert np.abs(course(matches.xy_a) - true).max() < 0.5


def test_scattered_matches_agree_on_little() -> None:
    rng = np.random.default_rng(2)
    p = rng.uniform(0, 1000, (200, 2))
    keep, _ = fits.fit_smooth(Matches(p, p + rng.uniform(-8, 8, p.shape), np.ones(200)), most_px=3)
    assert keep.mean() < 0.35


def test_few_matches_give_their_shift() -> None:
    keep, course = fits.fit_smooth(Matches(np.array([[5.0, 6.0]]), np.array([[9.0, 4.0]]), np.ones(1)))
    assert keep.all()
    np.testing.assert_allclose(course([[100.0, 50.0]]), [[104.0, 48.0]], atol=0.1)
    keep, course = fits.fit_smooth(Matches.none())
    assert len(keep) == 0
    np.testing.assert_allclose(course([[1.0, 2.0]]), [[1.0, 2.0]])

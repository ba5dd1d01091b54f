"""GridWarp: map, inverse, inverse field, extrapolation, npz round trip."""

from __future__ import annotations

import numpy as np
import pytest

from happyneurons.imaging.warp import GridWarp


def bent(amplitude_px: float = 6.0, seed: int = 0) -> GridWarp:
    """A random smooth warp of a 640 x 480 image with rotation and a far-away target."""
    rng = np.random.default_rng(seed)
    angle = 0.2
    m = [[np.cos(angle), -np.sin(angle), 5000.0], [np.sin(angle), np.cos(angle), -700.0]]
    warp = GridWarp.affine(m, 640, 480, 80.0)
    return warp.with_nodes(warp.nodes + rng.normal(0, amplitude_px, warp.nodes.shape))


def points(seed: int = 1, low: float = -40, high: float = 520) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (500, 2))


def test_affine_is_exact_inside_and_far_outside() -> None:
    m = np.array([[1.1, -0.2, 33.0], [0.1, 0.9, -7.0]])
    warp = GridWarp.affine(m, 300, 200, 64.0)
    p = points(low=-3000, high=3000)
    np.testing.assert_allclose(warp.map(p), p @ m[:, :2].T + m[:, 2], atol=1e-9)
    np.testing.assert_allclose(warp.inverse(warp.map(p)), p, atol=1e-6)
    np.testing.assert_allclose(GridWarp.identity().map(p), p, atol=1e-9)
    np.testing.assert_allclose(GridWarp.translation((3, -4)).inverse(p), p - [3, -4], atol=1e-9)


def test_nodes_are_hit_exactly() -> None:
    warp = bent()
    np.testing.assert_allclose(warp.map(warp.sources().reshape(-1, 2)), warp.nodes.reshape(-1, 2), atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_inverse_undoes_map(seed: int) -> None:
    warp = bent(seed=seed)
    p = points(seed)
    assert np.abs(warp.inverse(warp.map(p)) - p).max() < 1e-3
    assert np.abs(warp.map(warp.inverse(warp.map(p))) - warp.map(p)).max() < 1e-3


def test_no_inverse_of_a_point_is_nan() -> None:
    warp = GridWarp((0, 0), 10.0, np.zeros((2, 2, 2)))  # everything lands on one point
    assert np.isnan(warp.inverse([[5.0, 5.0]])).all()
    assert np.isnan(warp.map([[np.nan, 1.0]])).all()


def test_extrapolation_is_linear_and_continuous() -> None:
    warp = bent()
    edge, one, two = warp.map([[640.0, 200.0], [650.0, 200.0], [660.0, 200.0]])
    np.testing.assert_allclose(two - one, one - edge, atol=1e-9)
    corner = warp.map([[640.0, 480.0], [640.0 + 1e-9, 480.0 + 1e-9]])
    np.testing.assert_allclose(corner[0], corner[1], atol=1e-6)


def test_inverse_field_agrees_with_inverse() -> None:
    # A kinked warp is followed to the linear interpolation's error only; a smooth one closely.
    warp = GridWarp.affine([[1.0, 0.02, 4000.0], [-0.03, 1.01, 900.0]], 640, 480, 80.0)
    s = warp.sources()
    warp = warp.with_nodes(warp.nodes + np.stack([3 * np.sin(s[..., 0] / 200), 3 * np.cos(s[..., 1] / 150)], axis=-1))
    field = warp.inverse_field(4010, 905, 301, 157, step=8)
    assert field.shape == (157, 301, 2)
    assert field.dtype == np.float32
    x, y = np.meshgrid(4010 + np.arange(301), 905 + np.arange(157))
    exact = warp.inverse(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(157, 301, 2)
    assert np.abs(field - exact).max() < 0.1
    assert np.abs(field - exact).mean() < 0.01
    np.testing.assert_allclose(warp.inverse_field(4010, 905, 301, 157, step=1), exact, atol=1e-3)


def test_inverse_field_of_identity_is_the_pixel_grid() -> None:
    field = GridWarp.identity().inverse_field(70000, 3, 50, 20, step=16)
    np.testing.assert_allclose(field[..., 0], np.broadcast_to(70000 + np.arange(50), (20, 50)), atol=0.01)
    np.testing.assert_allclose(field[..., 1].T, np.broadcast_to(3 + np.arange(20), (50, 20)), atol=1e-3)


def test_remap_through_the_field_moves_a_picture() -> None:
    import cv2

    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.uniform(0, 255, (200, 220)).astype(np.float32), (0, 0), 3)
    field = GridWarp.translation((30, 12)).inverse_field(30, 12, 220, 200)
    out = cv2.remap(image, field[..., 0], field[..., 1], cv2.INTER_LINEAR)
    np.testing.assert_allclose(out, image, atol=0.05)


def test_arrays_round_trip() -> None:
    warp = bent()
    again = GridWarp.from_arrays(warp.arrays("tile_0_1"), "tile_0_1")
    p = points()
    np.testing.assert_array_equal(again.map(p), warp.map(p))
    with pytest.raises(KeyError):
        GridWarp.from_arrays(warp.arrays("tile_0_1"), "tile_0_2")


def test_then_and_bounds() -> None:
    a, b = GridWarp.translation((5, 6), 100, 100, 50), GridWarp.affine([[2, 0, 1], [0, 2, 0]])
    np.testing.assert_allclose(a.then(b).map([[1.0, 1.0]]), [[13.0, 14.0]])
    assert GridWarp.translation((5, 6)).bounds(11, 21) == (5.0, 6.0, 15.0, 26.0)


@pytest.mark.parametrize("nodes", [np.zeros((1, 2, 2)), np.zeros((2, 2)), np.zeros((2, 2, 3))])
def test_wrong_nodes_are_refused(nodes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="nodes must be"):
        GridWarp((0, 0), 1.0, nodes)

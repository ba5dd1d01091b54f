"""Filter, coarse shift, block matches, robust affine fit: on textures whose shift is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from happyneurons.imaging import matching as m


def texture(height: int, width: int, seed: int = 0, sigma: float = 2.0) -> np.ndarray:
    """Smooth random texture around 128, float32."""
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return 128 + 30 * smooth / smooth.std()


def crop(scene: np.ndarray, x: float, y: float, width: int, height: int) -> np.ndarray:
    """Sub-pixel crop with noise of its own."""
    gx, gy = np.meshgrid(np.arange(width) + x, np.arange(height) + y)
    picture = cv2.remap(scene, gx.astype(np.float32), gy.astype(np.float32), cv2.INTER_CUBIC)
    noise = np.random.default_rng(int(x * 100) + int(y)).standard_normal(picture.shape)
    return (picture + 6 * noise).astype(np.float32)


def test_dog_ignores_brightness_and_masked_pixels() -> None:
    image = texture(80, 90)
    np.testing.assert_allclose(m.dog(image + 50), m.dog(image), atol=1e-3)
    mask = np.ones(image.shape, np.uint8)
    mask[:, 40:] = 0
    dirty = image.copy()
    dirty[:, 40:] = 255
    assert (m.dog(dirty, mask=mask)[:, 40:] == 0).all()
    np.testing.assert_allclose(m.dog(dirty, mask=mask)[:, :38], m.dog(image, mask=mask)[:, :38], atol=1e-3)


def test_shrink_puts_points_where_it_says() -> None:
    ramp = np.tile(np.arange(41, dtype=np.float32), (30, 1))
    assert m.shrink(ramp, 4).shape == (7, 10)
    np.testing.assert_allclose(m.shrink(ramp, 4)[0], np.arange(10) * 4 + 1.5)


@pytest.mark.parametrize("shift", [(180.3, 6.7), (170.0, -31.0), (-150.0, 90.0), (0.0, 0.0)])
def test_coarse_shift_finds_any_overlap(shift: tuple[float, float]) -> None:
    scene = texture(600, 800)
    a = m.dog(crop(scene, 300, 200, 200, 220))
    b = m.dog(crop(scene, 300 + shift[0], 200 + shift[1], 200, 220))
    found = m.coarse_shift(a, b)
    assert found is not None
    np.testing.assert_allclose(found.shift_xy, np.negative(shift), atol=0.5)
    assert found.significance > 1.5
    assert found.significance > 1.5 * found.runner_up


def test_coarse_shift_of_strangers_is_not_significant() -> None:
    found = [m.coarse_shift(m.dog(texture(150, 160, 2 * s)), m.dog(texture(150, 160, 2 * s + 1))) for s in range(5)]
    assert all(f is not None and f.significance < 1.2 for f in found)


def test_coarse_shift_with_masks_ignores_a_shared_stain() -> None:
    scene = texture(400, 500)
    a, b = crop(scene, 50, 50, 200, 200), crop(scene, 80, 65, 200, 200)
    a[60:140, 60:140] = b[60:140, 60:140] = 255 * (np.indices((80, 80)).sum(0) // 8 % 2)
    mask = np.ones((200, 200), np.uint8)
    mask[55:145, 55:145] = 0
    with_mask = m.coarse_shift(m.dog(a, mask=mask), m.dog(b, mask=mask), mask_a=mask, mask_b=mask)
    assert with_mask is not None
    np.testing.assert_allclose(with_mask.shift_xy, (-30, -15), atol=0.5)


def test_all_valid_masks_change_nothing() -> None:
    scene = texture(300, 300)
    a, b = m.dog(crop(scene, 20, 20, 90, 70)), m.dog(crop(scene, 60, 31, 100, 85))
    ones = np.ones_like(a, np.uint8)
    plain, masked = m.coarse_shift(a, b), m.coarse_shift(a, b, mask_a=ones)
    assert plain is not None
    assert masked is not None
    np.testing.assert_allclose(plain.shift_xy, masked.shift_xy, atol=1e-4)
    np.testing.assert_allclose(plain.correlation, masked.correlation, atol=1e-6)
    assert plain.overlap_px == masked.overlap_px


def test_coarse_shift_keeps_to_what_is_allowed() -> None:
    scene = texture(300, 300)
    a, b = m.dog(crop(scene, 20, 20, 90, 70)), m.dog(crop(scene, 60, 31, 90, 70))
    found = m.coarse_shift(a, b, expected_xy=(0, 0), max_error_px=5)
    assert found is not None
    assert np.abs(found.shift_xy).max() <= 6
    assert m.coarse_shift(a, b, expected_xy=(900, 0), max_error_px=5) is None
    assert m.coarse_shift(np.zeros((50, 50)), np.zeros((50, 50))) is None


def test_blocks_match_to_a_tenth_of_a_pixel() -> None:
    scene = texture(400, 500)
    a, b = m.dog(crop(scene, 50, 50, 300, 300)), m.dog(crop(scene, 52.4, 47.7, 300, 300))
    centres = m.block_centres(30, 30, 270, 270, 30)
    found = m.match_blocks(a, b, centres, centres, half_px=20, search_px=6)
    assert len(found) > 0.9 * len(centres)
    error = found.xy_b - found.xy_a - [-2.4, 2.3]
    assert np.median(np.abs(error)) < 0.1
    assert np.abs(error.mean(axis=0)).max() < 0.05


def test_blocks_on_masked_ground_or_over_the_edge_are_dropped() -> None:
    a = m.dog(texture(100, 100))
    mask = np.ones((100, 100), np.uint8)
    mask[:, 50:] = 0
    centres = np.array([[20.0, 50], [80.0, 50], [3.0, 50]])
    found = m.match_blocks(a, a, centres, centres, half_px=10, search_px=4, mask_a=mask)
    np.testing.assert_array_equal(found.xy_a, [[20, 50]])
    assert len(m.match_blocks(a, a, centres, centres + 300, half_px=10, search_px=4)) == 0


def test_ambiguous_blocks_are_dropped() -> None:
    stripes = m.dog(np.tile(128 + 40 * np.sin(np.arange(120) * 2 * np.pi / 8), (120, 1)).astype(np.float32))
    centre = np.array([[60.0, 60.0]])
    found = m.match_blocks(stripes, stripes, centre, centre, half_px=20, search_px=10, max_ambiguity=0.9)
    assert len(found) == 0
    image = m.dog(texture(120, 120))
    assert len(m.match_blocks(image, image, centre, centre, half_px=20, search_px=10, max_ambiguity=0.9)) == 1


def test_level_contrast_raises_faint_texture_beside_a_strong_edge() -> None:
    image = 0.1 * (texture(200, 200) - 128)
    image[:, 150:] += 120
    filtered = m.dog(image)
    level = m.level_contrast(filtered, 10)
    before = np.abs(filtered[:, 150]).mean() / filtered[:, :100].std()
    after = np.abs(level[:, 150]).mean() / level[:, :100].std()
    assert after < 0.3 * before

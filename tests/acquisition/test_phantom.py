"""The phantom is what its docstring promises: a fair and repeatable target."""

from __future__ import annotations

from pathlib import Path

import cc3d
import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter

from happyneurons.acquisition.noise import SmoothNoise
from happyneurons.acquisition.phantom import Phantom, make_phantom, write_phantom
from happyneurons.store.volumes import open_volume

SHAPE = (40, 128, 128)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SHAPE, seed=3)


def test_same_seed_same_voxels_other_seed_other_voxels(phantom: Phantom) -> None:
    again, other = make_phantom(SHAPE, seed=3), make_phantom(SHAPE, seed=4)
    assert np.array_equal(again.image, phantom.image)
    assert np.array_equal(again.labels, phantom.labels)
    assert not np.array_equal(other.labels, phantom.labels)


def test_every_label_is_one_connected_component_of_useful_size(phantom: Phantom) -> None:
    number = cc3d.connected_components(phantom.labels, connectivity=26, return_N=True)[1]
    assert number == phantom.objects
    # No two labels touch either: their union has as many components.
    assert cc3d.connected_components(phantom.labels > 0, connectivity=26, return_N=True)[1] == number
    sizes = np.bincount(phantom.labels.ravel())[1:]
    assert (sizes >= 400).all()
    assert len(sizes) >= 15
    assert sizes.max() < phantom.labels.size / 4


def test_membranes_separate_all_neurites(phantom: Phantom) -> None:
    labels = phantom.labels.astype(np.int64)
    high = maximum_filter(labels, 3)
    low = minimum_filter(np.where(labels == 0, 1 << 40, labels), 3)
    touching = (labels > 0) & (high != low)
    assert not touching.any()
    assert 0.15 < (labels == 0).mean() < 0.4


def test_membranes_are_dark_and_cytoplasm_is_light(phantom: Phantom) -> None:
    membrane, inside = phantom.image[phantom.labels == 0], phantom.image[phantom.labels > 0]
    assert inside.mean() - membrane.mean() > 40
    assert 100 < phantom.image.mean() < 170
    assert (phantom.image == 0).mean() < 0.001
    assert (phantom.image == 255).mean() < 0.001


def test_mitochondria_are_dark_parts_of_labels(phantom: Phantom) -> None:
    import cv2

    smooth = np.stack([cv2.GaussianBlur(s, (0, 0), 2) for s in phantom.image])
    far = minimum_filter(phantom.labels, 7) == maximum_filter(phantom.labels, 7)
    dark = (smooth < 135) & far & (phantom.labels > 0)
    assert dark.sum() > 200


def overlap(labels: np.ndarray) -> float:
    """Share of tissue that has the same label in the next section."""
    a, b = labels[:-1], labels[1:]
    return float((a == b)[a > 0].mean())


def test_thick_sections_sample_the_same_kind_of_tissue() -> None:
    phantom = make_phantom((12, 128, 128), seed=3, anisotropy=4.0)
    assert phantom.voxel_size_nm_xyz == (8.0, 8.0, 32.0)
    assert phantom.image.shape == (12, 128, 128)
    assert phantom.objects >= 15
    # Neighbouring sections differ more than thin ones, but neurites go on.
    assert 0.6 < overlap(phantom.labels) < overlap(make_phantom((12, 128, 128), seed=3).labels) - 0.05


def test_noise_is_the_same_in_pieces_and_has_its_variance() -> None:
    noise = SmoothNoise((400.0, 400.0), 20.0, np.random.default_rng(0))
    x = np.arange(400.0)
    whole = noise(x, x)
    assert np.allclose(noise(x[100:150], x[7:90]), whole[100:150, 7:90], atol=1e-5)
    assert 0.8 < whole.std() < 1.2
    step = np.abs(np.diff(whole, axis=0)).max()
    assert step < 0.3


def test_written_volumes_hold_the_phantom(phantom: Phantom, tmp_path: Path) -> None:
    image_uri, labels_uri = write_phantom(phantom, (tmp_path / "phantom").as_uri())
    image, labels = open_volume(image_uri), open_volume(labels_uri)
    assert image.voxel_size_nm_xyz == labels.voxel_size_nm_xyz == (8.0, 8.0, 8.0)
    assert np.array_equal(image.read((0, 0, 0), SHAPE), phantom.image)
    assert np.array_equal(labels.read((0, 0, 0), SHAPE), phantom.labels)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        make_phantom((4, 64, 64))


def test_phantoms_without_cell_bodies_are_those_from_before_there_were_any(phantom: Phantom) -> None:
    """Figures of the phantom before it knew cell bodies."""
    assert phantom.bodies is None
    assert (phantom.objects, int((phantom.labels > 0).sum())) == (33, 486348)
    assert int(phantom.image.sum(dtype=np.int64)) == pytest.approx(87886504, rel=1e-6)
    none = make_phantom(SHAPE, seed=3, cell_bodies=0)
    assert np.array_equal(none.image, phantom.image)
    assert np.array_equal(none.labels, phantom.labels)
